"""One short message for what a user can fix: which option, what was given, the nearest spelling.

Hydra and OmegaConf report the same slip in several forms, depending on where it was made (command line, preset, group).
Imported when there is an error, never before.
"""

from __future__ import annotations

import re
import sys
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from robovlms.cli.failures import explain_failure
from robovlms.cli.option_files import file_of
from robovlms.config.presets import groups, options
from robovlms.config.schemas import schemas
from robovlms.errors import UserError
from robovlms.registry import nearest

# What other programs call options of ours.
ALIASES = {
    "learning_rate": "optimizer.lr", "wd": "optimizer.weight_decay", "adam_beta1": "optimizer.betas",
    "gradient_clip_val": "optimizer.max_grad_norm", "clip_grad_norm": "optimizer.max_grad_norm",
    "max_steps": "schedule.total", "num_train_steps": "schedule.total", "total_steps": "schedule.total",
    "steps": "schedule.total", "max_epochs": "schedule.total", "num_epochs": "schedule.total",
    "num_train_epochs": "schedule.total", "epochs": "schedule.total", "warmup_steps": "schedule.warmup",
    "warmup_epochs": "schedule.warmup", "warmup_ratio": "schedule.warmup", "save_steps": "trainer.save_every",
    "save_interval": "trainer.save_every", "save_freq": "trainer.save_every", "eval_steps": "trainer.validate_every",
    "eval_freq": "trainer.validate_every", "logging_steps": "trainer.log_every", "log_freq": "trainer.log_every",
    "per_device_train_batch_size": "device_batch_size", "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "device_batch_size", "accumulate_grad_batches": "device_batch_size",
    "resume_from_checkpoint": "trainer.resume", "ckpt_path": "trainer.resume", "pretrained": "trainer.init_from",
    "model": "backbone", "vlm": "backbone", "policy": "head", "dataset": "data", "env": "sim",
    "horizon": "window.chunk_size", "action_horizon": "window.chunk_size", "history": "window.window_size",
    "num_gpus": "torchrun --nproc-per-node", "gpus": "torchrun --nproc-per-node",
    "devices": "torchrun --nproc-per-node",
}  # fmt: skip


def explain(error: BaseException, schema: type) -> str | None:
    """Return the message for an error the user can fix, or None when the program is at fault.

    Args:
        error: as it left Hydra, a schema's check or the job.
        schema: the config's dataclass, whose keys are suggested.
    """
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        reason = error.message.split("\nSee ")[0].replace("\n", ": ")
        hint = "Write option=value, with quotes around what is special: 'option=\"a, b\"'."
        return f"cannot read {(error.override or '').removeprefix('++')!r} on the command line ({reason}). {hint}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _config_error(error, schema)
    if isinstance(error, AssertionError) and "Unexpected type for root: NoneType" in str(error):
        return _of_nothing(schema)
    if isinstance(error, UserError | YAMLError):
        return str(error)
    return explain_failure(error)


def _missing_option(error: MissingConfigException) -> str:
    """Say which options a group has."""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    known = list(error.options or [])
    return f"{group}={name} does not exist.{nearest(name, known)} Options: {', '.join(known)}."


def _config_error(error: Exception, schema: type) -> str:
    """Read key, value and place out of the error and its cause; their texts hold more than their attributes."""
    text = f"{error}\n{error.__cause__ or ''}"
    place = re.search(r"In '([^']+)': ", text)
    where = f"in {file_of(place[1])}: " if place else ""
    option = r"Could not (?:override|delete|append)[^']*'([^']+)'"
    found = re.search(option, text) or re.search(r"full_key: (\S+)", text)
    key = found[1] if found else ""
    if several := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return (
            f"{several[1]}: for several runs, one after another, add --multirun; a list is written [a,b], a text "
            "with a comma in quotes."
        )
    if "Could not override" in text or re.search(r"Key '[^']+' not in", text):
        return where + unknown_option(key, schema)
    if "does not support deletion" in text or "Could not delete" in text:
        return where + (left_out(key) if key in option_names(schema) else unknown_option(key, schema))
    if expected := re.search(r"Invalid value '([^']*)', expected one of \[([^]]*)\]", text):
        known = expected[2].split(", ")
        return f"{where}{key}={expected[1]} does not exist.{nearest(expected[1], known)} Options: {', '.join(known)}."
    if unresolved := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"{where}{key} refers to ${{{unresolved[1]}}}, which is no option.{suggest(unresolved[1], schema)}"
    if "is not Optional" in text:
        return f"{where}{key}=null is not possible: give a value, or leave the option as it is."
    if "is not a subclass of" in text:
        inside = [name for name in option_names(schema) if name.startswith(f"{key}.")]
        return f"{where}{key} has options of its own: {', '.join(inside)}."
    if "is not a ListConfig, list or tuple" in text:
        return f"{where}{key} is a list: write {key}=[{_given(key)}]."
    lines = [line for line in str(error.__cause__ or error).splitlines() if line and not re.match(r"\s+\w+[:=]", line)]
    return f"{where}{key}{': ' if key else ''}{' '.join(lines)}"


def _given(key: str) -> str:
    """Return the value that the command line gives an option."""
    values = [argument.partition("=")[2] for argument in sys.argv[1:] if argument.partition("=")[0].lstrip("+") == key]
    return values[-1] if values else "..."


def _of_nothing(schema: type) -> str:
    """Say that options of a group were given, and none of the group was chosen."""
    given = [argument.partition("=")[0].lstrip("+~") for argument in sys.argv[1:]]
    for name, hint in get_type_hints(schema).items():
        changed = [key for key in given if key.startswith(f"{name}.")]
        if type(None) in get_args(hint) and changed and name not in given:
            return f"{changed[0]}: no {name} is chosen, so it has no options. Add one, e.g. {name}={options(name)[0]}."
    return "an option of a group was given that is null: choose one of its options first."


def left_out(key: str) -> str:
    """Say that an option cannot be taken away."""
    if key in groups():
        return f"{key} cannot be left out: choose one of {', '.join(options(key))}."
    return f"{key} cannot be left out: set a value, {key}=<value>."


def unknown_option(key: str, schema: type) -> str:
    """Say that there is no such option, and which is meant."""
    names = option_names(schema)
    group, parent = key.partition(".")[0], key.rpartition(".")[0]
    if key in names:
        return f"there is no option '{key}' with this {group}; another choice of {group}= has it."
    if parent in names and parent in _named_by_user(schema):
        return f"{parent} has no '{key.rpartition('.')[2]}' yet: add it with +{key}=<value>."
    train = schemas()["train"]
    if schema is not train and key in option_names(train) and group not in {field.name for field in fields(schema)}:
        takes = ", ".join(sorted(field.name for field in fields(schema)))
        return f"there is no option '{key}' here: it is one of train.py. This command takes {takes}."
    return f"there is no option '{key}'.{suggest(key, schema)}"


def suggest(key: str, schema: type) -> str:
    """Return " Did you mean 'x'?" for the closest option or group; a key without its group finds its full name."""
    known = option_names(schema)
    group, _, leaf = key.rpartition(".")
    owners = [name for name in known if name.rpartition(".")[2] == leaf]
    meant = ALIASES.get(leaf, "")
    if not group and owners:
        return f" Did you mean '{owners[0]}'?"
    if meant and (meant in known or " " in meant):
        return f" Did you mean '{meant}'?"
    inside = [name for name in known if name.rpartition(".")[0] == group] if group else []
    return (nearest(key, inside) if group else "") or nearest(key, known)


def option_names(schema: type) -> list[str]:
    """List the dotted keys of a schema, those of its options' own schemas included, and the groups of presets."""
    presets = {"experiment", "sweep"} if schema is schemas()["train"] else set()
    return sorted(presets | {name for name, _ in _dotted(schema)})


def _named_by_user(schema: type) -> list[str]:
    """List the options whose keys are the user's to name, e.g. `data.views`."""
    return [name for name, hint in _dotted(schema) if get_origin(hint) is dict]


def _dotted(schema: type, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for cls in _family(schema):
        hints = get_type_hints(cls)
        for field in fields(cls):
            hint = hints[field.name]
            found.append((prefix + field.name, hint))
            for part in (hint, *get_args(hint)):  # SimConfig | None has its parts in the arguments
                if is_dataclass(part) and get_origin(hint) is not dict:
                    found += _dotted(part, f"{prefix}{field.name}.")  # type: ignore[arg-type]
    return found


def _family(schema: type) -> list[type]:
    """Return a schema and all that extend it, however deep."""
    family = [schema]
    for cls in family:  # grows while it is walked
        family += cls.__subclasses__()
    return family

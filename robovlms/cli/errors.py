"""One short message for what a user can fix: which option, what was given, the nearest spelling.

Hydra and OmegaConf report the same slip in several forms, depending on where it was made (command line, preset, group).
Imported when there is an error, never before.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import get_args, get_origin, get_type_hints

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from robovlms.config.presets import config_folder
from robovlms.registry import nearest


def explain(error: Exception, schema: type) -> str | None:
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
        return f"cannot read {error.override!r} on the command line ({reason}). {hint}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _config_error(error, schema)
    if isinstance(error, ImportError) and not (error.name or "").startswith("robovlms"):
        return f"{error}\nA missing package may belong to an extra of pyproject.toml: pip install -e '.[<extra>]'."
    if isinstance(error, ValueError | FileNotFoundError | PermissionError | YAMLError):
        return str(error)
    return None


def _missing_option(error: MissingConfigException) -> str:
    """Say which options a group has."""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    known = list(error.options or [])
    return f"{group}={name} does not exist.{nearest(name, known)} Options: {', '.join(known)}."


def _config_error(error: Exception, schema: type) -> str:
    """Read key, value and place out of the error and its cause; their texts hold more than their attributes."""
    text = f"{error}\n{error.__cause__ or ''}"
    place = re.search(r"In '([^']+)': ", text)
    where = f"in configs/{place[1]}.yaml: " if place else ""
    found = re.search(r"Could not override '([^']+)'", text) or re.search(r"full_key: (\S+)", text)
    key = found[1] if found else ""
    if "Could not override" in text or re.search(r"Key '[^']+' not in", text):
        return where + unknown_option(key, schema)
    if expected := re.search(r"Invalid value '([^']*)', expected one of \[([^]]*)\]", text):
        known = expected[2].split(", ")
        return f"{where}{key}={expected[1]} does not exist.{nearest(expected[1], known)} Options: {', '.join(known)}."
    if unresolved := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"{where}{key} refers to ${{{unresolved[1]}}}, which is no option.{suggest(unresolved[1], schema)}"
    lines = [line for line in str(error.__cause__ or error).splitlines() if line and not re.match(r"\s+\w+[:=]", line)]
    return f"{where}{key}{': ' if key else ''}{' '.join(lines)}"


def unknown_option(key: str, schema: type) -> str:
    """Say that there is no such option, and which is meant."""
    if key in option_names(schema):
        group = key.partition(".")[0]
        return f"there is no option '{key}' with this {group}; another choice of {group}= has it."
    return f"there is no option '{key}'.{suggest(key, schema)}"


def suggest(key: str, schema: type) -> str:
    """Return " Did you mean 'x'?" for the closest option or group; a key without its group finds its full name."""
    known = option_names(schema)
    owners = [name for name in known if name.rpartition(".")[2] == key]
    return f" Did you mean '{owners[0]}'?" if owners else nearest(key, known)


def option_names(schema: type) -> list[str]:
    """List the dotted keys of a schema, those of its options' own schemas included, and the config groups."""
    groups = [path.name for path in config_folder().iterdir() if path.is_dir()]
    return sorted({*groups, *_dotted(schema)})


def _dotted(schema: type, prefix: str = "") -> list[str]:
    names = []
    for cls in [schema, *schema.__subclasses__()]:
        hints = get_type_hints(cls)
        for field in fields(cls):
            names.append(prefix + field.name)
            parts = get_args(hints[field.name])  # SimConfig | None has its parts in the arguments
            for part in (hints[field.name], *parts):
                if is_dataclass(part) and get_origin(hints[field.name]) is not dict:
                    names += _dotted(part, f"{prefix}{field.name}.")  # type: ignore[arg-type]
    return names

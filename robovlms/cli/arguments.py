"""What a command line means, before Hydra reads it: flags anywhere, paths as they are, old names, a run's simulator."""

from __future__ import annotations

import difflib
import logging
import re
from pathlib import Path
from typing import Any

from robovlms.config.presets import groups, options
from robovlms.config.renamed import RENAMED, REPLACED, rename
from robovlms.errors import UserError
from robovlms.hub.repository import is_on_hub

log = logging.getLogger(__name__)

MULTIRUN = {"--multirun", "-m"}
HELP = {"--help", "-h"}
VERSION = "--version"
FLAGS = {*MULTIRUN, *HELP, VERSION, "--hydra-help", "--resolve", "--run", "-r", "--shell-completion", "-sc"}
VALUED = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
          "--experimental-rerun", "--info", "-i"}  # fmt: skip
PATHS = {"checkpoint", "output_dir", "root", "init_from", "resume", "folders", "cache_dir", "file", "image_folder",
         "source", "statistics_file", "few_shot_file", "tokenizer", "token", "server", "server_token",
         "tls_certificate", "tls_key"}  # fmt: skip
# Options of `evaluation` that a run's own config decides, unless they are given.
AS_TRAINED = ("execution", "execute_steps", "decision_steps", "latency", "executions", "language", "language_episodes",
              "videos_per_task", "source")  # fmt: skip
PLAIN = re.compile(r"[\w/.+$%*@?|:~ -]*")  # what Hydra's grammar takes without quotes


def rewrite(arguments: list[str], config_name: str) -> list[str]:
    """Return the command line for Hydra: flags, then overrides.

    Raises:
        UserError: a flag does not exist.
    """
    flags, overrides = split_flags(arguments)
    overrides = _renamed(overrides)
    for override in overrides:
        _check_choice(override)
    overrides = [_quoted(override, bool(MULTIRUN & set(flags))) for override in overrides]
    overrides = [_merging(override) for override in overrides]
    if config_name == "evaluate":
        overrides = [*_as_trained(overrides), *overrides]
    return [*flags, *overrides]


def split_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return flags with their values, and overrides, from a command line that has them in any order.

    Raises:
        UserError: there is no such flag; most often it is an option.
    """
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name = argument.partition("=")[0]
        if not argument.startswith("-"):
            overrides.append(argument)
        elif argument in VALUED:
            flags += [argument, *([value] if (value := next(rest, None)) is not None else [])]
        elif argument in FLAGS or name in VALUED:
            flags.append(argument)
        else:
            bare = argument.lstrip("-")
            told = bare if "=" in bare else f"{bare}=<value>"
            close = difflib.get_close_matches(name, FLAGS | VALUED, n=1, cutoff=0.8)
            meant = f" Did you mean '{close[0]}'?" if close else ""
            raise UserError(f"{name} is no flag.{meant} Options are written without dashes: {told}.")
    return flags, overrides


def _renamed(overrides: list[str]) -> list[str]:
    """Write old names of options as they are called today, with one warning."""
    changed, told = [], []
    for override in overrides:
        key, sign, value = override.partition("=")
        for old, new in RENAMED.items():
            key = re.sub(rf"(?<![\w.]){re.escape(old)}(?![\w])", new, key)
        word = {"true": True, "false": False}.get(value.lower())
        if key != override.partition("=")[0] and word in REPLACED.get(key, {}):
            value = REPLACED[key][word]
        value = value.replace("${data.parts", "${data.sources")
        if key + sign + value != override:
            told.append(f"{override.partition('=')[0]} is called {key} now")
        changed.append(key + sign + value)
    if told:
        log.warning("%s: the old names will go", "; ".join(told))
    return changed


def _check_choice(override: str) -> None:
    """Refuse what Hydra would take and nobody means: a list of options for one group, or a group taken away."""
    key, _, value = override.partition("=")
    if value.startswith("[") and key in groups():
        several = value.strip("[]").replace(" ", "")
        raise UserError(
            f"{override}: {key} is one choice, e.g. {key}={several.partition(',')[0]}. For several runs, one after "
            f"another: --multirun {key}={several}"
        )
    if key in groups() and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?|true|false", value.lower()):
        raise UserError(f"{key}={value} does not exist. Options: {', '.join(options(key))}.")
    if key.startswith("~") and key[1:] in groups():
        raise UserError(f"{override}: {key[1:]} cannot be left out: choose one of {', '.join(options(key[1:]))}.")


def _quoted(override: str, is_sweep: bool) -> str:
    """Quote what Hydra's grammar would not take, or take apart: folders of sweeps hold `=` and `,`."""
    key, sign, value = override.partition("=")
    leaf = key.rpartition(".")[2]
    if not sign or not value or value[0] in "'\"{" or re.fullmatch(r"\w+\(.*\)", value):
        return override
    if leaf == "folders" and key == "folders":
        inner = value[1:-1] if value[0] == "[" and value[-1] == "]" else value
        return f"{key}=[{','.join(_quote(path) for path in separate_paths(inner))}]"
    if value[0] == "[":
        return override
    if leaf in PATHS or "=" in value:
        values = separate_paths(value) if is_sweep else [value]
        return f"{key}={','.join(_quote(each) for each in values)}"
    return override


def separate_paths(text: str) -> list[str]:
    """Take a list of paths apart at its commas, but for those inside a path that exists."""
    pieces = text.split(",")
    found = []
    while pieces:
        ends = range(len(pieces), 1, -1)
        end = next((n for n in ends if Path(",".join(pieces[:n])).expanduser().exists()), 1)
        found.append(",".join(pieces[:end]).strip())
        pieces = pieces[end:]
    return [path for path in found if path]


def _quote(value: str) -> str:
    if PLAIN.fullmatch(value) or value[0] in "'\"" or "${" in value:
        return value
    escaped = value.replace("'", "\\'")
    return f"'{escaped}'"


def _merging(override: str) -> str:
    """Let `data.views={front: key}` bring keys that the preset has not."""
    key, _, value = override.partition("=")
    return f"++{override}" if value.startswith("{") and re.match(r"\w+\.", key) else override


def _as_trained(overrides: list[str]) -> list[str]:
    """Return what makes the run that is evaluated decide what is not given: how its policy acts, what is reported, and
    where some options of its simulator are given, the others.

    Raises:
        UserError: options of a simulator are given, and the run says nothing about one.
    """
    given = dict(override.partition("=")[::2] for override in overrides)
    if "checkpoint" not in given:
        return []
    folder = Path(given["checkpoint"].strip("'").replace("\\'", "'")).expanduser()
    if is_on_hub(folder):
        from robovlms.policy.checkpoint import resolve_checkpoint

        folder = resolve_checkpoint(folder)
    changed = [key for key in given if key.lstrip("+~").startswith("sim.") and "sim" not in given]
    if not changed and not (folder / "config.yaml").is_file():
        return []
    saved = _saved_config(folder)
    rename(saved)
    sim, evaluation = saved.get("sim"), saved.get("evaluation") or {}
    chosen = {name: evaluation[name] for name in AS_TRAINED if name in evaluation}
    return [*(_of_simulator(sim, changed[0]) if changed else []), *_literals("evaluation", chosen)]


def _of_simulator(saved: Any, option: str) -> list[str]:
    if not isinstance(saved, dict) or not saved.get("name"):
        raise UserError(f"{option}: the run was trained without a simulator: choose one, e.g. sim=metaworld.")
    return [f"sim={saved.pop('name')}", *_literals("sim", saved)]


def _literals(group: str, values: dict[str, Any]) -> list[str]:
    return [f"{group}.{key}={literal(value)}" for key, value in values.items()]


def _saved_config(folder: Path) -> dict[str, Any]:
    """Return the groups of a run's or checkpoint's config, as they were saved; what else a file holds is left to those
    who load it.

    Raises:
        UserError: there is none, or it is no YAML.
    """
    import yaml  # type: ignore[import-untyped]

    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(
            f"checkpoint={folder} is neither a checkpoint nor a run with one: give runs/<name>, "
            "runs/<name>/checkpoints/step_<number>, or hf://<owner>/<name> for one on the Hub."
        )
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} is damaged ({' '.join(str(error).split())}): copy it again from where it came."
        ) from error
    return {key: group for key, group in found.items() if isinstance(group, dict)} if isinstance(found, dict) else {}


def literal(value: object) -> str:
    """Write a value so that Hydra reads the same."""
    if isinstance(value, list):
        return f"[{','.join(literal(each) for each in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{literal(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str):
        escaped = value.replace("'", "\\'")
        return f"'{escaped}'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

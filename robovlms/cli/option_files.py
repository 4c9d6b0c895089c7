"""Options that are files of the user's own, `data=/path/robot.yaml`: how Hydra finds them, and what they ask and guess.

Such a file is written like one of `configs/<group>/`: its schema in `defaults`, then keys. The comment behind `???` is
the question that is put to who leaves it unanswered; comments that begin with `guess:` are logged.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robovlms.cli.arguments import separate_paths
from robovlms.config.presets import groups
from robovlms.errors import UserError
from robovlms.registry import nearest

log = logging.getLogger(__name__)

SUFFIXES = (".yaml", ".yml")
GUESS = "guess:"


@dataclass(frozen=True)
class Note:
    """A value of a file with the comment beside it."""

    value: str  # as it is written
    line: int
    comment: str


@dataclass(frozen=True)
class OptionFile:
    """A file that stands for an option of a group."""

    place: str  # as it was given
    name: str  # of the option that Hydra knows it as
    notes: Mapping[str, Note]  # by dotted key within the file; those with a comment, and those that are asked

    @property
    def questions(self) -> dict[str, str]:
        """Return what is asked, by key: file, line and the comment there."""
        asked = {key: note for key, note in self.notes.items() if note.value == "???"}
        return {
            key: f"{self.place}, line {note.line}{': ' if note.comment else ''}{note.comment}"
            for key, note in asked.items()
        }

    def guesses(self, answered: set[str]) -> list[str]:
        """Return what is guessed, but for the keys that are answered."""
        return [
            f"{key}={note.value} (line {note.line}: {note.comment.removeprefix(GUESS).strip()})"
            for key, note in self.notes.items()
            if note.comment.startswith(GUESS) and key not in answered
        ]


def take_files(arguments: list[str], is_sweep: bool) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Make Hydra know the files that options are; return the command line with their names, and what they ask.

    What is asked is listed by the option's name, then by key, without what the command line answers.

    Where a file describes the run's data, and the command line chooses no `view`, the policy looks through all its
    cameras (`view=all`); that and every guess is logged.

    Raises:
        UserError: a file does not exist, or is not such a file.
    """
    changed, questions = [], dict[str, dict[str, str]]()
    keys = {argument.partition("=")[0].lstrip("+") for argument in arguments}
    for argument in arguments:
        key, sign, value = argument.partition("=")
        group, _, package = key.lstrip("+").partition("@")
        value = value.strip("'\"")
        if not sign or group not in groups() or not value.endswith(SUFFIXES):
            changed.append(argument)
            continue
        files = [read_file(group, place) for place in (separate_paths(value) if is_sweep else [value])]
        for file in files:
            asked = {f"{package or group}.{inner}": text for inner, text in file.questions.items()}
            questions[file.name] = {inner: text for inner, text in asked.items() if not is_given(inner, arguments)}
            log_guesses(file, package or group, keys)
        changed.append(f"{key}={','.join(file.name for file in files)}")
        if key == "data" and not any(other.partition(".")[0] == "view" for other in keys):
            log.info("view=all: the policy looks through every camera of data=%s", value)
            changed.append("view=all")
    return changed, questions


def is_given(key: str, arguments: list[str]) -> bool:
    """Tell whether a command line says a value: by its key, or within a group's, data.contract={frame: base}."""
    for argument in arguments:
        given, sign, value = argument.lstrip("+").partition("=")
        if sign and (given == key or (key.startswith(f"{given}.") and f"{key.rpartition('.')[2]}:" in value)):
            return True
    return False


def log_guesses(file: OptionFile, package: str, keys: set[str]) -> None:
    """Warn of what a file guesses and the command line does not say."""
    answered = {key.removeprefix(f"{package}.") for key in keys}
    if guesses := file.guesses(answered):
        log.warning("%s guesses, correct what is wrong: %s", file.place, "; ".join(guesses))


def read_file(group: str, place: str) -> OptionFile:
    """Read a file that is an option of a group, and make Hydra know it.

    Raises:
        UserError: it does not exist, or is not written like an option of the group.
    """
    path = Path(place).expanduser()
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir() if p.suffix in SUFFIXES] if path.parent.is_dir() else []
        written = (
            f" One is written by: python scripts/inspect_data.py data.root=<folder> write={place}"
            if group == "data"
            else ""
        )
        raise UserError(f"{group}={place} does not exist.{nearest(path.name, beside)}{written}")
    try:
        return store(group, place, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{group}={place} is not a text in UTF-8 ({error}).") from error


def store(group: str, place: str, text: str) -> OptionFile:
    """Make Hydra know the text of a file as an option of a group.

    Raises:
        UserError: it is no YAML, or has no schema in its defaults.
    """
    import yaml  # type: ignore[import-untyped]
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        node: Any = OmegaConf.create(text)
        notes = dict(_notes(yaml.compose(text), text.splitlines(), ""))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{group}={place} is not valid YAML: {' '.join(str(error).split())}") from error
    defaults = node.get("defaults") if OmegaConf.is_dict(node) else None
    if not defaults or all(item == "_self_" for item in defaults):
        name = node.get("name", "<name>") if OmegaConf.is_dict(node) else "<name>"
        raise UserError(
            f"{group}={place} is not typed: it must begin with 'defaults: [/schema/{group}/{name}@_here_, _self_]', as "
            f"the files of configs/{group} do."
        )
    digest = hashlib.sha256(f"{place}\n{text}".encode()).hexdigest()[:8]
    name = f"{re.sub(r'[^a-zA-Z0-9_-]', '_', Path(place).stem)}_{digest}"
    ConfigStore.instance().store(group=group, name=name, node=node, provider=place)
    return OptionFile(place, name, notes)


def file_of(option: str) -> str:
    """Return the file that an option such as data/robot_1a2b3c4d stands for, or that of `configs/`."""
    from hydra.core.config_store import ConfigStore
    from hydra.plugins.config_source import ConfigLoadError

    try:
        place = ConfigStore.instance().load(f"{option}.yaml").provider
    except ConfigLoadError:
        place = None
    return place or f"configs/{option}.yaml"


def _notes(node: Any, lines: list[str], prefix: str) -> Iterator[tuple[str, Note]]:
    """Yield the values of a YAML tree that have a comment behind them on their last line, or are asked."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _notes(value, lines, f"{name}.")
            continue
        if isinstance(value, yaml.SequenceNode) and not value.flow_style:
            continue
        start, end = value.start_mark, value.end_mark
        comment = re.match(r"\s+#\s*(.*)", lines[end.line][end.column :]) if end.line < len(lines) else None
        text = " ".join("\n".join(lines[start.line : end.line + 1])[start.column :].split())
        written = value.value if isinstance(value, yaml.ScalarNode) else text.partition(" #")[0]
        if comment or written == "???":
            yield name, Note(written, start.line + 1, comment[1].strip() if comment else "")

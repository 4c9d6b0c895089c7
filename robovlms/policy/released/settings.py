"""RoboVLMs' JSON configuration: read with its parents, refused where it asks for what is not converted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from robovlms.errors import UserError
from robovlms.files import refuse_pointer

T = TypeVar("T")
MAX_PARENTS = 10

NOT_CONVERTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "fwd_head": (lambda value: bool(value), "predicting future frames"),
    "act_encoder": (lambda value: bool(value), "an encoder of past actions"),
    "use_vision_resampler": (lambda value: bool(value), "a resampler behind the projector"),
    "regular_action": (
        lambda value: bool(value),
        "scaling by mean and deviation, which RoboVLMs' own evaluation does not undo",
    ),
    "tcp_rel": (lambda value: bool(value), "actions in the frame of the hand"),
    "discrete_action_history": (lambda value: bool(value), "past actions as tokens"),
    "act_head.action_space": (
        lambda value: value == "discrete",
        "actions as tokens of the vocabulary, whose prompts RoboVLMs' code cannot build (get_prompt_builder raises "
        "NameError)",
    ),
    "act_head.history_type": (lambda value: value == "video", "all frames before one text (video)"),
    "act_head.fill_zero": (lambda value: bool(value), "action tokens that nothing attends to"),
}
"""What RoboVLMs' keys may ask for that has no counterpart here: when, and what it is."""


class Settings:
    """Values of a configuration by dotted key; every error names file, key and value.

    Where RoboVLMs has a list (data sets that are trained on together), its first entry counts.
    """

    def __init__(self, path: Path) -> None:
        """Read a file and its parents.

        Raises:
            FileNotFoundError: the file or a parent is missing.
            UserError: one is no JSON object.
        """
        self.path = path
        self.values = _read(path, MAX_PARENTS)

    def get(self, key: str, kind: type[T], default: T | None = None, hint: str = "correct the file") -> T:
        """Return the value of a key; null counts as absent.

        Raises:
            UserError: it is absent and has no default, or is of another kind.
        """
        value = self._find(key)
        if value is None and default is not None:
            return default
        if kind is float and type(value) is int:
            return kind(value)  # type: ignore[call-arg]
        if value is None or not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            found = "is not there" if value is None else f"is {value!r}"
            raise self.wrong(key, f"{found}, where RoboVLMs has a {kind.__name__}: {hint}.")
        return value

    def wrong(self, key: str, what: str) -> UserError:
        """Return the error about a key."""
        return UserError(f"config={self.path}: {key} {what}")

    def check(self) -> None:
        """Refuse what is not converted.

        Raises:
            UserError: names the key.
        """
        for key, (is_asked, what) in NOT_CONVERTED.items():
            value = self._find(key)
            if is_asked(value):
                raise self.wrong(key, f"is {json.dumps(value)[:60]}: {what}, is not converted.")
        if self._find("train_setup.lora_enable"):
            raise self.wrong("train_setup.lora_enable", "is true: merge the adapters first.")

    def _find(self, key: str) -> Any:
        value: Any = self.values
        for name in key.split("."):
            if not isinstance(value, dict):
                return None
            value = value.get(name)
            if isinstance(value, list) and value:
                value = value[0]
        return value


def _read(path: Path, depth: int) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"config={path} does not exist: give the JSON configuration of the checkpoint.")
    refuse_pointer(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"config={path} is not JSON ({error}): give RoboVLMs' configuration.") from error
    if not isinstance(values, dict):
        raise UserError(f"config={path} holds a {type(values).__name__}, not RoboVLMs' configuration.")
    parent = values.get("parent")
    if parent is None:
        return values
    if depth == 0:
        raise UserError(f"config={path}: more than {MAX_PARENTS} parents, or one that is its own.")
    beside = path.parent / str(parent)
    return _merge(_read(beside if beside.is_file() else Path(str(parent)), depth - 1), values)


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merge(old[key], new[key]) for key in new if isinstance(new[key], dict) and isinstance(old.get(key), dict)
    }
    return {**old, **new, **both}

"""The names that a LeRobotDataset gives its entries, held against those of the config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from robovlms.data.files.vectors import VectorSpec


def recorded_names(spec: VectorSpec, features: dict[str, dict[str, Any]]) -> list[str] | None:
    """Return how `meta/info.json` names the entries of a vector; None where it does not name all of them, each once."""
    found: list[str] = []
    for key, part in spec.parts:
        names = _flat(features[key].get("names"))
        size = features[key]["shape"][0] if features[key]["shape"] else 1
        if names is None or len(names) != size:
            return None
        found += names[part]
    return found if len(set(found)) == len(found) else None


def _flat(names: object) -> list[str] | None:
    """Return names written as a list, as {"motors": [...]}, or as a list within a list."""
    while isinstance(names, dict) and len(names) == 1:
        names = next(iter(names.values()))
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):
        names = names[0]
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return names
    return None


def order_problem(recorded: Sequence[str], declared: Sequence[str]) -> str | None:
    """Return the entry whose declared place is not its recorded one, as text; None where none is known to be wrong.

    Only entries that have one counterpart are compared: `gripper` is `gripper.pos`, `droll` is `roll`, `left/elbow`
    is `kLeftElbow`, and `flex` may be either of `elbow_flex` and `wrist_flex`.
    """
    if len(recorded) != len(declared):
        return None
    for place, name in enumerate(declared):
        words = _words(name)
        known = [i for i, other in enumerate(recorded) if words == _words(other)]
        known = known or [i for i, other in enumerate(recorded) if words <= _words(other)]
        if len(known) == 1 and known[0] != place and sum(words <= _words(other) for other in declared) == 1:
            return f"'{name}' is entry {place}, but '{recorded[known[0]]}' is recorded as entry {known[0]}"
    return None


def _words(name: str) -> set[str]:
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)  # kLeftElbow, as Unitree writes it
    words = [word for word in re.split(r"[^a-z0-9]+", parted.lower()) if word]
    if len(words) == 1 and re.fullmatch(r"d(x|y|z|rx|ry|rz|roll|pitch|yaw)", words[0]):
        words = [words[0][1:]]
    return set(words) - {"pos", "position", "delta", "target", "action", "main"} or set(words)

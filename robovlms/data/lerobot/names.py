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
    """Return names written as a list, as lists within a list, as {"motors": [...]} or {"left": [...], "right": [...]},
    or as {"x": 0, "y": 1}.
    """
    if isinstance(names, str):
        return [names]
    if isinstance(names, dict) and names and all(type(place) is int for place in names.values()):
        in_order = sorted(names, key=lambda name: names[name])
        return in_order if sorted(names.values()) == list(range(len(names))) else None
    groups = names if isinstance(names, list) else list(names.values()) if isinstance(names, dict) else []
    flat = [_flat(group) for group in groups]
    if not flat or any(group is None for group in flat):
        return None
    stems = list(names) if isinstance(names, dict) and len(names) > 1 else [""] * len(flat)
    parts = [(stem, name) for stem, group in zip(stems, flat, strict=True) for name in group or ()]
    return [f"{stem}_{name}" if stem else name for stem, name in parts]


def order_problem(recorded: Sequence[str], declared: Sequence[str]) -> str | None:
    """Return the entry whose declared place is not its recorded one, as text; None where none is known to be wrong.

    Only entries that have one counterpart are compared: `gripper` is `gripper.pos`, `droll` is `roll`, and `flex` may
    be either of `elbow_flex` and `wrist_flex`.
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
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    if len(words) == 1 and re.fullmatch(r"d(x|y|z|rx|ry|rz|roll|pitch|yaw)", words[0]):
        words = [words[0][1:]]
    return set(words) - {"pos", "position", "delta", "target", "action", "main"} or set(words)

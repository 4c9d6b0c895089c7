"""Which columns of a recording are its action, and which its state, where there are several."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from robovlms.errors import UserError
from robovlms.inspection.discovery.folder import Vector

ACTION = re.compile(r"(^|[./_])actions?($|[./_])")
STATE = re.compile(r"(^|[./_])(states?|qpos|proprio\w*|joint_pos\w*)($|[./_])")
OTHER = re.compile(r"veloc|_vel|qvel|effort|torque|current|delta|noise|timestamp|is_|next[./_]|done|reward")
GRIP = re.compile(r"gripper|(?<!end[._])effector")  # AgiBot's effector is all that holds: two grippers, or two hands
WHOLE_ACTION = ("action", "actions")
WHOLE_STATE = ("observation.state", "observation/state", "state", "observations/qpos", "observation.qpos", "proprio")


def choose_action(columns: dict[str, int], root: Path, unread: Sequence[str] = ()) -> Vector:
    """Return the columns of the action: one called so, or those of its parts.

    Args:
        columns: width by key, in the order of the folder.
        root: for the error.
        unread: what else there is, with why it is no vector, for the error.

    Raises:
        UserError: there is none.
    """
    for key in WHOLE_ACTION:
        if key in columns:
            return Vector(key=key, names=None, width=columns[key], source="")
    parts = {key: width for key, width in columns.items() if ACTION.search(key) and not re.search("next[./]", key)}
    if not parts:
        raise UserError(
            f"{root} has no column of actions: looked for one called action, or action.<part>; there are "
            f"{', '.join([*columns, *unread]) or 'none'}. Write the data config by hand: data=<format> "
            "data.action_key=<columns>."
        )
    if len(parts) == 1:
        ((key, width),) = parts.items()
        return Vector(key=key, names=None, width=width, source="")
    chosen = _one_kind(parts)
    left = [key for key in parts if key not in chosen]
    why = f"guess: put together from {len(chosen)} of {len(parts)} columns; the others are {', '.join(left)}"
    return _joined(chosen, parts, why if left else "all columns of the action, in their order")


def choose_state(columns: dict[str, int], action: Vector) -> Vector | None:
    """Return the columns of the state: one called so, or those of its parts that the action has, too."""
    for key in WHOLE_STATE:
        if key in columns:
            return Vector(key=key, names=None, width=columns[key], source="")
    parts = {
        key: width
        for key, width in columns.items()
        if STATE.search(key) and not OTHER.search(key) and not ACTION.search(key)
    }
    if not parts:
        return None
    kinds = {re.sub(r"\[.*", "", part).rpartition(".")[2] for part in action.key.split("+")}
    chosen = [key for key in parts if key.rpartition(".")[2] in kinds] or _one_kind(parts)
    grips = [key for key in parts if GRIP.search(key)]
    chosen += [key for key in grips if key not in chosen and not any(GRIP.search(other) for other in chosen)][:1]
    left = [key for key in parts if key not in chosen]
    why = f"guess: what goes with the action; the other columns are {', '.join(left)}" if left else ""
    return _joined(chosen, parts, why)


def put_together(vector: Vector, names: list[str] | None, source: str) -> Vector:
    """Return the vector with the names of its entries and where they stand."""
    return replace(vector, names=names, source=source)


def _joined(chosen: list[str], parts: dict[str, int], why: str) -> Vector:
    """Put columns together; of a gripper's only the first entry."""
    keys, width = [], 0
    for key in chosen:
        is_wide = "gripper" in key and parts[key] > 1
        keys.append(f"{key}[0]" if is_wide else key)
        width += 1 if is_wide else parts[key]
    return Vector(key="+".join(keys), names=None, width=width, source="", choice=why)


def _one_kind(parts: dict[str, int]) -> list[str]:
    """Return, of columns that say the same in several ways, one way: joints and grippers, or a pose and grippers."""
    kinds: list[Callable[[str], bool]] = [
        lambda key: "joint" in key and not OTHER.search(key),
        lambda key: "delta" in key and bool(re.search("eef|ee_|pos|rot", key)) and not re.search("quat|joint", key),
        lambda key: bool(re.search("eef|ee_|pos|rot", key)) and not re.search("quat|joint|gripper", key),
    ]
    told = [[key for key in parts if kind(key) and not GRIP.search(key)] for kind in kinds]
    if sum(bool(each) for each in told) < 2:
        return [key for key in parts if not OTHER.search(key)] or list(parts)
    arm = next(each for each in told if each)
    stems = {stem(key) for key in arm}
    if len(stems) < len(arm):  # the same in other frames: the first of each
        arm = [next(key for key in arm if stem(key) == each) for each in dict.fromkeys(stem(key) for key in arm)]
    return [*arm, *_grippers(parts)]


def _grippers(parts: Iterable[str]) -> list[str]:
    """Return one column of a gripper for each arm: what it was told rather than its width."""
    by_arm: dict[str, list[str]] = {}
    for key in parts:
        if GRIP.search(key) and not OTHER.search(key):
            by_arm.setdefault(("left" if "left" in key else "right" if "right" in key else ""), []).append(key)
    return [min(keys, key=lambda key: "width" in key) for keys in by_arm.values()]


def stem(key: str) -> str:
    """Return what a column is about, without the frame behind it: eef_position of eef_position_frankaX."""
    return re.sub(r"_[a-z]+[A-Z]\w*$", "", key)

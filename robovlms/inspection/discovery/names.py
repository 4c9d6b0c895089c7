"""From recorded names of entries to those of a contract: arms in front, grippers and poses by their words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from robovlms.actions.contract import ROTATION_NAMES
from robovlms.config.choices import Rotation
from robovlms.config.data import GRIPPER, gripper_entries

ARMS = {"left": "left", "right": "right", "l": "left", "r": "right"}
GENERIC = re.compile(r"(motors?|joints?|actions?|states?|dims?|dof|index|value|names?)?[ _.-]*\d*", re.IGNORECASE)
BESIDE_GRIPPER = {"arm", "pos", "position", "positions", "open", "opening", "opened", "close", "closed", "closedness",
    "openness", "width", "state", "joint", "joints", "main", "eef", "ee", "cmd", "command", "target", "action", "norm",
    "normalized", "distance", "qpos", "hand"}  # fmt: skip
BESIDE_POSE = {"arm", "eef", "ee", "tcp", "hand", "pos", "position", "pose", "delta", "target", "cartesian", "xyz", "d",
    "trans", "translation", "end", "effector", "action", "world", "base", "rot", "rotation", "ori", "orientation",
    "quat", "quaternion", "rpy", "euler", "angle", "robot0", "robot"}  # fmt: skip
TURNING = {"rot", "rotation", "ori", "orientation", "axisangle"}
TURNS = {"x": "rx", "y": "ry", "z": "rz", "w": "qw"}
SAME = {"wx": "rx", "wy": "ry", "wz": "rz", "ax": "rx", "ay": "ry", "az": "rz", "rolls": "roll", "yaws": "yaw"}
POSE = {"x", "y", "z", *(name for entries in ROTATION_NAMES.values() for name in entries)}


@dataclass(frozen=True)
class EntryNames:
    """Names of a vector's entries, as a contract has them."""

    names: list[str]  # a pose without the leading d of deltas
    rotation: Rotation = Rotation.none
    is_pose: bool = False  # x, y and z are among them
    is_delta: bool = False  # the recorded names say so
    has_axes: bool = False  # some entries go along an axis, whole poses or not
    is_named: bool = True  # false: the folder has no names, or such as motor_0
    hints: dict[str, str] = field(default_factory=dict)  # of grippers: the recorded name

    @property
    def grippers(self) -> list[int]:
        """Return the places of the grippers."""
        return gripper_entries(self.names)


def entry_names(recorded: Sequence[str] | None, width: int) -> EntryNames:
    """Return the names of a contract for entries that are recorded under these; j1, j2, ... where there are none."""
    if recorded is None or len(recorded) != width:
        return EntryNames([f"j{i + 1}" for i in range(width)], is_named=False)
    if all(name.isdigit() for name in recorded):
        return entry_names(None, width)
    split = [_words(name.rpartition("/")[2]) for name in recorded]
    has_both = all(any(letter in words for words in split) for letter in ("l", "r"))
    said = ["_".join(_words(name.rpartition("/")[0])) for name in recorded]  # left/joint_1
    parts = [(arm, words) if arm else _arm(words, has_both) for arm, words in zip(said, split, strict=True)]
    bare = [_gripper(words) or _axis(words) or "_".join(words) or "entry" for _, words in parts]
    arms = [arm for arm, _ in parts]
    bare = _whole_poses(arms, bare, parts)
    names = unique([f"{arm}/{name}" if arm else name for arm, name in zip(arms, bare, strict=True)])
    rotation = next((kind for kind in _WRITTEN if set(ROTATION_NAMES[kind]) <= set(bare)), Rotation.none)
    is_pose = {"x", "y", "z"} <= set(bare)
    return EntryNames(
        names,
        rotation=rotation if is_pose else Rotation.none,
        is_pose=is_pose,
        is_delta=any("delta" in words or re.fullmatch("d[xyz]", words[-1]) for words in split if words),
        has_axes=any(words and re.fullmatch("d?[xyz]", words[-1]) for words in split),
        is_named=not all(GENERIC.fullmatch(name) for name in recorded),
        hints={name: old for name, old in zip(names, recorded, strict=True) if name.rpartition("/")[2] == GRIPPER},
    )


_WRITTEN = (Rotation.euler, Rotation.axis_angle, Rotation.quaternion, Rotation.rotation_6d)


def unique(names: Sequence[str]) -> list[str]:
    """Return names of which no two are equal: the second `a` is a_2; two grippers of one arm are none."""
    twice = {name for name in names if names.count(name) > 1 and name.rpartition("/")[2] == GRIPPER}
    taken: list[str] = []
    for name in names:
        stem, number = f"{name}_1" if name in twice else name, 1
        while stem in taken:
            number += 1
            stem = f"{name}_{number}"
        taken.append(stem)
    return taken


def _words(name: str) -> list[str]:
    """Return the words of a name such as left_arm_0, kLeftHandThumb0 or right_gripper.pos."""
    name = re.sub(r"\.pos(ition)?$", "", name.strip())
    name = re.sub(r"^k(?=[A-Z])", "", name)
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[\W_]+", name.lower()) if word]


def _arm(words: list[str], has_both: bool) -> tuple[str, list[str]]:
    """Return the arm that a name tells, and the other words."""
    told = [word for word in words if word in ("left", "right") or (has_both and word in ("l", "r"))]
    if len(told) != 1 or len(words) == 1:
        return "", words
    return ARMS[told[0]], [word for word in words if word != told[0]]


def _gripper(words: list[str]) -> str | None:
    rest = {word for word in words if not word.isdigit()}
    is_one = rest & {GRIPPER, "jaw", "claw"} and rest - {GRIPPER, "jaw", "claw"} <= BESIDE_GRIPPER
    return GRIPPER if is_one else None


def _axis(words: list[str]) -> str | None:
    """Return x, ..., roll, ..., rx, ..., qx, ... or r1, ... where a name is one of a pose."""
    rest = [word for word in words if word not in BESIDE_POSE]
    if len(rest) == 2 and rest[0] == "rot6d" and rest[1].isdigit():
        return f"r{int(rest[1]) + 1}"
    if len(rest) != 1:
        return None
    word = re.sub(r"^d(?=(x|y|z|rx|ry|rz|roll|pitch|yaw)$)", "", rest[0])
    word = SAME.get(word, word)
    if word in TURNS and {"quat", "quaternion"} & set(words):
        return f"q{word}"
    if word in TURNS and TURNING & set(words):
        return TURNS[word]
    if word in ("x", "y", "z") and {"rpy", "euler"} & set(words):
        return dict(zip("xyz", ("roll", "pitch", "yaw"), strict=True))[word]
    return word if word in POSE else None


def _whole_poses(arms: list[str], bare: list[str], parts: list[tuple[str, list[str]]]) -> list[str]:
    """Take single axes back that are no pose: a wrist's roll is a joint."""
    kept = list(bare)
    for place, (arm, name) in enumerate(zip(arms, bare, strict=True)):
        mine = [other for where, other in zip(arms, bare, strict=True) if where == arm]
        is_whole = {"x", "y", "z"} <= set(mine) and len(set(mine)) == len(mine)
        if name in POSE and not is_whole:
            kept[place] = "_".join(parts[place][1])
    return kept

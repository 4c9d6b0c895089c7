"""Spoil real recordings in the ways that recordings are wrong, see what inspection says, and write it as a table.

    python benchmarks/replay_mutations.py /path/to/recordings

The folder holds the recordings as `RECORDINGS` names them; the table is that of docs/data_inspect.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation, RLDSTransform, Rotation
from robovlms.config.data import ActionContract, DataConfig, NormalizationConfig
from robovlms.config.schemas import schema_of
from robovlms.inspection.replay.following import CLEAR, follow
from robovlms.inspection.replay.motion import Group, find_groups
from robovlms.inspection.scan import ScannedRows, choose_stretches, scan_numbers
from robovlms.registry import DATASETS

PAGE = Path(__file__).parents[1] / "docs" / "data_inspect.md"
HAND = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
POSE = ["x", "y", "z", "roll", "pitch", "yaw"]
JOINTS = [f"joint_{i}" for i in range(44)]
MAX_ROWS = 5000


def _config(kind: str, root: Path, contract: dict[str, Any], **options: Any) -> DataConfig:
    values = {"position_unit": 1.0, **contract}
    options = {"views": {}, "normalization": NormalizationConfig(mode=NormalizationMode.quantile), **options}
    config = schema_of("data", kind)(name=kind, root=str(root), contract=ActionContract(**values), **options)
    assert isinstance(config, DataConfig)
    return config


def calvin(root: Path) -> DataConfig:
    """Deltas of the hand, in the world."""
    contract = {
        "names": HAND, "representation": Representation.delta, "frame": ReferenceFrame.world, "control_hz": 30.0,
        "rotation": Rotation.euler_increment, "position_unit": 0.02, "rotation_unit": 0.05,
    }  # fmt: skip
    names = [*POSE, "opening", *JOINTS[:7], "commanded"]
    return _config("calvin", root / "calvin_mini", contract, proprio_key="robot_obs", proprio_names=names,
                   proprio_rotation=Rotation.euler)  # fmt: skip


def franka(root: Path, *, names: list[str], keys: str, is_delta: bool, frame: ReferenceFrame) -> DataConfig:
    """One of the ways in which the Franka's actions are recorded beside each other."""
    joints = frame is ReferenceFrame.joint
    contract = {
        "names": names, "frame": frame, "control_hz": 30.0, "gripper_closed": 1.0, "gripper_open": -1.0,
        "representation": Representation.delta if is_delta else Representation.absolute,
        "rotation": Rotation.none if joints else Rotation.euler if is_delta else Rotation.quaternion,
    }  # fmt: skip
    states = "state.joints" if joints else "state.eef_position+state.eef_rotation"
    return _config(
        "lerobot", root / "lerobot_v21_franka_sim_internvla" / "sim_pick_place", contract, action_key=keys,
        proprio_key=f"{states}+state.gripper_width[0]", proprio_names=[*(JOINTS[:7] if joints else POSE), "gripper"],
        proprio_rotation=Rotation.euler, validation_fraction=0.0,
    )  # fmt: skip


def franka_delta(root: Path) -> DataConfig:
    """Deltas of the hand, in the base."""
    keys = "action.delta_eef_position+action.delta_eef_rotation+action.gripper_close"
    return franka(root, names=HAND, keys=keys, is_delta=True, frame=ReferenceFrame.base)


def franka_pose(root: Path) -> DataConfig:
    """Absolute poses of the hand."""
    keys = "action.eef_position+action.eef_quaternion[1:4]+action.eef_quaternion[0]+action.gripper_close"
    names = ["x", "y", "z", "qx", "qy", "qz", "qw", "gripper"]
    return franka(root, names=names, keys=keys, is_delta=False, frame=ReferenceFrame.base)


def franka_joints(root: Path) -> DataConfig:
    """Deltas of joints."""
    keys = "action.delta_joints+action.gripper_close"
    return franka(root, names=[*JOINTS[:7], "gripper"], keys=keys, is_delta=True, frame=ReferenceFrame.joint)


def gr1(root: Path) -> DataConfig:
    """Absolute joints of a humanoid."""
    contract = {
        "names": JOINTS, "representation": Representation.absolute, "frame": ReferenceFrame.joint, "control_hz": 20.0,
    }  # fmt: skip
    return _config("lerobot", root / "lerobot_v20_gr1_sim_pick_place" / "robot_sim.PickNPlace", contract,
                   proprio_key="observation.state", proprio_names=JOINTS, validation_fraction=0.0)  # fmt: skip


def pusht(root: Path) -> DataConfig:
    """Absolute positions in a picture."""
    names = ["motor_0", "motor_1"]
    contract = {
        "names": names, "representation": Representation.absolute, "frame": ReferenceFrame.image, "control_hz": 10.0,
    }  # fmt: skip
    return _config("lerobot", root / "lerobot_v30_pusht_tabular_with_golden_frames" / "pusht", contract,
                   proprio_key="observation.state", proprio_names=names, validation_fraction=0.0)  # fmt: skip


def bridge(root: Path) -> DataConfig:
    """Differences of states, 8 steps an episode."""
    contract = {
        "names": HAND, "representation": Representation.delta, "frame": ReferenceFrame.base, "control_hz": 5.0,
        "rotation": Rotation.euler_increment, "gripper_closed": 0.0, "gripper_open": 1.0,
    }  # fmt: skip
    return _config("rlds", root / "rlds_bridge_octo_debug" / "bridge_dataset" / "1.0.0", contract, skip_bad=True,
                   transform=RLDSTransform.bridge, language_key="language_instruction",
                   proprio_key="observation/state", proprio_names=[*POSE, "opening"],
                   proprio_rotation=Rotation.euler)  # fmt: skip


RECORDINGS: dict[str, Callable[[Path], DataConfig]] = {
    "CALVIN": calvin,
    "Franka, hand deltas": franka_delta,
    "Franka, hand poses": franka_pose,
    "Franka, joint deltas": franka_joints,
    "GR1, joints": gr1,
    "PushT, image": pusht,
    "Bridge": bridge,
}


@dataclass(frozen=True)
class Recording:
    """A recording's numbers and what they mean."""

    config: DataConfig
    rows: ScannedRows

    @property
    def groups(self) -> list[Group]:
        """Return the entries that are compared."""
        return find_groups(self.config)[0]

    @property
    def followed(self) -> list[int]:
        """Return the columns of single entries that the states follow clearly: what can be told to be wrong."""
        clear = {e.name for e in follow(self.config, self.rows).entries if (e.correlation or 0) >= CLEAR}
        return [i for i, name in enumerate(self.config.contract.names) if name in clear]


@cache
def open_recording(name: str, root: Path) -> Recording:
    """Read the numbers of a recording."""
    config = RECORDINGS[name](root)
    reader = DATASETS.get(config.name)(config, "train", views=[])
    return Recording(config, scan_numbers(reader, choose_stretches(reader.episodes, MAX_ROWS)))


@dataclass(frozen=True)
class Mutation:
    """Something wrong with a recording, and the words it must be called by."""

    label: str
    rows: ScannedRows
    wanted: str  # pattern


def _columns(rows: ScannedRows, columns: list[int], change: Callable[[np.ndarray], np.ndarray]) -> ScannedRows:
    actions = rows.actions.copy()
    actions[:, columns] = change(actions[:, columns])
    return replace(rows, actions=actions)


def _take(rows: ScannedRows, acted: np.ndarray, observed: np.ndarray) -> ScannedRows:
    """Return the actions of some rows beside the states of others, counted anew within their episodes."""
    episode = rows.episode[acted]
    starts = np.flatnonzero(np.diff(episode, prepend=-1))
    step = np.arange(len(acted)) - np.repeat(starts, np.diff([*starts, len(acted)]))
    assert rows.proprio is not None
    return replace(rows, actions=rows.actions[acted], proprio=rows.proprio[observed], episode=episode, step=step)


def _every(rows: ScannedRows, acted: int, observed: int) -> ScannedRows:
    """Return every `acted`-th row's action beside the state of every `observed`-th, by their order in an episode."""
    chosen: list[list[int]] = [[], []]
    for episode in np.unique(rows.episode):
        index = np.flatnonzero(rows.episode == episode)
        count = len(index) // max(acted, observed)
        chosen[0] += index[::acted][:count].tolist()
        chosen[1] += index[::observed][:count].tolist()
    return _take(rows, np.array(chosen[0]), np.array(chosen[1]))


TURN = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # rows times this: by 90 degrees about z


def mutations(recording: Recording) -> Iterator[Mutation]:
    """Return everything that is tried on a recording."""
    config, rows, followed = recording.config, recording.rows, recording.followed
    names = config.contract.names
    for i in followed:
        yield Mutation("sign of one entry", _columns(rows, [i], np.negative), f"{names[i]} looks inverted")
    for group in recording.groups:
        if group.kind == "position":
            yield Mutation("unit: x 50", _columns(rows, group.actions, lambda x: x * 50), r"factor [45]\d")
            yield Mutation("frame: 90 degrees about z", _columns(rows, group.actions, lambda x: x @ TURN),
                           "rotated by 90 degrees about z: frame")  # fmt: skip
            yield Mutation("order: two swapped", _columns(rows, group.actions, lambda x: x[:, [1, 0, 2]]), "swapped")
    angles = [
        i for group in recording.groups if group.kind == "turn" and len(group.actions) == 3 for i in group.actions
    ]
    joints = [i for group in recording.groups if group.kind == "entry" for i in group.actions if i in followed]
    if joints:
        yield Mutation("unit: x 50", _columns(rows, joints, lambda x: x * 50), r"factor [456]\d")
        yield Mutation("order: two swapped", _columns(rows, joints[:2], lambda x: x[:, ::-1]), "order of entries")
    if joints or set(angles) & set(followed):
        yield Mutation("unit: degrees", _columns(rows, angles or joints, np.degrees), r"factor [456]\d.*degrees\?")
    if config.contract.representation is Representation.delta:
        yield Mutation("rate: every second frame dropped, deltas kept", _every(rows, 2, 2), "twice as far.*off by 2")
        doubled = np.repeat(np.arange(len(rows.actions)), 2)
        yield Mutation("rate: every frame recorded twice, deltas kept", _take(rows, doubled, doubled),
                       "half as far.*off by 2")  # fmt: skip
    yield Mutation("rate: states at half the rate of the actions", _every(rows, 1, 2), "off by 2")
    yield Mutation("rate: actions at half the rate of the states", _every(rows, 2, 1), "off by 2")
    if "gripper" in names and {"gripper", "opening"} & set(config.proprio_names):
        ends = config.contract.gripper_closed + config.contract.gripper_open
        place = [names.index("gripper")]
        yield Mutation("gripper inverted", _columns(rows, place, lambda x: ends - x), "gripper looks inverted")


def tried(recording: Recording, most: int = 100) -> dict[str, tuple[int, int]]:
    """Return how many of each kind of mutation are named by the right words, and how many were tried, up to `most`."""
    found: dict[str, tuple[int, int]] = {}
    for mutation in mutations(recording):
        if found.get(mutation.label, (0, 0))[1] == most:
            continue
        told = [finding.what for finding in follow(recording.config, mutation.rows).findings]
        caught, count = found.get(mutation.label, (0, 0))
        hit = any(re.search(mutation.wanted, what) for what in told)
        found[mutation.label] = caught + hit, count + 1
    return found


def main() -> None:
    """Try all and replace the table."""
    from tables import replace_table  # beside this file

    root = Path(sys.argv[1])
    recordings = {name: open_recording(name, root) for name in RECORDINGS}
    columns = {name: tried(recording) for name, recording in recordings.items()}
    quiet = [str(len(follow(recording.config, recording.rows).findings)) for recording in recordings.values()]
    lines = ["| | " + " | ".join(RECORDINGS) + " |", "|---" * (len(RECORDINGS) + 1) + "|"]
    lines.append("| as recorded: findings | " + " | ".join(quiet) + " |")
    for label in dict.fromkeys(label for column in columns.values() for label in column):
        cells = [column.get(label) for column in columns.values()]
        lines.append(f"| {label} | " + " | ".join("" if c is None else f"{c[0]} of {c[1]}" for c in cells) + " |")
    print("\n".join(lines))
    replace_table(PAGE, "benchmarks/replay_mutations.py", lines)


if __name__ == "__main__":
    main()

"""Actions: what they mean, how they are chunked, and how they reach [-1, 1] and come back.

One `ActionNormalizer` serves training and rollout, and its numbers travel with the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace

import numpy as np
from jaxtyping import Shaped

from robovlms.actions.statistics import Statistics
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation, Rotation
from robovlms.config.data import GRIPPER, ActionContract, DataConfig, gripper_entries
from robovlms.errors import UserError

POSITION_NAMES = ("x", "y", "z")
ROTATION_NAMES: dict[Rotation, tuple[str, ...]] = {
    Rotation.none: (),
    Rotation.euler: ("roll", "pitch", "yaw"),
    Rotation.euler_increment: ("roll", "pitch", "yaw"),
    Rotation.axis_angle: ("rx", "ry", "rz"),
    Rotation.quaternion: ("qx", "qy", "qz", "qw"),
    Rotation.rotation_6d: tuple(f"r{i}" for i in range(1, 7)),
}
CONSTANT = 2e-6  # between smallest and largest value, up to which an entry counts as one that never changes


def is_constant(low: float, high: float) -> bool:
    """Tell whether an entry with these bounds never changes, as far as float32 and normalisation are concerned."""
    return bool(high - low < CONSTANT)


def is_sparse(mode: NormalizationMode, stats: Statistics, entry: int) -> bool:
    """Tell whether an entry moves, but so rarely that the statistics of its mode call it a constant."""
    if mode not in (NormalizationMode.quantile, NormalizationMode.mean_std):
        return False
    return is_constant(*_statistics_bounds(mode, stats, entry)) and not is_constant(stats.min[entry], stats.max[entry])


def _statistics_bounds(mode: NormalizationMode, stats: Statistics, entry: int) -> tuple[float, float]:
    if mode is NormalizationMode.quantile:
        return stats.q01[entry], stats.q99[entry]
    if mode is NormalizationMode.mean_std:
        return stats.mean[entry] - stats.std[entry], stats.mean[entry] + stats.std[entry]
    return stats.min[entry], stats.max[entry]


def split_name(name: str) -> tuple[str, str]:
    """Return the arm of an entry, "" or "left/", and what moves: left/droll is the roll of left/."""
    arm, slash, entry = name.rpartition("/")
    bare = entry.removeprefix("d")
    return arm + slash, entry if bare == GRIPPER else bare


def arms(names: Sequence[str]) -> list[str]:
    """Return the arms that entries belong to, in their order: [""] where no name has one in front."""
    return list(dict.fromkeys(split_name(name)[0] for name in names))


def position_entries(names: Sequence[str], arm: str = "") -> list[int]:
    """Say where x, y and z of an arm are, with or without a leading d; empty where there are none of them."""
    return _entries(names, arm, POSITION_NAMES)


def rotation_entries(names: Sequence[str], rotation: Rotation, arm: str = "") -> list[int]:
    """Say where the entries of an arm's rotation are; empty where there are none of them."""
    return _entries(names, arm, ROTATION_NAMES[rotation])


def has_positions(names: Sequence[str]) -> bool:
    """Tell whether any arm has x, y and z."""
    return any(position_entries(names, arm) for arm in arms(names))


def _entries(names: Sequence[str], arm: str, wanted: tuple[str, ...]) -> list[int]:
    places = {split_name(name): i for i, name in reversed(list(enumerate(names)))}
    found = [places[arm, entry] for entry in wanted if (arm, entry) in places]
    return found if len(found) == len(wanted) else []


def converted_contract(data: DataConfig) -> ActionContract:
    """Return what the actions of a policy trained on this data mean: the data's contract, converted as `data.convert`
    says, with grippers of -1 and +1.

    Raises:
        UserError: the contract contradicts itself, or the conversion is not possible.
    """
    check_layout(data.contract)
    said = {f.name for f in fields(ActionContract)}
    asked = {k: v for k, v in asdict(data.convert).items() if v is not None and k in said}
    recorded = data.contract
    if asked.get("control_hz", 0) > recorded.control_hz:
        raise UserError(
            f"data.convert.control_hz={asked['control_hz']:g} exceeds the recorded {recorded.control_hz:g}: actions "
            "between the recorded ones are not known. Lower it."
        )
    contract = replace(recorded, **{**asked, "gripper_closed": -1.0, "gripper_open": 1.0})
    names = list(recorded.names)
    if contract.rotation is not recorded.rotation:
        if Rotation.none in (contract.rotation, recorded.rotation):
            raise UserError(
                f"data.convert.rotation={contract.rotation} is not possible from rotation={recorded.rotation}: "
                "a rotation is neither made up nor dropped."
            )
        for arm in arms(names):
            if entries := rotation_entries(names, recorded.rotation, arm):
                written = [arm + name for name in ROTATION_NAMES[contract.rotation]]
                names[entries[0] : entries[-1] + 1] = written
    pose = {*POSITION_NAMES, *ROTATION_NAMES[contract.rotation]}
    prefix = "d" if contract.representation is Representation.delta else ""
    posed = {arm for arm in arms(names) if position_entries(names, arm)}
    parts = [(name, *split_name(name)) for name in names]
    names = [f"{arm}{prefix}{bare}" if arm in posed and bare in pose else name for name, arm, bare in parts]
    continuous = [name for name in names if name in recorded.continuous_grippers]
    contract = replace(contract, names=names, continuous_grippers=continuous)
    check_layout(contract)
    return contract


def check_layout(contract: ActionContract) -> None:
    """Refuse a contract that contradicts itself.

    Raises:
        UserError: names the field to change.
    """
    names, rotation = contract.names, contract.rotation
    check_names(contract)
    if rotation is not Rotation.none:
        wanted = ROTATION_NAMES[rotation]
        turning = [arm for arm in arms(names) if {(arm, entry) for entry in wanted} & set(map(split_name, names))]
        found = [rotation_entries(names, rotation, arm) for arm in turning]
        if not found or any(not each or each != list(range(each[0], each[0] + len(wanted))) for each in found):
            raise UserError(
                f"data.contract.rotation={rotation} needs the entries {', '.join(wanted)} in this order (a leading d "
                f"is fine, and an arm in front of each, left/{wanted[0]}), but data.contract.names={names}."
            )
    if rotation is Rotation.euler_increment and contract.representation is Representation.absolute:
        raise UserError("rotation=euler_increment is a delta: an absolute pose has rotation=euler.")
    if contract.frame is ReferenceFrame.tcp and contract.representation is Representation.absolute:
        raise UserError("frame=tcp moves with the hand, so nothing absolute can be given in it: use world or base.")
    if contract.gripper_open == contract.gripper_closed:
        raise UserError("data.contract.gripper_open and gripper_closed are equal: say which value means what.")


def write_grippers(actions: Shaped[np.ndarray, "n a"], contract: ActionContract) -> Shaped[np.ndarray, "n a"]:
    """Return actions whose grippers, of -1 (closed) to +1 (open), are from `gripper_closed` to `gripper_open`."""
    written, places = actions.copy(), contract.grippers
    opening = (actions[:, places] + 1) / 2
    written[:, places] = contract.gripper_closed + opening * (contract.gripper_open - contract.gripper_closed)
    return written


def check_names(contract: ActionContract) -> None:
    """Refuse names that leave open which entry is which.

    Raises:
        UserError: names the field to change.
    """
    names = contract.names
    if len(set(names)) != len(names) or not all(names) or not names:
        raise UserError(f"data.contract.names={names} must name each entry once.")
    grippers = [names[i] for i in contract.grippers]
    if unknown := [name for name in contract.continuous_grippers if name not in grippers]:
        raise UserError(
            f"data.contract.continuous_grippers has {unknown}, not among the grippers {grippers} of "
            f"data.contract.names={names}: a gripper is called gripper, or with its arm in front left/gripper."
        )
    if len(contract.binary) == len(names):
        raise UserError(
            f"data.contract.names={names} has no entry but grippers that are open or closed: name what moves, or set "
            f"data.contract.continuous_grippers={grippers} where these are opening widths."
        )


ADAPTERS = {
    "representation": "data.convert.representation={}",
    "frame": "data.convert.frame={}",
    "rotation": "data.convert.rotation={}",
    "position_unit": "data.convert.position_unit={:g}",
    "rotation_unit": "data.convert.rotation_unit={:g}",
    "control_hz": "data.convert.control_hz={:g}",
    "continuous_grippers": "data.contract.continuous_grippers={}",
}


def check_contract(policy: ActionContract, other: ActionContract, other_name: str) -> None:
    """Refuse a policy whose actions do not mean what the data or environment expects.

    Raises:
        UserError: lists both sides of every disagreement, and what converts the data.
    """
    sides = [(f.name, getattr(policy, f.name), getattr(other, f.name)) for f in fields(ActionContract)]
    has_rotation = policy.rotation is not Rotation.none or other.rotation is not Rotation.none
    has_position = any(split_name(name)[1] in POSITION_NAMES for name in (*policy.names, *other.names))
    has_gripper = bool(gripper_entries([*policy.names, *other.names]))
    meaningless = {
        "rotation": not has_rotation,
        "rotation_unit": not has_rotation,
        "position_unit": not has_position,  # of joints
        "gripper_closed": not has_gripper,
        "gripper_open": not has_gripper,
    }
    unordered = {"continuous_grippers"}
    different = [
        (name, left, right)
        for name, left, right in sides
        if (set(left) != set(right) if name in unordered else left != right) and not meaningless.get(name, False)
    ]
    if different:
        wrong = [f"  {name}: policy {_plain(left)}, {other_name} {_plain(right)}" for name, left, right in different]
        known = [(name, right) for name, left, right in different if None not in (left, right)]
        fixes = [ADAPTERS[name].format(_written(right)) for name, right in known if name in ADAPTERS]
        raise UserError(
            f"the policy's actions do not mean what {other_name} expects:\n" + "\n".join(wrong) + "\n"
            "Use the robot or simulator the policy was trained for, correct data.contract if it misdescribes the data, "
            "or train again" + (f" with {' '.join(fixes)}." if fixes else " on data that records them.")
        )


def _plain(value: object) -> str:
    return str(value) if isinstance(value, str) else repr(value)


def _written(value: object) -> object:
    """Return a value as a command line has it."""
    return f"[{','.join(value)}]" if isinstance(value, list) else value

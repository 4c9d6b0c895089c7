"""Actions: what they mean, how they are chunked, and how they reach [-1, 1] and come back.

One `ActionNormalizer` serves training and rollout, and its numbers travel with the checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace

from robovlms.actions.statistics import Statistics
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation, Rotation
from robovlms.config.data import ActionContract, DataConfig
from robovlms.errors import UserError

GRIPPER = "gripper"
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


def position_entries(names: list[str]) -> list[int]:
    """Say where x, y and z are, with or without a leading d; empty where there are none of them."""
    return _entries(names, POSITION_NAMES)


def rotation_entries(names: list[str], rotation: Rotation) -> list[int]:
    """Say where the entries of a rotation are."""
    return _entries(names, ROTATION_NAMES[rotation])


def _entries(names: list[str], wanted: tuple[str, ...]) -> list[int]:
    bare = [name.removeprefix("d") for name in names]
    return [bare.index(name) for name in wanted] if set(wanted) <= set(bare) else []


def policy_contract(data: DataConfig) -> ActionContract:
    """Return what the actions of a policy trained on this data mean: the data's contract, converted as `data.convert`
    says, with a gripper of -1 and +1.

    Raises:
        UserError: the contract contradicts itself, or the conversion is not possible.
    """
    check_layout(data.contract)
    recorded, asked = data.contract, {k: v for k, v in asdict(data.convert).items() if v is not None}
    if asked.get("control_hz", 0) > recorded.control_hz:
        raise UserError(
            f"data.convert.control_hz={asked['control_hz']:g} exceeds the recorded {recorded.control_hz:g}: actions "
            "between the recorded ones are not known. Lower it."
        )
    contract = replace(recorded, **{**asked, "gripper_closed": -1.0, "gripper_open": 1.0})
    names = [name for name in recorded.names if name != GRIPPER]
    if contract.rotation is not recorded.rotation:
        if Rotation.none in (contract.rotation, recorded.rotation):
            raise UserError(
                f"data.convert.rotation={contract.rotation} is not possible from rotation={recorded.rotation}: "
                "a rotation is neither made up nor dropped."
            )
        first, count = rotation_entries(recorded.names, recorded.rotation)[0], len(ROTATION_NAMES[recorded.rotation])
        names[first : first + count] = ROTATION_NAMES[contract.rotation]
    if position_entries(recorded.names):
        pose = {*POSITION_NAMES, *ROTATION_NAMES[contract.rotation]}
        prefix = "d" if contract.representation is Representation.delta else ""
        names = [f"{prefix}{bare}" if (bare := name.removeprefix("d")) in pose else name for name in names]
    contract = replace(contract, names=[*names, GRIPPER])
    check_layout(contract)
    return contract


def check_layout(contract: ActionContract) -> None:
    """Refuse a contract that contradicts itself.

    Raises:
        UserError: names the field to change.
    """
    names, rotation = contract.names, contract.rotation
    if len(set(names)) != len(names) or not names or GRIPPER in names[:-1]:
        raise UserError(f"data.contract.names={names} must name each entry once, the gripper last.")
    if rotation is not Rotation.none:
        entries = rotation_entries(names, rotation)
        if not entries or entries != list(range(entries[0], entries[0] + len(entries))):
            raise UserError(
                f"data.contract.rotation={rotation} needs the entries {', '.join(ROTATION_NAMES[rotation])} in this "
                f"order (a leading d is fine), but data.contract.names={names}."
            )
    if rotation is Rotation.euler_increment and contract.representation is Representation.absolute:
        raise UserError("rotation=euler_increment is a delta: an absolute pose has rotation=euler.")
    if contract.frame is ReferenceFrame.tcp and contract.representation is Representation.absolute:
        raise UserError("frame=tcp moves with the hand, so nothing absolute can be given in it: use world or base.")
    if contract.gripper_open == contract.gripper_closed:
        raise UserError("data.contract.gripper_open and gripper_closed are equal: say which value means what.")


ADAPTERS = {
    "representation": "data.convert.representation={}",
    "frame": "data.convert.frame={}",
    "rotation": "data.convert.rotation={}",
    "position_unit": "data.convert.position_unit={:g}",
    "rotation_unit": "data.convert.rotation_unit={:g}",
    "control_hz": "data.convert.control_hz={:g}",
}


def check_contract(policy: ActionContract, other: ActionContract, other_name: str) -> None:
    """Refuse a policy whose actions do not mean what the data or environment expects.

    Raises:
        UserError: lists both sides of every disagreement, and what converts the data.
    """
    sides = [(f.name, getattr(policy, f.name), getattr(other, f.name)) for f in fields(ActionContract)]
    has_rotation = policy.rotation is not Rotation.none or other.rotation is not Rotation.none
    has_position = any(name.removeprefix("d") in POSITION_NAMES for name in (*policy.names, *other.names))
    has_gripper = GRIPPER in (*policy.names, *other.names)
    meaningless = {
        "rotation": not has_rotation,
        "rotation_unit": not has_rotation,
        "position_unit": not has_position,  # of joints
        "gripper_closed": not has_gripper,
        "gripper_open": not has_gripper,
    }
    different = [
        (name, left, right) for name, left, right in sides if left != right and not meaningless.get(name, False)
    ]
    if different:
        wrong = [f"  {name}: policy {_plain(left)}, {other_name} {_plain(right)}" for name, left, right in different]
        known = [(name, right) for name, left, right in different if None not in (left, right)]
        fixes = [ADAPTERS[name].format(right) for name, right in known if name in ADAPTERS]
        raise UserError(
            f"the policy's actions do not mean what {other_name} expects:\n" + "\n".join(wrong) + "\n"
            "Use the robot or simulator the policy was trained for, correct data.contract if it misdescribes the data, "
            "or train again" + (f" with {' '.join(fixes)}." if fixes else " on data that records them.")
        )


def _plain(value: object) -> str:
    return str(value) if isinstance(value, str) else repr(value)

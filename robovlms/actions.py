"""Actions: what they mean, how they are chunked, and how they reach [-1, 1] and come back.

One `ActionNormalizer` serves training and rollout, and its numbers travel with the checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robovlms.choices import Frame, NormalizationMode, Representation, Rotation
from robovlms.config import ActionContract, DataConfig, NormalizationConfig
from robovlms.statistics import Statistics

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


def chunk_actions(
    actions: Float[Tensor, "b s a"], mask: Bool[Tensor, "b s"], window_size: int, chunk_size: int
) -> tuple[Float[Tensor, "b w k a"], Bool[Tensor, "b w k"]]:
    """Give every step of the window the chunk of actions it must predict.

    Step i is taught actions i, ..., i + k - 1, so neighbouring chunks overlap and a sample carries s = w + k - 1
    actions. Near the end of an episode the tail is padding; a padded action stays masked in every chunk it falls into.

    Returns:
        The chunks and their mask, both views of the inputs; copy before writing.
    Raises:
        ValueError: the sequence does not have w + k - 1 actions.
    Source:
        Sliding chunks as in RoboVLMs (data/calvin_dataset.py), arXiv:2412.14058; the mask follows ACT,
        arXiv:2304.13705.
    """
    if actions.shape[1] != window_size + chunk_size - 1:
        raise ValueError(
            f"got {actions.shape[1]} actions for window_size={window_size} and chunk_size={chunk_size}: "
            f"expected {window_size + chunk_size - 1}"
        )
    return actions.unfold(1, chunk_size, 1).transpose(2, 3), mask.unfold(1, chunk_size, 1)


class ActionNormalizer:
    """Map raw arm entries to [-1, 1] and back; the gripper passes, as exactly -1 (closed) or +1 (open).

    Bounds low and high become -1 and +1, and entries are clipped to them first (not with `identity` and `mean_std`); an
    entry whose bounds coincide (a rotation that never moves) becomes 0 and comes back as its constant.
    Source: RoboVLMs data/data_utils.py, normalize_action (fixed bounds +-0.65), mu_law_companding; OpenVLA q01/q99,
    arXiv:2406.09246.
    """

    def __init__(self, config: NormalizationConfig, stats: Statistics, names: list[str]) -> None:
        """Take how to normalise, the statistics of `names`, and check them.

        Raises:
            ValueError: there are not as many statistics as names, or `modes` has another name.
        """
        if len(stats.mean) != len(names):
            raise ValueError(
                f"statistics of {len(stats.mean)} action entries do not fit the {len(names)} of "
                f"{', '.join(names)}: see data.normalization.statistics_file and data.contract.names."
            )
        if unknown := sorted(set(config.modes) - set(names[:-1])):
            raise ValueError(f"data.normalization.modes has {unknown}, not among the arm's {', '.join(names[:-1])}.")
        modes = [config.modes.get(name, config.mode) for name in names[:-1]]
        pairs = [self._bounds(mode, config, stats, i) for i, mode in enumerate(modes)]
        low, high = torch.tensor(pairs, dtype=torch.float32).reshape(-1, 2).unbind(1)
        free = [mode in (NormalizationMode.identity, NormalizationMode.mean_std) for mode in modes]
        infinite = torch.tensor(free) if free else torch.zeros(0, dtype=torch.bool)
        self._clip_low = low.masked_fill(infinite, -math.inf)
        self._clip_high = high.masked_fill(infinite, math.inf)
        self._center, self._half = (low + high) / 2, (high - low) / 2
        self._constant, self._mu = self._half < 1e-6, config.mu

    @staticmethod
    def _bounds(mode: NormalizationMode, config: NormalizationConfig, stats: Statistics, i: int) -> tuple[float, float]:
        return {
            NormalizationMode.bounds: (config.low, config.high),
            NormalizationMode.min_max: (stats.min[i], stats.max[i]),
            NormalizationMode.quantile: (stats.q01[i], stats.q99[i]),
            NormalizationMode.mean_std: (stats.mean[i] - stats.std[i], stats.mean[i] + stats.std[i]),
            NormalizationMode.identity: (-1.0, 1.0),
        }[mode]

    def normalize(self, actions: Float[Tensor, "*n a"]) -> Float[Tensor, "*n a"]:
        """Give the actions the head is taught."""
        arm, gripper = actions[..., :-1].float(), actions[..., -1:]
        arm = arm.clamp(self._clip_low, self._clip_high)
        arm = (arm - self._center) / self._half.masked_fill(self._constant, 1)
        if self._mu:
            arm = arm.sign() * (self._mu * arm.abs()).log1p() / math.log1p(self._mu)
        return torch.cat([arm.masked_fill(self._constant, 0), torch.where(gripper > 0, 1.0, -1.0)], dim=-1)

    def denormalize(self, actions: Float[Tensor, "*n a"]) -> Float[Tensor, "*n a"]:
        """Give environment units."""
        arm = actions[..., :-1]
        if self._mu:
            arm = arm.sign() * (arm.abs() * math.log1p(self._mu)).expm1() / self._mu
        return torch.cat([arm * self._half + self._center, actions[..., -1:]], dim=-1)


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
    """Give what the actions of a policy trained on this data mean: the data's contract, converted as `data.convert`
    says, with a gripper of -1 and +1.

    Raises:
        ValueError: the contract contradicts itself, or the conversion is not possible.
    """
    check_layout(data.contract)
    recorded, asked = data.contract, {k: v for k, v in asdict(data.convert).items() if v is not None}
    if asked.get("control_hz", 0) > recorded.control_hz:
        raise ValueError(
            f"data.convert.control_hz={asked['control_hz']:g} exceeds the recorded {recorded.control_hz:g}: actions "
            "between the recorded ones are not known. Lower it."
        )
    contract = replace(recorded, **{**asked, "gripper_closed": -1.0, "gripper_open": 1.0})
    names = [name for name in recorded.names if name != GRIPPER]
    if contract.rotation is not recorded.rotation:
        if Rotation.none in (contract.rotation, recorded.rotation):
            raise ValueError(
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
        ValueError: names the field to change.
    """
    names, rotation = contract.names, contract.rotation
    if len(set(names)) != len(names) or not names or GRIPPER in names[:-1]:
        raise ValueError(f"data.contract.names={names} must name each entry once, the gripper last.")
    if rotation is not Rotation.none:
        entries = rotation_entries(names, rotation)
        if not entries or entries != list(range(entries[0], entries[0] + len(entries))):
            raise ValueError(
                f"data.contract.rotation={rotation} needs the entries {', '.join(ROTATION_NAMES[rotation])} in this "
                f"order (a leading d is fine), but data.contract.names={names}."
            )
    if rotation is Rotation.euler_increment and contract.representation is Representation.absolute:
        raise ValueError("rotation=euler_increment is a delta: an absolute pose has rotation=euler.")
    if contract.frame is Frame.tcp and contract.representation is Representation.absolute:
        raise ValueError("frame=tcp moves with the hand, so nothing absolute can be given in it: use world or base.")
    if contract.gripper_open == contract.gripper_closed:
        raise ValueError("data.contract.gripper_open and gripper_closed are equal: say which value means what.")


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
        ValueError: lists both sides of every disagreement, and what converts the data.
    """
    sides = [(f.name, getattr(policy, f.name), getattr(other, f.name)) for f in fields(ActionContract)]
    has_rotation = policy.rotation is not Rotation.none or other.rotation is not Rotation.none
    different = [
        (name, left, right)
        for name, left, right in sides
        if left != right and (has_rotation or name not in ("rotation", "rotation_unit"))
    ]
    if different:
        wrong = [f"  {name}: policy {_plain(left)}, {other_name} {_plain(right)}" for name, left, right in different]
        known = [(name, right) for name, left, right in different if None not in (left, right)]
        fixes = [ADAPTERS[name].format(right) for name, right in known if name in ADAPTERS]
        raise ValueError(
            f"the policy's actions do not mean what {other_name} expects:\n" + "\n".join(wrong) + "\n"
            "Use the robot or simulator the policy was trained for, correct data.contract if it misdescribes the data, "
            "or train again" + (f" with {' '.join(fixes)}." if fixes else " on data that records them.")
        )


def _plain(value: object) -> str:
    return str(value) if isinstance(value, str) else repr(value)

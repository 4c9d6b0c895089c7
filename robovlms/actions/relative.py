"""Actions relative to the state that their chunk is predicted from: of which entries, and in which units.

The contract stays absolute: a chunk is made relative when it is normalised, and absolute before a robot gets it.
Source: openpi, src/openpi/transforms.py, DeltaActions and AbsoluteActions; relative actions of GR00T N1.6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from robovlms.actions.checks import Finding, Severity
from robovlms.actions.contract import arms, position_entries, rotation_entries
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import RelativeTo, Representation, Rotation
from robovlms.config.data import ActionContract, DataConfig
from robovlms.errors import UserError

MAX_SPREAD = 0.5  # standard deviation of what is relative, of that of the absolute action


@dataclass(frozen=True, kw_only=True)
class RelativeEntry:
    """An action entry that is learned relative to the entry of proprioception of the same name."""

    name: str
    action: int  # its place in an action
    state: int  # its place in an observation's proprioception
    unit: float = 1.0  # of the action, in that of proprioception
    zero: float = 0.0  # of the action, in that of proprioception: where a gripper that speaks -1 to +1 is half open
    turn: float | None = None  # a full turn, in the action's unit, of an angle from -turn / 2 to turn / 2


def relative_names(data: DataConfig, contract: ActionContract) -> list[str]:
    """Return the entries of a contract that `data.convert` says are relative; none where nothing is.

    Raises:
        UserError: an entry cannot be relative; says why, and what to set.
    """
    asked = data.convert.relative
    if data.convert.relative_to is RelativeTo.none:
        if asked:
            raise UserError(f"data.convert.relative={asked} needs data.convert.relative_to=state.")
        return []
    if contract.representation is not Representation.absolute:
        raise UserError(
            f"data.convert.relative_to=state is of absolute actions, and these are {contract.representation}: they are "
            "relative already. Leave it out, or set data.convert.representation=absolute."
        )
    arm = [name for i, name in enumerate(contract.names) if i not in contract.grippers]
    recorded = data.proprio_names
    names = [name for name in arm if name in recorded] if asked is None else asked
    if decided := [contract.names[i] for i in contract.binary if contract.names[i] in names]:
        raise UserError(
            f"data.convert.relative has {', '.join(decided)}: open or closed is a decision, and no difference from a "
            f"state. Leave it out, or set data.contract.continuous_grippers=[{','.join(decided)}] where it is an "
            "opening width."
        )
    if wrong := [name for name in names if name not in contract.names]:
        possible = [*arm, *contract.continuous_grippers]
        raise UserError(f"data.convert.relative has {', '.join(wrong)}, not among {', '.join(possible)}.")
    if not names or (missing := [name for name in names if name not in recorded]):
        lacking = ", ".join(missing if names else arm)
        raise UserError(
            f"data.convert.relative_to=state needs proprioception of the same names, but data.proprio_names={recorded} "
            f"has no {lacking}: set data.proprio_key, and call its entries so in data.proprio_names "
            "(data.proprio_seen=[] hides them from the policy); or choose others in data.convert.relative."
        )
    turning = {contract.names[i] for i in _turning(contract)}
    if contract.rotation is not Rotation.euler and (lost := [name for name in names if name in turning]):
        raise UserError(
            f"data.convert.relative: a difference of {', '.join(lost)} is no rotation ({contract.rotation}): leave "
            f"them absolute with data.convert.relative=[{','.join(name for name in names if name not in turning)}], or "
            "set data.convert.rotation=euler."
        )
    return names


def relative_entries(data: DataConfig, contract: ActionContract, proprio_names: Sequence[str]) -> list[RelativeEntry]:
    """Return where the relative entries of a contract stand, and how the units compare.

    Args:
        data: whose proprioception has positions in metres, angles of rotations in radians, and openings of grippers as
            its actions record them, from `gripper_closed` to `gripper_open`.
        contract: of the policy's actions.
        proprio_names: what an observation brings.

    Raises:
        UserError: as `relative_names`, or a unit is not known.
    """
    names, states = contract.names, list(proprio_names)
    recorded = data.contract  # as which a gripper's state is written
    closed, opened = recorded.gripper_closed, recorded.gripper_open
    rotations, positions = _turning(contract), {i for arm in arms(names) for i in position_entries(names, arm)}
    found = []
    for name in relative_names(data, contract):
        entry = RelativeEntry(name=name, action=names.index(name), state=states.index(name))
        if entry.action in contract.grippers:
            entry = replace(entry, unit=(opened - closed) / 2, zero=(opened + closed) / 2)
        elif entry.action in positions:
            entry = replace(entry, unit=_known_unit("position_unit", contract, name))
        elif entry.action in rotations:
            unit = _known_unit("rotation_unit", contract, name)
            entry = replace(entry, unit=unit, turn=2 * math.pi / unit)
        found.append(entry)
    return found


def _known_unit(option: str, contract: ActionContract, name: str) -> float:
    unit: float | None = getattr(contract, option)
    if unit is None:
        raise UserError(
            f"data.convert.relative_to=state: {name} of the action is compared with proprioception, so "
            f"data.contract.{option} must be known: what does an entry of 1.0 stand for?"
        )
    return unit


def _turning(contract: ActionContract) -> set[int]:
    """Say which entries are those of a rotation."""
    return {i for arm in arms(contract.names) for i in rotation_entries(contract.names, contract.rotation, arm)}


def relative_findings(stats: Statistics, entries: Sequence[RelativeEntry]) -> list[Finding]:
    """Suspect states that actions do not follow: then the first actions of chunks are not near what they start from.

    Args:
        stats: of all actions, and of every step of a chunk.
        entries: that are relative.
    """
    first = stats.steps[0]
    far = [
        f"{entry.name} ({first.std[entry.action]:.3g}, absolute {stats.std[entry.action]:.3g})"
        for entry in entries
        if first.std[entry.action] > MAX_SPREAD * stats.std[entry.action]
    ]
    if not far:
        return []
    return [
        Finding(
            severity=Severity.warning,
            what=f"a chunk's first action, relative to the state, spreads almost as far as the action itself: "
            f"{', '.join(far)}",
            where="the statistics of data.convert.relative_to=state",
            to_do="If the state has another unit, sign or order than the action, correct data.proprio_names or the "
            "units of data.contract, or leave these entries out of data.convert.relative.",
        )
    ]


class RelativeActions:
    """Take from the actions of a chunk the state that it is predicted from, and add it again."""

    def __init__(self, entries: Sequence[RelativeEntry], action_dim: int) -> None:
        """Take the relative entries of actions; all others are left as they are."""
        self.entries = entries
        self._turning = any(entry.turn for entry in entries)
        self._state = torch.full((action_dim,), -1)  # behind the state stands a 0
        self._units, self._zeros = torch.ones(action_dim), torch.zeros(action_dim)
        self._turns = torch.full((action_dim,), math.inf)
        for entry in entries:
            self._state[entry.action] = entry.state
            self._units[entry.action], self._zeros[entry.action] = entry.unit, entry.zero
            self._turns[entry.action] = entry.turn or math.inf

    def subtract(
        self, actions: Float[Tensor, "*n k a"], state: Float[Tensor, "*n p"] | None
    ) -> Float[Tensor, "*n k a"]:
        """Return the relative actions of chunks; angles are wrapped to half a turn."""
        return self._wrap(actions - self._reference(state)) if self.entries else actions

    def add(self, actions: Float[Tensor, "*n k a"], state: Float[Tensor, "*n p"] | None) -> Float[Tensor, "*n k a"]:
        """Return the absolute actions of relative chunks."""
        return self._wrap(actions + self._reference(state)) if self.entries else actions

    def _reference(self, state: Float[Tensor, "*n p"] | None) -> Float[Tensor, "*n 1 a"]:
        assert state is not None, "relative actions need the state that their chunk is predicted from"
        behind = torch.cat([state, torch.zeros_like(state[..., :1])], dim=-1)
        return ((behind[..., self._state] - self._zeros) / self._units)[..., None, :]

    def _wrap(self, actions: Float[Tensor, "*n a"]) -> Float[Tensor, "*n a"]:
        if not self._turning:
            return actions
        return torch.where(self._turns.isfinite(), actions - self._turns * (actions / self._turns).round(), actions)

"""What recorded actions ask for and what the recorded states did, as moves of neighbouring steps in the same words.

Poses are compared in metres and radians, a rotation as the vector of its turn; any other entry with the state entry of
its name, as recorded. Absolute actions are compared by how they change from step to step, so that signs, units, axes
and order are judged alike for all representations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64
from scipy.spatial import transform

from robovlms.actions.contract import arms, position_entries, rotation_entries, split_name
from robovlms.actions.conversion import read_rotation
from robovlms.config.choices import ReferenceFrame, Representation, Rotation
from robovlms.config.data import DataConfig
from robovlms.inspection.scan import ScannedRows

MIN_ROWS = 4  # of a stretch that is compared
FIXED = (ReferenceFrame.world, ReferenceFrame.base)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Entries that are compared together: the axes of a position or of a turn, or one entry of any other kind."""

    kind: str  # "position", "turn" or "entry"
    names: list[str]  # of the action
    actions: list[int]  # their columns; of a turn those of its rotation
    states: list[int]  # columns of the state
    facing: list[int] = field(default_factory=list)  # columns of the state's rotation, where it is recorded


@dataclass(frozen=True, kw_only=True)
class Moves:
    """Moves of a group, stretch by stretch: row i leads from step i to step i + 1."""

    group: Group
    commanded: list[Float64[np.ndarray, "_n m"]]
    observed: list[Float64[np.ndarray, "_n m"]]  # in the contract's frame
    turned: list[Float64[np.ndarray, "_n m"]]  # in the other of hand and room; empty where that is not known
    levels: list[tuple[Float64[np.ndarray, "_n m"], Float64[np.ndarray, "_n m"]]]  # of absolute entries: action, state


def find_groups(data: DataConfig) -> tuple[list[Group], list[str]]:
    """Return what can be compared, and the arm's entries whose state is not recorded."""
    contract, states = data.contract, data.proprio_names if data.proprio_key else []
    groups: list[Group] = []
    taken: set[int] = set()
    has_unit = contract.rotation_unit is not None or contract.rotation in (Rotation.quaternion, Rotation.rotation_6d)
    for arm in arms(contract.names):
        position = position_entries(contract.names, arm)
        rotation = rotation_entries(contract.names, contract.rotation, arm)
        place, facing = position_entries(states, arm), rotation_entries(states, data.proprio_rotation, arm)
        needs_facing = contract.frame is ReferenceFrame.tcp
        if position and place and (facing or not needs_facing):
            names = [contract.names[i] for i in position]
            groups.append(Group(kind="position", names=names, actions=position, states=place, facing=facing))
        if rotation and facing and has_unit:
            names = [contract.names[i] for i in rotation]
            names = names if len(names) == 3 else [f"{arm}turn about {axis}" for axis in "xyz"]
            groups.append(Group(kind="turn", names=names, actions=rotation, states=facing, facing=facing))
        taken |= {*position, *rotation}
    taken |= set(contract.grippers)
    for i, name in enumerate(contract.names):
        if i not in taken and (place := _same(name, states)):
            groups.append(Group(kind="entry", names=[name], actions=[i], states=place))
    compared = {i for group in groups for i in group.actions}
    lost = [name for i, name in enumerate(contract.names) if i not in compared and i not in contract.grippers]
    return groups, lost


def _same(name: str, states: list[str]) -> list[int]:
    arm = split_name(name)[0]
    last = name[len(arm) :]
    for candidate in (last, last.removeprefix("delta_"), last.removeprefix("d")):
        if arm + candidate in states:
            return [states.index(arm + candidate)]
    return []


def find_moves(data: DataConfig, rows: ScannedRows, group: Group) -> Moves:
    """Return a group's moves in every unbroken stretch of rows."""
    commanded, observed, turned, levels = [], [], [], []
    for actions, states in stretches(rows):
        asked, level = _commanded(data, actions, group)
        did, other, state = _observed(data, states, group)
        commanded.append(asked)
        observed.append(did)
        if other is not None:
            turned.append(other)
        if level is not None and state is not None:
            levels.append((level, state))
    return Moves(group=group, commanded=commanded, observed=observed, turned=turned, levels=levels)


def stretches(rows: ScannedRows) -> Iterator[tuple[Float64[np.ndarray, "_n a"], Float64[np.ndarray, "_n p"]]]:
    """Return the finite actions and states of neighbouring steps, piece by piece."""
    assert rows.proprio is not None
    good = np.isfinite(rows.actions).all(axis=1) & np.isfinite(rows.proprio).all(axis=1)
    index = np.flatnonzero(good)
    joined = (np.diff(rows.episode[index]) == 0) & (np.diff(rows.step[index]) == 1)
    for piece in np.split(index, np.flatnonzero(~joined) + 1):
        if len(piece) >= MIN_ROWS:
            yield rows.actions[piece].astype(np.float64), rows.proprio[piece].astype(np.float64)


def _commanded(data: DataConfig, actions: np.ndarray, group: Group) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the moves that actions ask for and, of absolute entries but turns, the values themselves."""
    contract, values = data.contract, actions[:, group.actions]
    is_delta = contract.representation is Representation.delta
    if group.kind == "turn":
        angles = contract.rotation in (Rotation.quaternion, Rotation.rotation_6d)
        values = values if angles else values * (contract.rotation_unit or 1.0)
        if contract.rotation is Rotation.euler_increment:
            return values[:-1], None
        turns = read_rotation(values, contract.rotation)
        return (turns.as_rotvec()[:-1] if is_delta else _turns(turns, in_hand=False)), None
    if group.kind == "position":
        values = values * (contract.position_unit or 1.0)
    return (values[:-1], None) if is_delta else (np.diff(values, axis=0), values)


def _observed(
    data: DataConfig, states: np.ndarray, group: Group
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return the moves of the states in the contract's frame and in the other one, and the values."""
    in_hand = data.contract.frame is ReferenceFrame.tcp
    has_frame = bool(group.facing) and data.contract.representation is Representation.delta
    facing = read_rotation(states[:, group.facing], data.proprio_rotation) if group.facing else None
    if group.kind == "turn":
        assert facing is not None
        if data.contract.rotation is Rotation.euler_increment:
            moves = np.diff(facing.as_euler("xyz"), axis=0)
            return (moves + np.pi) % (2 * np.pi) - np.pi, None, None
        other = _turns(facing, in_hand=not in_hand) if has_frame else None
        return _turns(facing, in_hand=in_hand), other, None
    values = states[:, group.states]
    moves = np.diff(values, axis=0)
    if facing is None or not has_frame:
        return moves, None, values
    in_tcp = facing[:-1].inv().apply(moves)
    return (in_tcp, moves, values) if in_hand else (moves, in_tcp, values)


def _turns(rotations: transform.Rotation, *, in_hand: bool) -> np.ndarray:
    before, after = rotations[:-1], rotations[1:]
    return (before.inv() * after if in_hand else after * before.inv()).as_rotvec()

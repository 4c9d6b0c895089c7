"""Recorded actions to a policy's targets: another rotation, frame, unit, rate, delta or absolute.

Rotations are scipy's. Everything is done in metres and rotations between reading and writing; what a contract leaves
as recorded is copied untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64, Int64
from scipy.spatial import transform

from robovlms.actions.contract import arms, position_entries, rotation_entries
from robovlms.config.choices import ReferenceFrame, Representation, Rotation
from robovlms.config.data import ActionContract, DataConfig
from robovlms.errors import UserError

R: TypeAlias = transform.Rotation
Pose: TypeAlias = tuple[np.ndarray, R]
"""Position in metres, "n 3", and rotation of the hand in the fixed frame."""
Motion: TypeAlias = tuple[np.ndarray | None, R | None]
"""A displacement and a turn, or where they lead to; None where the actions have none."""


def read_rotation(values: Float64[np.ndarray, "n r"], kind: Rotation) -> R:
    """Return scipy's rotations.

    Angles in radians; quaternions x, y, z, w of either sign, not of length 0; six numbers are the first two columns of
    the matrix, made orthonormal (Gram-Schmidt).

    Raises:
        UserError: a quaternion or column of length 0.
    """
    if kind in (Rotation.euler, Rotation.euler_increment):
        return R.from_euler("xyz", values)
    if kind is Rotation.axis_angle:
        return R.from_rotvec(values)
    if kind is Rotation.quaternion:
        return R.from_quat(values)
    assert kind is Rotation.rotation_6d
    first, second = values[:, :3], values[:, 3:]
    first = first / np.linalg.norm(first, axis=1, keepdims=True)
    second = second - (first * second).sum(axis=1, keepdims=True) * first
    second = second / np.linalg.norm(second, axis=1, keepdims=True)
    return R.from_matrix(np.stack([first, second, np.cross(first, second)], axis=2))


def write_rotation(rotation: R, kind: Rotation) -> Float64[np.ndarray, "n r"]:
    """Return the numbers of rotations; what `read_rotation` reads. Quaternions have w >= 0."""
    if kind is Rotation.euler:
        return rotation.as_euler("xyz")
    if kind is Rotation.axis_angle:
        return rotation.as_rotvec()
    if kind is Rotation.quaternion:
        return rotation.as_quat(canonical=True)
    assert kind is Rotation.rotation_6d
    matrix = rotation.as_matrix()
    return np.concatenate([matrix[:, :, 0], matrix[:, :, 1]], axis=1)


@dataclass(frozen=True)
class _Arm:
    """Where an arm's entries stand: in the recorded actions, and in proprioception."""

    position: list[int]
    rotation: list[int]
    pose_position: list[int]
    pose_rotation: list[int]

    @classmethod
    def of(cls, data: DataConfig, arm: str) -> _Arm:
        names, proprio = data.contract.names, data.proprio_names
        return cls(
            position_entries(names, arm),
            rotation_entries(names, data.contract.rotation, arm),
            position_entries(proprio, arm),
            rotation_entries(proprio, data.proprio_rotation, arm),
        )


class ActionConverter:
    """Turn an episode's recorded actions into those of the policy's contract.

    A converted step covers the recorded steps from its first to before the next one's: deltas are put together, of what
    is absolute the last counts, and so of grippers. Step j begins at recorded frame round(j * rate). Several arms are
    converted each by itself, with its own pose.

    Raises:
        UserError: the conversion needs the hand's pose, and `data.proprio_names` does not have it; or a unit that is
            not known.
    """

    def __init__(self, data: DataConfig, target: ActionContract) -> None:
        """Take a data set, and what its actions mean to the policy (`converted_contract`)."""
        self.source, self.target = data.contract, target
        self.rate = self.source.control_hz / self.target.control_hz
        pose = ("representation", "frame", "rotation", "position_unit", "rotation_unit")
        changes = any(getattr(self.source, name) != getattr(self.target, name) for name in pose)
        self.is_trivial = self.rate == 1 and not changes  # but for grippers' values
        self._check_units()
        names = self.source.names
        found = {arm: _Arm.of(data, arm) for arm in arms(names)}
        self._arms = {arm: each for arm, each in found.items() if each.position or each.rotation}
        self._grippers = self.source.grippers
        moved = {i for arm in self._arms.values() for i in (*arm.position, *arm.rotation)}
        self._rest = [i for i in range(len(names)) if i not in moved and i not in self._grippers]
        self.needs_pose = self._needs_pose()
        self._pose_kind = data.proprio_rotation
        if self.needs_pose:
            self._check_poses()

    def _check_poses(self) -> None:
        if not self._arms:
            raise UserError(
                f"data.convert from {self._describe(self.source)} to {self._describe(self.target)} is about poses, and "
                f"data.contract.names={self.source.names} has none (x, y, z, with or without a leading d)."
            )
        if lacking := [name for name, arm in self._arms.items() if not (arm.pose_position and arm.pose_rotation)]:
            entries = ", ".join(lacking[0] + name for name in "xyz")
            raise UserError(
                f"data.convert from {self._describe(self.source)} to {self._describe(self.target)} needs the hand's "
                f"pose: set data.proprio_key, name its entries {entries} and those of data.proprio_rotation in "
                "data.proprio_names (data.proprio_seen=[] hides it from the policy)."
            )

    def _check_units(self) -> None:
        unknown = [name for name in ("position_unit", "rotation_unit") if getattr(self.source, name) is None]
        if unknown and not self.is_trivial:
            raise UserError(
                f"data.convert needs to know what an entry of 1.0 stands for, but data.contract.{unknown[0]}=null: set "
                "it to metres (radians for an angle) if you know them, or convert nothing."
            )

    def _needs_pose(self) -> bool:
        source, target = self.source, self.target
        fixed = {ReferenceFrame.world, ReferenceFrame.base}
        if source.frame is not target.frame and not {source.frame, target.frame} <= {*fixed, ReferenceFrame.tcp}:
            raise UserError(f"data.convert.frame={target.frame} is not possible from frame={source.frame}.")
        if {source.frame, target.frame} == fixed:
            raise UserError("world and base are not told apart by the data: correct data.contract.frame instead.")
        turns = source.frame is not target.frame or source.representation is not target.representation
        increments = Rotation.euler_increment in (source.rotation, target.rotation)
        return turns or (increments and source.rotation is not target.rotation)

    @staticmethod
    def _describe(contract: ActionContract) -> str:
        return f"({contract.representation}, {contract.frame}, rotation={contract.rotation})"

    def num_steps(self, frames: int) -> int:
        """Return how many converted steps an episode of `frames` recorded ones has; an incomplete last one is left."""
        if self.rate == 1:
            return frames
        steps = int(frames / self.rate) + 2
        starts = self.starts(np.arange(steps + 1))
        return int((starts[1:] <= frames).sum())

    def starts(self, steps: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        """Return the recorded frame that each converted step begins at."""
        return steps if self.rate == 1 else np.round(steps * self.rate).astype(np.int64)

    def covered(self, steps: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "m"]:
        """Return the recorded frames that converted steps cover, one after another."""
        if self.rate == 1:
            return steps
        pairs = zip(self.starts(steps), self.starts(steps + 1), strict=True)
        return np.concatenate([np.arange(start, end) for start, end in pairs])

    def __call__(
        self, actions: np.ndarray, proprio: np.ndarray | None, steps: Int64[np.ndarray, "n"]
    ) -> np.ndarray:  # float32 "n a"
        """Convert.

        Args:
            actions: as recorded, of the frames that `covered(steps)` lists.
            proprio: of the same frames; only looked at if `needs_pose`.
            steps: converted steps.
        """
        if self.is_trivial:
            if not self._grippers or (self.source.gripper_closed, self.source.gripper_open) == (-1, 1):
                return actions.astype(np.float32)
            spoken = actions.astype(np.float32)
            spoken[:, self._grippers] = self._speak(actions[:, self._grippers])
            return spoken
        counts = self.starts(steps + 1) - self.starts(steps)
        last = np.cumsum(counts) - 1
        return self._convert(actions, proprio, last - counts + 1, last).astype(np.float32)

    def _speak(self, grippers: np.ndarray) -> np.ndarray:
        """Return what is recorded of grippers as -1 (closed) to +1 (open)."""
        closed, opened = self.source.gripper_closed, self.source.gripper_open
        return grippers if (closed, opened) == (-1, 1) else (2 * (grippers - closed) / (opened - closed) - 1)

    def _convert(
        self, recorded: np.ndarray, proprio: np.ndarray | None, first: np.ndarray, last: np.ndarray
    ) -> np.ndarray:
        """Return the entries of steps that cover rows first ... last each."""
        actions = recorded.astype(np.float64)
        groups = np.repeat(np.arange(len(first)), last - first + 1)
        is_delta = self.source.representation is Representation.delta
        blocks: dict[int, np.ndarray] = {i: self._speak(recorded[last, i]) for i in self._grippers}
        for i in self._rest:
            blocks[i] = np.bincount(groups, actions[:, i], len(first)) if is_delta else actions[last, i]
        for arm in self._arms.values():
            position = actions[:, arm.position] * _known(self.source.position_unit) if arm.position else None
            pose = self._poses(arm, proprio) if self.needs_pose else None
            rotation = self._read(arm, actions, pose)
            if is_delta:
                motion = self._compose((position, rotation), groups, pose is not None, len(first))
            else:
                motion = (None if position is None else position[last], None if rotation is None else rotation[last])
            blocks |= self._write(arm, self._express(motion, pose, first), pose, first)
        return np.concatenate([np.reshape(blocks[i], (len(first), -1)) for i in sorted(blocks)], axis=1)

    def _poses(self, arm: _Arm, proprio: np.ndarray | None) -> Pose:
        assert proprio is not None
        exact = proprio.astype(np.float64)
        return exact[:, arm.pose_position], read_rotation(exact[:, arm.pose_rotation], self._pose_kind)

    def _read(self, arm: _Arm, actions: np.ndarray, pose: Pose | None) -> R | None:
        if not arm.rotation:
            return None
        numbers = actions[:, arm.rotation]
        if self.source.rotation not in (Rotation.quaternion, Rotation.rotation_6d):
            numbers = numbers * _known(self.source.rotation_unit)
        if self.source.rotation is Rotation.euler_increment and pose is not None:
            angles = pose[1].as_euler("xyz")
            return R.from_euler("xyz", angles + numbers) * pose[1].inv()  # in world axes, as a turn
        return read_rotation(numbers, self.source.rotation)

    def _compose(self, motion: Motion, groups: np.ndarray, has_pose: bool, count: int) -> Motion:
        """Put the deltas of each group together: a displacement and a turn, in the source's frame."""
        position, rotation = motion
        if len(groups) == count:
            return motion
        if rotation is None or (self.source.rotation is Rotation.euler_increment and not has_pose):
            angles = None if rotation is None else _sums(rotation.as_euler("xyz"), groups, count)
            sums = None if position is None else _sums(position, groups, count)
            return sums, None if angles is None else R.from_euler("xyz", angles)
        in_tcp = self.source.frame is ReferenceFrame.tcp
        turns, moves = [R.identity()] * count, np.zeros((count, 3))
        for row, group in enumerate(groups):
            if position is not None:
                moves[group] += turns[group].apply(position[row]) if in_tcp else position[row]
            turns[group] = turns[group] * rotation[row] if in_tcp else rotation[row] * turns[group]
        return (None if position is None else moves), R.concatenate(turns)

    def _express(self, motion: Motion, pose: Pose | None, first: np.ndarray) -> Motion:
        """Return displacement and turn, or the absolute pose, in the target's words."""
        (moved, turned), source, target = motion, self.source, self.target
        if pose is None or (source.representation is target.representation and source.frame is target.frame):
            return motion
        here, facing = pose[0][first], pose[1][first]
        if source.representation is Representation.absolute:  # to a delta in the world
            moved = None if moved is None else moved - here
            turned = None if turned is None else turned * facing.inv()
        elif source.frame is ReferenceFrame.tcp:
            moved = None if moved is None else facing.apply(moved)
            turned = None if turned is None else facing * turned * facing.inv()
        if target.representation is Representation.absolute:
            return (None if moved is None else here + moved), (None if turned is None else turned * facing)
        if target.frame is ReferenceFrame.tcp:
            moved = None if moved is None else facing.inv().apply(moved)
            turned = None if turned is None else facing.inv() * turned * facing
        return moved, turned

    def _write(self, arm: _Arm, motion: Motion, pose: Pose | None, first: np.ndarray) -> dict[int, np.ndarray]:
        """Return an arm's numbers by the place of the recorded entry that they stand for, a rotation's by its first."""
        (moved, turned), blocks = motion, dict[int, np.ndarray]()
        if moved is not None:
            blocks |= dict(zip(arm.position, (moved / _known(self.target.position_unit)).T, strict=True))
        if turned is not None:
            blocks[arm.rotation[0]] = self._numbers(turned, pose, first)
        return blocks

    def _numbers(self, turned: R, pose: Pose | None, first: np.ndarray) -> np.ndarray:
        kind = self.target.rotation
        if kind is Rotation.euler_increment and pose is not None:
            before, after = pose[1][first], turned * pose[1][first]
            angles = after.as_euler("xyz") - before.as_euler("xyz")
            return (angles + np.pi) % (2 * np.pi) - np.pi
        numbers = turned.as_euler("xyz") if kind is Rotation.euler_increment else write_rotation(turned, kind)
        is_free = kind in (Rotation.quaternion, Rotation.rotation_6d)
        return numbers if is_free else numbers / _known(self.target.rotation_unit)


def _known(unit: float | None) -> float:
    assert unit is not None  # see ActionConverter._check_units
    return unit


def _sums(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    return np.stack([np.bincount(groups, column, count) for column in values.T], axis=1)

"""Do rows of actions hold what the contract declares? Cheap: nothing is read, and a sample will do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum, auto

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from robovlms.actions.contract import (
    CONSTANT,
    arms,
    has_positions,
    is_constant,
    is_sparse,
    position_entries,
    rotation_entries,
)
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import ReferenceFrame, Representation, Rotation
from robovlms.config.data import GRIPPER, ActionContract, NormalizationConfig, gripper_entries
from robovlms.errors import UserError

RARE = 0.01  # share of rows up to which something impossible is called a fault of single rows
MAX_STEP, MIN_STEP, MAX_REACH = 0.5, 1e-5, 10.0  # metres: of one step, of the largest step, of an absolute position
MAX_SUM = 4 * np.pi  # of a joint's moves within an episode: no robot turns one twice round
MAX_TURN = 1.0  # radians of a typical step


class Severity(StrEnum):
    """Whether a policy can be trained on it."""

    error = auto()  # the data or what is declared about it is wrong
    warning = auto()  # may be meant


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong or looks wrong."""

    severity: Severity
    what: str
    where: str
    to_do: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.what} [{self.where}] {self.to_do}"


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Finite rows of actions, and what names a row's source."""

    values: Float64[np.ndarray, "n a"]
    index: Int64[np.ndarray, "n"]  # number of each row among all
    names: Sequence[str]
    contract: ActionContract
    locate: Callable[[int], str]

    def where(self, row: int) -> str:
        return self.locate(int(self.index[row]))

    def beyond(self, sizes: Float64[np.ndarray, "n"], limit: float, what: str, to_do: str) -> list[Finding]:
        """Report rows whose size exceeds the limit: an error, or a warning where they are rare."""
        beyond = sizes > limit
        if not beyond.any():
            return []
        worst, is_rare = int(np.argmax(sizes)), beyond.mean() <= RARE
        hint = "So few rows may be faults of the recording: look at them, and drop their episodes. Or else: "
        return [
            Finding(
                severity=Severity.warning if is_rare else Severity.error,
                what=f"{what} in {beyond.sum()} of {len(sizes)} rows (largest: {sizes[worst]:.4g})",
                where=self.where(worst),
                to_do=(hint if is_rare else "") + to_do,
            )
        ]


def numeric_findings(
    actions: Float[np.ndarray, "n a"],
    contract: ActionContract,
    names: Sequence[str],
    *,
    locate: Callable[[int], str] = "row {}".format,
) -> list[Finding]:
    """Hold rows of actions against what is declared about them; reads nothing and costs milliseconds.

    Args:
        actions: in the contract's words, recorded or converted; a sample will do.
        contract: its representation, rotation, units and gripper values.
        names: of the columns, usually `contract.names`; leave out entries that are no target, with their columns.
        locate: names the source of a row, by its number.

    Raises:
        UserError: there are not as many columns as names.
    """
    if actions.shape[1] != len(names):
        raise UserError(f"{actions.shape[1]} columns of actions, but {len(names)} names: {', '.join(names)}")
    is_finite = np.isfinite(actions)
    found = _not_finite(is_finite, names, locate)
    rows = np.flatnonzero(is_finite.all(axis=1))
    if not len(rows):
        return found
    table = _Table(values=actions[rows].astype(np.float64), index=rows, names=names, contract=contract, locate=locate)
    found += _constant(table)
    for arm in arms(names):
        found += [*_positions(table, arm), *_rotations(table, arm)]
    return found + [finding for entry in gripper_entries(names) for finding in _gripper(table, entry)]


def _not_finite(
    is_finite: Bool[np.ndarray, "n a"], names: Sequence[str], locate: Callable[[int], str]
) -> list[Finding]:
    bad = np.flatnonzero(~is_finite.all(axis=1))
    if not len(bad):
        return []
    entries = [name for i, name in enumerate(names) if not is_finite[:, i].all()]
    return [
        Finding(
            severity=Severity.error,
            what=f"{', '.join(entries)}: NaN or infinite in {len(bad)} of {len(is_finite)} rows",
            where=locate(int(bad[0])),
            to_do="Repair the recording.",
        )
    ]


def _constant(table: _Table) -> list[Finding]:
    low, high = table.values.min(axis=0), table.values.max(axis=0)
    still = [f"{name} ({low[i]:g})" for i, name in enumerate(table.names) if is_constant(low[i], high[i])]
    if not still or len(table.values) < 2:
        return []
    return [
        Finding(
            severity=Severity.warning,
            what=f"never changes: {', '.join(still)}",
            where=f"all {len(table.values)} rows",
            to_do="Normalised it is 0, and comes back as this constant. Where it should move, correct the order of "
            "data.contract.names, or what is recorded.",
        )
    ]


def sparse_findings(
    stats: Statistics, config: NormalizationConfig, names: Sequence[str], binary: Sequence[int]
) -> list[Finding]:
    """Name entries that move so rarely that their quantiles coincide.

    Args:
        stats: of `names`.
        config: says by what each is normalised.
        names: of all entries.
        binary: those that are open or closed, and need no range.
    """
    sparse = [
        f"{name} ({stats.q50[i]:g} in almost all rows, else {stats.min[i]:g} to {stats.max[i]:g})"
        for i, name in enumerate(names)
        if i not in binary and is_sparse(config.modes.get(name, config.mode), stats, i)
    ]
    if not sparse:
        return []
    return [
        Finding(
            severity=Severity.warning,
            what=f"changes so rarely that q01 = q99: {', '.join(sparse)}",
            where="the statistics",
            to_do="It is normalised by its smallest and largest value instead. Where those are faults of the "
            "recording, drop their episodes, or set data.normalization.modes.<entry>=bounds with low and high.",
        )
    ]


def representation_findings(episodes: Iterable[Float[np.ndarray, "_n a"]], contract: ActionContract) -> list[Finding]:
    """Suspect absolute joints that are declared to be moves: they begin away from 0 and hardly change in a step.

    Args:
        episodes: consecutive rows of some episodes, from their first on, finite, as recorded; read where needed.
        contract: of the rows, whose entries are joints: poses are recognised by their size (`numeric_findings`).
    """
    if contract.representation is not Representation.delta or has_positions(contract.names):
        return []
    arm = [i for i in range(len(contract.names)) if i not in contract.grippers]
    starts, steps, sums = [], [], []
    for rows in episodes:
        values = rows[:, arm].astype(np.float64)
        if len(values) < 10:
            continue
        values = values[:, np.ptp(values, axis=0) >= CONSTANT]
        starts += (np.abs(values[0]) / np.abs(values).max(axis=0)).tolist()
        sums += np.abs(values.sum(axis=0)).tolist()
        steps += (np.abs(np.diff(values, axis=0)).mean(axis=0) / np.abs(values).mean(axis=0)).tolist()
    if not starts or np.median(starts) < 0.5 or np.median(steps) > 0.1 or np.median(sums) < MAX_SUM:
        return []
    return [
        Finding(
            severity=Severity.warning,
            what=f"data.contract.representation=delta, but the entries look like absolute joints: they begin away from "
            f"0, change by {np.median(steps):.1%} of their size in a step and would add up to {np.median(sums):.3g}",
            where="the first steps of episodes",
            to_do="If they are joint positions or targets, set data.contract.representation=absolute.",
        )
    ]


def _positions(table: _Table, arm: str) -> list[Finding]:
    contract, entries = table.contract, position_entries(table.names, arm)
    if not entries or contract.frame in (ReferenceFrame.image, ReferenceFrame.joint) or contract.position_unit is None:
        return []
    metres = np.abs(table.values[:, entries]).max(axis=1) * contract.position_unit
    unit = f"data.contract.position_unit={contract.position_unit:g} looks wrong"
    to_do = "Set it to the metres that an entry of 1.0 stands for"
    if contract.representation is Representation.absolute:
        return table.beyond(
            metres, MAX_REACH, f"{unit}: positions further than {MAX_REACH:g} m from the origin", f"{to_do}."
        )
    found = table.beyond(
        metres,
        MAX_STEP,
        f"{unit}: moves of more than {MAX_STEP} m in one step",
        f"{to_do}; or the positions are absolute: data.contract.representation=absolute.",
    )
    if 0 < metres.max() < MIN_STEP:
        found.append(
            Finding(
                severity=Severity.warning,
                what=f"{unit}: the largest move in one step is {metres.max():.2g} m",
                where=table.where(int(np.argmax(metres))),
                to_do=f"{to_do}.",
            )
        )
    return found


def _rotations(table: _Table, arm: str) -> list[Finding]:
    kind, unit = table.contract.rotation, table.contract.rotation_unit
    entries = rotation_entries(table.names, kind, arm)
    if not entries:
        return []
    values = table.values[:, entries]
    if kind is Rotation.quaternion:
        return _quaternions(table, values)
    if kind is Rotation.rotation_6d:
        first, second = values[:, :3], values[:, 3:]
        lengths = np.linalg.norm(np.stack([first, second]), axis=2)
        off = np.maximum(np.abs(lengths - 1).max(axis=0), np.abs((first * second).sum(axis=1)))
        return table.beyond(
            off,
            0.05,
            "six numbers that are not the first two columns of a rotation matrix",
            "Correct data.contract.rotation or the order of data.contract.names: first column, then second.",
        )
    if unit is None:
        return []
    angles = np.linalg.norm(values, axis=1) if kind is Rotation.axis_angle else np.abs(values).max(axis=1)
    return table.beyond(
        angles * unit,
        np.pi + 0.01,
        f"angles ({kind}) beyond pi",
        f"Set data.contract.rotation_unit={unit:g} to the radians that 1.0 stands for (degrees: 0.0174533), or correct "
        "data.contract.rotation.",
    )


def _quaternions(table: _Table, values: Float64[np.ndarray, "n 4"]) -> list[Finding]:
    lengths = np.linalg.norm(values, axis=1)
    to_do = "Correct data.contract.rotation or the order of data.contract.names (qx, qy, qz, qw)."
    if (lengths < 1e-6).any():  # no rotation at all, so nothing can be converted
        what, where = "quaternions of length 0", table.where(int(np.argmin(lengths)))
        return [Finding(severity=Severity.error, what=what, where=where, to_do=to_do)]
    what = "quaternions whose length differs from 1 by more than 0.01"
    found = table.beyond(np.abs(lengths - 1), 0.01, what, to_do)
    turns = 2 * np.arccos(np.clip(np.abs(values[:, 3]) / lengths, 0, 1))
    if table.contract.representation is Representation.delta and np.median(turns) > MAX_TURN:
        found.append(
            Finding(
                severity=Severity.error,
                what=f"the hand turns by {np.median(turns):.2g} rad in half of the steps: is w recorded first?",
                where=f"all {len(values)} rows",
                to_do="Order them x, y, z, w, e.g. data.action_key=<key>[1:4]+<key>[0].",
            )
        )
    return found


def gripper_share(values: Float[np.ndarray, "n"], contract: ActionContract) -> Float64[np.ndarray, "n"]:
    """Return how far a gripper is open, by the contract: 0 closed, 1 open; above one half counts as open."""
    return (values.astype(np.float64) - contract.gripper_closed) / (contract.gripper_open - contract.gripper_closed)


def _gripper(table: _Table, entry: int) -> list[Finding]:
    values, contract, name = table.values[:, entry], table.contract, table.names[entry]
    is_binary, share, told = name not in contract.continuous_grippers, gripper_share(values, contract), _told(name)
    declared = f"gripper_closed={contract.gripper_closed:g} and gripper_open={contract.gripper_open:g}"
    recorded = f"recorded are {values.min():g} to {values.max():g}"
    to_do = (
        "Set data.contract.gripper_closed and gripper_open to what is recorded when it is closed and when it is open."
    )
    outside = table.beyond(
        np.maximum(-share, share - 1),
        0.05,
        f"{told} leaves the range of {declared} ({recorded}), by more than 5 % of it",
        to_do,
    )
    if not is_binary:  # whatever its ends are called, what a robot gets is what was recorded
        return [replace(finding, severity=Severity.warning) for finding in outside]
    if outside or is_constant(values.min(), values.max()) or (share.min() <= 0.25 and share.max() >= 0.75):
        return outside
    target = {(True, True): "always open", (False, False): "always closed"}.get(
        (bool(share.min() > 0.5), bool(share.max() > 0.5)), "open above the middle"
    )
    what = f"{told} never comes near one end of {declared} ({recorded}): it becomes {target}"
    return [Finding(severity=Severity.warning, what=what, where=f"all {len(values)} rows", to_do=to_do)]


def _told(gripper: str) -> str:
    return "the gripper" if gripper == GRIPPER else gripper


def polarity_findings(
    openings: Sequence[Float64[np.ndarray, "_n"]], contract: ActionContract, name: str
) -> list[Finding]:
    """Suspect a gripper that is closed at the start of almost every episode, and opens where others grasp.

    Args:
        openings: of one episode each, from `gripper_share`.
        contract: whose gripper values are named.
        name: of the gripper.
    """
    is_open = [opening > 0.5 for opening in openings if len(opening)]
    moved = [states for states in is_open if states.any() and not states.all()]
    closed_first = sum(not states[0] for states in moved)
    if len(moved) < 3 or len(moved) < 0.5 * len(is_open) or closed_first < 0.9 * len(moved):
        return []
    what = f"{_told(name)} starts closed and opens later in {closed_first} of {len(moved)} episodes in which it moves"
    to_do = (
        "Robots mostly start open and close to grasp. If the recording means the reverse, set "
        f"data.contract.gripper_closed={contract.gripper_open:g} and gripper_open={contract.gripper_closed:g}."
    )
    return [Finding(severity=Severity.warning, what=what, where=f"{len(is_open)} episodes", to_do=to_do)]

"""Is a recording good to learn from? Where the arm waits, jumps, copies of episodes, and language that says nothing."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from robovlms.actions.checks import Finding, Severity
from robovlms.config.choices import Representation
from robovlms.data.base import Reader
from robovlms.data.idle import find_dwells, step_sizes
from robovlms.data.windows import WindowDataset
from robovlms.inspection.scan import ScannedRows

SLOW = 0.02  # of a fast step (the 9th decile), up to which the arm counts as waiting
LONG_SECONDS, INSIDE, ENDS = 1.0, 0.15, 0.2  # of the longest dwell, and shares of a task's steps, that are reported
KEPT_SECONDS = 0.3  # of a dwell that the advice keeps
JUMP, FAR = 10.0, 0.5  # times an entry's fast step, and of its range: what is beyond both is a jump
TINY = 0.1  # of the largest range of all entries: an entry that moves less is noise
MAX_NAMED = 4  # tasks or episodes that a finding names
ONE_TEXT, MANY = 0.95, 20  # share of the episodes with one instruction, and episodes, from which on it is reported


@dataclass(frozen=True, kw_only=True)
class Dwell:
    """How much the arm waits in one part of a task's episodes."""

    share: float  # of the task's steps
    longest: int  # steps in a row
    where: str | None  # of the longest


@dataclass(frozen=True, kw_only=True)
class TaskIdleness:
    """How much of a task's steps the arm waits."""

    task: str
    episodes: int
    steps: int
    at_ends: Dwell  # before the first move and after the last
    inside: Dwell  # between moves


@dataclass(frozen=True, kw_only=True)
class Idleness:
    """Where the arm waits, task by task, the most idle first."""

    threshold: float  # `data.idle.threshold` that it is measured with
    tasks: list[TaskIdleness]


def measure_idleness(dataset: WindowDataset, rows: ScannedRows) -> Idleness:
    """Return how much the arm waits in the rows that were read."""
    contract, least = dataset.config.contract, dataset.config.idle.threshold
    if not len(rows.actions):
        return Idleness(threshold=least, tasks=[])
    sizes = step_sizes(rows.actions, rows.episode, contract)
    moving = sizes[np.isfinite(sizes) & (sizes > least)]
    threshold = float(f"{max(least, SLOW * np.quantile(moving, 0.9) if len(moving) else 0):.2g}")
    idle = sizes <= threshold
    by_task: dict[str, list[Int64[np.ndarray, "_n"]]] = defaultdict(list)
    for piece in _episodes(rows):
        episode = dataset.reader.episodes[int(rows.episode[piece[0]])]
        by_task[episode.task or episode.instruction].append(piece)
    tasks = [_task(name, pieces, idle, rows, dataset.reader) for name, pieces in by_task.items()]
    return Idleness(
        threshold=threshold, tasks=sorted(tasks, key=lambda task: -(task.inside.share + task.at_ends.share))
    )


def _episodes(rows: ScannedRows) -> list[Int64[np.ndarray, "_n"]]:
    return np.split(np.arange(len(rows.episode)), np.flatnonzero(np.diff(rows.episode)) + 1)


def _task(
    name: str, pieces: list[Int64[np.ndarray, "_n"]], idle: Bool[np.ndarray, "s"], rows: ScannedRows, reader: Reader
) -> TaskIdleness:
    steps = sum(len(piece) for piece in pieces)
    counts, longest = {True: 0, False: 0}, {True: (0, 0), False: (0, 0)}  # at an end: steps; (steps, first row)
    for piece in pieces:
        for first, last in find_dwells(idle[piece], np.zeros(len(piece), np.int64)):
            is_end = first <= 1 or last == len(piece) - 1  # the first step of absolute actions has no change
            counts[is_end] += last - first + 1
            if last - first + 1 > longest[is_end][0]:
                longest[is_end] = last - first + 1, int(piece[first])
    found = {
        is_end: Dwell(share=counts[is_end] / steps, longest=length, where=_where(rows, row, length, reader))
        for is_end, (length, row) in longest.items()
    }
    return TaskIdleness(task=name, episodes=len(pieces), steps=steps, at_ends=found[True], inside=found[False])


def _where(rows: ScannedRows, row: int, length: int, reader: Reader) -> str | None:
    step = int(rows.step[row])
    return reader.location(int(rows.episode[row]), step, step + length - 1) if length else None


def quality_findings(dataset: WindowDataset, rows: ScannedRows, idleness: Idleness) -> list[Finding]:
    """Report what makes a recording hard to learn from; all of it may be meant."""
    found = _language(dataset.reader)
    if len(rows.actions):
        found += [*_dwells(dataset, idleness), *_jumps(dataset, rows), *_copies(dataset.reader, rows)]
    return found


def _dwells(dataset: WindowDataset, idleness: Idleness) -> Iterator[Finding]:
    """Name the tasks in which the arm waits for long."""
    hz = dataset.config.contract.control_hz
    for place, limit in (("inside", INSIDE), ("at_ends", ENDS)):
        waits: dict[str, Dwell] = {task.task: getattr(task, place) for task in idleness.tasks}
        slow = {name: d for name, d in waits.items() if d.share >= limit and d.longest >= LONG_SECONDS * hz}
        if not slow:
            continue
        names = sorted(slow, key=lambda name: -slow[name].share)
        told = ", ".join(f"'{name}' {slow[name].share:.0%}" for name in names[:MAX_NAMED])
        told += f" and {len(slow) - MAX_NAMED} more" if len(slow) > MAX_NAMED else ""
        others = [dwell.share for name, dwell in waits.items() if name not in slow]
        told += f" (other tasks {min(others):.0%} to {max(others):.0%})" if others else ""
        words = "in the middle of episodes" if place == "inside" else "before the first or after the last move"
        worst = max(slow.values(), key=lambda dwell: dwell.longest)
        yield Finding(
            severity=Severity.warning,
            what=f"the arm waits {words} in a large share of the steps: {told}; for up to {worst.longest} steps "
            f"({worst.longest / hz:.1f} s)",
            where=worst.where or "",
            to_do=f"A policy learns to wait there for good. Set data.skip_idle=true data.idle.threshold="
            f"{idleness.threshold:g} data.idle.keep_s={KEPT_SECONDS:g}, or record without waiting.",
        )


def _jumps(dataset: WindowDataset, rows: ScannedRows) -> list[Finding]:
    """Name entries that leap within a step: of the state, or of absolute actions."""
    contract = dataset.config.contract
    tables = [(rows.proprio, dataset.config.proprio_names, "the state's ")] if rows.proprio is not None else []
    if contract.representation is Representation.absolute:
        arm = [i for i in range(len(contract.names)) if i not in contract.grippers]
        tables.append((rows.actions[:, arm], [contract.names[i] for i in arm], "the action's "))
    found = []
    for table, names, whose in tables:
        leaps = _leaps(table.astype(np.float64), rows)
        if not leaps.any():
            continue
        row, column = (int(place) for place in np.argwhere(leaps)[0])
        leap = float(table[row + 1, column] - table[row, column])
        step, many = int(rows.step[row]), [names[i] for i in np.flatnonzero(leaps.any(axis=0))]
        found.append(
            Finding(
                severity=Severity.warning,
                what=f"{whose}{', '.join(many[:MAX_NAMED])} jump{'s' * (len(many) == 1)} within a step, "
                f"{int(leaps.any(axis=1).sum())} times; {names[column]} by {leap:.3g}",
                where=dataset.reader.location(int(rows.episode[row]), step, step + 1),
                to_do="Lost frames, two recordings in one episode or a sensor's fault: divide or drop the episode.",
            )
        )
    return found


def _leaps(table: Float64[np.ndarray, "n e"], rows: ScannedRows) -> Bool[np.ndarray, "_m e"]:
    joined = (np.diff(rows.episode) == 0) & (np.diff(rows.step) == 1)
    with np.errstate(invalid="ignore"):
        change = np.abs(np.diff(table, axis=0))
    good = np.isfinite(table)
    change = np.where(joined[:, None] & good[1:] & good[:-1], change, 0.0)
    change = np.minimum(change, np.abs(change - 2 * np.pi))  # an angle that passes pi
    spans = np.where(good, table, -np.inf).max(axis=0) - np.where(good, table, np.inf).min(axis=0)
    usual = np.quantile(change, 0.99, axis=0) if len(change) else np.zeros(table.shape[1])
    return (change > JUMP * usual) & (change > FAR * spans) & (spans > TINY * spans.max()) & (usual > 0)


def _copies(reader: Reader, rows: ScannedRows) -> list[Finding]:
    """Name episodes that hold the numbers and the instruction of another one."""
    first: dict[tuple[bytes, str], int] = {}
    copies = []
    for piece in _episodes(rows):
        number = int(rows.episode[piece[0]])
        content = rows.actions[piece].tobytes() + (b"" if rows.proprio is None else rows.proprio[piece].tobytes())
        key = hashlib.sha256(content).digest(), reader.episodes[number].instruction
        if (original := first.setdefault(key, number)) != number and np.ptp(rows.actions[piece], axis=0).any():
            copies.append((number, original))
    if not copies:
        return []
    told = ", ".join(f"{number} of {original}" for number, original in copies[:MAX_NAMED])
    where = reader.location(copies[0][0], 0, max(reader.episodes[copies[0][0]].length - 1, 0))
    what = f"{len(copies)} episodes are copies of others, number for number: {told}"
    to_do = "Drop them: they count twice in training, and one in each split makes validation worthless."
    return [Finding(severity=Severity.warning, what=what, where=where, to_do=to_do)]


def _language(reader: Reader) -> list[Finding]:
    texts: Sequence[tuple[str, int]] = Counter(episode.instruction for episode in reader.episodes).most_common(1)
    total = len(reader.episodes)
    if total < MANY or texts[0][1] < ONE_TEXT * total:
        return []
    text, count = texts[0]
    what = f"{count} of {total} episodes have the instruction {text!r}: a policy learns to ignore language"
    to_do = "Right for a single task. Else set where instructions are (data.language_key), or write them."
    return [Finding(severity=Severity.warning, what=what, where=reader.summary(), to_do=to_do)]

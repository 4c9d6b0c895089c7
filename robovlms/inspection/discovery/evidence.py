"""What the recorded numbers tell of an action's meaning: moves or places, degrees, grippers. All of it is a guess."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from robovlms.actions.checks import representation_findings
from robovlms.actions.contract import CONSTANT
from robovlms.config.choices import ReferenceFrame, Representation
from robovlms.config.data import ActionContract
from robovlms.inspection.discovery.folder import Answer, Rows, ask, found, guess
from robovlms.inspection.discovery.names import EntryNames

ALIKE = 0.9  # correlation from which an action counts as the place it leads to
FOLLOWS = 0.5  # correlation from which an action counts as the move it leads to
AT_END = 0.05  # share of its range within which a gripper is at an end
BINARY = 0.98  # share of the rows at an end from which a gripper is open or closed
MOSTLY = 0.75  # share of the episodes that make a habit
# What is usually recorded for closed and open; a range close to one of these is taken for it.
USUAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, 100.0), (0.0, 0.04), (0.0, 0.08), (0.0, 0.085), (0.0, 255.0), (0.0, 1000.0))


class Follows(NamedTuple):
    """How actions go with what the robot felt, over the entries that both have."""

    level: float  # correlation with the next state
    change: float  # correlation with the change of the state
    factor: float  # change of the state that an action of 1.0 goes with, median of the entries
    entries: int  # compared


def follows(rows: Sequence[Rows], pairs: Sequence[tuple[int, int]]) -> Follows | None:
    """Compare entries of the actions with entries of the states; None where nothing moves or is felt."""
    levels, changes, factors = [], [], []
    for action, state in pairs:
        felt = [(r.actions[:-1, action], r.states[:-1, state], r.states[1:, state]) for r in rows
                if r.states is not None and len(r.actions) > 2]  # fmt: skip
        if not felt:
            return None
        told, before, after = (np.concatenate(column) for column in zip(*felt, strict=True))
        move = after - before
        if min(np.ptp(told), np.ptp(after), np.ptp(move)) < CONSTANT:
            continue
        is_near = np.median(np.abs(told - after)) <= 0.25 * np.ptp(after)
        levels.append(np.corrcoef(told, after)[0, 1] if is_near else 0.0)
        changes.append(np.corrcoef(told, move)[0, 1])
        factors.append(float(told @ move / (told @ told)))
    if not levels:
        return None
    return Follows(float(np.median(levels)), float(np.median(changes)), float(np.median(factors)), len(levels))


def representation(names: EntryNames, rows: Sequence[Rows], pairs: Sequence[tuple[int, int]]) -> Answer:
    """Return whether actions are moves or places."""
    felt = follows(rows, pairs)
    if names.is_delta:
        return found("delta", "as the entries' names say")
    if felt and felt.level >= ALIKE and felt.level > felt.change:
        why = f"they are where the state goes next (correlation {felt.level:.2f} over {felt.entries} entries)"
        return guess("absolute", why)
    if felt and felt.change >= FOLLOWS:
        why = f"they go with the state's changes (correlation {felt.change:.2f} over {felt.entries} entries)"
        return guess("delta", why)
    arm = [i for i in range(len(names.names)) if i not in names.grippers]
    values = [r.actions[:, arm] for r in rows if np.isfinite(r.actions).all() and len(r.actions)]
    joints = ActionContract(
        names=[f"j{i}" for i in arm],
        representation=Representation.delta,
        frame=ReferenceFrame.joint,
        position_unit=None,
        control_hz=1.0,
    )
    if values and representation_findings(values, joints):
        return guess("absolute", "they begin away from 0 and hardly change in a step")
    if values:
        every = np.concatenate(values)
        moving = every[:, np.ptp(every, axis=0) >= CONSTANT]
        if moving.size and np.median(np.abs(moving.mean(axis=0)) / moving.std(axis=0)) < FOLLOWS:
            return guess("delta", "they lie around 0")
    return ask("are the actions moves (delta), or where to go (absolute)?")


class Grippers(NamedTuple):
    """What a contract says of grippers."""

    closed: Answer
    open: Answer
    continuous: Answer  # the names of those that are an opening width


def grippers(names: EntryNames, rows: Sequence[Rows], robot: tuple[str, dict[str, Any]] | None) -> Grippers:
    """Return what grippers record for closed and open, and which of them are a width.

    Args:
        names: of the action's entries.
        rows: of some episodes.
        robot: the preset of a robot that the folder names, and its contract.
    """
    columns = {names.names[i]: [r.actions[:, i] for r in rows if len(r.actions)] for i in names.grippers}
    every = np.concatenate([np.concatenate(column) for column in columns.values() if column] or [np.zeros(0)])
    every = every[np.isfinite(every)]
    if not every.size or np.ptp(every) < CONSTANT:
        still = "it never moves in what was looked at"
        question = "what is recorded for a gripper that is {}? (" + still + ")"
        return Grippers(ask(question.format("closed")), ask(question.format("open")), guess([], f"{still}: binary"))
    low, high, seen = _ends(float(every.min()), float(every.max()))
    widths = [name for name, column in columns.items() if not _is_binary(np.concatenate(column))]
    values = [f"{value:g}" for value in np.unique(every)[:3]] if len(np.unique(every)) <= 3 else []
    told = f"recorded are only {' and '.join(values)}" if values else f"recorded are {seen[0]:g} to {seen[1]:g}"
    kinds = guess(widths, f"{told}: " + ("the values lie between the ends" if widths else "open or closed"))
    is_high, why = _open_is_high(names, list(columns.values()), low, high, bool(widths))
    if robot is not None and {"gripper_open", "gripper_closed"} <= set(robot[1]):
        is_high, why = robot[1]["gripper_open"] > robot[1]["gripper_closed"], f"as data={robot[0]} has it"
    if is_high is None:
        question = f"what is recorded for a gripper that is {{}}: {low:g} or {high:g}? ({why})"
        return Grippers(ask(question.format("closed")), ask(question.format("open")), kinds)
    ends = (low, high) if is_high else (high, low)
    make = found if "name" in why else guess
    return Grippers(make(ends[0], f"{why}; {told}"), make(ends[1], "see gripper_closed"), kinds)


def _is_binary(values: Float64[np.ndarray, "n"]) -> bool:
    low, high = float(values.min()), float(values.max())
    if high - low < CONSTANT:
        return True
    share = (values - low) / (high - low)
    return bool(((share <= AT_END) | (share >= 1 - AT_END)).mean() >= BINARY)


def _ends(low: float, high: float) -> tuple[float, float, tuple[float, float]]:
    """Return the usual ends that a range is close to, or its own, and the range."""
    for closed, wide in USUAL:
        size = wide - closed
        if abs(low - closed) <= 0.1 * size and abs(high - wide) <= 0.1 * size:
            return closed, wide, (low, high)
    return float(f"{low:.4g}"), float(f"{high:.4g}"), (low, high)


def _open_is_high(
    names: EntryNames, columns: list[list[np.ndarray]], low: float, high: float, is_width: bool
) -> tuple[bool | None, str]:
    """Tell whether the larger value means open, and why; None where nothing tells."""
    hints = " ".join(names.hints.values()).lower()
    for word, is_high in (("clos", False), ("open", True), ("width", True)):
        if word in hints:
            return is_high, f"by the recorded name, {', '.join(names.hints.values())}"
    starts = [(column[0] - low) / (high - low) > 0.5 for entry in columns for column in entry]
    share = float(np.mean(starts))
    habit = f"{max(share, 1 - share):.0%} of the episodes start at {high if share > 0.5 else low:g}"
    if is_width and share > 1 - MOSTLY:
        return True, f"an opening is mostly recorded larger for wider; {habit}"
    if max(share, 1 - share) < MOSTLY or is_width:
        return None, habit
    return share > 0.5, f"robots mostly start open, and {habit}"


def angle_note(values: Float64[np.ndarray, "n a"]) -> str | None:
    """Say whether joints are degrees or radians, by the largest of them; None where they can be neither."""
    if not values.size:
        return "no number of one was looked at"
    largest = float(np.abs(values).max())
    if largest > 400:
        return None
    unit = "degrees, or a motor's own -100 to 100" if largest > 3 * np.pi else "radians"
    return f"the largest joint value is {largest:.3g}: {unit}"

"""Do the recorded states follow the recorded actions, as the contract says what those mean? What is wrong, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from robovlms.actions.checks import Finding, Severity
from robovlms.config.choices import ReferenceFrame, Representation
from robovlms.config.data import DataConfig
from robovlms.inspection.replay.axes import describe, is_better, other_axes, own_axes, same_axes
from robovlms.inspection.replay.fit import Fit, at_pace, best_lag, correlations, fit, paired, sizes
from robovlms.inspection.replay.gripper import gripper_findings
from robovlms.inspection.replay.motion import Group, Moves, find_groups, find_moves
from robovlms.inspection.scan import ScannedRows

CLEAR, LOOSE = 0.8, 0.5  # correlation of entries that are taken for the same; of those that are not
SIGN, JUDGED, SURE = 0.7, 0.8, 0.9  # correlation from which on a sign, a scale, and that of one entry are believed
HALF, TWICE = (0.42, 0.6), (1.7, 2.4)  # gains that are named so
LAGGING = 0.15  # gain of deltas that a slow controller may have: the hand does not reach its target within a step
FAR = 25.0  # factor of a single entry's unit: what a hand that grasps something does not reach is less
UNITS = {1000.0: "millimetres?", 100.0: "centimetres?", 39.4: "inches?"}
PACED = 0.97  # correlation up to which another rate is tried
ALIKE = 1.5  # factor between gains that are of one unit
MIN_EVIDENCE = 15  # moves that share no step, from which on anything is judged
MAX_NAMES = 8  # that are listed


@dataclass(frozen=True, kw_only=True)
class EntryReplay:
    """How an entry's states follow its actions."""

    name: str
    lag: int  # steps later
    gain: float | None  # the states' move for each of the actions'; None: one of both does not move
    correlation: float | None
    drift: float  # median over episodes: of the sum of moves, or of absolute targets; in m, rad or as recorded


@dataclass(frozen=True, kw_only=True)
class Following:
    """What the states say of the actions."""

    entries: list[EntryReplay]
    not_compared: list[str]  # arm entries whose state is not recorded under a name that tells
    findings: list[Finding]


def follow(data: DataConfig, rows: ScannedRows) -> Following:
    """Integrate actions, and hold them against the recorded states.

    Args:
        data: whose contract is tried, and whose `proprio_names` say what the states are.
        rows: as recorded; without proprioception nothing can be compared.
    """
    groups, lost = find_groups(data)
    if rows.proprio is None or not len(rows.actions):
        groups = []
    moves = [find_moves(data, rows, group) for group in groups]
    tried = [_Tried(data, each) for each in moves if each.commanded]
    if tried and _evidence(tried[0].moves.commanded, data.contract.control_hz) < MIN_EVIDENCE:
        return Following(entries=[entry for one in tried for entry in one.entries()], not_compared=lost, findings=[])
    findings: list[Finding] = []
    named: set[str] = set()
    for search in (_paces, _axes, _order, _signs_and_units):  # what explains most comes first
        found = [(finding, names) for finding, names in search(tried, data) if not named & set(names)]
        findings += [finding for finding, _ in found]
        named |= {name for _, names in found for name in names}
    if tried and not list(_paces(tried, data)):  # states beside the actions of other times say nothing of a gripper
        findings += gripper_findings(data, rows)
    entries = [entry for one in tried for entry in one.entries()]
    return Following(entries=entries, not_compared=lost, findings=findings)


def _evidence(commanded: list[np.ndarray], hz: float) -> float:
    """Return how many moves there are that share no step."""
    return float(sum(max(1.0, len(asked) / sizes(hz)[0]) for asked in commanded))


class _Tried:
    """A group's moves, compared."""

    def __init__(self, data: DataConfig, moves: Moves) -> None:
        self.moves, self.hz = moves, data.contract.control_hz
        self.group: Group = moves.group
        self.lag = best_lag(moves.commanded, moves.observed, self.hz)
        self.fit: Fit = fit(moves.commanded, moves.observed, self.hz, self.lag)

    def pair(self, observed: list[np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray]:
        observed = self.moves.observed if observed is None else observed
        return paired(self.moves.commanded, observed, self.lag, sizes(self.hz)[0])

    def entries(self) -> list[EntryReplay]:
        drifts = _drifts(self.moves, self.lag)
        numbers = zip(self.group.names, self.fit.gain.tolist(), self.fit.correlation.tolist(), drifts, strict=True)
        return [
            EntryReplay(
                name=name,
                lag=self.lag,
                gain=None if np.isnan(gain) else gain,
                correlation=None if np.isnan(r) else r,
                drift=drift,
            )
            for name, gain, r, drift in numbers
        ]


def _drifts(moves: Moves, lag: int) -> list[float]:
    """Return per entry how far actions and states are apart: at an episode's end, or where targets are absolute."""
    if moves.levels:
        found = [np.median(np.abs(a[: len(s) - lag] - s[lag:]), axis=0) for a, s in moves.levels if len(s) > lag]
    else:
        pairs = zip(moves.commanded, moves.observed, strict=True)
        found = [np.abs(a[: len(d) - lag].sum(axis=0) - d[lag:].sum(axis=0)) for a, d in pairs if len(d) > lag]
    if not found:
        return [0.0] * len(moves.group.names)
    return [float(value) for value in np.median(found, axis=0)]


Named = tuple[Finding, list[str]]


def _finding(what: str, one: _Tried, to_do: str, severity: Severity = Severity.error) -> Finding:
    rows = sum(len(asked) for asked in one.moves.commanded)
    return Finding(severity=severity, what=what, where=f"{rows} steps, states {one.lag} later", to_do=to_do)


def _axes(tried: list[_Tried], data: DataConfig) -> Iterator[Named]:
    """Name another frame, exchanged or rotated axes of positions and turns."""
    for one in tried:
        if len(one.group.names) != 3:
            continue
        asked, did = one.pair()
        if not len(asked):
            continue
        own, other = own_axes(asked, did), other_axes(asked, did)
        frame = same_axes(*one.pair(one.moves.turned)) if one.moves.turned else 0.0
        if is_better(frame, than=own) and 1 - frame <= 1.5 * (1 - other.explained) + 0.02:
            told = data.contract.frame
            right = "base or world" if told is ReferenceFrame.tcp else "tcp"
            what = (
                f"{listed(one.group.names)} fit frame={right} (explains {frame:.0%} of the states' moves) and not "
                f"data.contract.frame={told} ({max(own, 0):.0%})"
            )
            yield _finding(what, one, f"Set data.contract.frame to {right}."), one.group.names
        elif is_better(other.explained, than=own):
            shares = f"(explains {other.explained:.0%}, as declared {max(own, 0):.0%})"
            what = f"{describe(other.matrix, one.group.names)} {shares}"
            to_do = "Correct the order of data.contract.names or data.proprio_names, or what the axes are recorded in."
            yield _finding(what, one, to_do), one.group.names


def _order(tried: list[_Tried], data: DataConfig) -> Iterator[Named]:
    """Name entries that move as the state of another entry does."""
    if not tried:
        return
    names = [name for one in tried for name in one.group.names]
    commanded = [np.concatenate(pieces, axis=1) for pieces in zip(*(one.moves.commanded for one in tried), strict=True)]
    observed = [np.concatenate(pieces, axis=1) for pieces in zip(*(one.moves.observed for one in tried), strict=True)]
    hz = data.contract.control_hz
    asked, did = paired(commanded, observed, best_lag(commanded, observed, hz), sizes(hz)[0])
    found = np.nan_to_num(_related(asked, did, tried))
    wrong = dict(_exchanged(found)) | dict(_exchanged(np.abs(found)))
    if wrong:
        pairs = ", ".join(f"{names[i]} moves as the state of {names[j]}" for i, j in sorted(wrong.items()))
        to_do = "Correct the order of data.contract.names or of data.proprio_names."
        finding = _finding(f"the order of entries looks wrong: {pairs}", tried[0], to_do)
        yield finding, [names[i] for i in {*wrong, *wrong.values()}]


def _exchanged(found: Float64[np.ndarray, "m m"]) -> Iterator[tuple[int, int]]:
    """Return entries that move as another's state and not as their own, with the other, which no other entry fits."""
    for i in range(len(found)):
        j = int(found[i].argmax())
        if j != i and found[i, j] >= CLEAR and found[i, i] < LOOSE and found[:, j].argmax() == i:
            yield i, j


def _related(asked: np.ndarray, did: np.ndarray, tried: list[_Tried]) -> Float64[np.ndarray, "m m"]:
    """Correlate all entries; whether one is still is judged among its own group alone."""
    found = np.full((asked.shape[1], did.shape[1]), np.nan)
    starts = np.cumsum([0, *(len(one.group.names) for one in tried)])
    for i, first in enumerate(starts[:-1]):
        for j, second in enumerate(starts[:-1]):
            rows, columns = slice(first, starts[i + 1]), slice(second, starts[j + 1])
            found[rows, columns] = correlations(asked[:, rows], did[:, columns])
    return found


def _paces(tried: list[_Tried], data: DataConfig) -> Iterator[Named]:
    """Name states that run at another rate than the actions beside them."""
    hz = data.contract.control_hz
    for pace, word in ((2, "twice"), (-2, "half")):  # actions for each state; negative: states for each action
        wrong, right = [], 0
        for one in tried:
            own = _mean(one.fit.correlation)
            if own < PACED and own < 1 - 2 * (1 - _at_pace(one, pace, hz)):
                wrong.append(one)
            elif own >= JUDGED:
                right += 1
        if len(wrong) > right:
            names = [name for one in wrong for name in one.group.names]
            what = f"{listed(names)}: the states run {word} as fast as the actions beside them: control_hz off by 2?"
            to_do = "Record both at one rate: rows of actions and of states do not belong together."
            yield _finding(what, wrong[0], to_do), names


def _at_pace(one: _Tried, pace: int, hz: float) -> float:
    """Return the correlation at another pace; 0 where it is not clear."""
    asked, did = at_pace(one.moves.commanded, one.moves.observed, pace)
    found = _mean(fit(asked, did, hz, best_lag(asked, did, hz)).correlation)
    return found if found >= CLEAR else 0.0


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def _signs_and_units(tried: list[_Tried], data: DataConfig) -> Iterator[Named]:
    """Name inverted entries, and units and rates that are off by a factor."""
    for kind in ("position", "turn", "entry"):
        ones = [one for one in tried if one.group.kind == kind]
        if not ones:
            continue
        names = [name for one in ones for name in one.group.names]
        r = np.nan_to_num(np.concatenate([one.fit.correlation for one in ones]))
        gains = np.nan_to_num(np.concatenate([one.fit.gain for one in ones]))
        inverted = [name for name, value in zip(names, r, strict=True) if value <= -SIGN]
        if inverted:
            yield (
                _finding(_inverted(inverted, ones), ones[0], "Correct the sign in the recording, or the frame."),
                inverted,
            )
        judged = np.abs(r) >= JUDGED
        if not judged.any() or (kind == "position" and data.contract.position_unit is None):
            continue
        gain = float(np.median(np.abs(gains[judged])))
        agree = np.abs(np.log(np.abs(gains[judged]) / gain)) < np.log(ALIKE)
        if agree.mean() > 0.5 and (told := _factor(gain, kind, data)) is not None:
            yield _finding(f"{listed(names)}: {told}", ones[0], _unit(kind), _weight(gain)), names
            continue
        far = [i for i in np.flatnonzero(np.abs(r) >= SURE) if not 1 / FAR < abs(gains[i]) < FAR]
        for i in far:
            told = _factor(abs(gains[i]), kind, data)
            yield _finding(f"{names[i]}: {told}", ones[0], _unit(kind), Severity.warning), [names[i]]


def _weight(gain: float) -> Severity:
    """Return a warning for a factor that a controller may have, too."""
    return Severity.warning if 1 / TWICE[1] <= gain <= TWICE[1] else Severity.error


def _inverted(inverted: list[str], ones: list[_Tried]) -> str:
    text = f"{listed(inverted)} {'looks' if len(inverted) == 1 else 'look'} inverted"
    group = next(one.group for one in ones if inverted[0] in one.group.names)
    if len(group.names) == 3 and len(inverted) == 2 and set(inverted) <= set(group.names):
        axis = "xyz"[next(i for i, name in enumerate(group.names) if name not in inverted)]
        text += f" (rotated by 180 degrees about {axis}: frame?)"
    return text


def _factor(gain: float, kind: str, data: DataConfig) -> str | None:
    """Say what is wrong with a gain, the states' move for each of the actions'; None: it may be right."""
    is_delta = data.contract.representation is Representation.delta
    for (low, high), word in ((HALF, "half"), (TWICE, "twice")):
        if low <= gain <= high:
            return f"states move {word} as far per step ({gain:.2g}): control_hz off by 2?"
    if HALF[1] < gain < TWICE[0] or (is_delta and LAGGING <= gain < HALF[0]):
        return None
    factor = max(gain, 1 / max(gain, 1e-12))
    more = "actions say more than the states do" if gain < 1 else "states do more than the actions say"
    return f"factor {factor:.3g}, the {more}: {_unit_hint(factor, kind)}"


def _unit_hint(factor: float, kind: str) -> str:
    if kind != "position" and 40 <= factor <= 80:
        return "degrees?"
    if kind == "position":
        return next((word for value, word in UNITS.items() if abs(factor / value - 1) < 0.2), "unit?")
    return "unit?"


def _unit(kind: str) -> str:
    option = {"position": "data.contract.position_unit", "turn": "data.contract.rotation_unit"}.get(kind)
    if option is None:
        return "Record actions and states in one unit, or read only one of them."
    return f"Correct {option}, or the unit of the states (metres and radians)."


def listed(names: list[str]) -> str:
    """Return names for a sentence, the first ones of many."""
    if len(names) > MAX_NAMES:
        return f"{', '.join(names[: MAX_NAMES - 1])} and {len(names) - MAX_NAMES + 1} others"
    return " and ".join(names) if len(names) <= 2 else ", ".join(names)

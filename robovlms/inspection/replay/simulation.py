"""Do recorded actions solve their tasks again, in the simulator that they were recorded in?

They are what a policy could say at best: read, converted, normalised, and both undone as in a rollout. Nothing looks at
what happens, so that small differences add up: not every task that is solved in a recording is solved again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32

from robovlms.actions.checks import Finding, Severity
from robovlms.actions.contract import arms, check_contract, position_entries, rotation_entries
from robovlms.config.choices import ReferenceFrame, Representation, Rotation
from robovlms.config.data import ActionContract, ConvertConfig, DataConfig
from robovlms.data.statistics import MAX_STATS_ROWS
from robovlms.data.windows import WindowDataset
from robovlms.inspection.replay.following import SIGN, EntryReplay, follow, listed
from robovlms.inspection.replay.round_trip import normalizer_of
from robovlms.inspection.replay.starts import Start, find_starts
from robovlms.inspection.scan import Faults, ScannedRows
from robovlms.progress import track
from robovlms.sims.base import Simulator

LATE_S = 0.5  # seconds that a recording's last action is given to come true
CUT = 1e-3  # of an action, that is no error of rounding
WELL = 0.5  # share of what the recording solved, below which actions are believed to be wrong


@dataclass(frozen=True, kw_only=True)
class TaskReplay:
    """A task's recorded episodes, played again."""

    task: str
    episodes: int
    recorded: int | None  # that were solved; None: the recording does not say
    solved: int  # again, with the noise that the recording was executed with
    without_noise: int | None  # again, by what was recorded alone; None: there was no noise
    uncut: int | None  # again, without the normalisation; None: all were solved with it, or it cuts nothing off

    @property
    def wanted(self) -> int:
        """Return how many should be solved."""
        return self.episodes if self.recorded is None else self.recorded

    @property
    def at_best(self) -> int:
        """Return how many are solved, with the normalisation or without."""
        return self.solved if self.uncut is None else self.uncut


@dataclass(frozen=True, kw_only=True)
class SimulationReport:
    """Recorded actions, played again."""

    simulator: str
    tasks: list[TaskReplay]
    left_out: dict[str, int]  # why: episodes
    states: list[EntryReplay]  # the recorded states beside those of the replay


class Played(NamedTuple):
    """An episode, played again."""

    start: Start
    solved: bool
    states: Float32[np.ndarray, "t p"] | None  # of the simulator, after every action


def replay_in(simulator: Simulator, dataset: WindowDataset) -> tuple[SimulationReport, list[Finding]]:
    """Play `sim.episodes` recorded episodes of every task, and say what is solved, and what differs where it is not.

    Raises:
        UserError: the simulator takes other actions than the policy would give, or the folder does not say where its
            episodes began.
    """
    config = simulator.config
    check_contract(dataset.converter.target, simulator.contract, f"sim={config.name}")
    found = find_starts(simulator, dataset.reader, Path(dataset.config.root).expanduser(), config.episodes)
    spoken = _Speaker(dataset)
    tries = [
        _try(start, spoken)
        for start in track(found.starts, f"replaying in {config.name}", len(found.starts), "episode")
    ]
    played = [each.played for each in tries]
    tasks = [_count(task, tries) for task in dict.fromkeys(start.task.name for start in found.starts)]
    following = _states(simulator, dataset, played)
    report = SimulationReport(
        simulator=config.name, tasks=tasks, left_out=found.left_out, states=[] if following is None else following[0]
    )
    wrong = _findings(report, is_compared=following is not None)
    return report, [*wrong, *(following[1] if wrong and following is not None else [])]


class Tries(NamedTuple):
    """An episode, played again in several ways."""

    played: Played  # by the words of a policy
    calm: bool | None  # whether it is solved without the recording's noise; None: it had none
    uncut: bool | None  # whether it is solved without the normalisation; None: this changes nothing


class _Speaker:
    """Recorded actions as a policy that learned them perfectly would give them, in the simulator's units."""

    def __init__(self, dataset: WindowDataset) -> None:
        self._dataset = dataset
        self._normalizer = normalizer_of(dataset, dataset.rows(MAX_STATS_ROWS).actions)

    def recorded(self, episode: int) -> Float32[np.ndarray, "t a"]:
        """Return an episode's actions, converted."""
        converter, reader = self._dataset.converter, self._dataset.reader
        steps = np.arange(converter.num_steps(reader.episodes[episode].length))
        return converter(*reader.numbers(episode, converter.covered(steps)), steps)

    def spoken(self, actions: Float32[np.ndarray, "t a"]) -> Float32[np.ndarray, "t a"]:
        """Return actions as they come back from the policy's words."""
        words = self._normalizer.normalize(torch.from_numpy(actions))
        return self._normalizer.denormalize(words).numpy()

    def at_rest(self, action: Float32[np.ndarray, "a"]) -> Float32[np.ndarray, "n a"]:
        """Return what follows the last recorded action: the arm gets nowhere else, for the time that it may be late."""
        contract = self._dataset.converter.target
        still = action.copy()
        if contract.representation is Representation.delta:
            still[[i for i in range(len(still)) if i not in contract.grippers]] = 0
        return np.tile(still, (max(1, round(LATE_S * contract.control_hz)), 1))


def _try(start: Start, speaker: _Speaker) -> Tries:
    recorded = speaker.recorded(start.episode)
    spoken, length = speaker.spoken(recorded), len(recorded)

    def play(actions: np.ndarray, *, with_noise: bool) -> Played:
        return _play(start, np.concatenate([actions, speaker.at_rest(actions[-1])]), length, with_noise=with_noise)

    played = play(spoken, with_noise=True)
    calm = play(spoken, with_noise=False).solved if start.is_noisy else None
    is_cut = float(np.abs(spoken - recorded).max()) > CUT
    uncut = play(recorded, with_noise=True).solved if is_cut and not played.solved else None
    return Tries(played, calm, uncut)


def _play(start: Start, actions: Float32[np.ndarray, "t a"], length: int, *, with_noise: bool) -> Played:
    """Play actions, the first `length` of which are recorded, until the simulator ends the episode."""
    step = start.begin(with_noise)
    states = []
    solved = False
    for number, action in enumerate(actions):
        observation, goals_done, done, _ = step(action)
        if number < length:
            states.append(observation.proprio)
        solved = solved or goals_done > 0
        if done:
            break
    known = [state for state in states if state is not None]
    return Played(start, solved, np.stack(known) if known and len(known) == len(states) else None)


def _count(task: str, tries: Sequence[Tries]) -> TaskReplay:
    own = [each for each in tries if each.played.start.task.name == task]
    told = [each.played.start.solved for each in own if each.played.start.solved is not None]
    quiet = [each.calm for each in own if each.calm is not None]
    is_cut = any(each.uncut is not None for each in own)
    return TaskReplay(
        task=task,
        episodes=len(own),
        recorded=sum(told) if len(told) == len(own) else None,
        solved=sum(each.played.solved for each in own),
        without_noise=sum(quiet) if quiet else None,
        uncut=sum(each.played.solved or bool(each.uncut) for each in own) if is_cut else None,
    )


def _cut_off(report: SimulationReport) -> Iterator[Finding]:
    """Name tasks that are solved where nothing is normalised."""
    better = [task for task in report.tasks if task.uncut is not None and task.uncut > task.solved]
    if better:
        counts = ", ".join(f"{each.task} {each.uncut} instead of {each.solved} of {each.wanted}" for each in better)
        yield Finding(
            severity=Severity.warning,
            what=f"recorded actions solve more without the normalisation, which cuts off what is needed: {counts}",
            where="data.normalization",
            to_do="Set data.normalization.low and high to what is recorded, or another mode (min_max, quantile).",
        )


def _findings(report: SimulationReport, *, is_compared: bool) -> list[Finding]:
    found = list(_cut_off(report))
    failing = [task for task in report.tasks if task.at_best < task.wanted]
    bad = [task for task in failing if task.at_best < WELL * task.wanted]
    for severity, tasks in ((Severity.error, bad), (Severity.warning, [task for task in failing if task not in bad])):
        if not tasks:
            continue
        counts = ", ".join(f"{each.task} {each.solved} of {each.wanted}" for each in tasks)
        hint = (
            "What other findings name (sign, unit, frame, order, gripper) is the likely cause"
            if is_compared
            else "To be told what differs, record states and set data.proprio_key and data.proprio_names"
        )
        found.append(
            Finding(
                severity=severity,
                what=f"recorded actions do not solve again what was solved in the recording: {counts}",
                where=f"sim={report.simulator}",
                to_do=f"{hint}; else the simulator's version or options (sim.*) are not those of the recording.",
            )
        )
    return found


def _states(
    simulator: Simulator, dataset: WindowDataset, played: Sequence[Played]
) -> tuple[list[EntryReplay], list[Finding]] | None:
    """Hold the recorded states against those of the replay, as if these were asked for; None: nothing compares."""
    data, reader = dataset.config, dataset.reader
    names = [name for name in simulator.proprio_names if name in data.proprio_names]
    if not (data.proprio_key and names) or dataset.converter.rate != 1:
        return None
    theirs, ours = ([known.index(name) for name in names] for known in (simulator.proprio_names, data.proprio_names))
    pieces = []
    for each in played:
        recorded = reader.numbers(each.start.episode, np.arange(reader.episodes[each.start.episode].length)).proprio
        if each.states is not None and recorded is not None:
            count = min(len(each.states), len(recorded))
            pieces.append((each.states[:count][:, theirs], recorded[:count][:, ours], each.start.episode))
    if not pieces:
        return None
    rows = ScannedRows(
        actions=np.concatenate([asked for asked, _, _ in pieces]),
        proprio=np.concatenate([did for _, did, _ in pieces]),
        episode=np.concatenate([np.full(len(asked), episode) for asked, _, episode in pieces]),
        step=np.concatenate([np.arange(len(asked)) for asked, _, _ in pieces]),
        faults=Faults(),
    )
    found = follow(_as_targets(data, names), rows)
    return found.entries, [
        replace(finding, what=f"beside its replay in the simulator, {finding.what}")
        for finding in _judge(data, names, rows, found.entries)
    ]


def _judge(data: DataConfig, names: list[str], rows: ScannedRows, entries: list[EntryReplay]) -> list[Finding]:
    """Return what is wrong with the hand's pose, or without one with any entry. Of what is beside it, such as fingers,
    whose way depends on what they touch, only that it goes the other way is said.
    """
    pose = sorted({i for arm in arms(names) for i in position_entries(names, arm)} | {
        i for arm in arms(names) for i in rotation_entries(names, data.proprio_rotation, arm)
    })  # fmt: skip
    judged = pose or list(range(len(names)))
    assert rows.proprio is not None
    told = replace(rows, actions=rows.actions[:, judged], proprio=rows.proprio[:, judged])
    findings = follow(_as_targets(data, [names[i] for i in judged]), told).findings
    beside = {name for i, name in enumerate(names) if i not in judged}
    inverted = [each.name for each in entries if each.name in beside and (each.correlation or 0) <= -SIGN]
    if inverted:
        what = f"{listed(inverted)} {'looks' if len(inverted) == 1 else 'look'} inverted"
        to_do = "Where these are fingers, exchange data.contract.gripper_closed and gripper_open."
        where = f"{len(rows.actions)} steps"
        findings = [*findings, Finding(severity=Severity.error, what=what, where=where, to_do=to_do)]
    return findings


def _as_targets(data: DataConfig, names: list[str]) -> DataConfig:
    """Return the config of data whose actions are absolute states, in metres and radians, with these entries."""
    turns = any(rotation_entries(names, data.proprio_rotation, arm) for arm in arms(names))
    contract = ActionContract(
        names=names,
        representation=Representation.absolute,
        frame=ReferenceFrame.world,
        rotation=data.proprio_rotation if turns else Rotation.none,
        position_unit=1.0,
        control_hz=data.contract.control_hz,
    )
    return replace(data, contract=contract, proprio_names=names, convert=ConvertConfig())

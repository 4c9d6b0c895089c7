"""Do recorded actions solve their tasks again, in the simulator that they were recorded in?

They are what a policy could say at best: read, converted, normalised, and both undone as in a rollout. Nothing looks at
what happens, so that small differences add up: not every task that is solved in a recording is solved again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32

from robovlms.actions.checks import Finding, Severity
from robovlms.actions.contract import arms, check_contract, rotation_entries
from robovlms.config.choices import ReferenceFrame, Representation, Rotation
from robovlms.config.data import ActionContract, ConvertConfig, DataConfig
from robovlms.data.statistics import MAX_STATS_ROWS
from robovlms.data.windows import WindowDataset
from robovlms.inspection.replay.following import EntryReplay, follow
from robovlms.inspection.replay.round_trip import normalizer_of
from robovlms.inspection.replay.starts import Start, find_starts
from robovlms.inspection.scan import Faults, ScannedRows
from robovlms.progress import track
from robovlms.sims.base import Simulator

WELL = 0.5  # share of what the recording solved, below which actions are believed to be wrong


@dataclass(frozen=True, kw_only=True)
class TaskReplay:
    """A task's recorded episodes, played again."""

    task: str
    episodes: int
    recorded: int | None  # that were solved; None: the recording does not say
    solved: int  # again, with the noise that the recording was executed with
    without_noise: int | None  # again, by what was recorded alone; None: there was no noise

    @property
    def wanted(self) -> int:
        """Return how many should be solved."""
        return self.episodes if self.recorded is None else self.recorded


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
    played, calm = [], []
    for start in track(found.starts, f"replaying in {config.name}", len(found.starts), "episode"):
        actions = spoken(start.episode)
        played.append(_play(start, actions, with_noise=True))
        if start.is_noisy:
            calm.append(_play(start, actions, with_noise=False))
    tasks = [_count(task, played, calm) for task in dict.fromkeys(start.task.name for start in found.starts)]
    following = _states(simulator, dataset, played)
    report = SimulationReport(
        simulator=config.name, tasks=tasks, left_out=found.left_out, states=[] if following is None else following[0]
    )
    wrong = _findings(report, is_compared=following is not None)
    return report, [*wrong, *(following[1] if wrong and following is not None else [])]


class _Speaker:
    """Recorded actions as a policy that learned them perfectly would give them, in the simulator's units."""

    def __init__(self, dataset: WindowDataset) -> None:
        self._dataset = dataset
        self._normalizer = normalizer_of(dataset, dataset.rows(MAX_STATS_ROWS).actions)

    def __call__(self, episode: int) -> Float32[np.ndarray, "t a"]:
        converter, reader = self._dataset.converter, self._dataset.reader
        steps = np.arange(converter.num_steps(reader.episodes[episode].length))
        actions = converter(*reader.numbers(episode, converter.covered(steps)), steps)
        words = self._normalizer.normalize(torch.from_numpy(actions))
        return self._normalizer.denormalize(words).numpy()


def _play(start: Start, actions: Float32[np.ndarray, "t a"], *, with_noise: bool) -> Played:
    step = start.begin(with_noise)
    states = []
    solved = False
    for action in actions:
        observation, goals_done, done, _ = step(action)
        states.append(observation.proprio)
        solved = solved or goals_done > 0
        if done:
            break
    known = [state for state in states if state is not None]
    return Played(start, solved, np.stack(known) if known and len(known) == len(states) else None)


def _count(task: str, played: list[Played], calm: list[Played]) -> TaskReplay:
    own = [each for each in played if each.start.task.name == task]
    told = [each.start.solved for each in own if each.start.solved is not None]
    quiet = [each.solved for each in calm if each.start.task.name == task]
    return TaskReplay(
        task=task,
        episodes=len(own),
        recorded=sum(told) if len(told) == len(own) else None,
        solved=sum(each.solved for each in own),
        without_noise=sum(quiet) if quiet else None,
    )


def _findings(report: SimulationReport, *, is_compared: bool) -> list[Finding]:
    found = []
    failing = [task for task in report.tasks if task.solved < task.wanted]
    bad = [task for task in failing if task.solved < WELL * task.wanted]
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
                to_do=f"{hint}; else the simulator's version or options (sim.*) are not those of the recording, or "
                "data.normalization cuts off what is needed.",
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
    told = [replace(f, what=f"the recording, beside its replay in the simulator: {f.what}") for f in found.findings]
    return found.entries, told


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

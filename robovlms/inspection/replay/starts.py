"""Where recorded episodes began in the simulator: what their folder says of it, and of success."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32

from robovlms.data.base import EpisodeInfo, Reader
from robovlms.data.splits import evenly_spaced
from robovlms.errors import UserError
from robovlms.sims.base import Simulator, Step, Task
from robovlms.sims.demos import DisturbedScene, Lesson
from robovlms.sims.starts import STARTS_FILE, Starts, load_starts

Play: TypeAlias = Callable[[Float32[np.ndarray, "a"]], Step]


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a recorded episode began, and what became of it."""

    episode: int  # its number in the reader
    task: Task
    solved: bool | None  # in the recording; None: it does not say
    is_noisy: bool  # what was executed is not quite what was recorded
    begin: Callable[[bool], Play]  # brings the simulator there, with the noise or without; returns what takes an action


@dataclass(frozen=True, kw_only=True)
class FoundStarts:
    """Episodes to play again, and why others cannot be."""

    starts: list[Start]
    left_out: dict[str, int]  # why: episodes


def find_starts(simulator: Simulator, reader: Reader, root: Path, most: int) -> FoundStarts:
    """Return up to `most` episodes of every task of the simulator, evenly spread over the recording.

    Raises:
        UserError: there is none; says what the folder lacks.
    """
    collected = load_starts(root)
    find = (
        partial(_of_state, simulator, reader) if collected is None else partial(_of_seed, simulator, reader, collected)
    )
    found: dict[str, list[Start]] = {}
    left_out: Counter[str] = Counter()
    for episode in range(len(reader.episodes)):
        start = find(episode)
        if isinstance(start, str):
            left_out[start] += 1
        else:
            found.setdefault(start.task.name, []).append(start)
    if not found:
        reasons = "; ".join(f"{count} episodes: {why}" for why, count in left_out.items())
        raise UserError(f"sim={simulator.config.name} can play nothing of {root} again: {reasons}.")
    chosen = [
        starts[i] for starts in found.values() for i in evenly_spaced(len(starts), min(most, len(starts))).tolist()
    ]
    return FoundStarts(starts=chosen, left_out=dict(left_out))


def _of_seed(simulator: Simulator, reader: Reader, collected: Starts, episode: int) -> Start | str:
    """Return how a demonstration of scripts/collect_demos.py began, or why it cannot be played."""
    number = reader.number(episode)
    if collected.sim != simulator.config.name:
        return f"they were collected in sim={collected.sim}"
    if not 0 <= number < len(collected.episodes):
        return f"meta/{STARTS_FILE} says nothing of them"
    told = collected.episodes[number]
    if told.task != told.told:
        return "contrast demonstrations, whose success nothing measures"
    tasks = [task for task in simulator.tasks() if task.name == told.task]
    if not tasks:
        return f"their task {told.task} is not in sim.tasks"

    def begin(with_noise: bool) -> Play:
        options = collected.collected if with_noise else replace(collected.collected, noise=0.0)
        return DisturbedScene(simulator, Lesson(tasks[0], tasks[0]), told.seed, options).step

    return Start(episode=episode, task=tasks[0], solved=True, is_noisy=collected.noise > 0, begin=begin)


def _of_state(simulator: Simulator, reader: Reader, episode: int) -> Start | str:
    """Return how an episode whose folder holds the simulator's state began, or why it cannot be played."""
    state = reader.simulator_state(episode)
    if state is None:
        return (
            "their folder does not say where they began, as CALVIN's frames, HDF5 of LIBERO (`states`) and folders of "
            f"scripts/collect_demos.py (meta/{STARTS_FILE}) do; an older one of these, an edited or a packed one does "
            "not: collect again into another folder"
        )
    info = reader.episodes[episode]
    task = find_task(simulator.tasks(), info)
    if task is None:
        return f"sim={simulator.config.name} has no task '{info.instruction}' among those of its config"

    def begin(_: bool) -> Play:
        simulator.restore(simulator.episode(task, 0), state)
        return simulator.step

    return Start(episode=episode, task=task, solved=state.solved, is_noisy=False, begin=begin)


def find_task(tasks: Iterable[Task], info: EpisodeInfo) -> Task | None:
    """Return the task of a recorded episode: by its file's name, as LIBERO's are called, or by its instruction, where
    that is the only one.
    """
    listed = list(tasks)
    name = info.task.removesuffix("_demo")
    named = [task for task in listed if name in (task.name, task.name.rpartition("/")[2])]
    told = [task for task in listed if task.instruction.casefold().strip() == info.instruction.casefold().strip()]
    found = named or told
    return found[0] if len(found) == 1 else None

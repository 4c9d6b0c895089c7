"""What is evaluated and what came out: the plan of an evaluation and the result of one episode."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_type_hints

from robovlms.config.closed_loop import EvaluationConfig
from robovlms.errors import UserError
from robovlms.sims.base import Task


class EpisodeKey(NamedTuple):
    """What tells the episodes of one plan apart."""

    task: str
    seed: int
    instruction: str
    opposite: bool


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One rollout to make: the scene of `task` from `seed`, with the instruction that the policy gets."""

    task: Task
    seed: int
    instruction: str
    opposite: bool = False  # with the instruction of `task.opposite`: reaching the task's own goal is a mistake
    record: bool = False  # write a video

    def __str__(self) -> str:
        return f"{self.task.name}, seed {self.seed}, '{self.instruction}'{' (opposite instruction)' * self.opposite}"

    @property
    def key(self) -> EpisodeKey:
        """What a result is matched to its episode by."""
        return EpisodeKey(self.task.name, self.seed, self.instruction, self.opposite)


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """How one episode ended. `success`: the goal of `task` was reached, whatever the instruction."""

    task: str
    seed: int
    instruction: str
    opposite: bool
    success: bool
    steps: int | None  # control steps taken; unknown where an error ended the episode
    seconds: float  # wall clock
    error: str | None = None  # traceback

    def __post_init__(self) -> None:
        """Refuse with a TypeError what an edited or damaged file holds and a report must not show."""
        for name, kind in get_type_hints(EpisodeResult).items():
            if not isinstance(value := getattr(self, name), int | float if kind is float else kind):
                raise TypeError(f"{name} is {value!r}")

    @property
    def key(self) -> EpisodeKey:
        """What a result is matched to its episode by."""
        return EpisodeKey(self.task, self.seed, self.instruction, self.opposite)

    @property
    def video_name(self) -> str:
        """File name of the episode's video, if it was recorded."""
        return re.sub(r"[^\w.-]+", "-", f"{self.task}_{self.seed}{'_opposite' if self.opposite else ''}.mp4")


def plan_episodes(tasks: Sequence[Task], config: EvaluationConfig) -> list[Episode]:
    """List every episode, task by task: first with the task's own instruction, then with the opposite one.

    Episode i of either kind starts from `config.seed + i`, so that both kinds see the same scenes.

    Raises:
        UserError: nothing to evaluate, or opposite instructions are asked for and there are none.
    """
    if not tasks or config.episodes_per_task < 1:
        raise UserError(
            f"nothing to evaluate: {len(tasks)} tasks x evaluation.episodes_per_task={config.episodes_per_task}. "
            "Set evaluation.episodes_per_task to at least 1 and leave sim.tasks empty for the whole suite."
        )
    if config.opposite_episodes_per_task and not any(task.opposite for task in tasks):
        raise UserError(
            f"evaluation.opposite_episodes_per_task={config.opposite_episodes_per_task}, but none of the tasks "
            f"{', '.join(task.name for task in tasks)} has an opposite: set it to 0."
        )
    instructions = {task.name: task.instruction for task in tasks}
    plan = []
    for task in tasks:
        plan += _repeat(task, task.instruction, config, opposite=False)
        if task.opposite and config.opposite_episodes_per_task:
            if task.opposite not in instructions:
                raise UserError(
                    f"evaluation.opposite_episodes_per_task={config.opposite_episodes_per_task} needs the instruction "
                    f"of '{task.opposite}', the opposite of '{task.name}': add it to sim.tasks, or set the option to 0."
                )
            plan += _repeat(task, instructions[task.opposite], config, opposite=True)
    return plan


def _repeat(task: Task, instruction: str, config: EvaluationConfig, *, opposite: bool) -> list[Episode]:
    count = config.opposite_episodes_per_task if opposite else config.episodes_per_task
    return [
        Episode(
            task=task,
            seed=config.seed + i,
            instruction=instruction,
            opposite=opposite,
            record=i < config.videos_per_task,
        )
        for i in range(count)
    ]

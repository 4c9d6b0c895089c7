"""The simulator contract: episodes of one goal or several in a row, observations and actions in our words, and scripted
experts where there are any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float32

from robovlms.config.choices import Language
from robovlms.config.closed_loop import SimConfig
from robovlms.config.data import ActionContract
from robovlms.errors import UserError
from robovlms.registry import nearest
from robovlms.types import Observation, SimulatorState


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a suite."""

    name: str
    instruction: str
    opposite: str | None = None  # name of the task that undoes this one in the same scene
    paraphrases: tuple[str, ...] = ()  # other instructions that mean the same
    group: str = ""  # that results are summed over, e.g. a suite; "": there are none


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What an episode asks for next: the task whose success is judged, and the instruction that the policy gets."""

    task: str
    instruction: str


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One rollout to make: a scene state, and the goals to be reached in it, one after the other.

    What it holds, `record` aside, tells the episodes of an evaluation apart.
    """

    scene: str  # name of the scene state: a task's, or a chain's
    seed: int  # of the state, or its number among the benchmark's own
    goals: tuple[Goal, ...]
    max_steps: int  # control steps that each goal may take
    group: str = ""  # that results are summed over
    variant: str = ""  # of the scene, e.g. another background
    language: Language = Language.own
    record: bool = field(default=False, compare=False)  # write a video

    def __str__(self) -> str:
        names = [self.scene, *filter(None, [self.group, self.variant]), f"seed {self.seed}"]
        told = ", then ".join(f"'{goal.instruction}'" for goal in self.goals)
        kind = "" if self.language is Language.own else f" ({self.language} instruction)"
        return f"{', '.join(names)}: {told}{kind}"


LEAST_CONTRAST = 1.0  # standard deviation of a picture that shows something


class Step(NamedTuple):
    """What one control step gives back."""

    observation: Observation  # with the instruction of the goal that is now due
    goals_done: int  # of the episode's goals, from the first; it never falls
    done: bool = False  # the simulator cannot go on, or the benchmark ends the episode here
    info: Mapping[str, Any] = {}


class Simulator(ABC):
    """A suite of tasks in a simulated scene; actions are environment units under `contract`.

    How long a goal may take is counted by whoever plays the episode (`Episode.max_steps`).
    """

    packages: ClassVar[tuple[str, ...]] = ()  # distributions whose versions a result depends on
    resets_memory: ClassVar[bool] = False  # the benchmark resets the policy's memory at every new goal or instruction

    contract: ActionContract
    views: tuple[str, ...]  # that observations have, by our names
    proprio_names: tuple[str, ...] = ()  # entries of an observation's proprioception

    @abstractmethod
    def __init__(self, config: SimConfig) -> None:
        """Check the config and the installation; scenes are built at `reset`.

        Raises:
            UserError: an unknown task, with the nearest spelling, or something is not installed; says what to do.
            ImportError: the simulator is not installed; names the extra to install.
        """
        self.config = config

    @property
    def renderer(self) -> str:
        """What draws the pictures; other renderers give other pixels."""
        return ""

    @abstractmethod
    def tasks(self) -> list[Task]:
        """List the suite's tasks, those of `config.tasks` or all."""

    def episodes(self) -> list[Episode]:
        """List what the benchmark plays: `config.episodes` of every task, numbered from `config.seed`."""
        numbers = range(self.config.seed, self.config.seed + self.config.episodes)
        return [self.episode(task, number) for task in self.tasks() for number in numbers]

    def episode(self, task: Task, seed: int) -> Episode:
        """Return the episode of one task from one start."""
        goal = Goal(task=task.name, instruction=task.instruction)
        return Episode(scene=task.name, seed=seed, goals=(goal,), max_steps=self.max_steps(task), group=task.group)

    def max_steps(self, task: Task) -> int:
        """Return how many control steps a task may take: `config.max_steps`, or where that is unset the benchmark's
        own limit.
        """
        assert self.config.max_steps is not None
        return self.config.max_steps

    @abstractmethod
    def reset(self, episode: Episode) -> Observation:
        """Start an episode from a state that depends on what it holds alone, instructions aside."""

    def restore(self, episode: Episode, state: SimulatorState) -> Observation:
        """Start an episode from a recorded state instead of from its seed.

        Raises:
            UserError: this simulator cannot, or it is the state of another scene.
        """
        raise UserError(f"sim={self.config.name} does not start from states that a recording holds: leave sim= out.")

    @abstractmethod
    def step(self, action: Float32[np.ndarray, "a"]) -> Step:
        """Apply one action and render."""

    def expert(self, task: Task) -> Float32[np.ndarray, "a"]:
        """Return the action of `task`'s scripted expert for the current state, also in the scene of its opposite.

        Raises:
            NotImplementedError: this simulator has no experts.
        """
        raise NotImplementedError(f"{type(self).__name__} has no scripted expert")

    @abstractmethod
    def close(self) -> None:
        """Free the renderer; harmless when called again."""


def choose_tasks(tasks: Mapping[str, Task], config: SimConfig, benchmark: str) -> list[Task]:
    """Return the tasks that `config.tasks` names, in that order, or all.

    Raises:
        UserError: one is unknown, with the nearest spelling.
    """
    for name in config.tasks:
        if name not in tasks:
            raise UserError(
                f"sim.tasks has '{name}', which {benchmark} does not have.{nearest(name, tasks)} "
                f"Tasks: {', '.join(tasks)}."
            )
    return [tasks[name] for name in config.tasks or tasks]


def empty_views(observation: Observation) -> str:
    """Name the views whose pictures have one colour, which a broken renderer gives without a word; "": none."""
    return ", ".join(view for view, frame in observation.frames.items() if frame.std() < LEAST_CONTRAST)


def check_action(action: Float32[np.ndarray, "a"], contract: ActionContract, name: str) -> None:
    """Refuse an action of another size.

    Raises:
        UserError: names the entries.
    """
    if action.shape != (len(contract.names),):
        raise UserError(
            f"sim={name} takes {len(contract.names)} action entries ({', '.join(contract.names)}), not {action.shape}."
        )

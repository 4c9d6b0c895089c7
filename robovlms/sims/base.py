"""The simulator contract: observations and actions in our words, tasks with instructions, and scripted experts where
there are any.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from robovlms.config.closed_loop import SimConfig
from robovlms.config.data import ActionContract
from robovlms.types import Observation


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a suite."""

    name: str
    instruction: str
    opposite: str | None = None  # name of the task that undoes this one in the same scene


class Step(NamedTuple):
    """What one control step gives back."""

    observation: Observation
    success: bool
    done: bool  # the episode ended (by the simulator's own limit); success does not set it


class Simulator(ABC):
    """A suite of tasks in a simulated scene; actions are environment units under `contract`."""

    contract: ActionContract

    @abstractmethod
    def __init__(self, config: SimConfig) -> None:
        """Check the config and the installation; scenes are built at `reset`.

        Raises:
            UserError: an unknown task, with the nearest spelling.
            ImportError: the simulator is not installed; names the extra to install.
        """

    @abstractmethod
    def tasks(self) -> list[Task]:
        """List the suite's tasks, those of `config.tasks` or all."""

    @abstractmethod
    def reset(self, task: Task, seed: int, instruction: str | None = None) -> Observation:
        """Start an episode of `task` from a state that depends on `seed` only; `instruction` replaces the task's
        own.
        """

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
        """Free the renderer."""

"""A real simulator of a point on a line, and policies for it; importable by spawned workers."""

import logging
import os

import numpy as np

from robovlms.config.choices import ReferenceFrame, Representation
from robovlms.config.closed_loop import SimConfig
from robovlms.config.data import ActionContract
from robovlms.sims.base import Simulator, Step, Task
from robovlms.types import Observation

LEFT = Task(name="go-left", instruction="go left", opposite="go-right")
RIGHT = Task(name="go-right", instruction="go right", opposite="go-left")
STAY = Task(name="stay", instruction="stay here")
SIGN = {"go-left": -1, "go-right": 1}


class LineWorld(Simulator):
    """Success beyond +-1 on the task's side; 12 steps at most; the seed moves the start by hundredths."""

    contract = ActionContract(
        names=["dx", "gripper"],
        representation=Representation.delta,
        frame=ReferenceFrame.world,
        position_unit=1.0,
        control_hz=10.0,
    )

    def __init__(self, config: SimConfig) -> None:
        self.config = config

    def tasks(self) -> list[Task]:
        return [LEFT, RIGHT]

    def reset(self, task: Task, seed: int, instruction: str | None = None) -> Observation:
        self.task, self.words, self.steps = task, instruction or task.instruction, 0
        self.x = (seed % 10 - 5) / 100
        return self._observe()

    def step(self, action) -> Step:
        self.x += float(action[0])
        self.steps += 1
        return Step(self._observe(), SIGN[self.task.name] * self.x > 1, self.steps >= self.config.max_steps)

    def close(self) -> None:
        pass

    def _observe(self) -> Observation:
        side = np.zeros((20, 31, 3), np.uint8)
        side[8:12, int(np.clip(15 + 10 * self.x, 1, 29))] = 255
        wrist = np.full((10, 10, 3), 128, np.uint8)
        return Observation(frames={"side": side, "wrist": wrist}, instruction=self.words)


class Obedient:
    """Goes where it is told, 0.3 a step."""

    def reset(self) -> None:
        pass

    def step(self, observation: Observation) -> np.ndarray:
        return np.array([0.3 if "right" in observation.instruction else -0.3, 1], np.float32)


class Stubborn(Obedient):
    """Goes right whatever it hears."""

    def step(self, observation: Observation) -> np.ndarray:
        return np.array([0.3, 1], np.float32)


class Breaking(Obedient):
    """Cannot go right."""

    def step(self, observation: Observation) -> np.ndarray:
        if "right" in observation.instruction:
            raise ArithmeticError("the wheel came off")
        return super().step(observation)


class Anxious(Obedient):
    """Warns of a name that would steer a terminal."""

    def reset(self) -> None:
        logging.getLogger("robovlms.sims").warning("task \x1b[31m")


class Dying(Obedient):
    """Takes its process along."""

    def step(self, observation: Observation) -> np.ndarray:
        os._exit(7)


def world() -> LineWorld:
    return LineWorld(SimConfig(name="line", image_size=20, max_steps=12))


def start_obedient():
    return Obedient(), world()


def start_stubborn():
    return Stubborn(), world()


def start_breaking():
    return Breaking(), world()


def start_warning():
    return Anxious(), world()


def start_dying():
    return Dying(), world()


def start_nothing():
    raise FileNotFoundError("no checkpoint here")

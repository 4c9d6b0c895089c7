"""A real simulator of a point on a line, and policies for it; importable by spawned workers."""

import logging
import os

import numpy as np

from robovlms.config.choices import ReferenceFrame, Representation
from robovlms.config.closed_loop import SimConfig
from robovlms.config.data import ActionContract
from robovlms.sims.base import Episode, Goal, Simulator, Step, Task
from robovlms.types import Observation

LEFT = Task(name="go-left", instruction="go left", opposite="go-right", paraphrases=("to the left", "leftwards"))
RIGHT = Task(name="go-right", instruction="go right", opposite="go-left")
STAY = Task(name="stay", instruction="stay here")
TASKS = {task.name: task for task in (LEFT, RIGHT, STAY)}
SIGN = {"go-left": -1, "go-right": 1}


class LineWorld(Simulator):
    """A goal is reached beyond +-1 on the task's side; the seed moves the start by hundredths."""

    contract = ActionContract(
        names=["dx", "gripper"],
        representation=Representation.delta,
        frame=ReferenceFrame.world,
        position_unit=1.0,
        control_hz=10.0,
    )
    views = ("side", "wrist")

    def __init__(self, config: SimConfig) -> None:
        self.config = config

    def tasks(self) -> list[Task]:
        return [TASKS[name] for name in self.config.tasks or ["go-left", "go-right"]]

    def reset(self, episode: Episode) -> Observation:
        self.goals, self.reached = episode.goals, 0
        self.x = (episode.seed % 10 - 5) / 100
        return self._observe()

    def step(self, action) -> Step:
        self.x += float(action[0])
        if self.reached < len(self.goals) and SIGN.get(self.goals[self.reached].task, 0) * self.x > 1:
            self.reached += 1
        return Step(self._observe(), self.reached)

    def close(self) -> None:
        pass

    def _observe(self) -> Observation:
        side = np.zeros((20, 31, 3), np.uint8)
        side[8:12, int(np.clip(15 + 10 * self.x, 1, 29))] = 255
        wrist = np.full((10, 10, 3), 128, np.uint8)
        due = self.goals[min(self.reached, len(self.goals) - 1)]
        return Observation(frames={"side": side, "wrist": wrist}, instruction=due.instruction)


class Forgetful(LineWorld):
    """A benchmark that resets the policy's memory at every goal, of there and back again."""

    resets_memory = True

    def episodes(self) -> list[Episode]:
        there = (Goal(task="go-right", instruction="go right"), Goal(task="go-left", instruction="go left"))
        return [Episode(scene="there and back", seed=number, goals=there, max_steps=12) for number in range(2)]


class Obedient:
    """Goes where it is told, 0.3 a step."""

    def reset(self) -> None:
        pass

    def step(self, observation: Observation) -> np.ndarray:
        return np.array([0.3 if "right" in observation.instruction else -0.3, 1], np.float32)

    def close(self) -> None:
        pass


class Stubborn(Obedient):
    """Goes right whatever it hears."""

    def step(self, observation: Observation) -> np.ndarray:
        return np.array([0.3, 1], np.float32)


class Counting(Obedient):
    """Counts how often it was reset."""

    resets = 0

    def reset(self) -> None:
        self.resets += 1


class Contrary(Obedient):
    """Goes where it is not told."""

    def step(self, observation: Observation) -> np.ndarray:
        return super().step(observation) * np.array([-1, 1], np.float32)


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


def world(*tasks: str, kind: type[LineWorld] = LineWorld) -> LineWorld:
    return kind(SimConfig(name="line", tasks=list(tasks), episodes=2, seed=100, max_steps=12))


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


def start_contrary():
    return Contrary(), world()


def start_nothing():
    raise FileNotFoundError("no checkpoint here")

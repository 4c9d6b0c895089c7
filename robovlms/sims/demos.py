"""One demonstration by a scripted expert."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from robovlms.config.closed_loop import CollectConfig
from robovlms.errors import UserError
from robovlms.files import atomic_file
from robovlms.sims.base import Simulator, Step, Task
from robovlms.types import Observation

HOLD_STEPS = 5  # recorded after success, so that a policy learns to stay there


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One successful episode; action i is the expert's answer to frame i."""

    frames: dict[str, UInt8[np.ndarray, "t _h _x c"]]
    actions: Float32[np.ndarray, "t a"]
    proprio: Float32[np.ndarray, "t p"]


class Lesson(NamedTuple):
    """What the expert of `told` is to do in the scene of `task`; the same but in contrast demonstrations."""

    task: Task
    told: Task

    @property
    def name(self) -> str:
        """Return the task's name, and what is told where it differs."""
        return self.task.name if self.told == self.task else f"{self.task.name}_told_{self.told.name}"


class Attempt(NamedTuple):
    """Attempt `number` at a lesson; its seed, and so its outcome, depends on nothing but the request."""

    lesson: Lesson
    number: int

    def path(self, work: Path) -> Path:
        """Return the file that holds the finished attempt, successful or not."""
        return work / self.lesson.name / f"{self.number:05d}.npz"

    def seed(self, base: int) -> int:
        """Derive the seed of start state and noise from `collect.seed`."""
        lesson = zlib.crc32(self.lesson.name.encode())  # like `hash`, but the same in every process
        return int(np.random.SeedSequence([base, lesson, self.number]).generate_state(1)[0])


class DisturbedScene:
    """A simulator in which all that a demonstration's seed decides happens: scene, way to the start, and noise.

    `start` is what there is to see before the first recorded action.
    """

    def __init__(self, simulator: Simulator, lesson: Lesson, seed: int, config: CollectConfig) -> None:
        """Begin the episode, and move the hand up to `config.max_start_steps` steps in a random direction."""
        self._simulator, self._noise = simulator, config.noise
        self._generator = np.random.default_rng(seed)
        self.episode = simulator.episode(replace(lesson.task, instruction=lesson.told.instruction), seed)
        self.start = Step(simulator.reset(self.episode), 0)
        self.steps_left = self.episode.max_steps
        away = simulator.expert(lesson.told)
        self._arm = [i for i in range(len(away)) if i not in simulator.contract.grippers]
        away[self._arm] = self._generator.uniform(-1, 1, len(self._arm))
        for _ in range(self._generator.integers(config.max_start_steps + 1)):
            self.start = simulator.step(away)
            self.steps_left -= 1

    def step(self, action: Float32[np.ndarray, "a"]) -> Step:
        """Execute an action, its arm with the noise that belongs to this step."""
        disturbed, arm = action.copy(), self._arm
        noise = self._noise * self._generator.standard_normal(len(arm))
        disturbed[arm] = np.clip(action[arm] + noise, -1, 1)
        return self._simulator.step(disturbed)


def record_demo(simulator: Simulator, lesson: Lesson, seed: int, config: CollectConfig) -> Demo | None:
    """Let the expert play one episode; None if it fails.

    The hand first moves up to `config.max_start_steps` steps in a random direction, unrecorded. If it always started
    at the same place, its own position would later tell where the expert is heading, and a policy could read the target
    off the hand instead of the picture: in rollout that merely confirms whatever it did first.

    An episode ends `HOLD_STEPS` after success. A contrast is half as long as an episode may be, and fails if the
    scene's own task gets solved: there is no measure for what was told. Gaussian noise of standard deviation
    `config.noise`, in action units, is executed on the arm but not recorded.
    """
    contrast = lesson.told != lesson.task
    scene = DisturbedScene(simulator, lesson, seed, config)
    observation, solved, done, _ = scene.start
    steps_left, holds = scene.steps_left, False
    if contrast:
        steps_left = min(steps_left, scene.episode.max_steps // 2)
    seen, actions = [], []
    while not done and steps_left > 0:
        action = simulator.expert(lesson.told)
        seen.append(observation)
        actions.append(action)
        observation, solved, done, _ = scene.step(action)
        steps_left -= 1
        if solved and not holds and not contrast:
            holds, steps_left = True, min(steps_left, HOLD_STEPS)
    if bool(solved) == contrast:
        return None
    return Demo(
        frames={view: np.stack([each.frames[view] for each in seen]) for view in seen[0].frames},
        actions=np.stack(actions).astype(np.float32),
        proprio=np.stack([_proprio(each) for each in seen]),
    )


def _proprio(observation: Observation) -> Float32[np.ndarray, "p"]:
    if observation.proprio is None:
        raise UserError("demonstrations need proprio, which this simulator does not give: choose another sim.")
    return observation.proprio


def save_demo(path: Path, demo: Demo | None) -> None:
    """Write an attempt so that the file is complete or absent; a failure is an empty archive."""
    arrays: dict[str, Any] = {}
    if demo is not None:
        arrays = {f"frames.{view}": frames for view, frames in demo.frames.items()}
        arrays |= {"actions": demo.actions, "proprio": demo.proprio}
    with atomic_file(path) as file:
        np.savez(file, **arrays)


def load_demo(path: Path) -> Demo:
    """Read a successful attempt that `save_demo` wrote."""
    with np.load(path, allow_pickle=False) as file:
        views = [key.removeprefix("frames.") for key in file.files if key.startswith("frames.")]
        frames = {view: file[f"frames.{view}"] for view in views}
        return Demo(frames=frames, actions=file["actions"], proprio=file["proprio"])


def succeeded(path: Path) -> bool:
    """Tell whether a finished attempt is a success, without reading its frames."""
    with np.load(path, allow_pickle=False) as file:
        return bool(file.files)

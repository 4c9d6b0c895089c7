"""What SimplerEnv's scripts play: scenes, and the states that episodes in them start from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robovlms.config.data import ActionContract
from robovlms.sims.base import Task
from robovlms.sims.simpler.schema import Protocol


@dataclass(frozen=True, kw_only=True)
class Start:
    """The state that an episode starts from."""

    robot_xy: tuple[float, float]  # metres
    robot_yaw: float = 0.0  # radians
    objects: int | tuple[float, float] = (0.0, 0.0)  # number of an arrangement that the environment knows, or metres
    photograph: str | None = None  # behind the scene: a file of SimplerEnv's real_inpainting

    @property
    def options(self) -> dict[str, Any]:
        """Return what the environment's `reset` takes; the robot's base is turned by 180 degrees, then by its yaw."""
        turn = [-math.sin(self.robot_yaw / 2), 0.0, 0.0, math.cos(self.robot_yaw / 2)]  # w, x, y, z
        number = isinstance(self.objects, int)
        return {
            "robot_init_options": {"init_xy": np.array(self.robot_xy), "init_rot_quat": np.array(turn)},
            "obj_init_options": {"episode_id": self.objects} if number else {"init_xy": np.array(self.objects)},
        }


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An environment as it is built; a task's scenes are its variants."""

    variant: str = ""
    env: str  # id in gymnasium
    stage: str  # SimplerEnv's scene_name
    robot: str = "google_robot_static"  # SimplerEnv's name, which says where the camera is, too
    build: Mapping[str, Any] = field(default_factory=dict)  # what else it is built with


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The episodes of one task in one scene."""

    task: str
    protocol: Protocol
    column: str = ""  # of published tables, where it is a mean over tasks
    scene: Scene
    max_steps: int
    starts: tuple[Start, ...]
    instructions: tuple[str, ...]  # that episodes begin with: one each, or one for all

    @property
    def group(self) -> str:
        """What results are summed over: the protocol, and the column of its published table."""
        return ", ".join(filter(None, [self.column, self.protocol.replace("_", " ")]))

    def instruction(self, number: int) -> str:
        """Return what the environment tells at the start of an episode."""
        return self.instructions[number if len(self.instructions) > 1 else 0]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A robot with its tasks."""

    contract: ActionContract
    control_mode: str
    camera: str  # that policies see through
    sim_hz: int  # simulation steps a second
    tasks: Mapping[str, Task]
    settings: tuple[Setting, ...]


def grid(x: tuple[float, float, int], y: tuple[float, float, int]) -> Iterator[tuple[float, float]]:
    """Yield the points of a grid, y changing fastest; both axes as first, last and count."""
    for left in np.linspace(*x):
        for right in np.linspace(*y):
            yield float(left), float(right)

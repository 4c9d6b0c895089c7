"""A simulator of a point on a line, for tests of whatever plays in one."""

from __future__ import annotations

import numpy as np

from robovlms.config.choices import ReferenceFrame, Representation
from robovlms.config.closed_loop import SimConfig
from robovlms.config.data import ActionContract
from robovlms.sims.base import Simulator, Step, Task
from robovlms.types import Observation

GO, BACK = Task(name="go", instruction="go", opposite="back"), Task(name="back", instruction="back", opposite="go")


class Line(Simulator):
    """A point that must pass 1 in the scene of "go"; experts move by 0.25, its only other entry is the gripper."""

    contract = ActionContract(
        names=["dx", "gripper"],
        representation=Representation.delta,
        frame=ReferenceFrame.world,
        position_unit=1.0,
        control_hz=1.0,
    )

    views = ("side",)
    proprio_names = ("x",)

    def __init__(self, config: SimConfig) -> None:
        self.config = config

    def tasks(self):
        return [GO, BACK]

    def reset(self, episode):
        self.x, self.executed, self.solved, self.instruction = 0.0, [], False, episode.goals[0].instruction
        return self._observe()

    def step(self, action):
        self.executed.append(action)
        self.x += float(action[0])
        self.solved = self.solved or self.x >= 1
        return Step(self._observe(), int(self.solved))

    def expert(self, task):
        return np.array([0.25 if task.name == "go" else -0.25, 1], np.float32)

    def close(self):
        pass

    def _observe(self):
        proprio = np.array([self.x], np.float32)
        return Observation(
            frames={"side": np.zeros((2, 2, 3), np.uint8)}, instruction=self.instruction, proprio=proprio
        )

"""From a policy's gripper, -1 closed and +1 open, to what SimplerEnv's robots take.

Source: github.com/simpler-env/SimplerEnv simpler_env/policies/octo/octo_model.py; github.com/Robot-VLAs/RoboVLMs
eval/simpler/model_wrapper.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from robovlms.sims.simpler.schema import Robot, Wrapper

MOTION_STEPS = {Wrapper.simpler_env: 15, Wrapper.robovlms: 2}  # that a Google robot's gripper motion lasts
OPENS_AT = {Wrapper.simpler_env: 1, Wrapper.robovlms: 2}  # the how-many-eth request in a row opens WidowX's


class Gripper(ABC):
    """The gripper of one episode."""

    @abstractmethod
    def command(self, opening: float) -> float:
        """Return what the environment gets for what the policy wants: above 0 open, else closed."""


class PositionGripper(Gripper):
    """WidowX: +1 is open, -1 closed. It opens at the `opens_at`-th request in a row and closes at once."""

    def __init__(self, opens_at: int) -> None:
        self._opens_at, self._requests = opens_at, 0

    def command(self, opening: float) -> float:
        """Return +1 or -1."""
        self._requests = self._requests + 1 if opening > 0 else 0
        return 1.0 if self._requests >= self._opens_at else -1.0


class MotionGripper(Gripper):
    """Google robot: +1 closes a bit, -1 opens a bit, 0 leaves it.

    A change of what the policy wants is a motion of `motion_steps`; another change during it is not noticed, and the
    first step of an episode never moves.
    """

    def __init__(self, motion_steps: int) -> None:
        self._motion_steps = motion_steps
        self._wanted: float | None = None
        self._motion, self._steps_left = 0.0, 0

    def command(self, opening: float) -> float:
        """Return +1, -1 or 0."""
        wanted = 1.0 if opening > 0 else -1.0
        changes = self._wanted not in (None, wanted)
        self._wanted = wanted
        if changes and not self._steps_left:
            self._motion, self._steps_left = -wanted, self._motion_steps
        if not self._steps_left:
            return 0.0
        self._steps_left -= 1
        return self._motion


def start_gripper(robot: Robot, wrapper: Wrapper) -> Gripper:
    """Return a robot's gripper at the start of an episode."""
    if robot is Robot.widowx:
        return PositionGripper(OPENS_AT[wrapper])
    return MotionGripper(MOTION_STEPS[wrapper])

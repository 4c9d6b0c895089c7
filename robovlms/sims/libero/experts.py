"""Scripted experts of some LIBERO tasks: they show that reset, action scale, gripper sign and success check are right.

They see the true state. What to do next follows from it alone, so that an expert can take over at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

METRES = 0.05  # that an action of 1 moves the hand by
OPEN, CLOSED = 1.0, -1.0
HOVER = 0.09  # m above what is grasped
NEAR = 0.01  # m
SLOPE = 5.0
SPEED = 0.7  # of the fastest
GAIN = 3.0  # of the distance to a target; the controller follows softly


class State:
    """The true state of a scene."""

    def __init__(self, sim: Any) -> None:
        model, data = sim.model, sim.data
        self._model, self._data = model, data
        self.hand: Float64[np.ndarray, "3"] = np.array(data.get_site_xpos("gripper0_grip_site"))
        fingers = [f"gripper0_finger_joint{i}" for i in (1, 2)]
        self.width = float(np.subtract(*(data.get_joint_qpos(name) for name in fingers)))  # between the fingers
        self.closing = abs(float(np.subtract(*(data.get_joint_qvel(name) for name in fingers))))  # m/s, either way

    def body(self, name: str) -> Float64[np.ndarray, "3"]:
        """Return where a body is."""
        return np.array(self._data.get_body_xpos(f"{name}_main"))

    def is_held(self, widest: float) -> bool:
        """Tell whether the fingers have come to rest on something at most this wide."""
        return self.width < widest and self.closing < 0.02


def turn_on_the_stove(state: State) -> Float32[np.ndarray, "7"]:
    """Take the knob's ridge between the fingers and turn it to the left."""
    ridge = state.body("flat_stove_1") + np.array([-0.01, 0, 0.04])
    action = _grasp(state, ridge, widest=0.05)
    if action is not None:
        return action
    return _act(state, ridge, CLOSED, turn=0.6)


def put_the_cream_cheese_in_the_bowl(state: State) -> Float32[np.ndarray, "7"]:
    """Carry it over the bowl and let go."""
    cheese, bowl = state.body("cream_cheese_1"), state.body("akita_black_bowl_1")
    above = np.append(bowl[:2], bowl[2] + 0.13)
    if _sideways(cheese, bowl) < NEAR and _sideways(state.hand, bowl) < 0.03:
        return _act(state, state.hand, OPEN)
    action = _grasp(state, cheese, widest=0.07)
    if action is not None:
        return action
    high = np.append(state.hand[:2], above[2])
    carried = above + state.hand - cheese
    return _act(state, high if state.hand[2] < above[2] - 0.03 else np.append(carried[:2], above[2]), CLOSED)


EXPERTS: dict[str, Callable[[State], Float32[np.ndarray, "7"]]] = {
    "libero_goal/turn_on_the_stove": turn_on_the_stove,
    "libero_goal/put_the_cream_cheese_in_the_bowl": put_the_cream_cheese_in_the_bowl,
}


def _grasp(state: State, target: Float64[np.ndarray, "3"], widest: float) -> Float32[np.ndarray, "7"] | None:
    """Return what brings the fingers around a target and closes them; None: it is held."""
    away = _sideways(state.hand, target)
    if state.hand[2] < target[2] + NEAR and away < 2 * NEAR:
        return None if state.is_held(widest) else _act(state, target, CLOSED)
    height = np.clip(SLOPE * (away - NEAR), 0, HOVER)  # come down in a funnel
    return _act(state, target + np.array([0, 0, height]), OPEN)


def _sideways(a: Float64[np.ndarray, "3"], b: Float64[np.ndarray, "3"]) -> float:
    return float(np.linalg.norm((a - b)[:2]))


def _act(state: State, target: Float64[np.ndarray, "3"], gripper: float, turn: float = 0.0) -> Float32[np.ndarray, "7"]:
    """Return an action towards a target, turning to the left by `turn`."""
    move = np.clip(GAIN * (target - state.hand) / METRES, -SPEED, SPEED)
    return np.array([*move, 0, 0, turn, gripper], dtype=np.float32)

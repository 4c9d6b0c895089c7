"""Scripted experts for eight tasks of scene D: way points of the closed hand, by where the slider and the drawer are.

A plan goes on when the *target* has reached a way point, not when the hand has: a hand that lags would dwell there, and
a policy without memory cannot learn when to leave. The hand never grasps: it hooks the drawer's handle, pushes the
door's, presses the button, and drags the switch along by friction.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64

SPEED = 0.65  # of the largest action, which is where the data's normalisation clips
METRES_PER_STEP = 0.02  # of an action of 1
NEAR = 0.004  # m, from the target to a way point that is passed
CLOSED = -1.0

Point = tuple[float, float, float]  # m, in the world

TABLE = "calvin_table_D"  # whose scene the plans are for

# Where things are there, from rays cast into its collision shapes.
DOOR_HANDLE = 0.04  # x of the sliding door's handle with the door right
DRAWER_HANDLE = -0.245  # y of the drawer's handle with the drawer closed


def _slide(side: int) -> Callable[[float, float], list[Point]]:
    """Push the door's handle from behind: `side` is where it moves to, -1 left, +1 right."""

    def plan(slider: float, drawer: float) -> list[Point]:
        x = DOOR_HANDLE - slider
        behind = x - side * 0.06
        return [(behind, -0.08, 0.56), (behind, -0.015, 0.545), (x + side * 0.3, -0.015, 0.545)]

    return plan


def _open_drawer(slider: float, drawer: float) -> list[Point]:
    return [(0.18, -0.21, 0.52), (0.18, -0.21, 0.375), (0.18, -0.45, 0.375)]


def _close_drawer(slider: float, drawer: float) -> list[Point]:
    before = DRAWER_HANDLE - drawer - 0.05
    return [(0.18, before, 0.52), (0.18, before, 0.375), (0.18, -0.2, 0.375)]


def _press_button(slider: float, drawer: float) -> list[Point]:
    return [(-0.12, -0.12, 0.53), (-0.12, -0.12, 0.46)]


def _switch_up(slider: float, drawer: float) -> list[Point]:
    return [(0.3, -0.05, 0.53), (0.3, 0.02, 0.53), (0.3, 0.05, 0.7)]


def _switch_down(slider: float, drawer: float) -> list[Point]:
    return [(0.3, -0.02, 0.6), (0.3, 0.08, 0.6), (0.3, 0.06, 0.42)]


PLANS: dict[str, Callable[[float, float], list[Point]]] = {
    "open_drawer": _open_drawer,
    "close_drawer": _close_drawer,
    "move_slider_left": _slide(-1),
    "move_slider_right": _slide(+1),
    "turn_on_lightbulb": _switch_up,
    "turn_off_lightbulb": _switch_down,
    "turn_on_led": _press_button,
    "turn_off_led": _press_button,
}


class Expert:
    """One attempt at a task, from where the scene is when it begins."""

    def __init__(self, task: str, scene: Float64[np.ndarray, "24"]) -> None:
        self._points = [np.array(point) for point in PLANS[task](*scene[:2])]

    def act(self, target: Float64[np.ndarray, "3"]) -> Float32[np.ndarray, "7"]:
        """Return the action that moves the hand's target on."""
        while len(self._points) > 1 and np.abs(self._points[0] - target).max() < NEAR:
            self._points.pop(0)
        move = np.clip((self._points[0] - target) / METRES_PER_STEP, -SPEED, SPEED)
        return np.array([*move, 0, 0, 0, CLOSED], dtype=np.float32)

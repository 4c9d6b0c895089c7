"""What the scene and the robot start from: CALVIN's `get_env_state_for_initial_condition`, number by number.

Source: github.com/mees/calvin (MIT license), calvin_agent/evaluation/utils.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from robovlms.sims.calvin.chains import COLOURS, Condition

ROBOT = (
    0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963, -1.21779124, 1.03987629,
    2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0,
)  # fmt: skip
STATE_SIZE = len(ROBOT) + 24  # numbers of a whole state, the scene's behind the robot's
IN_CABINET = {
    "slider_left": (-2.40851662e-01, 9.24044687e-02, 4.60990009e-01),
    "slider_right": (7.03416330e-02, 9.24044687e-02, 4.60990009e-01),
}
ON_TABLE = [(5.00000896e-02, -1.20000177e-01, 4.59990009e-01), (2.29995412e-01, -1.19995140e-01, 4.59990010e-01)]
TURN = (np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8)  # rad, of a block about the vertical
SLIDER_LEFT, DRAWER_OPEN, SWITCH_ON = 0.28, 0.22, 0.088  # m along their joints; 0 otherwise
BLOCKS = 6  # where the six numbers of the first block begin among the scene's
REACH = 0.03  # m, that a block on the table may be moved by in each direction where a start is not an official one


class State(NamedTuple):
    """A start."""

    robot: Float64[np.ndarray, "15"]
    scene: Float64[
        np.ndarray, "24"
    ]  # slider, drawer, button, switch, lightbulb, led; x, y, z, roll, pitch, yaw of blocks


def fnv1_32(text: str) -> int:
    """Return `pyhash.fnv1_32` of a text, which is not the textbook's: it starts at 0 and reads UTF-16, byte by byte."""
    value = 0
    for byte in text.encode("utf-16-le"):
        value = (value * 0x01000193) & 0xFFFFFFFF ^ byte
    return value


def block_seed(condition: Condition) -> int:
    """Return the seed of a condition's blocks: the hash of its values as Python prints those of a dict."""
    return fnv1_32(f"dict_values({list(condition)})")


def initial_state(condition: Condition) -> State:
    """Return the official initial state. Blocks on the table share two places, which are shuffled."""
    random = np.random.RandomState(block_seed(condition))
    places = np.array(ON_TABLE)
    order = [0, 1]
    random.shuffle(order)
    first, second = places[order]
    on_table = {"red": first, "blue": second if condition.red_block == "table" else first, "pink": second}
    scene = np.zeros(24)
    scene[0] = SLIDER_LEFT if condition.slider == "left" else 0
    scene[1] = DRAWER_OPEN if condition.drawer == "open" else 0
    scene[3] = SWITCH_ON if condition.lightbulb else 0
    scene[4:BLOCKS] = condition.lightbulb, condition.led
    for block, colour in zip(_blocks(scene), COLOURS, strict=True):
        block[:3] = IN_CABINET.get(condition.block(colour), on_table[colour])
        block[5] = random.uniform(*TURN)
    return State(np.array(ROBOT), scene)


def jittered(state: State, condition: Condition, seed: int) -> State:
    """Return a start of the same condition that is not an official one: blocks on the table moved and turned."""
    random = np.random.default_rng(seed)
    scene = state.scene.copy()
    for block, colour in zip(_blocks(scene), COLOURS, strict=True):
        if condition.block(colour) == "table":
            block[:2] += random.uniform(-REACH, REACH, 2)
            block[5] = random.uniform(*TURN)
    return State(state.robot, scene)


def _blocks(scene: Float64[np.ndarray, "24"]) -> list[Float64[np.ndarray, "6"]]:
    """Return views of the blocks' numbers, red, blue, pink."""
    return np.split(scene[BLOCKS:], len(COLOURS))

"""How steps of known data sets become actions of ours, beyond what keys and slices can say.

Source: OpenVLA prismatic/vla/datasets/rlds/oxe/transforms.py (bridge_orig_dataset_transform, rt1_dataset_transform,
viola_dataset_transform) and rlds/utils/data_utils.py (binarize_gripper_actions, relabel_bridge_actions,
rel2abs_gripper_actions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from robovlms.config.choices import RLDSTransform

STATE_KEY = "observation/state"  # what Bridge's actions are taken from: x, y, z, roll, pitch, yaw, ...
ARM = 6
OPEN, CLOSED = 0.95, 0.05  # Bridge's gripper, 1 = open: what lies between is on its way
MOVES = 0.1  # of grippers that are told motions, +1 closes: what is smaller leaves them as they are


@dataclass(frozen=True)
class Transform:
    """What happens to an episode: steps left out at its ends, and its actions made anew.

    `apply` takes the actions of all steps but the first `drop_first`, as `data.action_key` puts them together, and the
    states of the same steps if it `needs_state`; it gives those of all steps but the last `drop_last`.
    """

    drop_first: int
    drop_last: int
    needs_state: bool
    apply: Callable[[Float32[np.ndarray, "t a"], Float32[np.ndarray, "t p"] | None], Float32[np.ndarray, "_s a"]]


def bridge(
    actions: Float32[np.ndarray, "t 7"], states: Float32[np.ndarray, "t p"] | None
) -> Float32[np.ndarray, "_s 7"]:
    """Return what the arm did instead of what it was told: the next state minus this one; gripper 1 open, 0 closed.

    The last step has no next state and is left out, as in OpenVLA. Two things differ from it: differences of angles
    are taken the short way round where roll or yaw passes 180 degrees, and a gripper that is still on its way at the
    end of an episode is rounded instead of left fractional.
    """
    assert states is not None
    arm = np.diff(states[:, :ARM].astype(np.float64), axis=0)
    turned = np.abs(arm[:, 3:]) > np.pi
    arm[:, 3:][turned] -= 2 * np.pi * np.sign(arm[:, 3:][turned])
    gripper = binary_gripper(actions[:, -1])
    return np.concatenate([arm, gripper[:-1, None]], axis=1).astype(np.float32)


def binary_gripper(openings: Float32[np.ndarray, "t"]) -> Float32[np.ndarray, "t"]:
    """Return 1 where a gripper is open (above 0.95), 0 where closed (below 0.05), and between where it is going.

    A position on the way takes the value of the next that is open or closed; behind the last of those it is rounded.
    """
    settled = (openings > OPEN) | (openings < CLOSED)
    places = np.where(settled, np.arange(len(openings)), len(openings))
    following = np.minimum.accumulate(places[::-1])[::-1]
    values = np.append(openings, np.round(openings[-1:]))
    return (values[np.minimum(following, len(values) - 1)] > 0.5).astype(np.float32)


def gripper_motions(
    actions: Float32[np.ndarray, "t a"], _: Float32[np.ndarray, "t p"] | None
) -> Float32[np.ndarray, "t a"]:
    """Make the gripper's motions (+1 closes, -1 opens, 0 leaves it) an absolute opening, 1 = open and 0 = closed."""
    return np.concatenate([actions[:, :-1], absolute_gripper(actions[:, -1])[:, None]], axis=1)


def gripper_clip(
    actions: Float32[np.ndarray, "t a"], _: Float32[np.ndarray, "t p"] | None
) -> Float32[np.ndarray, "t a"]:
    """Cut the gripper to 0 ... 1: -1 and 0 are the same state, whichever of them a data set writes for it."""
    return np.concatenate([actions[:, :-1], np.clip(actions[:, -1:], 0, 1)], axis=1)


def absolute_gripper(motions: Float32[np.ndarray, "t"]) -> Float32[np.ndarray, "t"]:
    """Return 1 (open) or 0 after every motion; before the first the gripper is in the other state, without any open.

    The first motion is so taken to change something.
    """
    wanted = np.where(motions < -MOVES, 1, np.where(motions > MOVES, 0, -1))
    moving = np.flatnonzero(wanted >= 0)
    start = 1 - wanted[moving[0]] if len(moving) else 1
    newest = np.maximum.accumulate(np.where(wanted >= 0, np.arange(len(motions)), -1))
    return np.where(newest >= 0, wanted[newest], start).astype(np.float32)


TRANSFORMS: dict[RLDSTransform, Transform] = {
    RLDSTransform.bridge: Transform(1, 1, True, bridge),  # the first action of an episode is all zero
    RLDSTransform.gripper_motions: Transform(0, 0, False, gripper_motions),
    RLDSTransform.gripper_clip: Transform(0, 0, False, gripper_clip),
}

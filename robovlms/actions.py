"""Actions: what they mean, how they are chunked, and how they reach [-1, 1] and come back.

One `ActionNormalizer` serves training and rollout, and its numbers travel with the checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from robovlms.choices import NormalizationMode
from robovlms.config import ActionContract, NormalizationConfig


def chunk_actions(
    actions: Float[Tensor, "b s a"], mask: Bool[Tensor, "b s"], window_size: int, chunk_size: int
) -> tuple[Float[Tensor, "b w k a"], Bool[Tensor, "b w k"]]:
    """Give every step of the window the chunk of actions it must predict.

    Step i is taught actions i, ..., i + k - 1, so neighbouring chunks overlap and a sample carries s = w + k - 1
    actions. Near the end of an episode the tail is padding; a padded action stays masked in every chunk it falls into.

    Returns:
        The chunks and their mask, both views of the inputs; copy before writing.
    Raises:
        ValueError: the sequence does not have w + k - 1 actions.
    Source:
        Sliding chunks as in RoboVLMs (data/calvin_dataset.py), arXiv:2412.14058; the mask follows ACT,
        arXiv:2304.13705.
    """
    if actions.shape[1] != window_size + chunk_size - 1:
        raise ValueError(
            f"got {actions.shape[1]} actions for window_size={window_size} and chunk_size={chunk_size}: "
            f"expected {window_size + chunk_size - 1}"
        )
    return actions.unfold(1, chunk_size, 1).transpose(2, 3), mask.unfold(1, chunk_size, 1)


@dataclass(frozen=True, kw_only=True)
class ActionStats:
    """Per-entry statistics of the raw actions of a training set, gripper included."""

    mean: list[float]
    std: list[float]
    min: list[float]
    max: list[float]
    q01: list[float]
    q99: list[float]
    num_rows: int  # action rows the figures are computed from; fewer than the data set's when it is large

    @classmethod
    def compute(cls, actions: Float32[np.ndarray, "r a"]) -> ActionStats:
        """Compute the statistics in float64; quantiles interpolate linearly."""
        rows = actions.astype(np.float64)
        q01, q99 = np.quantile(rows, [0.01, 0.99], axis=0)
        columns = {
            "mean": rows.mean(0),
            "std": rows.std(0),
            "min": rows.min(0),
            "max": rows.max(0),
            "q01": q01,
            "q99": q99,
        }
        return cls(**{key: value.tolist() for key, value in columns.items()}, num_rows=len(rows))

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> ActionStats:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))


class ActionNormalizer:
    """Map raw arm entries to [-1, 1] and back; the gripper passes, as exactly -1 (closed) or +1 (open).

    Bounds low and high become -1 and +1; but for `identity` the action is clipped to them first; an entry
    whose bounds coincide (a rotation that never moves) becomes 0 and comes back as its constant.
    Source: RoboVLMs data/data_utils.py, normalize_action (fixed bounds +-0.65); OpenVLA q01/q99, arXiv:2406.09246.
    """

    def __init__(self, config: NormalizationConfig, stats: ActionStats) -> None:
        arm = len(stats.mean) - 1
        bounds = {
            NormalizationMode.bounds: ([config.low] * arm, [config.high] * arm),
            NormalizationMode.min_max: (stats.min[:-1], stats.max[:-1]),
            NormalizationMode.quantile: (stats.q01[:-1], stats.q99[:-1]),
            NormalizationMode.identity: ([-1.0] * arm, [1.0] * arm),
        }[config.mode]
        low, high = (torch.tensor(bound, dtype=torch.float32) for bound in bounds)
        self._clip = config.mode is not NormalizationMode.identity
        self._low, self._high = low, high
        self._center, self._half = (low + high) / 2, (high - low) / 2
        self._constant = self._half < 1e-6

    def normalize(self, actions: Float[Tensor, "*n a"]) -> Float[Tensor, "*n a"]:
        """Give the actions the head is taught."""
        arm, gripper = actions[..., :-1].float(), actions[..., -1:]
        if self._clip:
            arm = arm.clamp(self._low, self._high)
        arm = (arm - self._center) / self._half.masked_fill(self._constant, 1)
        return torch.cat([arm.masked_fill(self._constant, 0), torch.where(gripper > 0, 1.0, -1.0)], dim=-1)

    def denormalize(self, actions: Float[Tensor, "*n a"]) -> Float[Tensor, "*n a"]:
        """Give environment units."""
        arm = actions[..., :-1] * self._half + self._center
        return torch.cat([arm, actions[..., -1:]], dim=-1)


def check_contract(policy: ActionContract, other: ActionContract, other_name: str) -> None:
    """Refuse a policy whose actions do not mean what the data or environment expects.

    Raises:
        ValueError: lists both sides of every disagreement.
    """
    sides = [(f.name, getattr(policy, f.name), getattr(other, f.name)) for f in fields(ActionContract)]
    wrong = [f"  {name}: policy {left!r}, {other_name} {right!r}" for name, left, right in sides if left != right]
    if wrong:
        raise ValueError(
            f"the policy's actions do not mean what {other_name} expects:\n" + "\n".join(wrong) + "\n"
            "Evaluate on the robot or simulator the policy was trained for, or correct data.contract and train again."
        )

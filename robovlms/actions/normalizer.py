"""How actions are chunked, and how they reach [-1, 1] and come back; one object for training and rollout."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robovlms.actions.contract import _statistics_bounds, is_constant, is_sparse
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import NormalizationMode
from robovlms.config.data import NormalizationConfig
from robovlms.errors import UserError


def chunk_actions(
    actions: Float[Tensor, "b s a"], mask: Bool[Tensor, "b s"], window_size: int, chunk_size: int
) -> tuple[Float[Tensor, "b w k a"], Bool[Tensor, "b w k"]]:
    """Return every step of the window the chunk of actions it must predict.

    Step i has actions i, ..., i + k - 1 as target, so neighbouring chunks overlap and a sample carries s = w + k - 1
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


class ActionNormalizer:
    """Map raw entries to [-1, 1] and back; binary grippers pass, as exactly -1 (closed) or +1 (open).

    Bounds low and high become -1 and +1, and entries are clipped to them first (not with `identity` and `mean_std`). An
    entry that never changes (see `is_constant`) becomes 0 and comes back as its constant. One that changes so rarely
    that q01 = q99 is normalised by its smallest and largest value.
    Source: RoboVLMs data/data_utils.py, normalize_action (fixed bounds +-0.65), mu_law_companding; OpenVLA q01/q99,
    arXiv:2406.09246.
    """

    def __init__(self, config: NormalizationConfig, stats: Statistics, names: list[str], binary: Sequence[int]) -> None:
        """Take how to normalise, the statistics of `names` and which of them are binary grippers, and check them.

        Raises:
            UserError: there are not as many statistics as names, or `modes` has another name.
        """
        if len(stats.mean) != len(names):
            raise UserError(
                f"statistics of {len(stats.mean)} action entries do not fit the {len(names)} of "
                f"{', '.join(names)}: see data.normalization.statistics_file and data.contract.names."
            )
        scaled = [name for i, name in enumerate(names) if i not in binary]
        if unknown := sorted(set(config.modes) - set(scaled)):
            raise UserError(f"data.normalization.modes has {unknown}, not among the scaled {', '.join(scaled)}.")
        self.action_dim = len(names)
        passing = NormalizationMode.identity
        modes = [passing if i in binary else config.modes.get(name, config.mode) for i, name in enumerate(names)]
        pairs = [self._bounds(mode, config, stats, i) for i, mode in enumerate(modes)]
        low, high = torch.tensor(pairs, dtype=torch.float32).reshape(-1, 2).unbind(1)
        low, high = torch.lerp(low, high, (1 - config.share) / 2), torch.lerp(high, low, (1 - config.share) / 2)
        free = [mode in (NormalizationMode.identity, NormalizationMode.mean_std) for mode in modes]
        infinite = torch.tensor(free, dtype=torch.bool)
        self._clip_low = low.masked_fill(infinite, -math.inf)
        self._clip_high = high.masked_fill(infinite, math.inf)
        self._center, self._half = (low + high) / 2, (high - low) / 2
        self._constant = torch.tensor([is_constant(*pair) for pair in pairs], dtype=torch.bool)
        self._binary = torch.tensor([i in binary for i in range(len(names))], dtype=torch.bool)
        self._mu = config.mu

    @staticmethod
    def _bounds(mode: NormalizationMode, config: NormalizationConfig, stats: Statistics, i: int) -> tuple[float, float]:
        if mode is NormalizationMode.bounds:
            return config.low, config.high
        if mode is NormalizationMode.identity:
            return -1.0, 1.0
        return _statistics_bounds(NormalizationMode.min_max if is_sparse(mode, stats, i) else mode, stats, i)

    def normalize(self, actions: Float[Tensor, "*n a"]) -> Float[Tensor, "*n a"]:
        """Return the head's targets."""
        arm = actions.float().clamp(self._clip_low, self._clip_high)
        arm = (arm - self._center) / self._half.masked_fill(self._constant, 1)
        if self._mu:
            arm = arm.sign() * (self._mu * arm.abs()).log1p() / math.log1p(self._mu)
        return torch.where(self._binary, torch.where(actions > 0, 1.0, -1.0), arm.masked_fill(self._constant, 0))

    def denormalize(self, actions: Float[Tensor, "*n a"]) -> Float[Tensor, "*n a"]:
        """Return environment units."""
        arm = actions
        if self._mu:
            arm = arm.sign() * (arm.abs() * math.log1p(self._mu)).expm1() / self._mu
        return torch.where(self._binary, actions, arm * self._half + self._center)

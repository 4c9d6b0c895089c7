"""How actions are chunked, and how they reach [-1, 1] and come back; one object for training and rollout."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robovlms.actions.contract import _statistics_bounds, is_constant, is_sparse
from robovlms.actions.relative import RelativeActions, RelativeEntry
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
    that q01 = q99 is normalised by its smallest and largest value. Where entries are relative to the state that a chunk
    is predicted from, they are made so first, and every step of the chunk has bounds of its own.
    Source: RoboVLMs data/data_utils.py, normalize_action (fixed bounds +-0.65), mu_law_companding; OpenVLA q01/q99,
    arXiv:2406.09246.
    """

    def __init__(
        self,
        config: NormalizationConfig,
        stats: Statistics,
        names: list[str],
        binary: Sequence[int],
        relative: Sequence[RelativeEntry] = (),
    ) -> None:
        """Take how to normalise, the statistics of `names`, which are binary grippers, which relative, and check them.

        Raises:
            UserError: there are not as many statistics as names, none of relative actions, or `modes` has another name.
        """
        if len(stats.mean) != len(names):
            raise UserError(
                f"statistics of {len(stats.mean)} action entries do not fit the {len(names)} of "
                f"{', '.join(names)}: see data.normalization.statistics_file and data.contract.names."
            )
        scaled = [name for i, name in enumerate(names) if i not in binary]
        if unknown := sorted(set(config.modes) - set(scaled)):
            raise UserError(f"data.normalization.modes has {unknown}, not among the scaled {', '.join(scaled)}.")
        if bool(relative) != bool(stats.steps):
            raise UserError(
                f"data.convert.relative_to=state learns {', '.join(entry.name for entry in relative) or 'nothing'} "
                f"relative to the state, but the statistics are of {'relative' if stats.steps else 'absolute'} actions."
            )
        self.action_dim, self.relative = len(names), RelativeActions(relative, len(names))
        passing = NormalizationMode.identity
        modes = [passing if i in binary else config.modes.get(name, config.mode) for i, name in enumerate(names)]
        pairs = [
            [self._bounds(mode, config, step, i) for i, mode in enumerate(modes)] for step in stats.steps or [stats]
        ]
        low, high = torch.tensor(pairs, dtype=torch.float32).reshape(len(pairs), -1, 2).unbind(2)
        low, high = torch.lerp(low, high, (1 - config.share) / 2), torch.lerp(high, low, (1 - config.share) / 2)
        free = [mode in (NormalizationMode.identity, NormalizationMode.mean_std) for mode in modes]
        infinite = torch.tensor(free, dtype=torch.bool)
        self._clip_low = low.masked_fill(infinite, -math.inf)  # "k a", or "1 a": of all steps of a chunk
        self._clip_high = high.masked_fill(infinite, math.inf)
        self._center, self._half = (low + high) / 2, (high - low) / 2
        self._constant = torch.tensor([[is_constant(*pair) for pair in step] for step in pairs], dtype=torch.bool)
        self._binary = torch.tensor([i in binary for i in range(len(names))], dtype=torch.bool)
        self._mu = config.mu

    @staticmethod
    def _bounds(mode: NormalizationMode, config: NormalizationConfig, stats: Statistics, i: int) -> tuple[float, float]:
        if mode is NormalizationMode.bounds:
            return config.low, config.high
        if mode is NormalizationMode.identity:
            return -1.0, 1.0
        return _statistics_bounds(NormalizationMode.min_max if is_sparse(mode, stats, i) else mode, stats, i)

    @property
    def is_relative(self) -> bool:
        """Tell whether any entry is relative, so that chunks are normalised with a state, from their first step on."""
        return bool(self.relative.entries)

    @property
    def num_steps(self) -> int:
        """Return how many steps of a chunk have bounds of their own; 1: all have the same."""
        return len(self._center)

    def normalize(
        self, actions: Float[Tensor, "*n k a"], state: Float[Tensor, "*n p"] | None = None
    ) -> Float[Tensor, "*n k a"]:
        """Return the head's targets.

        Args:
            actions: chunks, or what they begin with; any rows where nothing is relative.
            state: the proprioception of the frames that they are predicted from, where something is.
        """
        return self.scale(self.relative.subtract(actions.float(), state))

    def scale(self, actions: Float[Tensor, "*n k a"]) -> Float[Tensor, "*n k a"]:
        """Return the head's targets of actions that are relative already."""
        count = actions.shape[-2]
        arm = actions.float().clamp(self._clip_low[:count], self._clip_high[:count])
        arm = (arm - self._center[:count]) / self._half.masked_fill(self._constant, 1)[:count]
        if self._mu:
            arm = arm.sign() * (self._mu * arm.abs()).log1p() / math.log1p(self._mu)
        arm = arm.masked_fill(self._constant[:count], 0)
        return torch.where(self._binary, torch.where(actions > 0, 1.0, -1.0), arm)

    def denormalize(
        self, actions: Float[Tensor, "*n k a"], state: Float[Tensor, "*n p"] | None = None
    ) -> Float[Tensor, "*n k a"]:
        """Return environment units, absolute; arguments are as in `normalize`."""
        arm, count = actions, actions.shape[-2]
        if self._mu:
            arm = arm.sign() * (arm.abs() * math.log1p(self._mu)).expm1() / self._mu
        arm = arm * self._half[:count] + self._center[:count]
        return self.relative.add(torch.where(self._binary, actions, arm), state)

    def beyond(
        self, actions: Float[Tensor, "*n k a"], state: Float[Tensor, "*n p"] | None = None
    ) -> Float[Tensor, "*n k a"]:
        """Return how far actions are outside the bounds that `normalize` cuts off at, as a share of their distance; 0
        within, and where nothing is cut off. Arguments are as in `normalize`.
        """
        count, values = actions.shape[-2], self.relative.subtract(actions.float(), state)
        low, high = self._clip_low[:count], self._clip_high[:count]
        outside = torch.maximum(low - values, values - high).clamp(min=0) / (high - low).clamp(min=1e-12)
        return outside.masked_fill(self._binary, 0)

    def rest(
        self,
        chunk: Float[Tensor, "k a"],
        passed: int,
        before: Float[Tensor, "p"] | None,
        now: Float[Tensor, "p"] | None,
    ) -> Float[Tensor, "n a"]:
        """Return what is left of a chunk after some steps, as what a chunk begins with that is predicted now.

        Args:
            chunk: normalised.
            passed: steps since the frame that it was predicted from.
            before: the state of that frame.
            now: the state of this one.
        """
        if not self.is_relative:
            return chunk[passed:]
        return self.normalize(self.denormalize(chunk, before)[passed:], now)

"""A moving average of the trained weights, which often acts better than the newest ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from robovlms.config.training import EMAConfig
from robovlms.errors import UserError
from robovlms.policy.checkpoint import EMA
from robovlms.policy.manifest import reading
from robovlms.training.checkpoints.pieces import Piece, Pieces
from robovlms.training.parallel.base import Share


class MovingAverage:
    """float32 shadows of the weights that an optimizer changes, by the policy's name of each.

    shadow = decay * shadow + (1 - decay) * weight after every step, elementwise, so that a shadow may be sharded like
    its weight. Frozen weights need none.
    """

    def __init__(self, config: EMAConfig, shares: Mapping[str, Share]) -> None:
        """Start from the weights as they are."""
        self.config, self._shares, self._weights = config, shares, [share.weight for share in shares.values()]
        self.shadows = {name: share.weight.detach().clone() for name, share in shares.items()}

    def decay(self, step: int) -> float:
        """Return the decay of a step, counted from 0: (1 + step) / (10 + step) until that exceeds the config's.

        So the random weights of the beginning are soon forgotten. Source: tf.train.ExponentialMovingAverage.
        """
        warm = (1 + step) / (10 + step) if self.config.warmup else 1.0
        return min(self.config.decay, warm)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that step `step` has made."""
        torch._foreach_lerp_(list(self.shadows.values()), [*self._weights], 1 - self.decay(step))

    @contextmanager
    def in_place(self, spread: Callable[[], None]) -> Iterator[None]:
        """Have the policy act by its average inside the block."""
        self._swap(spread)
        try:
            yield
        finally:
            self._swap(spread)

    def for_validation(self, spread: Callable[[], None]) -> AbstractContextManager[None]:
        """Return the context in which validation measures the weights that `ema.validate` chooses."""
        return self.in_place(spread) if self.config.validate else nullcontext()

    @torch.no_grad()
    def _swap(self, spread: Callable[[], None]) -> None:
        for shadow, weight in zip(self.shadows.values(), self._weights, strict=True):
            kept = weight.clone()
            weight.copy_(shadow)
            shadow.copy_(kept)
        spread()

    def pieces(self) -> dict[str, Piece]:
        """Return what this process has of the shadows."""
        return {name: self._shares[name].piece(shadow) for name, shadow in self.shadows.items()}

    @torch.no_grad()
    def restore(self, folder: Path, names: Collection[str]) -> None:
        """Take the shadows of a checkpoint; of one without any, the average begins at its weights.

        Args:
            folder: the checkpoint.
            names: of all trained parameters, of whichever process.

        Raises:
            DamagedCheckpointError: the file cannot be read.
            UserError: they are of other weights.
        """
        if not (folder / EMA).is_file():
            return
        with reading(folder, EMA):
            saved = Pieces([folder / EMA])
        if others := sorted(saved.shapes.keys() ^ set(names)):
            raise UserError(f"{folder / EMA} is of other weights than this run trains, e.g. {others[0]}.")
        for name, shadow in self.shadows.items():
            share = self._shares[name]
            shadow.copy_(saved.read(name, share.start, share.stop).reshape(shadow.shape))

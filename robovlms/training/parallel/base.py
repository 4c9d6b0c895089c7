"""What a way to spread a step over processes must do; one process alone, which holds everything, does it as written.

The optimizer never sees a policy's parameters but *shares*: plain tensors, float32 unless `optimizer.rounding` says
otherwise, each a range of one parameter's values. A share may be the parameter itself, a part of it, or of a float32
master behind it; the optimizer, clipping and checkpoints work alike on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from robovlms.config.run import TrainConfig
from robovlms.policy.policy import VLAPolicy
from robovlms.training.checkpoints.pieces import Piece
from robovlms.training.optimizer.precision import MasterWeights, master_weights


@dataclass(frozen=True, eq=False, kw_only=True)
class Share:
    """What this process optimizes of a parameter: its values from `start` on, counted row by row."""

    parameter: nn.Parameter
    weight: nn.Parameter
    start: int = 0

    @property
    def stop(self) -> int:
        """Where the values end."""
        return self.start + self.weight.numel()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole parameter."""
        return tuple(self.parameter.shape)

    def piece(self, values: Tensor) -> Piece:
        """Return a tensor as large as the share as a piece of one as large as the parameter."""
        return Piece(values, self.start, self.shape)

    def part(self, whole: Tensor) -> Tensor:
        """Return the share's part of a tensor as large as the parameter; any other as it is."""
        if tuple(whole.shape) != self.shape or not self.shape:
            return whole
        return whole.flatten()[self.start : self.stop].reshape(self.weight.shape)

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the parameter is another process's."""
        return self.weight.numel() == self.parameter.numel()


class Parallelism:
    """One process that holds everything, and the base of all ways to use several."""

    is_sharded = False  # whether a checkpoint needs every process

    has_copy = False  # whether another process writes what this one has

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        """Take the run's config (its own options are `config.parallel`) and the processes."""
        self.config, self.accelerator = config, accelerator
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.shares: dict[str, Share] = {}  # by the policy's name of the parameter

    def prepare(self, policy: VLAPolicy, resume_from: Path | None) -> nn.Module:
        """Load the weights to resume from, if any, and return what losses are computed by."""
        policy.to(self.accelerator.device)
        precision, rounding = self.config.precision.name, self.config.optimizer.rounding
        self.masters: MasterWeights = master_weights(policy, precision, rounding, resume_from)
        self.shares = {
            name: Share(parameter=parameter, weight=self.masters.of(parameter))
            for name, parameter in policy.named_parameters()
            if parameter.requires_grad
        }
        return policy

    def weight_of(self) -> Mapping[nn.Parameter, nn.Parameter]:
        """Return what the optimizer changes of each parameter; one whose values are all elsewhere is missing."""
        return {share.parameter: share.weight for share in self.shares.values()}

    def accumulating(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which backward only adds to gradients: for all micro-batches but the last."""
        return nullcontext()

    def collect_gradients(self) -> None:
        """Move the gradients of the parameters to their shares."""
        self.masters.collect_gradients()

    def clip(self, max_norm: float | None) -> Tensor:
        """Scale the gradients of the shares down to a norm over all of them, and return what it was."""
        gradients = [share.weight.grad for share in self.shares.values() if share.weight.grad is not None]
        norm = self.total_norm(_norm(gradients).to(self.accelerator.device))
        if max_norm is not None:
            weights = [share.weight for share in self.shares.values()]
            torch.nn.utils.clip_grads_with_norm_(weights, max_norm, norm)
        return norm

    def total_norm(self, norm: Tensor) -> Tensor:
        """Return the norm of all gradients, given that of this process's shares."""
        return norm

    def spread_weights(self) -> None:
        """Bring what the optimizer changed to where the next forward reads it."""
        self.masters.copy_back()

    def forget_gradients(self) -> None:
        """Drop all gradients."""
        for share in self.shares.values():
            share.parameter.grad = share.weight.grad = None

    def pieces(self, weights: Mapping[str, Tensor]) -> dict[str, Piece]:
        """Return what only this process has of a policy's weights, by their names: nothing, where none is sharded."""
        return {}


def _norm(gradients: list[Tensor]) -> Tensor:
    """Return the 2-norm of all entries in float32, whatever they are stored in."""
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2.0, torch.float32)))


Mode = Callable[[TrainConfig, Accelerator], Parallelism]


def rows_of(length: int, parts: int, number: int) -> range:
    """Return the part `number` of `length` things that are dealt out in order, equally but for the last parts."""
    size = -(-length // parts)
    return range(min(number * size, length), min((number + 1) * size, length))


def batches_of(tensors: Mapping[str, Tensor], limit: int) -> Iterator[list[str]]:
    """Return the names of tensors in lists of about `limit` bytes each, of one dtype."""
    found: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if found and (size >= limit or tensors[found[0]].dtype != tensor.dtype):
            yield found
            found, size = [], 0
        found.append(name)
        size += tensor.numel() * tensor.element_size()
    if found:
        yield found

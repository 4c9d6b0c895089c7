"""`parallel=zero1`: every process has all weights, and an equal share of the optimizer's state and float32 masters.

Source: ZeRO, arXiv:1910.02054, stage 1. Every parameter is cut into as many ranges as there are processes, so that all
hold the same number of values, whatever the sizes of the parameters are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robovlms.policy.policy import VLAPolicy
from robovlms.registry import PARALLEL
from robovlms.training.checkpoints.pieces import Piece
from robovlms.training.parallel.base import Share, batches_of, rows_of
from robovlms.training.parallel.replicated import Replicated

BUCKET_BYTES = 64 << 20  # of weights that travel together after a step


@PARALLEL.register("zero1")
class ZeRO1(Replicated):
    """Each process changes its ranges of the weights and receives the others'."""

    is_sharded = True

    def prepare(self, policy: VLAPolicy, resume_from: Path | None) -> nn.Module:
        """Cut what the optimizer changes into ranges."""
        model = super().prepare(policy, resume_from)
        self._whole = {name: share.parameter for name, share in self.shares.items()}
        cut = {name: self._cut(share) for name, share in self.shares.items()}
        self.shares = {name: share for name, share in cut.items() if share.weight.numel()}
        self.masters.drop()
        return model

    def _cut(self, share: Share) -> Share:
        rows = rows_of(share.parameter.numel(), self.world_size, self.rank)
        values = share.weight.detach().flatten()[rows.start : rows.stop]
        is_master = share.weight is not share.parameter
        weight = nn.Parameter(values.clone() if is_master else values)
        return Share(parameter=share.parameter, weight=weight, start=rows.start)

    def collect_gradients(self) -> None:
        """Look at this process's ranges of the averaged gradients."""
        for share in self.shares.values():
            gradient = share.parameter.grad
            if gradient is not None:
                values = gradient.flatten()[share.start : share.start + share.weight.numel()]
                share.weight.grad = values.to(share.weight.dtype)

    def total_norm(self, norm: Tensor) -> Tensor:
        """Add up the squares of all processes."""
        square = norm.square()
        dist.all_reduce(square)
        return square.sqrt()

    @torch.no_grad()
    def spread_weights(self) -> None:
        """Send each process's ranges to all others, rounded to what the policy computes with."""
        for names in batches_of(self._whole, BUCKET_BYTES):
            self._spread([(self._whole[name], self.shares.get(name)) for name in names])

    def _spread(self, ranges: list[tuple[nn.Parameter, Share | None]]) -> None:
        sizes = [len(rows_of(whole.numel(), self.world_size, 0)) for whole, _ in ranges]
        first = ranges[0][0]
        mine = first.new_zeros(sum(sizes))
        for part, (_, share) in zip(torch.split(mine, sizes), ranges, strict=True):
            if share is not None:
                part[: share.weight.numel()].copy_(share.weight)
        everyone = first.new_empty(self.world_size, sum(sizes))
        dist.all_gather(list(everyone), mine)
        for part, (whole, _) in zip(torch.split(everyone, sizes, dim=1), ranges, strict=True):
            whole.copy_(part.flatten()[: whole.numel()].view_as(whole))

    def forget_gradients(self) -> None:
        """Drop all gradients, those of parameters that have no range here too."""
        super().forget_gradients()
        for parameter in self._whole.values():
            parameter.grad = None

    def pieces(self, weights: Mapping[str, Tensor]) -> dict[str, Piece]:
        """Return the ranges of the float32 masters; weights without one are whole in every process."""
        return {
            name: share.piece(share.weight)
            for name, share in self.shares.items()
            if share.weight.dtype != share.parameter.dtype
        }

"""AdamW between stored forms that are smaller than float32: of its moments (`moments.py`), of the weights, or of both.

The update itself is float32, a part of a weight at a time. By hand: torchao's 8-bit AdamW leaves no step out
(`found_inf`) and compiles itself, and its import prints and takes three seconds; what is needed of it is the map of the
256 values, and stochastic rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robovlms.config.choices import Moments
from robovlms.config.training import Rounding
from robovlms.training.optimizer.moments import (
    BLOCK,
    FIRST,
    SECOND,
    STEP,
    load_moments,
    new_moments,
    round_randomly,
    store_moments,
)

PART = 1 << 24  # entries that are float32 at a time, so that the largest matrix costs no more than others
PART_BYTES = 12 * 4 * PART  # of what an update makes of a part
WEIGHT, COMPENSATION = "weight", "compensation"


class LowPrecisionAdamW(torch.optim.Optimizer):
    """AdamW as torch computes it, between weights and moments that are stored small.

    `found_inf`, a tensor on the device, leaves a step out as torch's fused AdamW does. Random numbers are a function of
    (seed, `number` of the group, which is the step of the run, place of the parameter), so that a resumed run rounds as
    an uninterrupted one. bfloat16 weights take a step as `rounding` says; float32 ones take all of it.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        moments: Moments,
        rounding: Rounding,
        seed: int,
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "number": 0})
        self.moments, self.rounding, self.seed = moments, rounding, seed

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change every weight that has a gradient."""
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                place += 1
                if parameter.grad is not None:
                    self._update(parameter, group, place)

    def _update(self, weight: Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[weight]
        if not state:
            state.update(new_moments(weight, self.moments))
            state[STEP] = torch.zeros((), device=weight.device)
        if self.rounding is Rounding.kahan and weight.dtype is torch.bfloat16 and COMPENSATION not in state:
            state[COMPENSATION] = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
        assert weight.grad is not None
        state[STEP] = state[STEP] + (1 if self.found_inf is None else 1 - self.found_inf.reshape(()))
        noise = torch.Generator(weight.device).manual_seed(_mixed(self.seed, group["number"], place))
        values, gradient = weight.reshape(-1), weight.grad.reshape(-1)
        stored = {WEIGHT: values} | {key: value.view(-1) for key, value in state.items() if key != STEP}
        for start in range(0, weight.numel(), PART):
            part = {key: _part(value, start, key.endswith("_scale")) for key, value in stored.items()}
            self._update_part(part, gradient[start : start + PART].float(), group, state[STEP], noise)
        if not weight.is_contiguous():
            weight.copy_(values.view(weight.shape))

    def _update_part(
        self, part: dict[str, Tensor], gradient: Tensor, group: dict[str, Any], step: Tensor, noise: torch.Generator
    ) -> None:
        beta1, beta2 = group["betas"]
        old, weight = load_moments(part, gradient.shape), part[WEIGHT].float()
        if COMPENSATION in part:
            weight = weight + part[COMPENSATION].float()
        first = old[FIRST].lerp(gradient, 1 - beta1)
        second = old[SECOND].mul(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = (second.sqrt() / (1 - beta2**step).sqrt()).add_(group["eps"])
        new = weight * (1 - group["lr"] * group["weight_decay"]) - group["lr"] / (1 - beta1**step) * first / size
        stored = store_moments({FIRST: first, SECOND: second}, self.moments, noise)
        stored |= self._rounded(new, part[WEIGHT].dtype, noise)
        for key, value in stored.items():
            taken = value if self.found_inf is None else torch.where(self.found_inf > 0, part[key], value)
            part[key].copy_(taken)

    def _rounded(self, new: Tensor, dtype: torch.dtype, noise: torch.Generator) -> dict[str, Tensor]:
        """Return a weight as it is stored, and what rounding left over where that is kept."""
        if dtype is not torch.bfloat16:
            return {WEIGHT: new}
        if self.rounding is Rounding.stochastic:
            return {WEIGHT: round_randomly(new, noise)}
        rounded = new.bfloat16()
        if self.rounding is Rounding.kahan:
            return {WEIGHT: rounded, COMPENSATION: (new - rounded.float()).bfloat16()}
        return {WEIGHT: rounded}


def _part(values: Tensor, start: int, is_of_blocks: bool) -> Tensor:
    """Return what belongs to the `PART` entries from `start` on; scales are one for every block."""
    if is_of_blocks:
        return values[start // BLOCK : (start + PART) // BLOCK]
    return values[start : start + PART]


def _mixed(*numbers: int) -> int:
    """Return one seed of several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return math.trunc(mixed)

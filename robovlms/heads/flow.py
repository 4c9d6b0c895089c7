"""Flow matching: the arm's chunk is carried from noise to action along a learned velocity.

Source: rectified flow, Liu et al., arXiv:2209.03003; conditional flow matching for robot policies, pi0,
arXiv:2410.24164, whose time runs from 0 (noise) to 1 (action).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robovlms.config.choices import FlowSolver
from robovlms.heads.base import HeadSizes, Prefix
from robovlms.heads.denoising import DenoisingHead, inpaint
from robovlms.heads.schemas.flow import FlowHeadConfig
from robovlms.registry import HEADS

MAX_TIME = 0.999  # of the times that are trained


@HEADS.register("flow")
class FlowHead(DenoisingHead):
    """Learns the velocity from noise to action, and integrates it."""

    def __init__(self, config: FlowHeadConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        self.num_steps, self.solver = config.num_steps, config.solver

    def denoising_error(
        self,
        features: Float[Tensor, "b w q d"],
        arm: Float[Tensor, "b w k e"],
        mask: Bool[Tensor, "b w k"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, "b w k e"]:
        """Compare velocities at a time drawn as in pi0, more often near the noise."""
        noise = torch.randn(arm.shape, generator=generator, device=arm.device)
        uniform = torch.rand(arm.shape[:2], generator=generator, device=arm.device)
        time = MAX_TIME * (1 - uniform ** (1 / 1.5))  # 1 - Beta(1.5, 1), by its inverse distribution function
        noisy = torch.lerp(noise, arm, time[..., None, None])
        return (self.estimate(features, noisy, time, mask).float() - (arm - noise)).square()

    def sample(
        self, estimate: Callable[[Tensor, float], Tensor], start: Float[Tensor, "b 1 k e"], prefix: Prefix
    ) -> Float[Tensor, "b 1 k e"]:
        """Integrate `num_steps` steps."""

        def keep(x: Float[Tensor, "b 1 k e"], time: float) -> Float[Tensor, "b 1 k e"]:
            return inpaint(x, prefix, torch.lerp(start, prefix.arm[:, None], time))

        return integrate(estimate, start, self.num_steps, self.solver, keep)


def integrate(
    velocity: Callable[[Tensor, float], Tensor],
    start: Float[Tensor, "*n"],
    num_steps: int,
    solver: FlowSolver,
    keep: Callable[[Tensor, float], Tensor] = lambda x, time: x,
) -> Float[Tensor, "*n"]:
    """Follow `velocity(x, time)` from time 0 to 1 in equal steps, each from `keep(x, time)`.

    Heun asks twice a step; its last step is Euler's, since at time 1 no velocity was trained.
    """
    x, step = start, 1 / num_steps
    for i in range(num_steps):
        x = keep(x, i * step)
        slope = velocity(x, i * step)
        if solver is FlowSolver.heun and i < num_steps - 1:
            slope = (slope + velocity(x + step * slope, (i + 1) * step)) / 2
        x = x + step * slope
    return x

"""Flow matching: the arm's chunk is carried from noise to action along a learned velocity.

Source: rectified flow, Liu et al., arXiv:2209.03003; conditional flow matching for robot policies, pi0,
arXiv:2410.24164, whose time runs from 0 (noise) to 1 (action).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from robovlms.config.choices import FlowSolver
from robovlms.heads.base import HeadSizes, Prefix, Targets
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
        targets: Targets,
        noise: Float[Tensor, "b w k e"],
        uniform: Float[Tensor, "b w"],
    ) -> Float[Tensor, "b w k e"]:
        """Compare velocities."""
        arm, time = self.split.continuous(targets.actions).float(), training_time(uniform)
        noisy = torch.lerp(noise, arm, time[..., None, None])
        velocity = self.estimate(features, noisy, time, targets.mask, targets.action_dims)
        return (velocity.float() - (arm - noise)).square()

    def sample(
        self, estimate: Callable[[Tensor, float], Tensor], start: Float[Tensor, "b 1 k e"], prefix: Prefix
    ) -> Float[Tensor, "b 1 k e"]:
        """Integrate `num_steps` steps."""

        def keep(x: Float[Tensor, "b 1 k e"], time: float) -> Float[Tensor, "b 1 k e"]:
            return inpaint(x, prefix, torch.lerp(start, prefix.actions[:, None], time))

        return integrate(estimate, start, self.num_steps, self.solver, keep)


def training_time(uniform: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return times from 0 (noise) to MAX_TIME (action), more of them near the noise: their mean is 0.4 * MAX_TIME.

    pi0 draws MAX_TIME * (1 - u) with u from Beta(1.5, 1), whose inverse distribution function is p ** (1 / 1.5).
    Source: arXiv:2410.24164, appendix B.
    """
    return MAX_TIME * (1 - uniform ** (1 / 1.5))


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

"""Diffusion over the chunk (DDPM, arXiv:2006.11239; DDIM, arXiv:2010.02502), as Diffusion Policy, arXiv:2303.04137."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robovlms.errors import UserError
from robovlms.heads.base import HeadSizes, Prefix
from robovlms.heads.denoising import VALIDATION_SEED, DenoisingHead, inpaint
from robovlms.heads.schemas.diffusion import DiffusionHeadConfig
from robovlms.registry import HEADS


@HEADS.register("diffusion")
class DiffusionHead(DenoisingHead):
    """Learns the noise in a chunk, and takes it out step by step.

    `eta` is the share of noise drawn anew on the way: 0 is DDIM, 1 with `num_steps = num_train_steps` DDPM. It is drawn
    from a fixed seed, so the same observations give the same actions.
    """

    def __init__(self, config: DiffusionHeadConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        try:
            import diffusers  # takes seconds, so only who uses it waits
        except ImportError as error:
            raise ImportError('head=diffusion needs diffusers: pip install -e ".[diffusion]".') from error
        if not 1 <= config.num_steps <= config.num_train_steps:
            raise UserError(
                f"head.num_steps={config.num_steps} must lie in 1..{config.num_train_steps}, head.num_train_steps."
            )
        self.num_steps, self.eta = config.num_steps, config.eta
        scheduler: Any = diffusers.DDIMScheduler
        self.scheduler = scheduler(
            num_train_timesteps=config.num_train_steps,
            beta_schedule="squaredcos_cap_v2",
            clip_sample=True,  # actions lie in [-1, 1]
            prediction_type="epsilon",
        )

    def denoising_error(
        self,
        features: Float[Tensor, "b w q d"],
        arm: Float[Tensor, "b w k e"],
        mask: Bool[Tensor, "b w k"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, "b w k e"]:
        """Compare the noise at a random step."""
        b, w = arm.shape[:2]
        count = self.scheduler.config.num_train_timesteps
        noise = torch.randn(arm.shape, generator=generator, device=arm.device)
        step = torch.randint(count, (b, w), generator=generator, device=arm.device)
        noisy = self.scheduler.add_noise(arm.flatten(0, 1), noise.flatten(0, 1), step.flatten()).view_as(arm)
        return (self.estimate(features, noisy, step / count, mask).float() - noise).square()

    def sample(
        self, estimate: Callable[[Tensor, float], Tensor], start: Float[Tensor, "b 1 k e"], prefix: Prefix
    ) -> Float[Tensor, "b 1 k e"]:
        """Take `num_steps` steps back."""
        count = self.scheduler.config.num_train_timesteps
        generator = torch.Generator(start.device).manual_seed(VALIDATION_SEED)
        self.scheduler.set_timesteps(self.num_steps)
        x = start
        for step in self.scheduler.timesteps.tolist():
            fresh = torch.randn(x.shape[1:], generator=generator, device=x.device).expand_as(x) if self.eta else None
            x = inpaint(x, prefix, self.scheduler.add_noise(prefix.arm[:, None], start, torch.tensor([step])))
            noise = estimate(x, step / count)
            x = self.scheduler.step(noise, step, x, eta=self.eta, variance_noise=fresh).prev_sample
        return x

"""Diffusion over the chunk (DDPM, arXiv:2006.11239; DDIM, arXiv:2010.02502), as Diffusion Policy, arXiv:2303.04137."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from robovlms.heads.base import HeadSizes, Prefix, Targets
from robovlms.heads.denoising import DenoisingHead, inpaint
from robovlms.heads.noise import normal
from robovlms.heads.schemas.diffusion import DiffusionHeadConfig
from robovlms.registry import HEADS

MAX_BETA = 0.999
OFFSET = 0.008  # of the cosine schedule


@HEADS.register("diffusion")
class DiffusionHead(DenoisingHead):
    """Learns the noise in a chunk, and takes it out step by step.

    `eta` is the share of noise drawn anew on the way: 0 is DDIM; 1 with `num_steps = num_train_steps` is DDPM, with the
    smaller of its two variances, as long as no estimate of the chunk leaves [-1, 1]: where one is clipped, DDIM keeps
    the estimate of the noise as it was, and DDPM does not. The noise drawn is the same in every chunk, so the same
    observations give the same actions.
    """

    alphas: Tensor
    fresh: Tensor

    def __init__(self, config: DiffusionHeadConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        self.eta, count = config.eta, config.num_train_steps
        # evenly spaced from the last training step: at an earlier one a chunk still shows its mean, which noise lacks
        self.steps = [round(count * (1 - i / config.num_steps)) - 1 for i in range(config.num_steps + 1)]
        self.register_buffer("alphas", signal_shares(count), persistent=False)
        fresh = normal(torch.tensor(self.steps[:-1]), tuple(self.noise.shape))
        self.register_buffer("fresh", fresh, persistent=False)

    def denoising_error(
        self,
        features: Float[Tensor, "b w q d"],
        targets: Targets,
        noise: Float[Tensor, "b w k e"],
        uniform: Float[Tensor, "b w"],
    ) -> Float[Tensor, "b w k e"]:
        """Compare the noise at a step."""
        step = (uniform * len(self.alphas)).long()
        noisy = add_noise(self.split.continuous(targets.actions).float(), noise, self.alphas[step[..., None, None]])
        time = step / len(self.alphas)
        estimate = self.estimate(features, noisy, time, targets.mask, targets.action_dims, source=targets.source)
        return (estimate.float() - noise).square()

    def sample(
        self, estimate: Callable[[Tensor, float], Tensor], start: Float[Tensor, "b 1 k e"], prefix: Prefix
    ) -> Float[Tensor, "b 1 k e"]:
        """Take `num_steps` steps from the noisiest training step to the chunk."""
        x, count = start, len(self.alphas)
        for (step, following), fresh in zip(pairwise(self.steps), self.fresh, strict=True):
            alpha, before = self.alpha(step), self.alpha(following)
            x = inpaint(x, prefix, add_noise(prefix.actions[:, None], start, alpha))
            noise = estimate(x, step / count)
            clean = ((x - (1 - alpha).sqrt() * noise) / alpha.sqrt()).clamp(-1, 1)
            sigma = self.fresh_share(step, following)
            x = before.sqrt() * clean + (1 - before - sigma**2).clamp(min=0).sqrt() * noise
            if self.eta:
                x = x + sigma * fresh
        return x

    def alpha(self, step: int) -> Float[Tensor, ""]:
        """Return the share of the chunk in the variance at a training step; step -1 is the chunk itself."""
        return self.alphas[step] if step >= 0 else self.alphas.new_ones(())

    def fresh_share(self, step: int, following: int) -> Float[Tensor, ""]:
        """Return the standard deviation of the noise that is drawn anew between two steps: eta times DDPM's."""
        alpha, before = self.alpha(step), self.alpha(following)
        return self.eta * ((1 - before) / (1 - alpha) * (1 - alpha / before)).sqrt()


def add_noise(
    chunks: Float[Tensor, "#b n k e"], noise: Float[Tensor, "#b n k e"], alpha: Float[Tensor, "*#b"]
) -> Float[Tensor, "_b n k e"]:
    """Return chunks with so much noise that they are a share `alpha` of the variance."""
    return alpha.sqrt() * chunks + (1 - alpha).sqrt() * noise


def signal_shares(count: int) -> Float[Tensor, "n"]:
    """Return the cosine schedule: the product of 1 - beta up to every training step.

    Source: Nichol and Dhariwal, arXiv:2102.09672, as diffusers' `squaredcos_cap_v2`.
    """
    curve = [math.cos((i / count + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2 for i in range(count + 1)]
    betas = torch.tensor([min(1 - after / before, MAX_BETA) for before, after in pairwise(curve)], dtype=torch.float64)
    return (1 - betas).cumprod(0).float()

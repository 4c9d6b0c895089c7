"""Flow matching: the arm's chunk is carried from noise to action along a learned velocity.

Source: rectified flow, Liu et al., arXiv:2209.03003; conditional flow matching for robot policies, pi0,
arXiv:2410.24164, whose time runs from 0 (noise) to 1 (action).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robovlms.choices import ArmLoss, FlowSolver
from robovlms.config import FlowHeadConfig
from robovlms.heads.base import ActionDecoder, ActionHead, HeadSizes, Read, masked_mean, start_query
from robovlms.registry import HEADS
from robovlms.types import Losses

MAX_TIME = 0.999  # of the times that are trained
VALIDATION_SEED = 0


@HEADS.register("flow")
class FlowHead(ActionHead):
    """A small transformer over the k actions of a chunk, which attend to the features of the frames up to their own.

    The gripper is a decision: it has its own decoder and cross-entropy. The noise that a rollout starts from is drawn
    once and stored with the weights: the same observations give the same actions, in batch and in streaming.
    """

    noise: Tensor

    def __init__(self, config: FlowHeadConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        if config.loss is not ArmLoss.mse:
            raise ValueError(
                f"head=flow learns the mean velocity, for which only squared error is right: set head.loss=mse, not "
                f"{config.loss}."
            )
        if config.hidden_dim % (2 * config.num_heads):
            raise ValueError(
                f"head.hidden_dim={config.hidden_dim} must be a multiple of 2 * head.num_heads={2 * config.num_heads}."
            )
        if config.num_steps < 1:
            raise ValueError(f"head.num_steps={config.num_steps} must be at least 1.")
        self.config, self.num_queries, self.chunk_size = config, config.num_queries, sizes.chunk_size
        width, arm_dim = config.hidden_dim, sizes.action_dim - 1
        self.query = start_query(config, sizes)
        self.register_buffer("noise", torch.randn(sizes.chunk_size, arm_dim))
        self.read_features = nn.Linear(sizes.feature_dim, width)
        self.frame_position = nn.Parameter(torch.randn(sizes.window_size, width) * 0.02)
        self.read_actions = nn.Linear(arm_dim, width)
        self.action_position = nn.Parameter(torch.randn(sizes.chunk_size, width) * 0.02)
        self.read_time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, config.num_heads, 4 * width, config.dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.velocity_out = nn.Linear(width, arm_dim)
        self.gripper = ActionDecoder(sizes.feature_dim * config.num_queries, sizes.chunk_size)

    def queries(
        self,
        b: int,
        w: int,
        actions: Float[Tensor, "b w k a"] | None = None,
        mask: Bool[Tensor, "b w k"] | None = None,
    ) -> Float[Tensor, "b w q d"]:
        """Repeat the learned vector for every frame."""
        return repeat(self.query, "d -> b w q d", b=b, w=w, q=self.num_queries)

    def velocity(
        self,
        features: Float[Tensor, "b w q d"],
        noisy: Float[Tensor, "b n k e"],
        time: Float[Tensor, "b n"],
        mask: Bool[Tensor, "b n k"] | None = None,
    ) -> Float[Tensor, "b n k e"]:
        """Say where the noisy chunks of the newest n frames move, each at its time.

        A chunk attends to the features of its own frame and of the earlier ones; no action attends to a padded one.
        """
        b, n = time.shape
        w = features.shape[1]
        memory = self.read_features(features) + self.frame_position[:w, None]
        memory = repeat(memory, "b w q d -> (b n) (w q) d", n=n)
        later = torch.ones(w, w, dtype=torch.bool, device=time.device).triu(1)[-n:]
        later = repeat(later, "n w -> (b n) (w q)", b=b, q=self.num_queries)
        clock = self.read_time(time_features(time, self.config.hidden_dim))
        x = self.read_actions(noisy) + self.action_position + clock[:, :, None]
        x = rearrange(x, "b n k d -> (b n) k d")
        padded = None if mask is None else ~rearrange(mask, "b n k -> (b n) k")
        if padded is not None:
            padded[:, 0] = False  # a chunk of padding alone counts nowhere, but attention needs something to attend to
        for block in self.blocks:
            x = block(x, memory, tgt_key_padding_mask=padded, memory_key_padding_mask=later)
        return rearrange(self.velocity_out(self.norm(x)), "(b n) k e -> b n k e", b=b)

    def loss(
        self, features: Float[Tensor, "b w q d"], actions: Float[Tensor, "b w k a"], mask: Bool[Tensor, "b w k"]
    ) -> Losses:
        """Squared error of the velocity at one random time of every frame, and the gripper's cross-entropy.

        Times are drawn as in pi0, more often near the noise. Validation draws the same noise and times every time.
        """
        arm = actions[..., :-1].float()
        generator = None if self.training else torch.Generator(arm.device).manual_seed(VALIDATION_SEED)
        noise = torch.randn(arm.shape, generator=generator, device=arm.device)
        uniform = torch.rand(arm.shape[:2], generator=generator, device=arm.device)
        time = MAX_TIME * (1 - uniform ** (1 / 1.5))  # 1 - Beta(1.5, 1), by its inverse distribution function
        noisy = torch.lerp(noise, arm, time[..., None, None])
        error = (self.velocity(features, noisy, time, mask).float() - (arm - noise)).square().mean(-1)
        gripper = self.gripper(rearrange(features, "b w q d -> b w (q d)")).float()
        is_open = (actions[..., -1] > 0).float()
        arm_loss = masked_mean(error, mask)
        gripper_loss = masked_mean(F.binary_cross_entropy_with_logits(gripper, is_open, reduction="none"), mask)
        accuracy = masked_mean(((gripper > 0) == is_open.bool()).float(), mask)
        loss = arm_loss + self.config.gripper_weight * gripper_loss
        return {"loss": loss, "arm": arm_loss, "gripper": gripper_loss, "gripper_accuracy": accuracy.detach()}

    def act(self, read: Read, b: int, w: int) -> Float[Tensor, "b k a"]:
        """Read once, then integrate `num_steps` steps for the newest frame."""
        features = read(self.queries(b, w))
        start = repeat(self.noise, "k e -> b 1 k e", b=b)

        def velocity(noisy: Float[Tensor, "b 1 k e"], time: float) -> Float[Tensor, "b 1 k e"]:
            return self.velocity(features, noisy, noisy.new_full((b, 1), time)).float()

        arm = integrate(velocity, start, self.config.num_steps, self.config.solver)[:, 0].clamp(-1, 1)
        gripper = self.gripper(rearrange(features[:, -1], "b q d -> b (q d)"))
        return torch.cat([arm, torch.where(gripper > 0, 1.0, -1.0)[..., None]], dim=-1)


def integrate(
    velocity: Callable[[Tensor, float], Tensor], start: Float[Tensor, "*n"], num_steps: int, solver: FlowSolver
) -> Float[Tensor, "*n"]:
    """Follow `velocity(x, time)` from time 0 to 1 in equal steps.

    Heun asks twice a step; its last step is Euler's, since at time 1 no velocity was trained.
    """
    x, step = start, 1 / num_steps
    for i in range(num_steps):
        slope = velocity(x, i * step)
        if solver is FlowSolver.heun and i < num_steps - 1:
            slope = (slope + velocity(x + step * slope, (i + 1) * step)) / 2
        x = x + step * slope
    return x


def time_features(time: Float[Tensor, "b n"], dim: int) -> Float[Tensor, "b n d"]:
    """Give sines and cosines of periods from 0.004 to 4. Source: pi0 (openpi, posemb_sincos)."""
    periods = torch.logspace(0, 1, dim // 2, base=1000.0, device=time.device) * 0.004
    angles = 2 * torch.pi * time[..., None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1)

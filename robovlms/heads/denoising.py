"""What heads share that carry noise to a chunk: a small transformer over its actions, and the grippers' decision."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robovlms.heads.base import (
    ActionHead,
    HeadSizes,
    Prefix,
    Read,
    Targets,
    arm_and_gripper,
    newest,
    start_query,
)
from robovlms.heads.layers.decoders import ActionDecoder
from robovlms.heads.noise import normal, uniform
from robovlms.heads.schemas.denoising import DenoisingHeadConfig
from robovlms.types import Losses

NOISE, TIME = range(2)  # streams of a sample's random numbers


class DenoisingHead(ActionHead):
    """A transformer over the k actions of a chunk, which attend to the features of the frames up to their own.

    A gripper that is open or closed is a decision, with a decoder and cross-entropy of its own. The noise that a
    rollout starts from is drawn once and stored with the weights: the same observations give the same actions, in batch
    and in streaming.
    """

    supports_prefix = True
    noise: Tensor

    def __init__(self, config: DenoisingHeadConfig, sizes: HeadSizes) -> None:
        super().__init__(config, sizes)
        self.num_queries, self.chunk_size = config.num_queries, sizes.chunk_size
        self.config: DenoisingHeadConfig = config
        width, arm_dim = config.hidden_dim, self.split.num_continuous
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
        self.estimate_out = nn.Linear(width, arm_dim)
        self.gripper: nn.Module | None = None
        if self.split.num_binary:
            count = sizes.chunk_size * self.split.num_binary
            self.gripper = ActionDecoder(sizes.feature_dim * config.num_queries, count)
        for name in ("read_actions", "estimate_out", "gripper"):
            self.own.add(name, getattr(self, name))

    @abstractmethod
    def denoising_error(
        self,
        features: Float[Tensor, "b w q d"],
        targets: Targets,
        noise: Float[Tensor, "b w k e"],
        uniform: Float[Tensor, "b w"],
    ) -> Float[Tensor, "b w k e"]:
        """Return the squared error of the estimate for every frame's chunk, made noisy by `noise` at a time that is
        chosen by `uniform`, from (0, 1).
        """

    @abstractmethod
    def sample(
        self,
        estimate: Callable[[Tensor, float], Tensor],
        start: Float[Tensor, "b 1 k e"],
        prefix: Prefix,
    ) -> Float[Tensor, "b 1 k e"]:
        """Carry noise to the arm's chunk, where `estimate(noisy, time)` asks the transformer.

        Before every question, as much of the chunk as the plan weighs is replaced by the plan, as noisy as the rest.
        """

    def queries(self, b: int, w: int, targets: Targets | None = None) -> Float[Tensor, "b w q d"]:
        """Repeat the learned vector for every frame."""
        return repeat(self.query, "d -> b w q d", b=b, w=w, q=self.num_queries)

    def estimate(
        self,
        features: Float[Tensor, "b w q d"],
        noisy: Float[Tensor, "b n k e"],
        time: Float[Tensor, "b n"],
        mask: Bool[Tensor, "b n k"] | None = None,
        action_dims: Bool[Tensor, "b a"] | None = None,
        lengths: Int64[Tensor, "b"] | None = None,
        source: Int64[Tensor, "b"] | None = None,
    ) -> Float[Tensor, "b n k e"]:
        """Say of the noisy chunks of the newest n frames, each at its time in [0, 1], what the head learns to say.

        A chunk attends to the features of its own frame and of the earlier ones; no action attends to a padded one,
        and none sees the noise at an entry that the data does not record. With `lengths`, n = 1, and the newest frame
        of a row is the last of its own.
        """
        if action_dims is not None:
            noisy = noisy.masked_fill(~self.split.continuous(action_dims)[:, None, None], 0)
        b, n = time.shape
        w = features.shape[1]
        memory = self.read_features(features) + self.frame_position[:w, None]
        memory = repeat(memory, "b w q d -> (b n) (w q) d", n=n)
        places = torch.arange(w, device=time.device)
        ends = places[-n:].expand(b, n) if lengths is None else lengths[:, None] - 1
        later = repeat(places > ends[:, :, None], "b n w -> (b n) (w q)", q=self.num_queries)
        clock = self.read_time(time_features(time, self.action_position.shape[-1]))
        x = self.own("read_actions", self.read_actions(noisy), noisy, source)
        x = x + self.action_position + clock[:, :, None]
        x = rearrange(x, "b n k d -> (b n) k d")
        padded = None if mask is None else ~rearrange(mask, "b n k -> (b n) k")
        if padded is not None:
            # A chunk of padding alone counts nowhere, but attention needs something to attend to.
            padded[:, 0].fill_(False)
        for block in self.blocks:
            x = block(x, memory, tgt_key_padding_mask=padded, memory_key_padding_mask=later)
        x = rearrange(self.norm(x), "(b n) k d -> b n k d", b=b)
        return self.own("estimate_out", self.estimate_out(x), x, source)

    def loss(self, features: Float[Tensor, "b w q d"], targets: Targets) -> Losses:
        """Return the squared error of the estimate and the grippers' cross-entropy.

        Noise and time are a function of each sample's seed alone, not of the batch that it comes in.
        """
        assert targets.seeds is not None, "a head that draws noise needs the samples' seeds"
        w, k = targets.mask.shape[1:]
        noise = normal(targets.seeds, (w, k, self.split.num_continuous), NOISE)
        error = self.denoising_error(features, targets, noise, uniform(targets.seeds, (w,), TIME))
        return arm_and_gripper(self.config, self.split, error, self.decide(features, targets.source), targets)

    def decide(
        self, features: Float[Tensor, "*n q d"], source: Int64[Tensor, "b"] | None
    ) -> Float[Tensor, "*n k o"] | None:
        """Return the grippers' logits (positive: open) of every frame; None: there is none that is open or closed."""
        if self.gripper is None:
            return None
        features = features.flatten(-2)
        logits = self.own("gripper", self.gripper(features), features, source)
        return rearrange(logits, "... (k o) -> ... k o", k=self.chunk_size)

    def act(
        self,
        read: Read,
        b: int,
        w: int,
        prefix: Prefix | None = None,
        action_dims: Bool[Tensor, "b a"] | None = None,
        lengths: Int64[Tensor, "b"] | None = None,
        source: Int64[Tensor, "b"] | None = None,
    ) -> Float[Tensor, "b k a"]:
        """Read once, then carry the stored noise to the newest frame's chunk."""
        start = repeat(self.noise, "k e -> b 1 k e", b=b)
        return self.denoise(read(self.queries(b, w)), start, prefix, action_dims, lengths, source)

    def denoise(
        self,
        features: Float[Tensor, "b w q d"],
        start: Float[Tensor, "b 1 k e"],
        prefix: Prefix | None = None,
        action_dims: Bool[Tensor, "b a"] | None = None,
        lengths: Int64[Tensor, "b"] | None = None,
        source: Int64[Tensor, "b"] | None = None,
    ) -> Float[Tensor, "b k a"]:
        """Carry noise to the newest frame's chunk, as `act` says; a prefix is inpainted on the way.

        Source of the inpainting: replacement, as in RePaint (arXiv:2201.09865), with the weights of arXiv:2506.07339.
        """

        def estimate(noisy: Float[Tensor, "b 1 k e"], time: float) -> Float[Tensor, "b 1 k e"]:
            times = noisy.new_full((noisy.shape[0], 1), time)
            asked = {"action_dims": action_dims, "lengths": lengths, "source": source}
            return self.estimate(features, noisy, times, **asked).float()

        if prefix is None:
            prefix = Prefix(torch.zeros_like(start[:, 0]), start.new_zeros(start.shape[0], self.chunk_size))
        else:
            prefix = Prefix(self.split.continuous(prefix.actions), prefix.weight)
        arm = inpaint(self.sample(estimate, start, prefix), prefix, prefix.actions[:, None])[:, 0].clamp(-1, 1)
        return self.split.join(arm, self.decide(newest(features, lengths), source))


def inpaint(
    chunk: Float[Tensor, "b 1 k e"], prefix: Prefix, planned: Float[Tensor, "b 1 k e"]
) -> Float[Tensor, "b 1 k e"]:
    """Replace as much of a chunk as the plan weighs by what is planned, which must be as noisy as the chunk."""
    return torch.lerp(chunk, planned, prefix.weight[:, None, :, None])


def time_features(time: Float[Tensor, "b n"], dim: int) -> Float[Tensor, "b n d"]:
    """Return sines and cosines of periods from 0.004 to 4. Source: pi0 (openpi, posemb_sincos)."""
    periods = torch.logspace(0, 1, dim // 2, base=1000.0, device=time.device) * 0.004
    angles = 2 * torch.pi * time[..., None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1)

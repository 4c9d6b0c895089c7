"""A policy is a backbone, a head and a structure that says how history reaches them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from robovlms.backbones.base import Backbone
from robovlms.choices import Structure
from robovlms.config import TrainConfig
from robovlms.heads.base import ActionHead, HeadSizes
from robovlms.processor import Processor
from robovlms.registry import BACKBONES, HEADS
from robovlms.types import Batch, Losses


class ProprioEncoder(nn.Module):
    """Proprioception as part of a frame's queries, so that every backbone and every head can use it.

    Entries are normalised by the training set's mean and standard deviation, which are stored with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, proprio_dim: int, feature_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(proprio_dim))
        self.register_buffer("std", torch.ones(proprio_dim))
        self.embed = nn.Sequential(nn.Linear(proprio_dim, feature_dim), nn.GELU(), nn.Linear(feature_dim, feature_dim))

    def calibrate(self, rows: Float[Tensor, "r p"]) -> None:
        """Take mean and standard deviation from the training set; an entry that never moves keeps its scale."""
        std = rows.double().std(0, correction=0)
        self.mean.copy_(rows.double().mean(0))
        self.std.copy_(torch.where(std < 1e-6, 1, std))

    def forward(self, proprio: Float[Tensor, "b w p"]) -> Float[Tensor, "b w 1 d"]:
        return self.embed((proprio - self.mean) / self.std)[:, :, None]


class VLAPolicy(nn.Module):
    """Read frames and instruction, give a loss or actions. Holds no history: `remember` hands it to the caller."""

    def __init__(
        self,
        backbone: Backbone,
        head: ActionHead,
        structure: Structure,
        processor: Processor,
        proprio: ProprioEncoder | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.proprio = backbone, head, proprio
        self.structure, self.processor = structure, processor

    @classmethod
    def from_config(cls, config: TrainConfig) -> VLAPolicy:
        """Build the policy of a run; pre-trained weights are loaded unless the config says random or tiny."""
        backbone = BACKBONES.get(config.backbone.name).from_config(config.backbone)
        head = HEADS.get(config.head.name)(
            config.head,
            HeadSizes(
                feature_dim=backbone.hidden_dim,
                action_dim=len(config.data.contract.names),
                window_size=config.window.window_size,
                chunk_size=config.window.chunk_size,
                embedding_rms=backbone.embedding_rms(),
            ),
        )
        processor = Processor(
            backbone,
            config.view.views,
            max_text_tokens=config.backbone.max_text_tokens,
            resize=config.data.resize,
        )
        proprio_names = config.data.proprio_names
        proprio = ProprioEncoder(len(proprio_names), backbone.hidden_dim) if proprio_names else None
        return cls(backbone, head, config.structure.name, processor, proprio)

    def read(self, batch: Batch, queries: Float[Tensor, "b w q d"]) -> Float[Tensor, "b w q d"]:
        """Ask the backbone: every frame is a sequence of its own, beside the same instruction.

        `one_step` is the case w = 1 of `policy_head`; what differs is what the head may do with earlier frames.
        """
        w = queries.shape[1]
        if self.proprio is not None:
            assert batch.proprio is not None
            queries = queries + self.proprio(batch.proprio)
        images = rearrange(self.processor.images(batch), "b w v c h x -> (b w) 1 v c h x")
        text_ids, text_mask = (tensor.repeat_interleave(w, dim=0) for tensor in (batch.text_ids, batch.text_mask))
        features = self.backbone(images, text_ids, text_mask, rearrange(queries, "b w q d -> (b w) 1 q d"))
        return rearrange(features, "(b w) 1 q d -> b w q d", w=w)

    def forward(self, batch: Batch) -> Losses:
        """Give the loss terms of a batch with actions."""
        assert batch.actions is not None
        assert batch.action_mask is not None
        b, w = batch.actions.shape[:2]
        features = self.read(batch, self.head.queries(b, w, batch.actions))
        return self.head.loss(features.float(), batch.actions, batch.action_mask)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float[Tensor, "b k a"]:
        """Give the normalised chunk of each window's newest frame, from the whole window at once."""
        w = next(iter(batch.frames.values())).shape[1]
        return self.head.act(lambda queries: self.read(batch, queries).float(), len(batch), w)

    @torch.no_grad()
    def remember(self, step: Batch) -> Float[Tensor, "b 1 q d"]:
        """Encode the newest frame (w = 1): what rollout keeps of it."""
        return self.read(step, self.head.queries(len(step), 1)).float()

    @torch.no_grad()
    def act(self, memory: Sequence[Float[Tensor, "b 1 q d"]]) -> Float[Tensor, "b k a"]:
        """Give the normalised chunk for the newest of the remembered frames, oldest first, at most window_size of
        them.
        """
        features = torch.cat(list(memory), dim=1)
        return self.head.act(lambda queries: features, *features.shape[:2])

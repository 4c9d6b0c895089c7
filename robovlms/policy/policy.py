"""A policy is a backbone, a head and a structure, which says how history reaches them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robovlms.actions.plan import DataPlan
from robovlms.backbones.base import Backbone
from robovlms.backbones.layout import KVCache
from robovlms.config.choices import HeadKind, Structure
from robovlms.config.run import TrainConfig
from robovlms.errors import NotAllowedError, UserError
from robovlms.heads.base import ActionHead, HeadSizes, Prefix, Targets
from robovlms.images.processor import Processor
from robovlms.policy.manifest import HEADER, reading
from robovlms.registry import BACKBONES, HEADS
from robovlms.types import Batch, Conversations, Losses

TEXT_CHUNK = 512  # tokens whose logits exist at the same time: 0.5 GB of float32 for a vocabulary of 257 k


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
        """Take mean and standard deviation from the training set; an entry that never moves keeps its scale.

        NaN: what a source of a mixture does not record. It counts nowhere, and is read as the mean.
        """
        mean = rows.double().nanmean(0).nan_to_num(0)
        std = (rows.double() - mean).square().nanmean(0).nan_to_num(0).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std < 1e-6, 1, std))

    def forward(self, proprio: Float[Tensor, "b w p"]) -> Float[Tensor, "b w 1 d"]:
        return self.embed(((proprio - self.mean) / self.std).nan_to_num(0))[:, :, None]


class VLAPolicy(nn.Module):
    """Frames and instruction to losses or actions. Holds no history: `memory.py` does."""

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
    def from_config(cls, config: TrainConfig, plan: DataPlan, backbone: Backbone | None = None) -> VLAPolicy:
        """Build the policy of a run on a plan's data; pre-trained weights are loaded unless the config says random or
        tiny, or a `backbone` is given that is the config's.
        """
        backbone = backbone or BACKBONES.get(config.backbone.name).from_config(config.backbone)
        if config.structure.name is Structure.interleaved and not backbone.can_interleave:
            raise NotAllowedError(
                f"structure=interleaved with backbone={config.backbone.name} is not allowed: it has no sequence that "
                "images and actions of several frames stand in. Use structure=policy_head or one_step."
            )
        if config.cotrain is not None:
            if backbone.text_head is None:
                raise NotAllowedError(
                    f"cotrain needs a backbone that writes text, and backbone={config.backbone.name} does not: set "
                    "cotrain=null, or choose another backbone."
                )
            backbone.text_head.enable(config.backbone)
        if config.head.kind is HeadKind.tokens and not backbone.reads_queries:
            raise NotAllowedError(
                f"head={config.head.name} with backbone={config.backbone.name} is not allowed: it pools over the "
                "instruction and reads no token behind it. Choose head=lstm, gpt or mlp, or backbone=flamingo."
            )
        if config.head.kind is HeadKind.slots:
            backbone.enable_bidirectional_queries()
        head = HEADS.get(config.head.name)(
            config.head,
            HeadSizes(
                feature_dim=backbone.hidden_dim,
                action_dim=len(plan.action_names),
                binary=tuple(plan.binary),
                window_size=config.window.window_size,
                chunk_size=config.window.chunk_size,
                embedding_rms=backbone.embedding_rms(),
                vocabulary=backbone.last_words,
            ),
        )
        processor = Processor(
            backbone,
            config.view.views,
            max_text_tokens=config.backbone.max_text_tokens,
            resize=config.data.resize,
            fit=config.data.fit,
        )
        num_proprio = len(plan.proprio_names)
        proprio = ProprioEncoder(num_proprio, backbone.hidden_dim) if num_proprio else None
        return cls(backbone, head, config.structure.name, processor, proprio)

    def read(self, batch: Batch, queries: Float[Tensor, "b w q d"]) -> Float[Tensor, "b w q d"]:
        """Encode a batch's images and ask about them."""
        return self.ask(self.encode(batch), batch, queries)

    def encode(self, batch: Batch) -> Float[Tensor, "b w v m e"]:
        """Return the tokens of every image."""
        with self.backbone.arithmetic():
            return self.backbone.encode(self.processor.images(batch))

    def ask(
        self,
        image: Float[Tensor, "b w v m e"],
        batch: Batch,
        queries: Float[Tensor, "b w q d"],
        kv_cache: KVCache | None = None,
    ) -> Float[Tensor, "b w q d"]:
        """Ask about frames whose images are encoded; of `batch`, instruction and proprioception are read."""
        question = self.question(batch, queries)
        masks = (self.view_mask(batch, queries), self.frame_mask(batch))
        with self.backbone.arithmetic():
            features = self.backbone.read(self.fold(image), *question, kv_cache, *masks)
        return features.reshape(queries.shape).float()

    def fold(self, frames: Float[Tensor, "b w *rest"]) -> Float[Tensor, "n t *rest"]:
        """Make a window one sequence (interleaved), or every frame of it one, beside the same instruction.

        `one_step` is the case w = 1 of `policy_head`; what differs is what the head may do with earlier frames.
        """
        return frames if self.structure is Structure.interleaved else frames.flatten(0, 1)[:, None]

    def question(self, batch: Batch, queries: Float[Tensor, "b w q d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return instruction, its mask and the queries, proprioception added, of every sequence."""
        if self.proprio is not None:
            assert batch.proprio is not None
            queries = queries + self.proprio(batch.proprio)
        copies = 1 if self.structure is Structure.interleaved else queries.shape[1]
        text_ids, text_mask = (tensor.repeat_interleave(copies, dim=0) for tensor in (batch.text_ids, batch.text_mask))
        return text_ids, text_mask, self.fold(queries)

    def view_mask(self, batch: Batch, queries: Float[Tensor, "b w q d"]) -> Bool[Tensor, "n v"] | None:
        """Return which views every sequence has; None: all."""
        if batch.view_mask is None:
            return None
        return batch.view_mask.repeat_interleave(
            1 if self.structure is Structure.interleaved else queries.shape[1], dim=0
        )

    def frame_mask(self, batch: Batch) -> Bool[Tensor, "n t"] | None:
        """Return which frames every sequence has; None: all, or each is a sequence of its own."""
        return batch.frame_mask if self.structure is Structure.interleaved else None

    def forward(self, batch: Batch, conversations: Conversations | None = None) -> Losses:
        """Return the loss terms of a batch with actions, and those of conversations (`converse`) beside them."""
        losses = self._losses(self.encode(batch), batch)
        return losses if conversations is None else {**losses, **self.converse(conversations)}

    def _losses(self, image: Float[Tensor, "b w v m e"], batch: Batch) -> Losses:
        targets = Targets.of(batch)
        b, w = targets.mask.shape[:2]
        return self.head.loss(self.ask(image, batch, self.head.queries(b, w, targets)), targets)

    def converse(self, conversations: Conversations) -> Losses:
        """Return the cross-entropy of the answers' tokens and how many are predicted first, means over these tokens."""
        text_head = self.backbone.text_head
        assert text_head is not None
        images = rearrange(self.processor.normalize(conversations.images.movedim(-1, 1)), "b c h x -> b 1 1 c h x")
        text = (conversations.text_ids, conversations.text_mask, conversations.reply_ids)
        with self.backbone.arithmetic():
            features = text_head.lm_hidden(self.backbone.encode(images), *text, conversations.view_mask)
            wanted = conversations.reply_ids.flatten()[conversations.supervised]
            return text_losses(text_head.lm_logits, features.flatten(0, 1)[conversations.supervised], wanted)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Float[Tensor, "b k a"]:
        """Return the normalised chunk of each window's newest frame, from the whole window at once."""
        return self._act(self.encode(batch), batch)

    @torch.no_grad()
    def assess(self, batch: Batch) -> tuple[Losses, Float[Tensor, "b k a"]]:
        """Return the loss terms of a batch and what `predict` returns, from one encoding of its images."""
        image = self.encode(batch)
        chunk = self._act(image, batch)
        return self._losses(image, batch), chunk

    def _act(self, image: Float[Tensor, "b w v m e"], batch: Batch) -> Float[Tensor, "b k a"]:
        return FeatureReader(self, image, batch).act()


def text_losses(
    lm_logits: Callable[[Tensor], Tensor], features: Float[Tensor, "y d"], wanted: Int64[Tensor, "y"]
) -> Losses:
    """Return the mean cross-entropy of tokens and how many are predicted first.

    Logits over the vocabulary are made for a few tokens at a time, and once more in the backward pass: of all tokens
    together they would be the largest tensors of a step.
    """

    def losses(some: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = lm_logits(some)
        return F.cross_entropy(logits, targets, reduction="sum"), (logits.detach().argmax(-1) == targets).sum()

    pieces = zip(torch.split(features, TEXT_CHUNK), torch.split(wanted, TEXT_CHUNK), strict=True)
    found = [checkpoint(losses, some, targets, use_reentrant=False) for some, targets in pieces]
    entropy, right = (torch.stack(each).sum() / len(wanted) for each in zip(*found, strict=True))
    return {"text_loss": entropy, "text_accuracy": right}


class FeatureReader:
    """Answers a head's questions about frames whose images are encoded."""

    def __init__(self, policy: VLAPolicy, image: Float[Tensor, "b w v m e"], batch: Batch) -> None:
        self.policy, self.image, self.batch = policy, image, batch
        self.kv_cache = policy.backbone.new_cache() if policy.head.reads_again else None
        self.asked: Tensor | None = None

    def act(self, prefix: Prefix | None = None) -> Float[Tensor, "b k a"]:
        """Return the normalised chunk of every row's newest frame."""
        b, w, mask = *self.image.shape[:2], self.batch.frame_mask
        lengths = None if mask is None else mask.sum(1)
        return self.policy.head.act(self, b, w, prefix, self.batch.action_dims, lengths)

    def __call__(self, queries: Float[Tensor, "b w q d"], behind: bool = False) -> Float[Tensor, "b w q d"]:
        """Return the features at the queries. A decoder without a cache reads everything again."""
        if not behind:
            self.asked = queries
            return self.policy.ask(self.image, self.batch, queries, self.kv_cache)
        if self.kv_cache is None:
            assert self.asked is not None
            self.asked = torch.cat([self.asked, queries], dim=2)
            return self.policy.ask(self.image, self.batch, self.asked)[:, :, -queries.shape[2] :]
        ids, mask = self.batch.text_ids[:, :0], self.batch.text_mask[:, :0]
        none = replace(self.batch, text_ids=ids, text_mask=mask, view_mask=None)
        return self.policy.ask(self.image[..., :0, :], none, queries, self.kv_cache)


def named_tensors(policy: VLAPolicy) -> dict[str, Tensor]:
    """Return the weights and buffers that a checkpoint keeps, tied ones once."""
    first = first_names(policy)
    return {name: value for name, value in policy.state_dict().items() if first.get(name, name) == name}


def first_names(model: nn.Module) -> dict[str, str]:
    """Return, for every name of a parameter or buffer, the one that it is saved under: of tied ones the first."""
    names: dict[int, list[str]] = {}
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            names.setdefault(id(tensor), []).append(name)
    return {name: min(group) for group in names.values() for name in group}


def save_weights(path: Path, policy: VLAPolicy, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors`, which are those of `named_tensors`, wherever they lie, as a policy's weights."""
    tied = {name: first for name, first in first_names(policy).items() if name != first}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=tied | HEADER)


def load_average(policy: VLAPolicy, path: Path) -> None:
    """Put the moving average of what was trained, a file of a checkpoint, in its place.

    Raises:
        DamagedCheckpointError: the file cannot be read.
        UserError: there is none, or it is of another policy.
    """
    if not path.is_file():
        raise UserError(
            f"engine.weights=ema: {path.parent} has no {path.name}, since it was trained without ema=default. Use "
            "engine.weights=trained."
        )
    with reading(path.parent, path.name):
        average = load_file(path)
    known = policy.state_dict()
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    wrong = [key for key, value in average.items() if key in known and known[key].shape != value.shape]
    if wrong := sorted({*wrong, *(trained ^ average.keys())}):
        raise UserError(f"{path} does not fit this policy, e.g. {wrong[0]}: use engine.weights=trained.")
    policy.load_state_dict(average, strict=False)  # what is frozen has none

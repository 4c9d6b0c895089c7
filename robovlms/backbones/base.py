"""The backbone contract: images, text and queries in; hidden states at the queries out.

A backbone never hears the word history. It reads n independent sequences of t frames each; the policy decides whether a
window becomes n = b * w sequences of one frame (policy head) or n = b sequences of t = w frames.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robovlms.backbones.layout import KVCache
from robovlms.config.choices import WeightType
from robovlms.config.policy import BackboneConfig
from robovlms.errors import NotAllowedError, UserError
from robovlms.types import ImageSpec

logger = logging.getLogger(__name__)


class Backbone(nn.Module, ABC):
    """A vision-language model seen as: (images, text, queries) -> hidden states at the queries."""

    hidden_dim: int
    image_spec: ImageSpec
    can_interleave: bool = True  # whether images of several frames can stand in one sequence
    prompt: str  # template with {instruction}; None of the special tokens, which `tokenize` adds

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> Backbone:
        """Build the model that a config names: real checkpoint, random weights, or tiny."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Backbone:
        """Build the real architecture with a few hundred thousand random weights, in milliseconds, offline."""

    @abstractmethod
    def tokenize(self, prompts: list[str]) -> list[list[int]]:
        """Turn prompts into token ids, special tokens included, nothing padded. Runs on the host."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "n t v c h x"]) -> Float[Tensor, "n t v m e"]:
        """Return the tokens of every image: all that `read` needs of it."""

    @abstractmethod
    def read(
        self,
        image: Float[Tensor, "n t v m e"],
        text_ids: Int64[Tensor, "n l"],
        text_mask: Bool[Tensor, "n l"],
        queries: Float[Tensor, "n t q d"],
        kv_cache: KVCache | None = None,
        view_mask: Bool[Tensor, "n v"] | None = None,
    ) -> Float[Tensor, "n t q d"]:
        """Return the hidden states at the queries of every frame.

        Text is right-padded. Later frames and padding never change a feature.

        Args:
            image: tokens of every image, by `encode`.
            text_ids: the instruction's tokens, which stand in every frame.
            text_mask: False where they are padding.
            queries: what is asked at the end of every frame.
            kv_cache: of earlier frames; these are read behind it, and put into it.
            view_mask: False where a sequence lacks a view; its tokens are left out as padding is.

        Raises:
            NotAllowedError: `view_mask` is given, and this decoder cannot leave images out.
        """

    def forward(
        self,
        images: Float[Tensor, "n t v c h x"],
        text_ids: Int64[Tensor, "n l"],
        text_mask: Bool[Tensor, "n l"],
        queries: Float[Tensor, "n t q d"],
        view_mask: Bool[Tensor, "n v"] | None = None,
    ) -> Float[Tensor, "n t q d"]:
        """Encode and read."""
        return self.read(self.encode(images), text_ids, text_mask, queries, view_mask=view_mask)

    def enable_lm_head(self, config: BackboneConfig) -> None:
        """Get ready to predict words, for co-training on conversations; the four methods below need it.

        Raises:
            NotAllowedError: this backbone cannot write text.
            UserError: the checkpoint lacks the vocabulary head that its family has.
        """
        raise NotAllowedError(
            f"cotrain needs a backbone that writes text, and backbone={config.name} does not: set cotrain=null, or "
            "choose another backbone."
        )

    def question_ids(self, text: str) -> list[int]:
        """Turn the beginning of a conversation into token ids, special tokens included."""
        return self.tokenize([text])[0]

    def reply_ids(self, before: str, text: str) -> list[int]:
        """Turn text that follows `before` into token ids."""
        raise NotImplementedError

    @property
    def end_id(self) -> int:
        """The token that ends a reply."""
        raise NotImplementedError

    def lm_hidden(
        self,
        image: Float[Tensor, "n t v m e"],
        text_ids: Int64[Tensor, "n l"],
        text_mask: Bool[Tensor, "n l"],
        reply_ids: Int64[Tensor, "n r"],
        view_mask: Bool[Tensor, "n v"] | None = None,
    ) -> Float[Tensor, "n r d"]:
        """Return the hidden states that each token of a reply to the text is predicted from.

        Args:
            image: as in `read`, of one frame.
            text_ids: the question's tokens, right-padded.
            text_mask: False where they are padding.
            reply_ids: tokens that follow it, right-padded with anything.
            view_mask: False where a sequence has no image.
        """
        raise NotImplementedError

    def lm_logits(self, features: Float[Tensor, "y d"]) -> Float[Tensor, "y _words"]:
        """Return the logits of the next token over the vocabulary, from what `lm_hidden` gave."""
        raise NotImplementedError

    def new_cache(self) -> KVCache | None:
        """Return an empty context; None: this decoder reads everything again."""
        return None

    @abstractmethod
    def enable_bidirectional_queries(self) -> None:
        """Open the mask between the queries of a frame, for heads that ask for a whole chunk at once.

        Raises:
            NotAllowedError: the decoder makes its own mask.
        """

    @abstractmethod
    def save_pretrained(self, folder: Path, weights: bool = True) -> None:
        """Write a folder that `from_config(checkpoint=folder)` reads; without `weights`, only with
        `random_init=True`.
        """

    @abstractmethod
    def parts(self) -> dict[str, list[nn.Module]]:
        """Return the modules behind freeze_vision, freeze_text and freeze_embeddings: keys vision, text, embeddings."""

    def unused(self) -> list[nn.Module]:
        """Return modules whose weights no feature depends on; they are frozen, since DDP waits for every gradient."""
        return []

    @abstractmethod
    def embed_text(self, text_ids: Int64[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        """Look the text up in the input embedding, scaled as the decoder wants to read it."""

    @torch.no_grad()
    def embedding_rms(self) -> float:
        """Return the root mean square of the entries of text tokens, as they stand beside the queries."""
        ids = torch.tensor(self.tokenize([self.prompt.format(instruction="pick up the red block on the table")]))
        device = next(self.parameters()).device
        return self.embed_text(ids.to(device)).float().square().mean().sqrt().item()

    @abstractmethod
    def last_ids(self, count: int) -> list[int]:
        """Return the ids of the last words of the vocabulary, special ones left out, the last first."""

    @torch.no_grad()
    def last_words(self, count: int) -> Float[Tensor, "n d"]:
        """Return the vectors of the last words, as they stand beside the queries."""
        device = next(self.parameters()).device
        return self.embed_text(torch.tensor([self.last_ids(count)], device=device))[0].float().clone()

    def select_trainable(self, config: BackboneConfig) -> None:
        """Stop training what the config names, store weights as it says, and put adapters where it wants them.

        Raises:
            UserError: `train_text_layers` exceeds the decoder, or both it and `freeze_text` are set.
        """
        parts = self.parts()
        for part, modules in parts.items():
            if getattr(config, f"freeze_{part}"):
                for module in modules:
                    module.requires_grad_(False)
        if config.train_text_layers is not None:
            self._train_last_layers(config.train_text_layers, config.freeze_text)
        if config.weights is WeightType.bf16:
            for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
                if tensor.is_floating_point() and "inv_freq" not in name:  # rotary frequencies need their digits
                    tensor.data = tensor.data.bfloat16()
        if config.lora.rank:
            from robovlms.backbones.lora import add_lora

            add_lora(self, config.lora)
        coarse = sum(p.numel() for p in self.parameters() if p.requires_grad and p.dtype is torch.bfloat16)
        if coarse:
            logger.warning(
                "backbone.weights=bf16: %.1f M of them are trained, and steps below 0.4 %% of a weight are lost. "
                "Freeze them or use backbone.weights=fp32.",
                coarse / 1e6,
            )
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in self.parameters()) - trained
        logger.info("%s: %.1f M parameters are trained, %.1f M frozen", config.name, trained / 1e6, frozen / 1e6)

    def _train_last_layers(self, count: int, freeze_text: bool) -> None:
        layers = next(module for module in self.parts()["text"] if isinstance(module, nn.ModuleList))
        option = f"backbone.train_text_layers={count}"
        if freeze_text:
            raise UserError(f"{option} contradicts backbone.freeze_text=true: set one of them.")
        if not 0 < count <= len(layers):
            raise UserError(f"{option} must be 1 to {len(layers)}, the decoder's layers.")
        layers[: len(layers) - count].requires_grad_(False)


def text_side(backbone: Backbone) -> Backbone:
    """Return a copy that tokenises and has no weights: what loader processes are sent."""
    light = copy.copy(backbone)
    light.__dict__ = backbone.__dict__ | {name: {} for name in ("_modules", "_parameters", "_buffers")}
    return light

"""The backbone contract: images, text and queries in; hidden states at the queries out.

A backbone knows nothing of history. It reads n independent sequences of t frames each; the policy decides whether a
window becomes n = b * w sequences of one frame (policy head) or n = b sequences of t = w frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robovlms.backbones.layout import KVCache
from robovlms.backbones.text_head import TextHead, Tokenizer
from robovlms.types import ImageSpec


class Backbone(nn.Module, ABC):
    """A vision-language model seen as: (images, text, queries) -> hidden states at the queries."""

    hidden_dim: int
    image_spec: ImageSpec
    can_interleave: bool = True  # whether images of several frames can stand in one sequence
    reads_queries: bool = True  # whether queries stand behind the text, so that tokens can be written there
    is_published: bool = False  # whether it is a model of others, with weights to download
    prompt: str  # template with {instruction}; none of the special tokens, which `tokenize` adds
    text_head: TextHead | None = None  # None: this backbone cannot write text
    computes_bf16: bool = False  # whether weights and activations are bfloat16 throughout, which needs no autocast

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> Backbone:
        """Build the model that a config names: real checkpoint, random weights, or tiny."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Backbone:
        """Build the real architecture with a few hundred thousand random weights, in milliseconds, offline."""

    @property
    @abstractmethod
    def tokenize(self) -> Tokenizer:
        """The tokenizer of prompts and conversations, which runs on the host."""

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
        frame_mask: Bool[Tensor, "n t"] | None = None,
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
            frame_mask: False where a sequence has ended; what is returned there means nothing.
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

    def arithmetic(self) -> AbstractContextManager[object]:
        """Return the context in which it computes: without autocast where it is bfloat16 throughout."""
        device = next(self.parameters()).device.type
        return torch.autocast(device, enabled=False) if self.computes_bf16 else nullcontext()

    def new_cache(self) -> KVCache | None:
        """Return an empty cache; None: this decoder reads everything again."""
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
        """Return the ids of the last tokens of the vocabulary, special ones left out, the last first."""

    @torch.no_grad()
    def last_words(self, count: int) -> Float[Tensor, "n d"]:
        """Return the vectors of the last tokens, as they stand beside the queries."""
        device = next(self.parameters()).device
        return self.embed_text(torch.tensor([self.last_ids(count)], device=device))[0].float().clone()

"""The backbone contract: images, text and queries in; hidden states at the queries out.

A backbone never hears the word history. It reads n independent sequences of t frames each; the policy decides whether a
window becomes n = b * w sequences of one frame (policy head) or n = b sequences of t = w frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robovlms.config import BackboneConfig
from robovlms.types import ImageSpec


class Backbone(nn.Module, ABC):
    """A vision-language model seen as: (images, text, queries) -> hidden states at the queries."""

    hidden_dim: int
    image_spec: ImageSpec
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
    def forward(
        self,
        images: Float[Tensor, "n t v c h x"],
        text_ids: Int64[Tensor, "n l"],
        text_mask: Bool[Tensor, "n l"],
        queries: Float[Tensor, "n t q d"],
    ) -> Float[Tensor, "n t q d"]:
        """Give the hidden states at the queries of every frame.

        Text is right-padded. Later frames and padding never change a feature.
        """

    @abstractmethod
    def save_pretrained(self, folder: Path, weights: bool = True) -> None:
        """Write a folder that `from_config(checkpoint=folder)` reads; without `weights`, only with
        `random_init=True`.
        """

    @abstractmethod
    def parts(self) -> dict[str, list[nn.Module]]:
        """Give the modules behind freeze_vision, freeze_text and freeze_embeddings: keys vision, text, embeddings."""

    def freeze(self, config: BackboneConfig) -> None:
        """Stop training what the config's freeze options name."""
        for part, modules in self.parts().items():
            if getattr(config, f"freeze_{part}"):
                for module in modules:
                    module.requires_grad_(False)


class PrefixBackbone(Backbone):
    """A decoder-only VLM that reads, frame after frame, [text head | views | text tail | queries].

    The text head is what must stand before the images (the start token of most models). Sequences are packed: a query
    follows the last real token of its frame, the next frame follows the query, and all padding comes at the end, so
    that no position, sliding window or linear attention ever meets a pad before a token that is read.
    """

    num_head_tokens: int = 0  # leading text ids that stand before the images

    @abstractmethod
    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Give the image tokens as the decoder wants to read them."""

    @abstractmethod
    def embed_text(self, text_ids: Int64[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        """Look the text up in the input embedding."""

    @abstractmethod
    def decode(
        self,
        embeds: Float[Tensor, "n s d"],
        mask: Bool[Tensor, "n s"],
        frame: Int64[Tensor, "n s"],
        is_query: Bool[Tensor, "n s"],
    ) -> Float[Tensor, "n s d"]:
        """Run the decoder trunk, without vocabulary logits.

        Args:
            embeds: packed tokens, padding last.
            mask: True = a real token.
            frame: number of the frame each token belongs to, for models whose prefix is bidirectional.
            is_query: True at the queries.
        """

    def forward(
        self,
        images: Float[Tensor, "n t v c h x"],
        text_ids: Int64[Tensor, "n l"],
        text_mask: Bool[Tensor, "n l"],
        queries: Float[Tensor, "n t q d"],
    ) -> Float[Tensor, "n t q d"]:
        """Embed, pack, decode, and read at the queries."""
        n, t, v = images.shape[:3]
        q, head = queries.shape[2], self.num_head_tokens
        image = self.embed_images(rearrange(images, "n t v c h x -> (n t v) c h x"))
        image = rearrange(image, "(n t v) m d -> n t (v m) d", n=n, t=t, v=v)
        text = repeat(self.embed_text(text_ids).to(image.dtype), "n l d -> n t l d", t=t)
        tokens = torch.cat([text[:, :, :head], image, text[:, :, head:], queries.to(image.dtype)], dim=2)

        def per_frame(left: Tensor, middle: Any, right: Tensor, end: Any) -> Tensor:
            sizes = (image.shape[2], q)
            block = [left, left.new_full((n, sizes[0]), middle), right, left.new_full((n, sizes[1]), end)]
            return repeat(torch.cat(block, dim=1), "n s -> n (t s)", t=t)

        mask = per_frame(text_mask[:, :head], True, text_mask[:, head:], True)
        no = torch.zeros_like(text_mask)
        is_query = per_frame(no[:, :head], False, no[:, head:], True)
        frame = torch.arange(t, device=mask.device).repeat_interleave(tokens.shape[2]).expand(n, -1)
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)  # real tokens first, each in its order
        packed = rearrange(tokens, "n t s d -> n (t s) d").gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))
        mask, frame, is_query = (x.gather(1, order) for x in (mask, frame, is_query))
        hidden = self.decode(packed, mask, frame, is_query)
        return hidden[is_query].view(n, t, q, -1)

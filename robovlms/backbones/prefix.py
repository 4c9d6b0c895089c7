"""Decoder-only backbones: one packed sequence of text, image tokens and queries."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robovlms.backbones.base import Backbone
from robovlms.backbones.layout import KVCache, Layout
from robovlms.backbones.perceiver import Perceiver
from robovlms.errors import NotAllowedError, UserError


class PrefixBackbone(Backbone):
    """A decoder-only VLM that reads, frame after frame, [text head | views | text tail | queries].

    The text head is what must stand before the images (the start token of most models). Sequences are packed: a query
    follows the last real token of its frame, the next frame follows the query, and all padding comes at the end, so
    that no position, sliding window or linear attention ever meets a pad before a token that is read.
    """

    num_head_tokens: int = 0  # leading text ids that stand before the images
    num_marks: tuple[int, int] = (0, 0)  # text tokens that `embed_images` puts before and behind each image
    max_length: int | None = None  # tokens that the decoder has positions for; None: any number
    can_resample: bool = False  # whether the decoder takes any number of tokens for an image
    can_parallel: bool = False  # whether its mask is ours to open
    can_hide_views: bool = True  # whether a sequence may lack the tokens of a view

    def __init__(self) -> None:
        super().__init__()
        self.resampler: Perceiver | None = None
        self.bidirectional_queries = False  # whether queries of one frame see each other

    def enable_bidirectional_queries(self) -> None:
        """Open the mask, if it is ours."""
        if not self.can_parallel:
            raise NotAllowedError(
                "head.parallel=true needs queries that see each other, but this backbone's decoder makes its own mask: "
                "set head.parallel=false, or choose another backbone (nano, paligemma, llava, qwen2_5_vl, ...)."
            )
        self.bidirectional_queries = True

    def add_resampler(self, num_tokens: int) -> None:
        """Turn the tokens of every image into `num_tokens`, by a random perceiver that starts at the text's scale.

        Source: RoboVLMs model/vision_encoder/vision_resampler.py: six layers of the decoder's width.

        Raises:
            UserError: the family needs its own tokens.
        """
        if not self.can_resample:
            raise UserError(
                f"backbone.resample={num_tokens} does not fit this backbone: its decoder needs the image's own tokens."
            )
        self.resampler = Perceiver(self.hidden_dim, num_tokens, depth=6)
        nn.init.constant_(self.resampler.norm.weight, self.embedding_rms())

    @abstractmethod
    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m e"]:
        """Return the image tokens as the decoder wants to read them; what they have beyond d entries travels along."""

    @abstractmethod
    def decode(self, embeds: Float[Tensor, "n s e"], layout: Layout, cache: Any = None) -> Float[Tensor, "n s d"]:
        """Run the decoder trunk, without vocabulary logits.

        Args:
            embeds: packed tokens; e > d only if image tokens are wider, and then zero in the others.
            layout: what they are; with a `cache`, what all tokens are, and these are the last of them.
            cache: a context's, of the tokens before these.
        """

    def encode(self, images: Float[Tensor, "n t v c h x"]) -> Float[Tensor, "n t v m e"]:
        """Embed every image."""
        n, t, v = images.shape[:3]
        weights = next(self.parameters()).dtype
        image = self.embed_images(rearrange(images, "n t v c h x -> (n t v) c h x").to(weights))
        if self.resampler is not None:
            image = self.resampler(image)
        return rearrange(image, "(n t v) m e -> n t v m e", n=n, t=t, v=v)

    def read(
        self,
        image: Float[Tensor, "n t v m e"],
        text_ids: Int64[Tensor, "n l"],
        text_mask: Bool[Tensor, "n l"],
        queries: Float[Tensor, "n t q d"],
        kv_cache: KVCache | None = None,
        view_mask: Bool[Tensor, "n v"] | None = None,
    ) -> Float[Tensor, "n t q d"]:
        """Embed text, pack it with image tokens and queries, decode, and give the hidden states at the queries.

        Raises:
            UserError: a sequence is longer than the decoder's positions.
        """
        return self._read(image, text_ids, text_mask, queries, kv_cache, view_mask)

    def lm_hidden(
        self,
        image: Float[Tensor, "n t v m e"],
        text_ids: Int64[Tensor, "n l"],
        text_mask: Bool[Tensor, "n l"],
        reply_ids: Int64[Tensor, "n r"],
        view_mask: Bool[Tensor, "n v"] | None = None,
    ) -> Float[Tensor, "n r d"]:
        """Read all of the reply but its last token behind the text, and give what follows the text's last token."""
        told = reply_ids[:, :-1]
        queries = self.embed_text(told)[:, None]
        return self._read(image, text_ids, text_mask, queries, None, view_mask, query_ids=told)[:, 0]

    def _read(
        self,
        image: Float[Tensor, "n t v m e"],
        text_ids: Int64[Tensor, "n l"],
        text_mask: Bool[Tensor, "n l"],
        queries: Float[Tensor, "n t q d"],
        kv_cache: KVCache | None,
        view_mask: Bool[Tensor, "n v"] | None,
        query_ids: Int64[Tensor, "n q"] | None = None,
    ) -> Float[Tensor, "n t _q d"]:
        """Do what `read` says; queries that are words (`query_ids`) are asked together with the text's last token."""
        image = self.in_sequence(image)
        (n, t, v), q, head = image.shape[:3], queries.shape[2], self.num_head_tokens
        per_question = q + (query_ids is not None)
        image = rearrange(image, "n t v m e -> n t (v m) e")
        text = repeat(self.embed_text(text_ids).to(image.dtype), "n l d -> n t l d", t=t)
        beyond = image.shape[-1] - text.shape[-1]
        text, question = (F.pad(each, (0, beyond)) for each in (text, queries.to(image.dtype)))
        tokens = torch.cat([text[:, :, :head], image, text[:, :, head:], question], dim=2)
        length = t * tokens.shape[2] + (0 if kv_cache is None else kv_cache.length)
        if self.max_length is not None and length > self.max_length:
            raise UserError(
                f"A sequence of {length} tokens ({t} frames of {v} views x {image.shape[2] // v} tokens, "
                f"{text.shape[2]} of text, {q} queries) exceeds the backbone's {self.max_length} positions: use fewer "
                "views (view=side), a smaller backbone.max_text_tokens, structure=policy_head, or a checkpoint whose "
                "preprocessor_config.json makes smaller images."
            )

        if view_mask is not None and not self.can_hide_views:
            raise NotAllowedError(
                "samples lack a view, and this backbone cannot leave images out: choose another backbone (kosmos, "
                "nano, paligemma, ...), or view= with cameras that every part of the mixture has."
            )
        visible = image.new_ones(n, v, dtype=torch.bool) if view_mask is None else view_mask
        numbers = self._number_patches(image.shape[2] // v, image.device).repeat(v).expand(n, -1)
        ids = self.image_ids(image.shape[2] // v, image.device).repeat(v).expand(n, -1)

        def per_frame(text: Tensor, image: Tensor, query: int | Tensor) -> Tensor:
            query = query if isinstance(query, Tensor) else text.new_full((n, q), query)
            block = [text[:, :head], image, text[:, head:], query]
            return repeat(torch.cat(block, dim=1), "n s -> n (t s)", t=t)

        mask = per_frame(text_mask, visible.repeat_interleave(image.shape[2] // v, dim=1), True)
        no_text, no_image = torch.zeros_like(text_mask), torch.zeros_like(numbers, dtype=torch.bool)
        is_query = is_asked = per_frame(no_text, no_image, True)
        if query_ids is not None:
            is_last = text_mask & (text_mask.cumsum(1) == text_mask.sum(1, keepdim=True))
            is_asked = per_frame(is_last, no_image, True)
        patch = per_frame(torch.full_like(text_ids, -1), numbers, -1)
        token = per_frame(text_ids, ids, -1 if query_ids is None else query_ids)
        frame = torch.arange(t, device=mask.device).repeat_interleave(tokens.shape[2]).expand(n, -1)
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)  # real tokens first, each in its order
        packed = rearrange(tokens, "n t s d -> n (t s) d").gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))
        layout = Layout(*(x.gather(1, order) for x in (mask, frame, is_query, patch, token)))
        if kv_cache is None:
            hidden = self.decode(packed, layout)
        else:
            is_more = text_ids.shape[1] + image.shape[2] == 0
            hidden = self.decode(packed, kv_cache.add(layout, 0 if is_more else t), kv_cache.cache)
        places = (~is_asked.gather(1, order)).to(torch.uint8).argsort(dim=1, stable=True)[:, : t * per_question, None]
        asked = hidden.gather(1, places.expand(-1, -1, hidden.shape[-1]))
        return rearrange(asked, "n (t q) d -> n t q d", t=t)

    def in_sequence(self, image: Float[Tensor, "n t v m e"]) -> Float[Tensor, "n t v _m _e"]:
        """Return the image tokens that stand in the sequence: all, unless the decoder sees them another way."""
        return image

    def image_ids(self, num_tokens: int, device: torch.device) -> Int64[Tensor, "m"]:
        """Return the vocabulary id of each token that `embed_images` makes of an image, -1 where it has none."""
        return torch.full((num_tokens,), -1, device=device)

    def _number_patches(self, num_tokens: int, device: torch.device) -> Int64[Tensor, "m"]:
        before, behind = self.num_marks
        numbers = torch.arange(num_tokens, device=device) - before
        return torch.where(numbers < num_tokens - before - behind, numbers, -1).clamp(min=-1)

"""Decoder-only backbones: one packed sequence of text, image tokens and queries."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robovlms.backbones.activations import AtPlaces, last_mlp, recompute
from robovlms.backbones.base import Backbone
from robovlms.backbones.layout import KVCache, Layout, take, true_first
from robovlms.backbones.perceiver import Perceiver
from robovlms.backbones.text_head import TextHead
from robovlms.config.policy import Checkpointing
from robovlms.errors import NotAllowedError, UserError


class Packed(NamedTuple):
    """The tokens of all frames as the decoder reads them."""

    tokens: Float[Tensor, "n s e"]
    layout: Layout
    order: Int64[Tensor, "n s"]  # where each stood before packing
    num_new: Int64[Tensor, "n"]  # frames of each sequence that begin here


class PrefixBackbone(Backbone):
    """A decoder-only VLM that reads, frame after frame, [text head | views | text tail | queries].

    The text head is what must stand before the images (the start token of most models). Sequences are packed: a query
    follows the last real token of its frame, the next frame follows the query, and all padding comes at the end, so
    that no position, sliding window or linear attention ever meets a pad before a token that is read.
    """

    num_head_tokens: int = 0  # leading text ids that stand before the images
    num_closing_tokens: int = 0  # of these, how many close the frame before, and are left out of the first
    num_marks: tuple[int, int] = (0, 0)  # text tokens that `embed_images` puts before and behind each image
    max_length: int | None = None  # tokens that the decoder has positions for; None: any number
    can_resample: bool = False  # whether the decoder takes any number of tokens for an image
    can_parallel: bool = False  # whether its mask is ours to open

    def __init__(self) -> None:
        super().__init__()
        self.resampler: Perceiver | None = None
        self.bidirectional_queries = False  # whether queries of one frame see each other
        self.last_mlp: AtPlaces | None = None  # the decoder's, where it may compute at the queries alone

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """Return the layers of vision tower and decoder whose activations may be computed again."""

    def find_last_mlp(self) -> None:
        """Have the decoder's last MLP compute where it is asked, if it has one that can."""
        self.last_mlp = last_mlp(next(part for part in self.parts()["text"] if isinstance(part, nn.ModuleList)))

    def save_activations(self, checkpointing: str) -> None:
        """Keep fewer activations for the backward pass, as `backbone.checkpointing` says."""
        recompute(self.layers(), Checkpointing.parse(checkpointing), self.last_mlp)

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
            cache: of the tokens before these, as `new_cache` makes it.
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
        frame_mask: Bool[Tensor, "n t"] | None = None,
        query_ids: Int64[Tensor, "n q"] | None = None,
    ) -> Float[Tensor, "n t _q d"]:
        """Embed text, pack it with image tokens and queries, decode, and return the hidden states at the queries.

        Args:
            image: as in the contract.
            text_ids: as in the contract.
            text_mask: as in the contract.
            queries: as in the contract.
            kv_cache: as in the contract.
            view_mask: as in the contract.
            frame_mask: as in the contract.
            query_ids: vocabulary ids of queries that are text; they are read together with the text's last token, so
                that every frame has one hidden state more.

        Raises:
            UserError: a sequence is longer than the decoder's positions.
        """
        masks = (view_mask, frame_mask)
        packed = self._pack(image, text_ids, text_mask, queries, kv_cache, *masks, query_ids)
        (t, v), m, q = image.shape[1:3], self.in_sequence(image).shape[3], queries.shape[2]
        is_asked = packed.layout.is_query
        if query_ids is not None:
            is_asked = is_asked | self._is_last_token(text_mask, t, v * m, q).gather(1, packed.order)
        places = true_first(is_asked)[:, : t * (q + (query_ids is not None))]
        with nullcontext() if self.last_mlp is None else self.last_mlp.only(places):
            hidden = self._decode(packed, kv_cache)
        return rearrange(take(hidden, places), "n (t q) d -> n t q d", t=t)

    def read_all(
        self,
        image: Float[Tensor, "n t v m e"],
        text_ids: Int64[Tensor, "n l"],
        text_mask: Bool[Tensor, "n l"],
        queries: Float[Tensor, "n t q d"],
        kv_cache: KVCache | None = None,
        view_mask: Bool[Tensor, "n v"] | None = None,
        frame_mask: Bool[Tensor, "n t"] | None = None,
        query_ids: Int64[Tensor, "n q"] | None = None,
    ) -> tuple[Float[Tensor, "n s d"], Layout, Int64[Tensor, "n s"]]:
        """Return the hidden states of all packed tokens, what the tokens are, and where each stood before packing.

        Arguments and errors are those of `read`.
        """
        masks = (view_mask, frame_mask)
        packed = self._pack(image, text_ids, text_mask, queries, kv_cache, *masks, query_ids)
        return self._decode(packed, kv_cache), packed.layout, packed.order

    def _pack(
        self,
        image: Float[Tensor, "n t v m e"],
        text_ids: Int64[Tensor, "n l"],
        text_mask: Bool[Tensor, "n l"],
        queries: Float[Tensor, "n t q d"],
        kv_cache: KVCache | None,
        view_mask: Bool[Tensor, "n v"] | None,
        frame_mask: Bool[Tensor, "n t"] | None,
        query_ids: Int64[Tensor, "n q"] | None,
    ) -> Packed:
        """Return the tokens of all frames, padding last; of the arguments of `read`."""
        inside = self.in_sequence(image)
        n, t, v, m, _ = inside.shape
        if view_mask is None:
            view_mask = text_mask.new_ones(n, v)
        tokens = self._join(inside, text_ids, queries)
        if frame_mask is None:
            frame_mask = text_mask.new_ones(n, t)
        layout = self._layout(inside, text_ids, text_mask, view_mask, frame_mask, queries.shape[2], query_ids)
        if self.num_closing_tokens:
            layout = self._open_first(layout, kv_cache)
        order = true_first(layout.mask)[:, : self._check_length(layout, kv_cache, inside, text_mask, queries.shape[2])]
        layout = layout.reorder(order)
        self.condition(image, view_mask, layout)
        num_new = frame_mask.sum(1) * (text_ids.shape[1] + v * m > 0)  # without text and images: more queries
        return Packed(take(rearrange(tokens, "n t s e -> n (t s) e"), order), layout, order, num_new)

    def _open_first(self, layout: Layout, kv_cache: KVCache | None) -> Layout:
        """Leave out what would close a frame before the first one of a sequence."""
        is_closing = torch.arange(layout.mask.shape[1], device=layout.mask.device) < self.num_closing_tokens
        n, read = layout.mask.shape[0], 0 if kv_cache is None else kv_cache.num_frames
        is_first = is_closing.new_full((n,), read == 0) if isinstance(read, int) else read == 0
        return layout._replace(mask=layout.mask & ~(is_first[:, None] & is_closing))

    def _join(
        self, image: Float[Tensor, "n t v m e"], text_ids: Int64[Tensor, "n l"], queries: Float[Tensor, "n t q d"]
    ) -> Float[Tensor, "n t _s e"]:
        """Return the tokens of every frame; text and queries are zero in the entries that image tokens have beyond."""
        text = repeat(self.embed_text(text_ids).to(image.dtype), "n l d -> n t l d", t=image.shape[1])
        beyond = image.shape[-1] - text.shape[-1]
        text, queries = (F.pad(each, (0, beyond)) for each in (text, queries.to(image.dtype)))
        return self._frame(text, rearrange(image, "n t v m e -> n t (v m) e"), queries, dim=2)

    def _frame(self, text: Tensor, image: Tensor, queries: Tensor, dim: int = 1) -> Tensor:
        """Put what stands in a frame in its order."""
        head, tail = text.tensor_split([self.num_head_tokens], dim=dim)
        return torch.cat([head, image, tail, queries], dim=dim)

    def _layout(
        self,
        image: Float[Tensor, "n t v m e"],
        text_ids: Int64[Tensor, "n l"],
        text_mask: Bool[Tensor, "n l"],
        view_mask: Bool[Tensor, "n v"],
        frame_mask: Bool[Tensor, "n t"],
        q: int,
        query_ids: Int64[Tensor, "n q"] | None,
    ) -> Layout:
        """Return what the tokens of all frames are, not yet packed."""
        n, t, v, m, _ = image.shape
        none = text_ids.new_full((n, q), -1)
        is_shown = view_mask.repeat_interleave(m, dim=1)
        patches = self._number_patches(m, image.device).repeat(v).expand(n, -1)
        patches = torch.where(is_shown, patches, -1)  # padding is of no image
        ids = self.image_ids(m, image.device).repeat(v).expand(n, -1)
        is_query = text_mask.new_ones(n, q)
        tokens = Layout(
            mask=self._frame(text_mask, is_shown, is_query),
            frame=self._frame(torch.zeros_like(text_ids), torch.zeros_like(patches), torch.zeros_like(none)),
            is_query=self._frame(torch.zeros_like(text_mask), torch.zeros_like(patches, dtype=torch.bool), is_query),
            patch=self._frame(torch.full_like(text_ids, -1), patches, none),
            token=self._frame(text_ids, ids, none if query_ids is None else query_ids),
        )
        s = tokens.mask.shape[1]
        frame = torch.arange(t, device=image.device).repeat_interleave(s).expand(n, -1)
        is_there = frame_mask.repeat_interleave(s, dim=1)
        whole = Layout(*(repeat(each, "n s -> n (t s)", t=t) for each in tokens))
        patch = torch.where(is_there, whole.patch, -1)
        return whole._replace(frame=frame, mask=whole.mask & is_there, patch=patch)

    def _is_last_token(
        self, text_mask: Bool[Tensor, "n l"], t: int, num_image_tokens: int, q: int
    ) -> Bool[Tensor, "n _s"]:
        """Mark the last real token of the text in every frame, not yet packed."""
        is_last = text_mask & (text_mask.cumsum(1) == text_mask.sum(1, keepdim=True))
        n = text_mask.shape[0]
        marked = self._frame(is_last, is_last.new_zeros(n, num_image_tokens), is_last.new_zeros(n, q))
        return repeat(marked, "n s -> n (t s)", t=t)

    def _check_length(
        self,
        layout: Layout,
        kv_cache: KVCache | None,
        image: Float[Tensor, "n t v m e"],
        text_mask: Bool[Tensor, "n l"],
        q: int,
    ) -> int:
        """Return how many packed tokens the decoder must read: all, or where these are more than it has positions for,
        those of the longest sequence.

        Raises:
            UserError: that one is too long, too.
        """
        padded, cached = layout.mask.shape[1], 0 if kv_cache is None else kv_cache.length
        if self.max_length is None or cached + padded <= self.max_length:
            return padded
        new = layout.mask.sum(1)
        before = 0 if kv_cache is None or kv_cache.layout is None else kv_cache.layout.mask.sum(1)
        length, longest = int((new + before).max()), int(new.max())
        if length <= self.max_length:
            return longest
        _, t, v, m, _ = image.shape
        raise UserError(
            f"A sequence of {length} tokens ({t} frames of {v} views x {m} tokens, {int(text_mask.sum(1).max())} of "
            f"text, {q} queries) exceeds the backbone's {self.max_length} positions: use fewer views (view=side), a "
            "smaller backbone.max_text_tokens, structure=policy_head, or a checkpoint whose preprocessor_config.json "
            "makes smaller images."
        )

    def _decode(self, packed: Packed, kv_cache: KVCache | None) -> Float[Tensor, "n s d"]:
        """Run the decoder, behind what `kv_cache` holds."""
        if kv_cache is None:
            return self.decode(packed.tokens, packed.layout)
        return self.decode(packed.tokens, kv_cache.add(packed.layout, packed.num_new), kv_cache.layers)

    def in_sequence(self, image: Float[Tensor, "n t v m e"]) -> Float[Tensor, "n t v _m _e"]:
        """Return the image tokens that stand in the sequence: all, unless the decoder sees them another way."""
        return image

    def condition(self, image: Float[Tensor, "n t v m e"], view_mask: Bool[Tensor, "n v"], layout: Layout) -> None:
        """Hand the decoder images that do not stand in the sequence; `layout` is that of the coming `decode`."""

    def image_ids(self, num_tokens: int, device: torch.device) -> Int64[Tensor, "m"]:
        """Return the vocabulary id of each token that `embed_images` makes of an image, -1 where it has none."""
        return torch.full((num_tokens,), -1, device=device)

    def _number_patches(self, num_tokens: int, device: torch.device) -> Int64[Tensor, "m"]:
        before, behind = self.num_marks
        numbers = torch.arange(num_tokens, device=device) - before
        return torch.where(numbers < num_tokens - before - behind, numbers, -1).clamp(min=-1)


class PrefixTextHead(TextHead):
    """Reads a reply as queries that are text."""

    def __init__(self, backbone: PrefixBackbone) -> None:
        self.backbone = backbone

    def lm_hidden(
        self,
        image: Float[Tensor, "n t v m e"],
        text_ids: Int64[Tensor, "n l"],
        text_mask: Bool[Tensor, "n l"],
        reply_ids: Int64[Tensor, "n r"],
        view_mask: Bool[Tensor, "n v"] | None = None,
    ) -> Float[Tensor, "n r d"]:
        """Read all of the reply but its last token behind the text, and return what follows the text's last token."""
        ids = reply_ids[:, :-1]
        queries = self.backbone.embed_text(ids)[:, None]
        return self.backbone.read(image, text_ids, text_mask, queries, view_mask=view_mask, query_ids=ids)[:, 0]

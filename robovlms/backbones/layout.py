"""What the packed tokens of a batch are, and what a decoder has read of them so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Layout(NamedTuple):
    """What the packed tokens of a batch are."""

    mask: Bool[Tensor, "n s"]  # True = a real token; the rest is padding and comes last
    frame: Int64[Tensor, "n s"]  # number of the frame the token belongs to
    is_query: Bool[Tensor, "n s"]
    patch: Int64[Tensor, "n s"]  # number of an image token within its image, row by row; -1 = not of an image
    token: Int64[Tensor, "n s"]  # vocabulary id of text and of an image's marks; -1 = anything else

    def reorder(self, order: Int64[Tensor, "n s"]) -> Layout:
        """Return the layout of tokens in another order."""
        return Layout(*(each.gather(1, order) for each in self))


def true_first(mask: Bool[Tensor, "n s"]) -> Int64[Tensor, "n s"]:
    """Return the order that puts what is True first and changes nothing else."""
    place = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, place, place + mask.shape[1]).argsort(dim=1)  # no two are equal, so any sort is stable


def take(tokens: Float[Tensor, "n _s e"], places: Int64[Tensor, "n _p"]) -> Float[Tensor, "n _p e"]:
    """Return the tokens at these places of every sequence."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


class Kept(NamedTuple):
    """What a decoder has read of one sequence, without padding, in memory of its own."""

    tokens: Float[Tensor, "s _c g e"]  # key and value of each layer in turn
    layout: Int64[Tensor, "s _fields"]  # the fields of a Layout
    num_frames: int


class KVCache:
    """What a decoder has read of every sequence of a batch: its keys and values, and what they are of.

    Frames and queries that come later are read behind it, at the cost of themselves alone. Sequences of any length come
    and go: `rows` takes them apart, `of` puts any together. Between the two they may hold padding anywhere, which
    decoders do not count and nothing attends to.
    """

    def __init__(self) -> None:
        self.layers: list[list[Tensor]] = []  # [keys, values] of every layer, "n g s e"; filled by the decoder
        self.layout: Layout | None = None
        self.num_frames: Tensor | int = 0  # "n"

    @property
    def length(self) -> int:
        """Tokens so far, padding included."""
        return 0 if self.layout is None else self.layout.mask.shape[1]

    @classmethod
    def of(cls, rows: Sequence[Kept | None]) -> KVCache:
        """Return the cache of these sequences; None: nothing has been read of one."""
        cache, filled = cls(), [row for row in rows if row is not None]
        if not filled:
            return cache
        none = Kept(filled[0].tokens[:0], filled[0].layout[:0], 0)
        kept = [none if row is None else row for row in rows]
        tokens = rearrange(pad_sequence([row.tokens for row in kept], batch_first=True), "n s c g e -> c n g s e")
        cache.layers = [[tokens[i], tokens[i + 1]] for i in range(0, len(tokens), 2)]
        layout = pad_sequence([row.layout for row in kept], batch_first=True, padding_value=-1)
        mask, frame, is_query, patch, token = layout.unbind(-1)
        cache.layout = Layout(mask > 0, frame, is_query > 0, patch, token)
        cache.num_frames = torch.tensor([row.num_frames for row in kept], device=tokens.device)
        return cache

    def rows(self) -> list[Kept]:
        """Return what has been read of every sequence; waits for the device once."""
        assert self.layout is not None
        assert isinstance(self.num_frames, Tensor)
        counts = torch.stack([self.layout.mask.sum(1), self.num_frames], dim=1).tolist()
        order = true_first(self.layout.mask)
        layout = torch.stack([each.long() for each in self.layout.reorder(order)], dim=-1)
        tokens = torch.stack([each for layer in self.layers for each in layer], dim=1)
        tokens = rearrange(tokens, "n c g s e -> n s c g e")
        tokens = tokens.gather(1, order[:, :, None, None, None].expand_as(tokens))
        return [
            Kept(tokens[i, :length].clone(), layout[i, :length].clone(), num_frames)
            for i, (length, num_frames) in enumerate(counts)
        ]

    def add(self, new: Layout, num_frames: Int64[Tensor, "n"]) -> Layout:
        """Take what is about to be read, and return the layout of all; no new frame: queries behind the last one."""
        first = self.num_frames - (num_frames == 0).long()
        new = new._replace(frame=new.frame + first[:, None])
        self.num_frames = self.num_frames + num_frames
        if self.layout is not None:
            new = Layout(*(torch.cat(pair, dim=1) for pair in zip(self.layout, new, strict=True)))
        self.layout = new
        return new

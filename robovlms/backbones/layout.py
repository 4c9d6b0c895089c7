"""What the packed tokens of a batch are, and what a decoder has read of them so far."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


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
    return (~mask).to(torch.uint8).argsort(dim=1, stable=True)


def take(tokens: Float[Tensor, "n _s e"], places: Int64[Tensor, "n _p"]) -> Float[Tensor, "n _p e"]:
    """Return the tokens at these places of every sequence."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


class KVCache:
    """What a decoder has read of every sequence: its keys and values, and what they are of.

    Frames and queries that come later are read behind it, at the cost of themselves alone.
    """

    def __init__(self, cache: Any) -> None:
        self.cache = cache  # filled by the decoder
        self.layout: Layout | None = None
        self.num_frames = 0

    @property
    def length(self) -> int:
        """Tokens so far, padding included."""
        return 0 if self.layout is None else self.layout.mask.shape[1]

    def add(self, new: Layout, num_frames: int) -> Layout:
        """Take what is about to be read, and return the layout of all; no new frame: queries behind the last one."""
        first = self.num_frames - (num_frames == 0)
        new = new._replace(frame=new.frame + first)
        self.num_frames += num_frames
        if self.layout is not None:
            new = Layout(*(torch.cat(pair, dim=1) for pair in zip(self.layout, new, strict=True)))
        self.layout = new
        return new

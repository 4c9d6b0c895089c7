"""Who sees whom, for decoders that are not merely causal: True where a token (row) sees another (column)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robovlms.backbones.base import Layout


def prefix_mask(layout: Layout, window: int | None = None) -> Bool[Tensor, "n s s"]:
    """Say which token (row) sees which (column): all before it, with `window` only so many tokens back, and images and
    text of one frame each other.

    Padding is seen by nobody but itself, so that no row is empty.
    """
    mask, frame, is_query = layout[:3]
    order = torch.arange(mask.shape[1], device=mask.device)
    same_frame = frame[:, :, None] == frame[:, None, :]
    prefix = ~is_query[:, :, None] & ~is_query[:, None, :]
    causal = order[:, None] >= order
    if window is not None:
        causal = causal & (order[:, None] - order < window)
    return (causal | (same_frame & prefix)) & mask[:, None, :] | (order[:, None] == order)


def additive(allowed: Bool[Tensor, "n s s"], embeds: Float[Tensor, "n s d"]) -> Float[Tensor, "n 1 s s"]:
    """Give 0 where a token sees another and the lowest number elsewhere: eager attention adds its mask."""
    zeros = torch.zeros((), dtype=embeds.dtype, device=embeds.device)
    return zeros.masked_fill(~allowed[:, None], torch.finfo(embeds.dtype).min)


def image_mask(layout: Layout, window: int | None) -> Bool[Tensor, "n s s"]:
    """Say which token (row) sees which (column): all before it, and the tokens of one image each other; with `window`
    only so many tokens back.

    Padding is seen by nobody but itself, so that no row is empty.
    """
    order = torch.arange(layout.mask.shape[1], device=layout.mask.device)
    number = (layout.patch == 0).cumsum(1)  # of the image
    in_image = layout.patch >= 0
    same_image = (number[:, :, None] == number[:, None, :]) & in_image[:, :, None] & in_image[:, None, :]
    allowed = same_image | (order[:, None] >= order)
    if window is not None:
        allowed = allowed & (order[:, None] - order < window)
    return allowed & layout.mask[:, None, :] | (order[:, None] == order)

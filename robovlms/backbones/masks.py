"""Attention masks of decoders that are not merely causal: True where a token (row) attends to another (column)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from robovlms.backbones.layout import Layout


def prefix_mask(layout: Layout, window: int | None = None) -> Bool[Tensor, "n s s"]:
    """Return the mask of a prefix decoder: a token (row) attends to all before it (columns), with `window` only so many
    tokens back, and images and text of one frame attend to each other.

    Padding attends to itself and nothing else attends to it, so that no row is empty.
    """
    mask, frame, is_query = layout[:3]
    order = torch.arange(mask.shape[1], device=mask.device)
    same_frame = frame[:, :, None] == frame[:, None, :]
    prefix = ~is_query[:, :, None] & ~is_query[:, None, :]
    causal = order[:, None] >= order
    if window is not None:
        causal = causal & (distance(layout) < window)
    return (causal | (same_frame & prefix)) & mask[:, None, :] | (order[:, None] == order)


def distance(layout: Layout) -> Int64[Tensor, "n s s"]:
    """Count the real tokens from one (column) to another (row)."""
    place = layout.mask.long().cumsum(1)
    return place[:, :, None] - place[:, None, :]


def causal_mask(layout: Layout) -> Bool[Tensor, "n s s"]:
    """Return the causal mask; padding attends to itself, and nothing else attends to it."""
    order = torch.arange(layout.mask.shape[1], device=layout.mask.device)
    return (order[:, None] >= order) & (layout.mask[:, None, :] | (order[:, None] == order))


def mutual_mask(layout: Layout) -> Bool[Tensor, "n s s"]:
    """Return the mask that lets the queries of one frame attend to each other."""
    same_frame = layout.frame[:, :, None] == layout.frame[:, None, :]
    return same_frame & layout.is_query[:, :, None] & layout.is_query[:, None, :] & layout.mask[:, None, :]


def image_mask(layout: Layout, window: int | None) -> Bool[Tensor, "n s s"]:
    """Return the causal mask in which the tokens of one image also attend to each other; with `window` only so many
    tokens back.

    Padding attends to itself and nothing else attends to it, so that no row is empty.
    """
    order = torch.arange(layout.mask.shape[1], device=layout.mask.device)
    number = (layout.patch == 0).cumsum(1)  # of the image
    in_image = layout.patch >= 0
    same_image = (number[:, :, None] == number[:, None, :]) & in_image[:, :, None] & in_image[:, None, :]
    allowed = same_image | (order[:, None] >= order)
    if window is not None:
        allowed = allowed & (distance(layout) < window)
    return allowed & layout.mask[:, None, :] | (order[:, None] == order)

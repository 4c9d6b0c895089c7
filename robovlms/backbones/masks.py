"""Attention masks of decoders that are not merely causal: True where a token (row) attends to another (column).

And attention that needs none: transformers reads the mask, for which the host waits, to find out whether it can be
left out. Here that is known.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from robovlms.backbones.layout import Layout

PADDING_LAST = "sdpa_padding_last"
"""Of causal decoders: padding comes last, where causality hides it, unless tokens of a cache stand before it."""
NO_PADDING = "sdpa_no_padding"
"""Of vision towers whose images are equally large."""


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


def padding_last_mask(*, q_length: int, kv_length: int, local_size: int | None = None, **rest: Any) -> Tensor | None:
    """Return no mask where it would be causal, which sdpa is by itself; else transformers' own."""
    is_windowed = local_size is not None and kv_length >= local_size
    if q_length == kv_length and rest.get("allow_is_causal_skip", True) and not is_windowed:
        return None
    return sdpa_mask(q_length=q_length, kv_length=kv_length, local_size=local_size, **rest)  # type: ignore[no-any-return]


def no_mask(**unused: Any) -> None:
    """Return no mask."""


def without_reading(hf_config: Any, attention: str) -> None:
    """Let a model attend in one of these ways, if it does by sdpa."""
    if hf_config._attn_implementation == "sdpa":  # `set_attn_implementation` would look for a package of that name
        hf_config._attn_implementation = attention


for _name, _mask in ((PADDING_LAST, padding_last_mask), (NO_PADDING, no_mask)):
    AttentionInterface.register(_name, sdpa_attention_forward)
    AttentionMaskInterface.register(_name, _mask)

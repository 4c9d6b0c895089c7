"""OpenFlamingo as RoboVLMs reads it: without queries, the largest of every feature over all tokens of a frame."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robovlms.backbones.families._flamingo_shared import CrossAttendingDecoder
from robovlms.backbones.layout import KVCache
from robovlms.backbones.text_head import FamilyTokenizer
from robovlms.registry import BACKBONES


@BACKBONES.register("flamingo_upstream")
class FlamingoUpstream(CrossAttendingDecoder):
    """Reads `[<s>] <image> {instruction} <|endofchunk|> <end of text>`, causally, and pools.

    Queries do not stand in the sequence. They are added to what is pooled, so that proprioception reaches the head;
    RoboVLMs has neither, which is a query of zeros. MPT-1B's own class (`mosaic_gpt`) returns what its layers read, so
    that RoboVLMs takes the last layer's input for its features: that layer and the last norm go unused.

    Source: RoboVLMs robovlms/model/backbone/roboflamingo.py; policy_head/base_policy.py, down_sample "pooling".
    """

    reads_queries = False

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any) -> None:
        text = model.config.text_config
        self.__dict__["reads_last_layer"] = not (text.model_type == "mpt" and text.attn_config.qk_ln)
        super().__init__(model, tokenizer, image_processor)

    def unused(self) -> list[nn.Module]:
        """Return CLIP's last norm, and what of the decoder stands behind the features."""
        behind = [] if self.reads_last_layer else [self.model.layers[-1], self.model.language_model.norm_f]
        return [*super().unused(), *behind]

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, the decoder's own layers as far as they are read, and embedding."""
        parts = super().parts()
        own = parts["text"][0]
        if self.reads_last_layer or not isinstance(own, nn.ModuleList):
            return parts
        return {**parts, "text": [own[:-1]]}

    @cached_property
    def tokenize(self) -> FamilyTokenizer:
        """The family's tokenizer, with the end of text behind the chunk."""
        family = super().tokenize
        return replace(family, behind=f"{family.behind}{self.tokenizer.eos_token}")

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
        """Return the largest of every feature over a frame's tokens, and the query; of text as in the base class."""
        masks = (view_mask, frame_mask)
        if query_ids is not None:
            return super().read(image, text_ids, text_mask, queries, kv_cache, *masks, query_ids)
        hidden, layout, _ = self.read_all(image, text_ids, text_mask, queries[:, :, :0], kv_cache, *masks)
        frames = torch.arange(image.shape[1], device=hidden.device)
        is_own = layout.mask[:, None] & (layout.frame[:, None] == frames[:, None])
        lowest = torch.finfo(hidden.dtype).min  # of a frame without tokens, which means nothing
        pooled = hidden[:, None].masked_fill(~is_own[..., None], lowest).amax(2)
        return pooled[:, :, None] + queries

"""PaliGemma as RoboVLMs reads it: causally, with its start and end tokens in other places."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from robovlms.backbones.families._paligemma_shared import FirstGemma
from robovlms.backbones.layout import Layout
from robovlms.backbones.masks import causal_mask
from robovlms.backbones.text_head import FamilyTokenizer
from robovlms.registry import BACKBONES

LINE = "\n"


@BACKBONES.register("paligemma_upstream")
class PaliGemmaUpstream(FirstGemma):
    r"""Reads `<eos> [256 tokens per view] {instruction} [queries] \n`, causally, frame by frame.

    The `\n` that closes a frame is seen by the later ones of an interleaved window.

    Source: RoboVLMs robovlms/data/data_utils.py, preprocess_text_paligemma; model/backbone/base_backbone.py.
    """

    num_closing_tokens, num_head_tokens = 1, 2
    text_end = ""

    @cached_property
    def tokenize(self) -> FamilyTokenizer:
        """The family's tokenizer, with RoboVLMs' start token and the one that closes the frame before."""
        family = super().tokenize
        return replace(family, start=(self.tokenizer.convert_tokens_to_ids(LINE), family.end_id))

    def masks(self, layout: Layout, embeds: Float[Tensor, "n s d"]) -> Any:
        """Return the causal mask; a PaliGemma config makes transformers' own bidirectional."""
        return self.additive(causal_mask(layout), layout, embeds)

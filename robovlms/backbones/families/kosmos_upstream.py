"""Kosmos-2 as RoboVLMs' interleaved checkpoints read it."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from robovlms.backbones.families._kosmos_shared import LatentDecoder
from robovlms.backbones.text_head import FamilyTokenizer
from robovlms.registry import BACKBONES


@BACKBONES.register("kosmos_upstream")
class KosmosUpstream(LatentDecoder):
    """Reads `<s> [64 latents per view] <grounding> An image of a robot {instruction} [queries] </s>`, frame by frame.

    The `</s>` that closes a frame is seen by the later ones; with one frame in a sequence this is `kosmos`.

    Source: RoboVLMs robovlms/model/backbone/base_backbone.py, history_type "pre".
    """

    num_closing_tokens, num_head_tokens = 1, 2

    @cached_property
    def tokenize(self) -> FamilyTokenizer:
        """The family's tokenizer, with the token that closes the frame before."""
        family = super().tokenize
        return replace(family, start=(family.end_id, *family.start))

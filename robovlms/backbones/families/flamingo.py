"""OpenFlamingo (arXiv:2308.01390): cross-attention in MPT, GPT-NeoX or LLaMA."""

from __future__ import annotations

from robovlms.backbones.families._flamingo_shared import CrossAttendingDecoder
from robovlms.registry import BACKBONES


@BACKBONES.register("flamingo")
class Flamingo(CrossAttendingDecoder):
    """Reads `[<s>] <image> {instruction} <|endofchunk|> [queries]`, causally.

    Upstream's closing end token is left out: it follows the query.
    """

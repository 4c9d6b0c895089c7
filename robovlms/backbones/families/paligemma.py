"""PaliGemma (arXiv:2407.07726): a bidirectional prefix before Gemma 2B."""

from __future__ import annotations

from robovlms.backbones.families._paligemma_shared import FirstGemma
from robovlms.registry import BACKBONES


@BACKBONES.register("paligemma")
class PaliGemma(FirstGemma):
    """256 tokens per 224 px view."""

"""PaliGemma (arXiv:2407.07726): a bidirectional prefix before Gemma 2B."""

from __future__ import annotations

from transformers import PaliGemmaConfig

from robovlms.backbones.families._paligemma_shared import VISION, PrefixGemma
from robovlms.registry import BACKBONES


@BACKBONES.register("paligemma")
class PaliGemma(PrefixGemma):
    """256 tokens per 224 px view."""

    text_type = "gemma"

    @classmethod
    def published_config(cls) -> PaliGemmaConfig:
        """Return the config of google/paligemma-3b-pt-224."""
        text = {
            "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
            "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 257216,
        }  # fmt: skip
        return PaliGemmaConfig(
            vision_config=VISION, text_config=text, projection_dim=2048, hidden_size=2048, image_token_index=257152
        )

    @classmethod
    def tiny(cls) -> PaliGemma:
        """Build 2 + 2 layers with 16 tokens per 56 px image."""
        return cls(*cls._tiny_model())

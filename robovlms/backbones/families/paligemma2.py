"""PaliGemma 2 (arXiv:2412.03555): a bidirectional prefix before Gemma 2, whose attention logits are capped."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from transformers import PaliGemmaConfig

from robovlms.backbones.families._paligemma_shared import VISION, PrefixGemma
from robovlms.backbones.layout import Layout
from robovlms.backbones.masks import prefix_mask
from robovlms.registry import BACKBONES


@BACKBONES.register("paligemma2")
class PaliGemma2(PrefixGemma):
    """256 tokens per 224 px view. The cap needs eager attention."""

    text_type = "gemma2"
    attentions = ("eager",)

    @classmethod
    def published_config(cls) -> PaliGemmaConfig:
        """Return the config of google/paligemma2-3b-pt-224."""
        text = {
            "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 257216,
        }  # fmt: skip
        return PaliGemmaConfig(
            vision_config=VISION, text_config=text, projection_dim=2304, hidden_size=2304, image_token_index=257152
        )

    @classmethod
    def tiny(cls) -> PaliGemma2:
        """Build 2 + 2 layers with 16 tokens per 56 px image; the first sees 8 tokens back beyond its prefix."""
        model, tokenizer, processor = cls._tiny_model(sliding_window=8)
        model.set_attn_implementation("eager")
        return cls(model, tokenizer, processor)

    def masks(self, layout: Layout, embeds: Float[Tensor, "n s d"]) -> dict[str, Float[Tensor, "n 1 s l"]]:
        """Return the mask of the full and of the sliding layers."""
        window = self.model.config.text_config.sliding_window
        return {
            "full_attention": self.additive(prefix_mask(layout), layout, embeds),
            "sliding_attention": self.additive(prefix_mask(layout, window), layout, embeds),
        }

"""Qwen3.5: Qwen3-VL's vision tower without DeepStack; in the decoder, three layers of linear attention to a full one.

Source: the linear layers are gated delta networks, arXiv:2412.06464.
"""

from __future__ import annotations

from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers import Qwen2VLImageProcessorPil, Qwen3_5Config, Qwen3_5Model, Qwen3_5Tokenizer

from robovlms.backbones.families._qwen_shared import BEFORE, BEHIND, IMAGE, VIDEO, LearnedPositions
from robovlms.backbones.layout import Layout
from robovlms.backbones.tiny import TINY_BYTES, TINY_TEXT
from robovlms.registry import BACKBONES

TINY_AREA = 64 * 64  # px: 2 x 2 tokens of 2 x 2 patches of 16
MARKS = [BEFORE, BEHIND, IMAGE, VIDEO]


@BACKBONES.register("qwen3_5")
class Qwen35(LearnedPositions):
    """Sees a view of 224 px, upscaled to 256, as 64 tokens.

    Linear layers carry a state from token to token instead of looking back; they are causal as the full ones are.
    """

    can_cache = can_parallel = False  # linear attention
    hybrid_layers = ("linear_attention", "full_attention")
    model_type = "qwen3_5"
    pixels = 256

    @classmethod
    def published_config(cls) -> Qwen3_5Config:
        """Return the config of Qwen/Qwen3.5-2B, without the extra layer that predicts a second token."""
        vision = {
            "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2048,
        }  # fmt: skip
        text = {
            "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_attention_heads": 8,
            "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 248320, "max_position_embeddings": 262144,
            "linear_num_key_heads": 16, "linear_num_value_heads": 16, "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e7, "mrope_section": [11, 11, 10], "mrope_interleaved": True,
                "partial_rotary_factor": 0.25,
            },
        }  # fmt: skip
        return Qwen3_5Config(vision_config=vision, text_config=text, tie_word_embeddings=True)

    @classmethod
    def tiny(cls) -> Qwen35:
        """Build 2 vision layers, a linear and a full decoder layer, with 4 tokens per 64 px image."""
        tokenizer = tiny_tokenizer()
        vision = {
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "num_position_embeddings": 16,
            "out_hidden_size": TINY_TEXT["hidden_size"],
        }  # fmt: skip
        text = {
            "num_key_value_heads": 2, "head_dim": 32, "vocab_size": len(tokenizer), **TINY_TEXT,
            "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 16,
            "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e7, "mrope_section": [2, 1, 1], "mrope_interleaved": True,
                "partial_rotary_factor": 0.25,
            },
        }  # fmt: skip
        before, behind, image, video = (tokenizer.get_vocab()[mark] for mark in MARKS)
        config = Qwen3_5Config(
            vision_config=vision, text_config=text, tie_word_embeddings=True, image_token_id=image,
            video_token_id=video, vision_start_token_id=before, vision_end_token_id=behind,
        )  # fmt: skip
        processor = Qwen2VLImageProcessorPil(
            size={"shortest_edge": TINY_AREA, "longest_edge": TINY_AREA},
            patch_size=16, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5],
        )  # fmt: skip
        return cls(Qwen3_5Model(config), tokenizer, processor)

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the merged patches between the family's marks."""
        tokens = rearrange(self.run_vision(images).pooler_output, "(n m) d -> n m d", n=images.shape[0])
        return self.put_marks(tokens.to(self.embedding.weight.dtype))

    def decode(self, embeds: Float[Tensor, "n s d"], layout: Layout, cache: Any = None) -> Float[Tensor, "n s d"]:
        """Run the causal decoder."""
        return self.run(embeds, layout, cache, self.positions(layout))


def tiny_tokenizer() -> Qwen3_5Tokenizer:
    """Return Qwen3.5's tokenizer class with one token per byte, then the marks."""
    vocab = {token: i for i, token in enumerate(["<|endoftext|>", *TINY_BYTES, *MARKS])}
    return Qwen3_5Tokenizer(vocab=vocab, merges=[], extra_special_tokens=MARKS)

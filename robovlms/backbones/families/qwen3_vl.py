"""Qwen3-VL (arXiv:2511.21631): a ViT with learned positions, 2 x 2 patches a token, DeepStack, 3-D rotary positions."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers import Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLModel

from robovlms.backbones.families._qwen_shared import BEFORE, BEHIND, IMAGE, VIDEO, LearnedPositions
from robovlms.backbones.layout import Layout
from robovlms.backbones.tiny import TINY_TEXT, tiny_qwen_tokenizer
from robovlms.registry import BACKBONES

TINY_AREA = 64 * 64  # px: 2 x 2 tokens of 2 x 2 patches of 16


@BACKBONES.register("qwen3_vl")
class Qwen3VL(LearnedPositions):
    """Sees a view of 224 px, upscaled to 256, as 64 tokens.

    What earlier vision layers saw of a token (DeepStack, arXiv:2406.04334) is added to it behind the first decoder
    layers.
    """

    model_type = "qwen3_vl"
    pixels = 256

    @classmethod
    def published_config(cls) -> Qwen3VLConfig:
        """Return the config of Qwen/Qwen3-VL-2B-Instruct."""
        vision = {
            "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2048,
            "deepstack_visual_indexes": [5, 11, 17],
        }  # fmt: skip
        text = {
            "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True,
            },
        }  # fmt: skip
        return Qwen3VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=True)

    @classmethod
    def tiny(cls) -> Qwen3VL:
        """Build 2 + 2 layers with 4 tokens per 64 px image; the first vision layer feeds the first decoder layer."""
        tokenizer = tiny_qwen_tokenizer((BEFORE, BEHIND, IMAGE, VIDEO))
        vision = {
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "num_position_embeddings": 16,
            "out_hidden_size": TINY_TEXT["hidden_size"], "deepstack_visual_indexes": [0],
        }  # fmt: skip
        text = {
            "num_key_value_heads": 2, "head_dim": 16, "vocab_size": len(tokenizer), **TINY_TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 3, 3]},
        }  # fmt: skip
        config = Qwen3VLConfig(
            vision_config=vision, text_config=text, tie_word_embeddings=True,
            image_token_id=tokenizer.get_vocab()[IMAGE], video_token_id=tokenizer.get_vocab()[VIDEO],
            vision_start_token_id=tokenizer.get_vocab()[BEFORE], vision_end_token_id=tokenizer.get_vocab()[BEHIND],
        )  # fmt: skip
        processor = Qwen2VLImageProcessorPil(
            size={"shortest_edge": TINY_AREA, "longest_edge": TINY_AREA},
            patch_size=16, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5],
        )  # fmt: skip
        return cls(Qwen3VLModel(config), tokenizer, processor)

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m e"]:
        """Return the merged patches between the family's marks; behind each token, what earlier layers saw of it."""
        output = self.run_vision(images)
        layers = torch.cat([output.pooler_output, *output.deepstack_features], dim=-1)
        tokens = rearrange(layers, "(n m) e -> n m e", n=images.shape[0])
        return self.put_marks(tokens.to(self.embedding.weight.dtype))

    def decode(self, embeds: Float[Tensor, "n s e"], layout: Layout, cache: Any = None) -> Float[Tensor, "n s d"]:
        """Run the causal decoder on the first d entries of every token; the rest of image tokens is DeepStack."""
        tokens, *deeper = embeds.split(self.hidden_dim, dim=-1)
        is_patch = layout.patch[:, -embeds.shape[1] :, None] >= 0
        # transformers adds these to the tokens at an index. It is that of whole sequences, with zeros at what is no
        # patch: a mask of patches would be counted by the host.
        everywhere = torch.arange(len(tokens), device=tokens.device)
        deepstack = [torch.where(is_patch, each, 0) for each in deeper]
        options = {"visual_pos_masks": everywhere, "deepstack_visual_embeds": deepstack}
        return self.run(tokens, layout, cache, self.positions(layout), **options)

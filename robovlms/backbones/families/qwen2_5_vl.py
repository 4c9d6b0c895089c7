"""Qwen2.5-VL (arXiv:2502.13923): a ViT with window attention, 2 x 2 patches a token, rotary positions in 3-D."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLImageProcessorPil

from robovlms.backbones.families._qwen_shared import BEFORE, BEHIND, IMAGE, VIDEO, QwenFamily
from robovlms.backbones.layout import Layout
from robovlms.backbones.tiny import TINY_IMAGE_SIZE, TINY_TEXT, tiny_qwen_tokenizer
from robovlms.errors import UserError
from robovlms.registry import BACKBONES


@BACKBONES.register("qwen2_5_vl")
class Qwen25VL(QwenFamily):
    """Sees a view of 224 px as 64 tokens."""

    model_type = "qwen2_5_vl"
    pixels = 224

    @classmethod
    def published_config(cls) -> Qwen2_5_VLConfig:
        """Return the config of Qwen/Qwen2.5-VL-3B-Instruct."""
        vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
        text = {
            "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 128000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        }  # fmt: skip
        return Qwen2_5_VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=True)

    @classmethod
    def tiny(cls) -> Qwen25VL:
        """Build 2 + 2 layers with 4 tokens per 56 px image; the first vision layer sees windows of one token."""
        tokenizer = tiny_qwen_tokenizer((BEFORE, BEHIND, IMAGE, VIDEO))
        vision = {
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "window_size": 28,
            "out_hidden_size": TINY_TEXT["hidden_size"], "fullatt_block_indexes": [1],
        }  # fmt: skip
        text = {
            "num_key_value_heads": 2, "vocab_size": len(tokenizer), **TINY_TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        }  # fmt: skip
        config = Qwen2_5_VLConfig(
            vision_config=vision, text_config=text, tie_word_embeddings=True,
            image_token_id=tokenizer.get_vocab()[IMAGE], video_token_id=tokenizer.get_vocab()[VIDEO],
        )  # fmt: skip
        area = TINY_IMAGE_SIZE**2
        processor = Qwen2VLImageProcessorPil(size={"shortest_edge": area, "longest_edge": area})
        return cls(Qwen2_5_VLModel(config), tokenizer, processor)

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the merged patches between the family's marks."""
        tokens = rearrange(self.run_vision(images).pooler_output, "(n m) d -> n m d", n=images.shape[0])
        return self.put_marks(tokens.to(self.embedding.weight.dtype))

    def geometry(self, n: int, side: int, device: torch.device) -> dict[str, Any]:
        """Add the windows that most vision layers attend in."""
        vision = self.model.config.vision_config
        tokens, window = side // vision.spatial_merge_size, vision.window_size // vision.patch_size
        window //= vision.spatial_merge_size  # tokens in a row of a window
        if tokens % window:
            raise UserError(
                f"backbone=qwen2_5_vl reads images of a multiple of {vision.window_size} px, but the image processor "
                f"of backbone.checkpoint makes {side * vision.patch_size}: set size in preprocessor_config.json."
            )
        order = torch.arange(n * tokens**2, device=device)
        order = rearrange(order, "(n i a j b) -> (n i j a b)", n=n, a=window, j=tokens // window, b=window)
        patches = (window * vision.spatial_merge_size) ** 2
        return {
            **super().geometry(n, side, device),
            "window_index": order,
            "cu_window_seqlens": torch.arange(
                n * (tokens // window) ** 2 + 1, dtype=torch.int32, device=device
            ) * patches,
            "max_window_seqlen": patches,
        }  # fmt: skip

    def decode(self, embeds: Float[Tensor, "n s d"], layout: Layout, cache: Any = None) -> Float[Tensor, "n s d"]:
        """Run the causal decoder."""
        return self.run(embeds, layout, cache, self.positions(layout))

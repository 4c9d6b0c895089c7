"""LLaVA-OneVision (arXiv:2408.03326): SigLIP-So400m at 384 px, one token per patch, Qwen2."""

from __future__ import annotations

from typing import Any

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlavaOnevisionConfig, LlavaOnevisionImageProcessorPil, LlavaOnevisionModel

from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.tiny import TINY_IMAGE_SIZE, TINY_TEXT, TINY_VISION, tiny_qwen_tokenizer
from robovlms.registry import BACKBONES


@BACKBONES.register("llava_onevision")
class LlavaOnevision(HuggingFaceBackbone):
    """Reads `[729 tokens newline, per view] {instruction} [queries]`, causally, without a chat template.

    Every view is one image of the vision tower's size, as the family itself reads several images: no tiles.
    """

    model_type = "llava_onevision"
    attentions = ("sdpa", "eager", "flash_attention_2")
    prompt = "{instruction}"
    has_start = False

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any) -> None:
        super().__init__(model, tokenizer, image_processor)
        self.num_marks = (0, 1)  # the newline, a parameter of the model

    @classmethod
    def published_config(cls) -> LlavaOnevisionConfig:
        """Return the config of llava-hf/llava-onevision-qwen2-0.5b-ov-hf; the vision tower is the class's default."""
        text = {
            "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 152000,
            "max_position_embeddings": 32768, "tie_word_embeddings": True,
        }  # fmt: skip
        return LlavaOnevisionConfig(text_config=text, tie_word_embeddings=True)

    @classmethod
    def tiny(cls) -> LlavaOnevision:
        """Build 2 + 2 layers with 16 tokens per 56 px image."""
        tokenizer = tiny_qwen_tokenizer(("<image>", "<video>"))
        text = {"model_type": "qwen2", "num_key_value_heads": 2, "vocab_size": len(tokenizer), **TINY_TEXT}
        vision = {"model_type": "siglip_vision_model", "vision_use_head": False, **TINY_VISION}
        config = LlavaOnevisionConfig(
            vision_config=vision, text_config=text, image_grid_pinpoints=[[TINY_IMAGE_SIZE, TINY_IMAGE_SIZE]],
            image_token_index=tokenizer.get_vocab()["<image>"],
            video_token_index=tokenizer.get_vocab()["<video>"],
        )  # fmt: skip
        size = {"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE}
        return cls(LlavaOnevisionModel(config), tokenizer, LlavaOnevisionImageProcessorPil(size=size))

    def unused(self) -> list[nn.Module]:
        """Return the vision tower's final norm, which is not between its layers and the projector."""
        return [m for name, m in self.model.vision_tower.named_modules() if name.endswith("post_layernorm")]

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, decoder and embedding; projector and newline are always trained."""
        text = self.model.language_model
        return {"vision": [self.model.vision_tower], "text": [text.layers, text.norm], "embeddings": [self.embedding]}

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the projected patches of each image, and the newline that ends it.

        Not through `get_image_features`, which makes tiles of a lone image.
        """
        states = self.model.vision_tower(images, output_hidden_states=True).hidden_states
        patches = self.model.multi_modal_projector(states[self.model.config.vision_feature_layer])
        newline = repeat(self.model.image_newline, "d -> n 1 d", n=images.shape[0]).to(patches.dtype)
        return torch.cat([patches, newline], dim=1).to(self.embedding.weight.dtype)

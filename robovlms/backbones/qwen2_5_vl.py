"""Qwen2.5-VL (arXiv:2502.13923): a ViT with window attention, 2 x 2 patches a token, rotary positions in 3-D."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from robovlms.backbones.base import Layout
from robovlms.backbones.huggingface import TINY_IMAGE_SIZE, TINY_TEXT, HuggingFaceBackbone, tiny_qwen_tokenizer
from robovlms.registry import BACKBONES
from robovlms.types import ImageSpec

IMAGE_SIZE = 224  # px: 64 tokens a view; the family reads any size, and this is what robots mostly record
BEFORE, BEHIND, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"


@BACKBONES.register("qwen2_5_vl")
class Qwen25VL(HuggingFaceBackbone):
    """Reads `[start 64 tokens end, per view] {instruction} [queries]`, causally, without a chat template.

    Image tokens get their row and column as position, text and queries go on behind the largest of them.
    """

    model_type = "qwen2_5_vl"
    attentions = ("sdpa", "eager", "flash_attention_2")
    has_start = False
    image_marks = ((BEFORE,), (BEHIND,))

    @classmethod
    def published_config(cls) -> Qwen2_5_VLConfig:
        """Give the config of Qwen/Qwen2.5-VL-3B-Instruct."""
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

    def _make_image_spec(self) -> ImageSpec:
        processor, vision = self.image_processor, self.model.config.vision_config
        limits = (processor.size["shortest_edge"], processor.size["longest_edge"])
        size, _ = smart_resize(IMAGE_SIZE, IMAGE_SIZE, vision.patch_size * vision.spatial_merge_size, *limits)
        return self._spec_of_size(size)

    def parts(self) -> dict[str, list[nn.Module]]:
        """Give vision tower, decoder and embedding; the merger between them is always trained."""
        vision, text = self.model.visual, self.model.language_model
        return {
            "vision": [vision.patch_embed, vision.blocks],
            "text": [text.layers, text.norm],
            "embeddings": [self.embedding],
        }

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Give the merged patches between the family's marks; an image is a video of one frame, shown twice."""
        vision = self.model.config.vision_config
        p, merge = vision.patch_size, vision.spatial_merge_size
        patches = rearrange(
            repeat(images, "n c h x -> n c t h x", t=vision.temporal_patch_size),
            "n c t (h i p) (x j q) -> (n h x i j) (c t p q)", i=merge, j=merge, p=p, q=p,
        )  # fmt: skip
        side = images.shape[-1] // p
        grids = torch.tensor([[1, side, side]]).repeat(len(images), 1)
        tokens = torch.stack(self.model.get_image_features(patches, grids.to(images.device)).pooler_output)
        return self.put_marks(tokens.to(self.embedding.weight.dtype))

    def decode(self, embeds: Float[Tensor, "n s d"], layout: Layout) -> Float[Tensor, "n s d"]:
        """Run the causal decoder."""
        vision = self.model.config.vision_config
        side = self.image_spec.size // (vision.patch_size * vision.spatial_merge_size)
        hidden: Tensor = self.model.language_model(
            inputs_embeds=embeds,
            attention_mask=layout.mask.long(),
            position_ids=rotary_positions(layout, side),
            use_cache=False,
        ).last_hidden_state
        return hidden


def rotary_positions(layout: Layout, side: int) -> Int64[Tensor, "3 n s"]:
    """Give time, row and column of every token, where an image is `side` x `side` tokens.

    An image starts behind what precedes it and moves what follows by `side`; any other token by 1.
    """
    patch, is_patch = layout.patch.clamp(min=0), layout.patch >= 0
    advance = torch.where(is_patch, side * (layout.patch == side * side - 1), 1)
    start = advance.cumsum(1) - advance
    return torch.stack([start, start + patch // side, start + patch % side])

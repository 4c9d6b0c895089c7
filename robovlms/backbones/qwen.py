"""What Qwen2.5-VL and Qwen3-VL share: images cut into blocks of patches, and positions by row and column."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from robovlms.backbones.base import Layout
from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.types import ImageSpec

IMAGE_SIZE = 224  # px; the family reads any size, and this is what robots mostly record
BEFORE, BEHIND, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"


class QwenVL(HuggingFaceBackbone):
    """Reads `[start image end, per view] {instruction} [queries]`, causally, without a chat template.

    Image tokens get their row and column as position, text and queries go on behind the largest of them.
    """

    attentions = ("sdpa", "eager", "flash_attention_2")
    prompt = "{instruction}"
    has_start = False
    image_marks = ((BEFORE,), (BEHIND,))

    def _make_image_spec(self) -> ImageSpec:
        vision, limits = self.model.config.vision_config, self.image_processor.size
        factor = vision.patch_size * vision.spatial_merge_size
        size, _ = smart_resize(IMAGE_SIZE, IMAGE_SIZE, factor, limits["shortest_edge"], limits["longest_edge"])
        return self._spec_of_size(size)

    def parts(self) -> dict[str, list[nn.Module]]:
        """Give vision tower, decoder and embedding; what merges patches into tokens is always trained."""
        vision, text = self.model.visual, self.model.language_model
        return {
            "vision": [module for name, module in vision.named_children() if "merger" not in name],
            "text": [text.layers, text.norm],
            "embeddings": [self.embedding],
        }

    def see(self, images: Float[Tensor, "n c h x"]) -> Any:
        """Give the vision tower's output; an image is a video of one frame, shown twice."""
        vision = self.model.config.vision_config
        p, merge = vision.patch_size, vision.spatial_merge_size
        patches = rearrange(
            repeat(images, "n c h x -> n c t h x", t=vision.temporal_patch_size),
            "n c t (h i p) (x j q) -> (n h x i j) (c t p q)", i=merge, j=merge, p=p, q=p,
        )  # fmt: skip
        side = images.shape[-1] // p
        grids = torch.tensor([[1, side, side]]).repeat(len(images), 1)
        return self.model.get_image_features(patches, grids.to(images.device))

    def positions(self, layout: Layout) -> Int64[Tensor, "3 n s"]:
        """Give time, row and column of every token."""
        vision = self.model.config.vision_config
        return rotary_positions(layout, self.image_spec.size // (vision.patch_size * vision.spatial_merge_size))


def rotary_positions(layout: Layout, side: int) -> Int64[Tensor, "3 n s"]:
    """Give time, row and column of every token, where an image is `side` x `side` tokens.

    An image starts behind what precedes it and moves what follows by `side`; any other token by 1.
    """
    patch, is_patch = layout.patch.clamp(min=0), layout.patch >= 0
    advance = torch.where(is_patch, side * (layout.patch == side * side - 1), 1)
    start = advance.cumsum(1) - advance
    return torch.stack([start, start + patch // side, start + patch % side])

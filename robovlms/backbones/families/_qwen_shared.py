"""What Qwen2.5-VL and Qwen3-VL share: images cut into blocks of patches, and positions by row and column."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.layout import Layout
from robovlms.types import ImageSpec

IMAGE_SIZE = 224  # px; the family reads any size, and this is what robots mostly record
EQUAL_SEGMENTS = "flash_equal_segments"
"""Name of `attend_in_segments`: only an attention with flash in its name is handed all packed images at once."""
BEFORE, BEHIND, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"


class QwenFamily(HuggingFaceBackbone):
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
        """Return vision tower, decoder and embedding; what merges patches into tokens is always trained."""
        vision, text = self.model.visual, self.model.language_model
        return {
            "vision": [module for name, module in vision.named_children() if "merger" not in name],
            "text": [text.layers, text.norm],
            "embeddings": [self.embedding],
        }

    def run_vision(self, images: Float[Tensor, "n c h x"]) -> Any:
        """Return the vision tower's output, all images in one row; an image is a video of one frame, repeated."""
        tower = self.model.visual
        vision = tower.config
        p, merge = vision.patch_size, vision.spatial_merge_size
        patches = rearrange(
            repeat(images, "n c h x -> n c t h x", t=vision.temporal_patch_size),
            "n c t (h i p) (x j q) -> (n h x i j) (c t p q)", i=merge, j=merge, p=p, q=p,
        )  # fmt: skip
        side = images.shape[-1] // p
        if vision._attn_implementation == "sdpa":  # `set_attn_implementation` would look for a package of that name
            vision._attn_implementation = EQUAL_SEGMENTS
        grids = torch.full((images.shape[0], 3), side, device=images.device)
        grids[:, 0] = 1
        return tower(patches.to(tower.dtype), grid_thw=grids, **self.geometry(images.shape[0], side, images.device))

    def geometry(self, n: int, side: int, device: torch.device) -> dict[str, Any]:
        """Say what transformers would read off `grid_thw`, which stops the GPU: where patches stand, where images end.

        Args:
            n: number of images.
            side: patches in a row of an image.
            device: where the images are.
        """
        merge = self.model.config.vision_config.spatial_merge_size
        rows = torch.arange(side, device=device).expand(side, side).T
        blocks = [rearrange(each, "(h i) (x j) -> (h x i j)", i=merge, j=merge) for each in (rows, rows.T)]
        return {
            "position_ids": torch.stack(blocks, dim=1).repeat(n, 1),
            "cu_seqlens": torch.arange(n + 1, dtype=torch.int32, device=device) * side**2,
            "max_seqlen": side**2,
        }

    def positions(self, layout: Layout) -> Int64[Tensor, "3 n s"]:
        """Return time, row and column of every token."""
        vision = self.model.config.vision_config
        return rotary_positions(layout, self.image_spec.size // (vision.patch_size * vision.spatial_merge_size))


def rotary_positions(layout: Layout, side: int) -> Int64[Tensor, "3 n s"]:
    """Return time, row and column of every token, where an image is `side` x `side` tokens.

    An image starts behind what precedes it and moves what follows by `side`, padding moves nothing, any other token 1.
    """
    patch, is_patch = layout.patch.clamp(min=0), layout.patch >= 0
    advance = torch.where(is_patch, side * (layout.patch == side * side - 1), layout.mask.long())
    start = advance.cumsum(1) - advance
    return torch.stack([start, start + patch // side, start + patch % side])


def attend_in_segments(
    module: nn.Module,
    query: Float[Tensor, "1 g s e"],
    key: Float[Tensor, "1 g s e"],
    value: Float[Tensor, "1 g s e"],
    attention_mask: None,
    scaling: float,
    max_length_q: int,
    **unused: Any,
) -> tuple[Float[Tensor, "1 s g e"], None]:
    """Attend within every `max_length_q` tokens, all segments in one call.

    Our images are equally large. transformers' own sdpa path takes one call for each image or window of each layer.
    """
    q, k, v = (rearrange(each, "1 g (n l) e -> n g l e", l=max_length_q) for each in (query, key, value))
    return rearrange(F.scaled_dot_product_attention(q, k, v, scale=scaling), "n g l e -> 1 (n l) g e"), None


AttentionInterface.register(EQUAL_SEGMENTS, attend_in_segments)

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
from robovlms.backbones.masks import without_reading
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
        without_reading(vision, EQUAL_SEGMENTS)
        grids = F.pad(torch.full((images.shape[0], 2), side, device=images.device), (1, 0), value=1)
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


class LearnedPositions(QwenFamily):
    """Those of Qwen3: patches also have learned positions, a square table that is stretched over the image."""

    def geometry(self, n: int, side: int, device: torch.device) -> dict[str, Any]:
        """Add which entries of the table a patch's position is mixed of, and the shares."""
        geometry = super().geometry(n, side, device)
        table = self.model.visual.num_grid_per_side
        rows, columns = (stretched(place, side, table) for place in geometry["position_ids"].unbind(1))
        entries = rearrange(table * rows[0][:, :, None] + columns[0][:, None], "p i j -> p (i j)")
        shares = rearrange(rows[1][:, :, None] * columns[1][:, None], "p i j -> p (i j)")
        return {**geometry, "interp_indices": entries, "interp_weights": shares}


def stretched(place: Int64[Tensor, "p"], side: int, table: int) -> tuple[Int64[Tensor, "p 2"], Float[Tensor, "p 2"]]:
    """Return the two of `table` entries that each of `side` places lies between, corner on corner, and their shares."""
    exact = place.float() * (table - 1) / max(side - 1, 1)
    entries = exact.floor().long()[:, None] + torch.arange(2, device=place.device)
    return entries.clamp(max=table - 1), 1 - (exact[:, None] - entries).abs()


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

"""Instructions and frames to tensors: the same object in training and rollout.

Host side: prompts to padded token ids and, on request, exact PIL resizing. Device side: uint8 frames to normalised
images.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from robovlms.backbones.base import Backbone
from robovlms.choices import Resize
from robovlms.types import Batch

REFERENCE_PX = 224  # image size at which random shifts are given


class Processor:
    """What stands between robot data and a backbone."""

    def __init__(
        self, backbone: Backbone, views: list[str], *, max_text_tokens: int, resize: Resize = Resize.device
    ) -> None:
        self.image_spec = backbone.image_spec
        self.resize = resize
        # The last view stands first in the token sequence, so that the main (first) camera is nearest to the text.
        # Source: RoboVLMs base_backbone.py, which inserts the wrist image before the static one.
        self.views = views[::-1]
        self._prompt, self._max_text_tokens = backbone.prompt, max_text_tokens
        self._tokens = lru_cache(maxsize=10_000)(lambda prompt: backbone.tokenize([prompt])[0])

    def text(self, instructions: list[str]) -> tuple[Int64[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Tokenise and right-pad to the longest of the batch.

        Raises:
            ValueError: an instruction longer than backbone.max_text_tokens.
        """
        rows = [self._tokens(self._prompt.format(instruction=instruction.strip())) for instruction in instructions]
        longest = max(len(row) for row in rows)
        if longest > self._max_text_tokens:
            text = instructions[[len(row) for row in rows].index(longest)]
            raise ValueError(
                f"instruction of {longest} tokens exceeds backbone.max_text_tokens={self._max_text_tokens}: {text!r}"
            )
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return ids, mask

    def host_frames(self, frames: UInt8[np.ndarray, "w _h _x c"]) -> UInt8[np.ndarray, "w h x c"]:
        """Resize with PIL, as the checkpoint's own image processor does, when `resize` is host; otherwise give the
        frames as they are.
        """
        size = self.image_spec.size
        if self.resize is Resize.device or frames.shape[1:3] == (size, size):
            return frames
        return np.stack([np.asarray(Image.fromarray(f).resize((size, size), self.image_spec.resample)) for f in frames])

    def images(self, batch: Batch) -> Float[Tensor, "b w v c h x"]:
        """Resize, shift and normalise on the device the batch is on."""
        views = []
        for view in self.views:
            frames = rearrange(batch.frames[view], "b w h x c -> (b w) c h x")
            frames = resize_frames(frames, self.image_spec.size, self.image_spec.resample)
            if batch.shifts is not None and view in batch.shifts:
                frames = shift_frames(frames, rearrange(batch.shifts[view], "b w s -> (b w) s"))
            views.append(rearrange(frames, "(b w) c h x -> b w c h x", b=len(batch)))
        images = torch.stack(views, dim=2).float()
        mean, std = (images.new_tensor(value).view(-1, 1, 1) for value in (self.image_spec.mean, self.image_spec.std))
        return images.sub_(255 * mean).div_(255 * std)


def resize_frames(
    frames: UInt8[Tensor, "n c _h _x"], size: int, resample: Resampling = Resampling.BICUBIC
) -> UInt8[Tensor, "n c h x"]:
    """Resize to `size` square, antialiased: bilinear or bicubic, which also stands in for Lanczos.

    On real frames within 8/255 (mean 0.25/255) of PIL's, which rounds twice, and 16/255 (mean 1.3/255) of its Lanczos.
    """
    if frames.shape[-2:] == (size, size):
        return frames
    mode = "bilinear" if resample is Resampling.BILINEAR else "bicubic"
    resized = F.interpolate(frames.float(), (size, size), mode=mode, antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def shift_frames(frames: UInt8[Tensor, "n c h x"], shifts: Int64[Tensor, "n 2"]) -> UInt8[Tensor, "n c h x"]:
    """Move each frame by whole pixels (down, right), repeating the border.

    Equal to DrQ's pad-and-crop (arXiv:2004.13649), without padding or interpolation.
    """
    height, width = frames.shape[-2:]
    rows = (torch.arange(height, device=frames.device) - shifts[:, :1]).clamp_(0, height - 1)
    columns = (torch.arange(width, device=frames.device) - shifts[:, 1:]).clamp_(0, width - 1)
    n = torch.arange(len(frames), device=frames.device)
    channels_last = frames.permute(0, 2, 3, 1)
    return channels_last[n[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

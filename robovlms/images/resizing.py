"""Recorded pictures to the vision tower's square: by PIL on the host, or on the device as PIL does it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from robovlms.config.choices import Fit
from robovlms.types import ImageSpec


def resize_picture(picture: Image.Image, spec: ImageSpec, fit: Fit) -> UInt8[np.ndarray, "h x c"]:
    """Make a picture square and resize it with PIL."""
    if fit is Fit.pad:
        side = max(picture.size)
        square = Image.new("RGB", (side, side), background(spec))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        picture = square
    rows, columns = resized_shape(picture.height, picture.width, spec.size, fit)
    top, left = (rows - spec.size) // 2, (columns - spec.size) // 2
    picture = picture.resize((columns, rows), spec.interpolation)
    return np.asarray(picture.crop((left, top, left + spec.size, top + spec.size)))


def resize_frames(
    frames: UInt8[Tensor, "n c _h _x"], spec: ImageSpec, fit: Fit = Fit.stretch
) -> UInt8[Tensor, "n c h x"]:
    """Make frames square and resize them as PIL does, along each row first, each pass rounded: within 1/255 of it on
    a CPU, within 2/255 elsewhere.

    Of frames that are higher than wide, Pillow 13 resizes columns first, when that is less work.
    """
    height, width = frames.shape[-2:]
    if height == width == spec.size:
        return frames
    if fit is Fit.pad and height != width:
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        square = channels(background(spec), frames).repeat(frames.shape[0], 1, side, side)
        square[..., top : top + height, left : left + width] = frames
        frames = square
    height, width = frames.shape[-2:]
    rows, columns = resized_shape(height, width, spec.size, fit)
    if frames.device.type == "cpu" and spec.interpolation is not Resampling.LANCZOS:  # in integers, as PIL: 10x as fast
        mode = "bilinear" if spec.interpolation is Resampling.BILINEAR else "bicubic"
        resized = F.interpolate(frames, (rows, columns), mode=mode, antialias=True)
    else:
        resized = resample(frames.float(), -1, columns, spec.interpolation)
        resized = resample(resized, -2, rows, spec.interpolation)
    top, left = (rows - spec.size) // 2, (columns - spec.size) // 2
    return resized[..., top : top + spec.size, left : left + spec.size].to(torch.uint8)


def resized_shape(height: int, width: int, size: int, fit: Fit) -> tuple[int, int]:
    """Return the height and width that a frame is resized to, before what is beyond `size` is cut off."""
    short = min(height, width)
    return (size * height // short, size * width // short) if fit is Fit.crop else (size, size)


def background(spec: ImageSpec) -> tuple[int, ...]:
    """Return the colour that normalisation makes grey: what LLaVA-OneVision and UForm-Gen2 pad with."""
    return tuple(int(255 * value) for value in spec.mean)


def channels(values: Sequence[float | int], like: Shaped[Tensor, "..."]) -> Shaped[Tensor, "c 1 1"]:
    """Return a number for each channel, of the type and on the device of a tensor.

    Numbers are filled in there: a tensor made of them on the host would be copied, for which the host waits.
    """
    return torch.stack([like.new_full((1, 1), value) for value in values])


def resample(
    frames: Float[Tensor, "n c _h _x"], axis: int, length: int, method: Resampling
) -> Float[Tensor, "n c h x"]:
    """Resize one axis, antialiased: 0 to 255, rounded."""
    if frames.shape[axis] == length:
        return frames
    if method is Resampling.LANCZOS:
        weights = lanczos_weights(frames.shape[axis], length, frames.device)
        with torch.autocast(frames.device.type, enabled=False):
            resized = frames @ weights.T if axis == -1 else weights @ frames
    else:
        mode = "bilinear" if method is Resampling.BILINEAR else "bicubic"
        shape = (frames.shape[-2], length) if axis == -1 else (length, frames.shape[-1])
        resized = F.interpolate(frames, shape, mode=mode, antialias=True)
    return resized.round_().clamp_(0, 255)


@lru_cache(maxsize=32)
def lanczos_weights(old: int, new: int, device: torch.device) -> Float[Tensor, "_new _old"]:
    """Return what each of `new` pixels takes of the `old` ones, as PIL does: a window of three lobes."""
    scale = old / new
    wide = max(scale, 1.0)
    centers = (torch.arange(new, dtype=torch.float64)[:, None] + 0.5) * scale
    offsets = (torch.arange(old, dtype=torch.float64) + 0.5 - centers) / wide
    weights = torch.where(offsets.abs() < 3, torch.sinc(offsets) * torch.sinc(offsets / 3), 0)
    return (weights / weights.sum(1, keepdim=True)).float().to(device)

"""Random crop, shift and colour jitter of images, batched, on the device they are on.

Numbers are drawn elsewhere (`images/draws.py`); these functions only apply them, one row per image. Images are RGB
in [0, 255], uint8 or float; results have the type and size of what was given, uint8 rounded to the nearest. Arithmetic
is float32 without matrix products, so that neither TF32 nor autocast changes a pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64, Real, Shaped
from torch import Tensor

RED, GREEN, BLUE = 0.299, 0.587, 0.114  # grey: ITU-R 601-2 luma, as PIL's convert("L")


def crop_images(images: Real[Tensor, "n c h x"], crops: Float32[Tensor, "n 3"]) -> Real[Tensor, "n c h x"]:
    """Stretch a part of each image over the whole of it.

    A crop is (side, top, left): its sides, and where it starts, as shares of the image's height and width, so that the
    ratio of the sides is the image's own. Side 1 is the identity. Interpolation is bilinear between pixel centres,
    the border repeated (align_corners=False). It is not antialiased and need not be: a crop only ever magnifies. What
    makes images smaller, the resize to the model's size, comes after it and is antialiased.
    """
    height, width = images.shape[-2:]
    rows, columns = _places(crops[:, 0], crops[:, 1], height), _places(crops[:, 0], crops[:, 2], width)
    # What F.affine_grid gives; that is a matrix product, whose TF32 form is off by tenths of a pixel.
    grid = torch.stack([columns[:, None].expand(-1, height, -1), rows[..., None].expand(-1, -1, width)], dim=-1)
    cropped = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return _as_given(cropped, images)


def _places(side: Float32[Tensor, "n"], start: Float32[Tensor, "n"], pixels: int) -> Float32[Tensor, "n _pixels"]:
    """Return where the result's pixel centres lie in the image, from -1 (first edge) to 1 (last edge)."""
    centres = (torch.arange(pixels, device=side.device, dtype=torch.float32) + 0.5) / pixels
    return 2 * (start[:, None] + side[:, None] * centres) - 1


def shift_images(images: Shaped[Tensor, "n c h x"], shifts: Int64[Tensor, "n 2"]) -> Shaped[Tensor, "n c h x"]:
    """Move each image by whole pixels (down, right), repeating the border.

    Equal to DrQ's pad-and-crop (arXiv:2004.13649), without padding or interpolation.
    """
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) - shifts[:, :1]).clamp_(0, height - 1)
    columns = (torch.arange(width, device=images.device) - shifts[:, 1:]).clamp_(0, width - 1)
    n = torch.arange(len(images), device=images.device)
    channels_last = images.permute(0, 2, 3, 1)
    return channels_last[n[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def jitter_colors(
    images: Real[Tensor, "n 3 h x"],
    colors: Float32[Tensor, "n 3"] | None = None,
    hues: Float32[Tensor, "n 1"] | None = None,
) -> Real[Tensor, "n 3 h x"]:
    """Change brightness, contrast and saturation by the factors of `colors`, then hue by the turns of `hues`.

    The order is fixed, and every step is clamped to [0, 255]. Factor 1 and turn 0 are the identity, factor 0 is black,
    the image's mean grey, and its grey image. Definitions are those of PIL's ImageEnhance and of torchvision's
    ColorJitter, here unrounded in between. TensorFlow's, which OpenVLA uses, differ: brightness is added, contrast is
    taken channel by channel, saturation is that of HSV. Source: the order, OpenVLA prismatic/vla/datasets/datasets.py.
    """
    changed = images.float()
    if colors is not None:
        brightness, contrast, saturation = colors.view(-1, 3, 1, 1, 1).unbind(1)
        changed = (changed * brightness).clamp_(0, 255)
        changed = _blend(changed, _grey(changed).mean((2, 3), keepdim=True), contrast)
        changed = _blend(changed, _grey(changed), saturation)
    if hues is not None:
        changed = turn_hue(changed, hues)
    return _as_given(changed, images)


def turn_hue(images: Float[Tensor, "n 3 h x"], turns: Float32[Tensor, "n 1"]) -> Float[Tensor, "n 3 h x"]:
    """Turn each image's hue: by 1/3 red becomes green, by 2/3 blue; greys stay.

    Hue is that of HSV: largest and smallest channel stay, and with them value and saturation, but not the luma that a
    rotation in YIQ would keep (which leaves the gamut, and needs clamping: a third of a turn makes no green of red).
    Source: A. R. Smith, Color gamut transform pairs, SIGGRAPH 1978; torchvision's and TensorFlow's adjust_hue.
    """
    red, green, blue = images.unbind(1)
    low, high = images.amin(1), images.amax(1)
    chroma = high - low
    scale = torch.where(chroma > 0, chroma, 1).reciprocal()
    # In sixths of a turn: red at 0, green at 2, blue at 4. Where two channels tie for the largest, both forms agree.
    hue = torch.where(high == blue, 4 + (red - green) * scale, 2 + (blue - red) * scale)
    hue = torch.where(high == red, (green - blue) * scale, hue)
    hue = (hue + 6 * turns[..., None]).remainder_(6)
    shares = torch.stack([(hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()], dim=1)
    return shares.clamp_(0, 1).mul_(chroma[:, None]).add_(low[:, None])


def _grey(images: Float[Tensor, "n 3 h x"]) -> Float[Tensor, "n 1 h x"]:
    red, green, blue = images.unbind(1)
    return (RED * red + GREEN * green + BLUE * blue)[:, None]


def _blend(
    images: Float[Tensor, "n 3 h x"], anchor: Float[Tensor, "n 1 _h _x"], factor: Float32[Tensor, "n 1 1 1"]
) -> Float[Tensor, "n 3 h x"]:
    """Move away from the anchor by a factor: 0 gives the anchor, 1 the image."""
    return torch.lerp(anchor.expand_as(images), images, factor).clamp_(0, 255)


def _as_given(changed: Float32[Tensor, "n c h x"], images: Real[Tensor, "n c h x"]) -> Real[Tensor, "n c h x"]:
    if images.dtype == torch.uint8:
        changed = changed.round().clamp_(0, 255)
    return changed.to(images.dtype)

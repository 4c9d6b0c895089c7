"""Encoded pictures to RGB: the only place where a picture that somebody else wrote is decoded.

Pillow knows some fifty formats, of which a few start other programs (EPS runs Ghostscript) and many are no photographs;
here a short list is open. What would only look like a photograph once decoded (depth, sensor data, print colours) is
refused by name rather than clipped to white.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from robovlms.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 2**26  # 67 megapixels: no camera of a robot has more, and it takes 200 MB decoded
_MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1")  # at most 8 bits per channel
_REFUSED = {"CMYK": "its colours are CMYK, for printing", "F": "it holds floating-point numbers, as depth maps do"}
_MAGIC = {  # what else is found where a picture should be
    b"II*\0": "a TIFF, as depth maps often are",
    b"MM\0*": "a TIFF, as depth maps often are",
    b"\x93NUMPY": "an array of numpy",
    b"version https://git-lfs": "a Git LFS pointer",
    b"%!PS": "PostScript",
    b"%PDF": "a PDF",
}


class NotAPhotographError(UserError):
    """A picture, but none of a camera's colours: the key is wrong, not the file."""


class PictureHeader(NamedTuple):
    """What a picture says of itself before it is decoded."""

    format: str  # e.g. "PNG"
    height: int
    width: int


def read_header(data: bytes | memoryview, formats: tuple[str, ...] = FORMATS) -> PictureHeader:
    """Return format and size of an encoded picture; no pixel is decoded.

    Raises:
        UserError: it cannot be decoded to RGB; see `decode_picture`.
    """
    with _opened(data, formats) as image:
        return PictureHeader(str(image.format), image.height, image.width)


def decode_picture(
    data: bytes | memoryview, formats: tuple[str, ...] = FORMATS, size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "_h _x c"]:
    """Return the RGB pixels of an encoded picture; gray becomes RGB, transparency is dropped.

    Args:
        data: the file's bytes.
        formats: those that are open, of `FORMATS`.
        size: (height, width) that it must have; -1 leaves one open.

    Raises:
        NotAPhotographError: it has 16 bits per channel or floating-point numbers (depth), print colours, or is a TIFF.
        UserError: it is of another format or size, damaged, or larger than `MAX_PIXELS`. The caller names the file.
    """
    with _opened(data, formats) as image:
        found = (image.height, image.width)
        if size is not None and any(want not in (-1, have) for want, have in zip(size, found, strict=True)):
            raise UserError(f"the picture is {list(found)} px, expected {list(size)}")
        try:
            return np.asarray(image.convert("RGB"))
        except Exception as error:  # what decoders raise for damaged files is open-ended: OSError, struct.error, ...
            raise UserError(f"a damaged {image.format}: {error}") from error


def _opened(data: bytes | memoryview, formats: tuple[str, ...]) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Exception as error:
        if (name := _other_kind(data)) is not None:
            kind = NotAPhotographError if "TIFF" in name else UserError
            raise kind(f"{name}: only {', '.join(formats)} are read") from error
        told = "" if isinstance(error, UnidentifiedImageError) else f", or damaged: {error}"
        raise UserError(f"neither {' nor '.join(formats)}{told}") from error
    if image.height * image.width > MAX_PIXELS:
        raise UserError(f"a picture of {image.height} x {image.width} px, more than {MAX_PIXELS} altogether")
    if (problem := _problem(data, image)) is not None:
        raise NotAPhotographError(f"a {image.format} that is no colour picture: {problem}")
    return image


def _problem(data: bytes | memoryview, image: Image.Image) -> str | None:
    """Return what keeps the pixels from being RGB of 8 bits."""
    if image.mode in _REFUSED:
        return _REFUSED[image.mode]
    is_deep = image.format == "PNG" and bytes(data[24:25]) == b"\x10"  # the bit depth; Pillow drops 8 of 16 in silence
    if is_deep or image.mode not in _MODES:
        return f"it has {'16' if is_deep or image.mode.startswith('I') else 'too many'} bits per channel, as depth maps"
    return None


def _other_kind(data: bytes | memoryview) -> str | None:
    start = bytes(data[:32])
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


def to_rgb(pixels: np.ndarray) -> UInt8[np.ndarray, "_h _x c"]:
    """Return the RGB of a picture stored as an array, height x width x 1, 3 or 4; gray becomes RGB.

    Raises:
        UserError: it has another shape, or not 8 bits per channel (depth).
    """
    if pixels.dtype != np.uint8:
        raise NotAPhotographError(f"pixels of {pixels.dtype}, as depth maps have: only uint8 are pictures")
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise UserError(f"an array of shape {list(pixels.shape)}: a picture is height x width x 1, 3 or 4")
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[:, :, :3])


def decode_own_jpeg(data: bytes, height: int, width: int) -> UInt8[np.ndarray, "h x c"]:
    """Return the RGB of a JPEG that was packed here and has this size, a fifth faster than `decode_picture`.

    Raises:
        UserError: it is damaged, or of another size.
    """
    if (found := _jpeg_size(data)) != (height, width):  # PIL's decoder trusts the size it is told
        raise UserError(f"a JPEG of {found}, expected {(height, width)} (height, width)")
    return np.asarray(Image.frombytes("RGB", (width, height), data, "jpeg", "RGB", ""))


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Read height and width from the frame header; only baseline JPEGs of three components, as PIL writes them.

    Source: ITU-T T.81, annex B.
    """
    place = 2
    while data[:2] == b"\xff\xd8" and len(data) >= place + 10 and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if marker == 0xC0 and data[place + 9] == 3:
            return int.from_bytes(data[place + 5 : place + 7]), int.from_bytes(data[place + 7 : place + 9])
        if length < 2 or (marker not in (0xDB, 0xC4) and not 0xE0 <= marker <= 0xEF):  # tables and application data
            break
        place += 2 + length
    raise UserError("not a JPEG that was packed here")

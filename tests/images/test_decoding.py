import io

import numpy as np
import pytest
from PIL import Image

from robovlms.images import decoding
from robovlms.images.decoding import decode_picture, read_header, to_rgb

RED = np.zeros((4, 6, 3), np.uint8) + np.array([200, 20, 0], np.uint8)


def encoded(pixels: np.ndarray, kind: str, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", decoding.FORMATS)
def test_every_open_format_comes_back_as_rgb_of_eight_bits(kind):
    data = encoded(RED, kind)
    assert read_header(data)[1:] == (4, 6)
    pixels = decode_picture(memoryview(data))
    assert (pixels.shape, pixels.dtype) == ((4, 6, 3), np.uint8)
    assert np.abs(pixels.astype(int) - RED).max() < 12


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1"])
def test_gray_palettes_and_transparency_become_rgb(mode):
    white = np.full((4, 6, 3), 255, np.uint8)
    np.testing.assert_array_equal(decode_picture(encoded(white, "PNG", mode)), white)


def cmyk() -> bytes:
    return encoded(RED, "JPEG", "CMYK")


DEPTH = np.full((4, 6), 1500, np.uint16)  # millimetres


def deep_rgb() -> bytes:
    """Return a PNG whose header says RGB of 16 bits; its pixels are never asked for."""
    data = bytearray(encoded(RED, "PNG"))
    data[24] = 16
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(DEPTH, "PNG"), "a PNG that is no colour picture: it has 16 bits per channel, as depth maps"),
        (encoded(DEPTH, "TIFF"), "a TIFF, as depth maps often are: only JPEG, PNG"),
        (encoded(DEPTH.astype(np.float32), "TIFF"), "a TIFF, as depth maps often are"),
        (cmyk(), "a JPEG that is no colour picture: its colours are CMYK"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "PostScript: only JPEG"),
        (b"hello", "neither JPEG nor PNG nor WEBP"),
        (b"", "neither JPEG nor PNG"),
        (encoded(RED, "PNG")[:-30], "a damaged PNG"),
    ],
)
def test_what_is_no_photograph_is_refused_by_name(data, message):
    with pytest.raises(ValueError, match=message):
        decode_picture(data)


def test_a_header_tells_what_decoding_would_refuse():
    for data in (encoded(DEPTH, "PNG"), cmyk(), deep_rgb(), b"hello"):
        with pytest.raises(ValueError, match=r"bits per channel|CMYK|neither JPEG"):
            read_header(data)


def test_only_the_formats_that_are_asked_for_are_open():
    with pytest.raises(ValueError, match="neither PNG nor JPEG"):
        decode_picture(encoded(RED, "GIF"), ("PNG", "JPEG"))


def test_a_picture_of_another_size_than_promised_is_refused_and_minus_one_leaves_a_side_open():
    data = encoded(RED, "PNG")
    with pytest.raises(ValueError, match=r"the picture is \[4, 6\] px, expected \[4, 7\]"):
        decode_picture(data, size=(4, 7))
    assert decode_picture(data, size=(-1, 6)).shape == (4, 6, 3)


def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 23)
    with pytest.raises(ValueError, match="a picture of 4 x 6 px, more than 23"):
        decode_picture(encoded(RED, "PNG"))


def test_arrays_of_one_three_and_four_channels_become_rgb():
    for channels in (1, 3, 4):
        pixels = np.full((2, 3, channels), 7, np.uint8)
        np.testing.assert_array_equal(to_rgb(pixels), np.full((2, 3, 3), 7, np.uint8))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((2, 3, 1), np.uint16), "pixels of uint16, as depth maps have"),
        (np.zeros((2, 3, 3), np.float32), "pixels of float32"),
        (np.zeros((2, 3), np.uint8), r"shape \[2, 3\]"),
        (np.zeros((2, 3, 2), np.uint8), r"shape \[2, 3, 2\]"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(pixels, message):
    with pytest.raises(ValueError, match=message):
        to_rgb(pixels)

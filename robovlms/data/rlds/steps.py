"""Numbers, texts and pictures of an episode's steps, out of the lists of a tf.train.Example.

TFDS writes a key's steps one behind another: numbers flattened into one list, pictures and texts one entry a step, and
so tensors of encoding bytes or zlib.
Source: github.com/tensorflow/datasets core/example_serializer.py, core/features/tensor_feature.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from robovlms.config.choices import PictureFormat
from robovlms.data.rlds.features import StepFeature
from robovlms.data.rlds.tfrecord import Feature
from robovlms.errors import UserError
from robovlms.images.decoding import decode_picture, to_rgb

_FORMATS = ("JPEG", "PNG")


def read_numbers(spec: StepFeature, feature: Feature) -> Float32[np.ndarray, "t _n"]:
    """Return a numeric key of all steps, flattened to one row a step.

    Raises:
        UserError: the list is damaged, or no multiple of a step's entries.
    """
    width = spec.width
    if spec.encoding != "none":
        rows = [_raw(spec, entry, width) for entry in feature.bytes_list()]
        values = np.concatenate(rows) if rows else np.zeros(0, np.float32)
    else:
        values = feature.floats() if spec.dtype.startswith("float") else feature.ints()
    if len(values) % width:
        raise UserError(f"it has {len(values)} numbers, no multiple of the {width} a step that features.json says")
    with np.errstate(over="ignore", invalid="ignore"):  # becomes infinite, and is refused as such where it is used
        return values.reshape(-1, width).astype(np.float32)


def read_texts(spec: StepFeature, feature: Feature) -> list[str]:
    """Return the texts of an episode's steps, or the one of the episode, without space around them.

    Raises:
        UserError: the list is damaged, or not UTF-8.
    """
    entries: Sequence[bytes | memoryview]
    if spec.is_codes:
        codes = feature.ints()
        if len(codes) % spec.width or ((codes < 0) | (codes > 255)).any():
            raise UserError(f"its codes are not bytes, {spec.width} a text")
        rows = codes.astype(np.uint8).reshape(-1, spec.width)
        entries = [row.tobytes().partition(b"\0")[0] for row in rows]
    else:
        entries = feature.bytes_list()
    texts: list[str] = []
    for place, entry in enumerate(entries):
        is_same = place and entry == entries[place - 1]  # as nearly all are: they need not be decoded
        texts.append(texts[-1] if is_same else bytes(entry).decode("utf-8").strip())
    return texts


def read_pictures(
    spec: StepFeature,
    feature: Feature,
    steps: Int64[np.ndarray, "w"],
    num_steps: int,
    bgr: PictureFormat | None = None,
) -> UInt8[np.ndarray, "w _h _x c"]:
    """Decode the pictures of `steps`, each of them once; gray becomes RGB, transparency is dropped.

    Pictures of the format `bgr` were written blue first, and are turned round.

    Raises:
        UserError: there is not one picture a step, or one is damaged or of another size; names the step.
    """
    if spec.kind == "tensor" and spec.encoding == "none":
        pixels = feature.ints().reshape(-1, _area(spec))
        entries: list[memoryview] = []
        found = len(pixels)
    else:
        entries = feature.bytes_list()
        found = len(entries)
    if found != num_steps:
        raise UserError(f"it has {found} pictures, but the episode {num_steps} steps")
    pictures: dict[int, UInt8[np.ndarray, "_h _x c"]] = {}
    for step in np.unique(steps).tolist():
        try:
            if entries:
                picture = _picture(spec, entries[step], bgr)
            else:
                picture = to_rgb(pixels[step].astype(np.uint8).reshape(spec.shape))
            first = next(iter(pictures.values()), picture)
            if picture.shape != first.shape:
                raise UserError(f"its shape is {list(picture.shape)}, that of others {list(first.shape)}")
        except ValueError as error:
            raise UserError(f"step {step}: {error}") from error
        pictures[step] = picture
    return np.stack([pictures[step] for step in steps.tolist()])


def _area(spec: StepFeature) -> int:
    if min(spec.shape) <= 0:
        raise UserError(f"features.json leaves its shape open {list(spec.shape)}, which is only read if compressed")
    return spec.width


def _raw(spec: StepFeature, entry: memoryview, width: int) -> np.ndarray:
    size = width * np.dtype(spec.dtype).itemsize
    data: bytes | memoryview = entry
    if spec.encoding == "zlib":
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(entry, size + 1)
        except zlib.error as error:
            raise UserError(f"not zlib data: {error}") from error
    elif spec.encoding != "bytes":
        raise UserError(f"features.json says that its encoding is {spec.encoding!r}; known are none, bytes and zlib")
    if len(data) != size:
        raise UserError(f"a step has {len(data)} bytes or more, but features.json says {size}")
    return np.frombuffer(data, np.dtype(spec.dtype).newbyteorder("<"))


def _picture(spec: StepFeature, entry: memoryview, bgr: PictureFormat | None) -> UInt8[np.ndarray, "_h _x c"]:
    if spec.kind == "tensor":
        return to_rgb(_raw(spec, entry, _area(spec)).reshape(spec.shape))
    pixels = decode_picture(entry, _FORMATS, (spec.shape[0], spec.shape[1]))
    kind = PictureFormat.png if bytes(entry[:4]) == b"\x89PNG" else PictureFormat.jpeg
    return np.ascontiguousarray(pixels[:, :, ::-1]) if kind is bgr else pixels

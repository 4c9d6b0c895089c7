"""Tensors of torch as pickles hold them, read without torch: a storage's bytes, seen through sizes and strides.

Source: torch 2.13, torch/_utils.py `_rebuild_tensor_v2` and torch/serialization.py `_legacy_save`: a storage is pickled
as the bytes of five pickles (a magic number, the version, sizes of types, a reference to the storage, its keys), then
the number of its entries and the entries themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from robovlms.serving.codecs import WireError

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "ByteStorage": "|u1",
            "CharStorage": "|i1", "ShortStorage": "<i2", "IntStorage": "<i4", "LongStorage": "<i8",
            "BoolStorage": "|b1"}  # fmt: skip
MAX_DIMENSIONS, MAX_EMPTY = 8, 100  # axes; the longest of a tensor without entries
COUNT_BYTES = 8


def read_storage(data: Any, read_pickles: Callable[[bytes, int], tuple[list[Any], int]]) -> np.ndarray:
    """Return the entries of a storage, one after the other, without copying them.

    Args:
        data: what torch saved.
        read_pickles: reads so many pickles from the beginning, and says where they end; references to what is outside
            are returned as they are.

    Raises:
        WireError: it is anything else.
    """
    if not isinstance(data, bytes):
        raise WireError("a tensor's storage has no bytes.")
    (magic, version, sizes, reference, keys), end = read_pickles(data, 5)
    if (magic, version) != (MAGIC, VERSION) or not isinstance(sizes, dict) or sizes.get("little_endian") is not True:
        raise WireError("a tensor's storage is not of torch's form.")
    if not isinstance(reference, tuple) or len(reference) != 6 or reference[0] != "storage" or keys != [reference[2]]:
        raise WireError("a tensor's storage refers to another.")
    kind, count = STORAGES.get(getattr(reference[1], "name", "")), reference[4]
    if kind is None:
        raise WireError("a tensor's type is not taken: send floats of 16, 32 or 64 bits, whole numbers or booleans.")
    numbers = np.dtype(kind)
    if type(count) is not int or len(data) != end + COUNT_BYTES + count * numbers.itemsize:
        raise WireError("a tensor's storage has another size than it says.")
    if int.from_bytes(data[end : end + COUNT_BYTES], "little", signed=True) != count:
        raise WireError("a tensor's storage says two sizes.")
    return np.frombuffer(data, numbers, count, end + COUNT_BYTES)


def view_storage(storage: np.ndarray, offset: Any, size: Any, stride: Any) -> np.ndarray:
    """Return a tensor's array: a view of its storage, no entry of which is outside.

    Raises:
        WireError: sizes and strides are no such view, or it has more entries than the storage.
    """
    numbers = [size, stride]
    if not all(isinstance(each, tuple) and all(type(n) is int and n >= 0 for n in each) for each in numbers):
        raise WireError("a tensor's size and stride must be tuples of whole numbers.")
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS or type(offset) is not int or offset < 0:
        raise WireError("a tensor's size, stride and offset do not fit together.")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count = math.prod(size)
    if count and (last >= len(storage) or count > len(storage)):
        raise WireError("a tensor is larger than its storage.")
    if not count:
        if max(size) > MAX_EMPTY:
            raise WireError("a tensor without entries has a large size.")
        return np.zeros(size, storage.dtype)
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)

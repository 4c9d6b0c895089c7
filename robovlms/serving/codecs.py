"""Bytes of the wire to values and back: msgpack with arrays, as openpi, vla-eval and GR00T write them.

Whoever sends may be hostile: what a message says of sizes is held against the bytes that are there before memory is
taken, and an array is one of numbers or it is refused. Nothing is unpickled or evaluated.
"""

from __future__ import annotations

import asyncio
import io
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack
import numpy as np

from robovlms.errors import UserError
from robovlms.images.decoding import decode_picture, read_header

MAX_LENGTH = 4096  # of one list or map. msgpack takes memory for it when it begins: 32 MB in 1024 lists, its deepest
MAX_ITEMS = 50_000  # of all lists and maps of a message together; an observation has about fifty
MAX_AXES = 8
MAX_PIXELS = 2**23  # of an encoded picture: 4K, 25 MB decoded
NUMBER = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248])")  # types of arrays: truth values, integers, floats
NPY = b"\x93NUMPY\x01\x00"
NPY_HEADER = re.compile(
    rb"\{'descr': '(\S{3})', 'fortran_order': (True|False), 'shape': \(([\d, ]{0,100})\), \}\s*", re.ASCII
)
PICTURES = {"png": "PNG", "jpeg": "JPEG"}
BUSY = "the server is busy"  # how what it says begins, when the same may be asked again later
QUICK_BYTES = 2**20  # of a message that is read in less time than another thread takes to be asked
PICTURE = b"__image__"  # in a message with encoded pictures

Decode = Callable[[dict[Any, Any]], Any]
Encode = Callable[[Any], Any]


class WireError(UserError):
    """A message that cannot be read; says why."""


class Codec(NamedTuple):
    """How a protocol writes what msgpack does not know."""

    decode: Decode  # a map to what it stands for: itself, if for nothing else
    encode: Encode  # what msgpack does not know to what it does

    def unpack(self, data: bytes) -> Any:
        """Return the value of a message, whose size the transport has bounded.

        Raises:
            WireError: it is no msgpack, holds too much, or an array in it is not what it says.
        """
        num_items = 0

        def counted(value: Any) -> Any:
            nonlocal num_items
            num_items += 1 + len(value)
            if num_items > MAX_ITEMS:
                raise WireError(f"the message holds more than {MAX_ITEMS} items: send arrays, not lists.")
            return value

        try:
            return msgpack.unpackb(
                data,
                object_hook=lambda value: self.decode(counted(value)),
                list_hook=counted,
                strict_map_key=False,
                max_array_len=MAX_LENGTH,
                max_map_len=MAX_LENGTH,
                max_ext_len=0,
            )
        except WireError:
            raise
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
            raise WireError(f"the message is not read: {type(error).__name__}: {str(error)[:200]}") from error

    async def receive(self, data: bytes) -> Any:
        """Return the value of a message, as `unpack`; what may take long is done in a thread."""
        if len(data) <= QUICK_BYTES and PICTURE not in data:
            return self.unpack(data)
        return await asyncio.to_thread(self.unpack, data)

    def pack(self, value: Any) -> bytes:
        """Return a value as a message."""
        return msgpack.packb(value, default=self.encode)


def array_of(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    """Return an array over bytes that are there; it shares their memory and cannot be written.

    Raises:
        WireError: it is no array of numbers, or the shape does not fit the bytes.
    """
    kind, sizes = number_type(dtype), shape if isinstance(shape, list | tuple) else [-1]
    if len(sizes) > MAX_AXES or any(type(size) is not int or size < 0 for size in sizes):
        raise WireError(f"an array's shape must be at most {MAX_AXES} whole numbers, not {_short(shape)}.")
    if not isinstance(data, bytes | bytearray) or math.prod(sizes) * kind.itemsize != len(data):
        found = f"{len(data)} bytes" if isinstance(data, bytes | bytearray) else type(data).__name__
        raise WireError(f"an array of {dtype} of the shape {_short(sizes)} does not fit its data, {found}.")
    return np.frombuffer(data, kind).reshape(sizes)


def number_type(dtype: Any) -> np.dtype:
    """Return a type of numbers, e.g. of `<f4`.

    Raises:
        WireError: it is any other, as one of objects.
    """
    name = dtype.decode("ascii", "replace") if isinstance(dtype, bytes) else dtype
    if not isinstance(name, str) or not NUMBER.fullmatch(name):
        raise WireError(f"an array must be of truth values, integers or floats, e.g. '<f4', not {_short(dtype)}.")
    return np.dtype(name)


def number_of(data: Any, dtype: Any) -> np.generic:
    """Return a single number of numpy.

    Raises:
        WireError: it is none, or its type cannot hold it.
    """
    kind = number_type(dtype)
    if not isinstance(data, bool | int | float):
        raise WireError(f"a number must be one, not {type(data).__name__}.")
    try:
        return kind.type(data)
    except (OverflowError, ValueError) as error:
        raise WireError(f"{_short(data)} is no {kind}.") from error


def numbers_of(value: Any, name: str) -> np.ndarray:
    """Return numbers that a client sends, in a row.

    Raises:
        WireError: they are none; says `name`.
    """
    try:
        row = np.asarray(value) if isinstance(value, np.ndarray | np.generic | list | float | int) else None
    except ValueError:  # ragged lists
        row = None
    if row is None or row.dtype.kind not in "iuf":
        raise WireError(f"{name} must be numbers, not {type(value).__name__}.")
    return row.reshape(-1)


def read_npy(data: Any) -> np.ndarray:
    """Return an array in numpy's file format, version 1.0; its header is matched, not evaluated as numpy does.

    Raises:
        WireError: it is anything else, as an array of objects.

    Source: numpy.lib.format.
    """
    if not isinstance(data, bytes) or data[: len(NPY)] != NPY:
        raise WireError("an array must be in numpy's file format, version 1.0.")
    start = len(NPY) + 2
    end = start + int.from_bytes(data[start - 2 : start], "little")
    if (header := NPY_HEADER.fullmatch(data[start:end])) is None:
        raise WireError(f"an array has the header {_short(data[start:end])}, which is not one of plain numbers.")
    sizes = [int(size) for size in header[3].replace(b" ", b"").split(b",") if size]
    is_fortran = header[2] == b"True"
    array = array_of(data[end:], header[1], sizes[::-1] if is_fortran else sizes)
    return array.T if is_fortran else array


def write_npy(array: np.ndarray) -> bytes:
    """Return an array in numpy's file format, version 1.0."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_image(value: dict[Any, Any]) -> np.ndarray:
    """Return the picture of vla-eval's `__image__`, of the shape that it says.

    Raises:
        WireError: it is none, or of another shape.
    """
    data, shape, name = value.get("data"), value.get("shape"), value.get("format")
    if name == "raw":
        return array_of(data, value.get("dtype", "|u1"), shape)
    if name not in PICTURES or not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) != 3:
        raise WireError(f"a picture must be raw, png or jpeg with data and shape, not {_short(name)}.")
    try:
        header = read_header(data, (PICTURES[name],))
        if [header.height, header.width] != shape[:2]:
            raise UserError(f"it has {header.height} x {header.width} px, and is said to have {_short(shape)}")
        if header.height * header.width > MAX_PIXELS:
            raise UserError(f"it has {header.height} x {header.width} px, more than {MAX_PIXELS} altogether")
        return decode_picture(data, (PICTURES[name],))
    except UserError as error:
        raise WireError(f"a picture in the message: {error}.") from error


def _decode_openpi(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return array_of(value.get(b"data"), value.get(b"dtype"), value.get(b"shape"))
    if b"__npgeneric__" in value:
        return number_of(value.get(b"data"), value.get(b"dtype"))
    return value


def _encode_openpi(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = {b"data": value.tobytes(), b"dtype": number_type(value.dtype.str).str, b"shape": value.shape}
        return {b"__ndarray__": True} | data
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": number_type(value.dtype.str).str}
    raise TypeError(f"{type(value).__name__} is not sent")


def _decode_vla_eval(value: dict[Any, Any]) -> Any:
    if "__image__" in value:
        return read_image(value)
    if "__ndarray__" in value:
        return array_of(value.get("data"), value.get("dtype"), value.get("shape"))
    return value


def _encode_vla_eval(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = {"data": value.tobytes(), "dtype": number_type(value.dtype.str).str, "shape": list(value.shape)}
        return {"__ndarray__": True} | data
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not sent")


def _decode_groot(value: dict[Any, Any]) -> Any:
    if "__ndarray_class__" in value:
        return read_npy(value.get("as_npy"))
    if b"nd" not in value:
        return value
    array = array_of(value.get(b"data"), value.get(b"type"), value.get(b"shape", []))
    return array if value[b"nd"] is True else array[()]


def _encode_groot(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"__ndarray_class__": True, "as_npy": write_npy(value)}
    raise TypeError(f"{type(value).__name__} is not sent")


def _encode_groot_nd(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        kind = number_type(value.dtype.str).str
        return {b"nd": True, b"type": kind, b"kind": b"", b"shape": value.shape, b"data": value.tobytes()}
    raise TypeError(f"{type(value).__name__} is not sent")


def _short(value: Any) -> str:
    return repr(value)[:100]


# Sources: openpi_client/msgpack_numpy.py (keys are bytes; starVLA's is the same), vla_eval/protocol/*.py (keys are
# text), gr00t/policy/server_client.py (numpy's file format up to N1.6, the package msgpack-numpy since N1.7).
OPENPI = Codec(_decode_openpi, _encode_openpi)
VLA_EVAL = Codec(_decode_vla_eval, _encode_vla_eval)
GROOT = Codec(_decode_groot, _encode_groot)
GROOT_ND = Codec(_decode_groot, _encode_groot_nd)

"""Read numpy's two container formats from downloaded folders: no code runs, and every fault names the file."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robovlms.errors import UserError
from robovlms.files import refuse_pointer

_MAX_BYTES = 2**28  # that a compressed array of an npz inflates to: far more than a frame has
_MAGIC = b"\x93NUMPY\x01\x00"  # format 1.0: the others are for huge headers and non-Latin names
_HEADER = re.compile(
    r"\{\s*'descr':\s*'([<>|=]?[biufcSUO]\d{0,9})',\s*'fortran_order':\s*(True|False),"
    r"\s*'shape':\s*\(((?:\d{1,18}(?:,\s*|(?=\)))){0,32})\),?\s*\}\s*"
)
_PLAIN = "biufcSU"  # kinds of dtypes without references


class ArrayHeader(NamedTuple):
    """What an .npy file says of the array that follows."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype


def read_header(file: io.BytesIO | io.BufferedReader) -> ArrayHeader:
    """Read the header of an .npy file, of one plain dtype or of objects.

    numpy's own reader evaluates it as Python and raises whatever comes of that.

    Raises:
        UserError: it is not as numpy writes it.
    Source: numpy.lib.format.
    """
    start = file.read(len(_MAGIC) + 2)
    text = file.read(int.from_bytes(start[-2:], "little")).decode("latin-1")
    match = _HEADER.fullmatch(text)
    if not start.startswith(_MAGIC) or match is None:
        raise UserError(f"not the header of an .npy file of format 1.0: {start + text[:200].encode()!r}")
    try:
        dtype = np.dtype(match[1])
    except (TypeError, ValueError) as error:
        raise UserError(f"an unknown type {match[1]!r}") from error
    return ArrayHeader(tuple(map(int, re.findall(r"\d+", match[3]))), match[2] == "True", dtype)


class _DType:
    """A pickled dtype: its name and byte order, whatever else the pickle says of it."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, *_: Any) -> None:
        self.dtype = np.dtype(name if isinstance(name, str) else "V")
        if self.dtype.kind not in _PLAIN + "O":
            raise pickle.UnpicklingError(f"refused an array of {self.dtype}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array whose pickled state is checked, because numpy believes it: wrong ones crash the interpreter."""

    __slots__ = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # type: ignore[override]
        _, shape, kind, fortran, data = state
        found = -1
        if isinstance(kind, _DType) and type(data) is (list if kind.dtype.hasobject else bytes):
            found = len(data) if kind.dtype.hasobject else len(data) // max(kind.dtype.itemsize, 1)
        if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) != found:
            raise pickle.UnpicklingError(f"{found} entries are not an array of shape {shape}")
        checked: Any = (1, shape, kind.dtype, fortran is True, data)
        super().__setstate__(checked)


class _RestrictedUnpickler(pickle.Unpickler):
    """Rebuilds numpy arrays and sets, besides what pickles have signs for; any other global is refused unseen."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 renamed numpy.core to numpy._core; files of either age are read. Methods cannot be written to.
        known: dict[tuple[str, str], Any] = {
            ("numpy", "ndarray"): "ndarray",
            ("numpy", "dtype"): _DType,
            ("builtins", "set"): set,
            ("builtins", "frozenset"): frozenset,
            ("numpy.multiarray", "_reconstruct"): self._reconstruct,
            ("numpy.multiarray", "scalar"): self._scalar,
        }
        key = re.sub(r"^numpy\._?core\.", "numpy.", module), name
        if key not in known:
            raise pickle.UnpicklingError(
                f"refused global '{module}.{name}' (only numpy arrays and containers are read)"
            )
        return known[key]

    def _reconstruct(self, *_: Any) -> _Array:
        return np.ndarray.__new__(_Array, (0,), np.int8)

    def _scalar(self, kind: Any, data: Any) -> Any:
        if not isinstance(kind, _DType) or kind.dtype.kind not in _PLAIN or not isinstance(data, bytes):
            raise pickle.UnpicklingError("refused a scalar that is not a number or text")
        return np.frombuffer(data, kind.dtype).reshape(())[()]


def _unpickle(data: bytes) -> Any:
    """Rebuild what a pickle holds; lengths and places beyond its end are refused, for they would be allocated."""
    for code, argument, _ in pickletools.genops(data):  # reads every argument that has a length
        if code.name in ("PUT", "LONG_BINPUT") and (argument or 0) > len(data):
            raise pickle.UnpicklingError(f"{code.name} {argument} in a pickle of {len(data)} bytes")
    return _RestrictedUnpickler(io.BytesIO(data)).load()


def read_pickled_npy(path: Path) -> Any:
    """Return the Python object that `np.save` pickled into a 0-d object array, without trusting the file.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: not such a file, damaged, or it names a global other than those of numpy arrays and sets.
    Source: the .npy layout, numpy.lib.format; the pickle allow-list, docs.python.org/3/library/pickle.html.
    """
    with path.open("rb") as file:
        try:
            shape, _, dtype = read_header(file)
            if shape != () or dtype != np.dtype(object):
                raise UserError(f"expected a 0-d object array, found shape {shape} of {dtype}")
            array = _unpickle(file.read())
            if not isinstance(array, np.ndarray) or array.shape != ():
                raise UserError(f"expected a 0-d object array, found {type(array).__name__}")
        except Exception as error:  # what a damaged pickle raises is open-ended, says the pickle module
            refuse_pointer(path)
            raise UserError(f"{path} cannot be read: {error}") from error
    return array.item()


def read_npy(path: Path) -> np.ndarray:
    """Return the array of an .npy file of plain numbers.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: not such a file, damaged, or of Python objects.
    """
    with path.open("rb") as file:
        try:
            shape, fortran, dtype = read_header(file)
            data = file.read()
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data):
                raise UserError(f"{len(data)} bytes are not an array of shape {shape} of {dtype}")
            return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
        except ValueError as error:
            refuse_pointer(path)
            raise UserError(f"{path} cannot be read: {error}") from error


def read_npz(path: Path, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Decompress only `keys` (None: all); the arrays are read-only views of the decompressed bytes, checked by CRC.

    1.7 times as fast as `np.load` on a CALVIN frame: members are inflated in one call, equal headers parsed once.

    Raises:
        FileNotFoundError: there is no such file.
        KeyError: the file lacks one of the keys; the message lists those it has.
        UserError: the file is truncated or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            keys = list(members) if keys is None else keys
            if missing := [key for key in keys if key not in members]:
                raise KeyError(f"{path} has no {', '.join(map(repr, missing))}; it has {', '.join(sorted(members))}.")
            size = path.stat().st_size
            return {key: _read_member(archive, members[key], size) for key in keys}
    except OSError as error:
        if error.filename is not None:  # missing, or not ours to read
            raise
        raise UserError(f"{path} cannot be read: {error}") from error  # a damaged directory points outside the file
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        refuse_pointer(path)
        raise UserError(f"{path} cannot be read: {error}") from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, archive_size: int) -> np.ndarray:
    limits = {zipfile.ZIP_STORED: archive_size, zipfile.ZIP_DEFLATED: _MAX_BYTES}  # numpy writes no others
    if info.compress_size > archive_size or info.file_size > limits.get(info.compress_type, -1):
        raise UserError(
            f"{info.filename} says that it has {info.file_size} bytes, here {info.compress_size} by method "
            f"{info.compress_type}"
        )
    with archive.open(info) as file:
        data = file.read(info.file_size)  # with a size, ZipExtFile inflates at once instead of in 4 KiB pieces
    if len(data) < 10 or len(data) != info.file_size:
        raise UserError(f"{info.filename} ends early")
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran, dtype = _parse_header(data[:start])
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=256)
def _parse_header(header: bytes) -> ArrayHeader:
    return read_header(io.BytesIO(header))

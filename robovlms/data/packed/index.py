"""The index of a packed folder: what lies in it, and the checks that every use of it begins with."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from robovlms.config.choices import ImageFormat
from robovlms.data.files.npz import read_header
from robovlms.errors import UserError
from robovlms.files import hash_file, write_text

INDEX = "index.json"
VERSION = 1
MAX_INDEX_BYTES = 2**28
ACTIONS, PROPRIO, EPISODES, TEXTS, SOURCES = "actions.npy", "proprio.npy", "episodes.npy", "texts.json", "sources.txt"
COLUMNS = ("first", "length", "instruction", "task", "source_start", "source_end")  # of EPISODES


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What a file must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PackedIndex:
    """What `index.json` says. `files` lists every other file of the folder."""

    version: int
    fingerprint: str  # SHA-256 of the reader's
    origin: dict[str, Any]  # settings that the data were read with
    summary: str  # of the reader
    image_format: str
    rows: int  # frames, those that episodes share counted once
    shard_rows: int  # frames of a shard; the last has what is left
    views: dict[str, list[int]]  # height, width
    files: dict[str, FileRecord]

    @property
    def num_shards(self) -> int:
        """Return the number of shards of each view."""
        return -(-self.rows // self.shard_rows)

    def rows_of(self, shard: int) -> int:
        """Return the number of frames in a shard."""
        return min(self.shard_rows, self.rows - shard * self.shard_rows)

    def frame_bytes(self, view: str) -> int:
        """Return the size of a raw frame."""
        height, width = self.views[view]
        return height * width * 3

    def save(self, folder: Path) -> None:
        """Write `index.json`, at once or not at all: a folder that has one is complete."""
        write_text(folder / INDEX, json.dumps(asdict(self), indent=1) + "\n")


def shard_name(view: str, shard: int) -> str:
    """Name the pixels of a shard."""
    return f"{view}-{shard:05d}.bin"


def offsets_name(view: str, shard: int) -> str:
    """Name the places of a shard's JPEGs in its pixels, int64, one more than there are frames."""
    return f"{view}-{shard:05d}.npy"


def record(path: Path) -> FileRecord:
    """Measure a file that has just been written."""
    return FileRecord(bytes=path.stat().st_size, sha256=hash_file(path))


def load_index(folder: Path) -> PackedIndex:
    """Read and check the index; sizes of the files it lists are not compared.

    Raises:
        FileNotFoundError: the folder or its index is missing: it was never packed, or not to the end.
        UserError: the index is of another version, not ours, or contradicts itself.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: packing was not finished. Repeat the command of scripts/convert_data.py, which "
            "goes on where it stopped."
        )
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise UserError(f"it has {path.stat().st_size} bytes")
        content = json.loads(path.read_bytes())
        version = content.get("version") if isinstance(content, dict) else None
        if version == VERSION:
            return _checked(content)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not the index of a packed folder: {error}. {again(folder)}") from error
    raise UserError(f"{path} has version {version!r}, but this program reads version {VERSION}. {again(folder)}")


def again(folder: Path) -> str:
    """Say how to replace a folder that is of no use."""
    return f"Delete {folder} and repeat scripts/convert_data.py, or set data.cache=native."


def _checked(content: dict[str, Any]) -> PackedIndex:
    names = {field.name for field in fields(PackedIndex)}
    if set(content) != names:
        raise UserError(f"expected the keys {sorted(names)}, found {sorted(content)}")
    files = {name: FileRecord(**entry) for name, entry in content["files"].items()}
    index = PackedIndex(**(content | {"files": files}))
    _check_counts(index)
    needed = {ACTIONS, EPISODES, TEXTS, SOURCES}
    for view in index.views:
        needed |= {shard_name(view, shard) for shard in range(index.num_shards)}
        if index.image_format == ImageFormat.jpeg:
            needed |= {offsets_name(view, shard) for shard in range(index.num_shards)}
    if missing := sorted(needed - set(files)):
        raise UserError(f"it does not list {missing[0]} and {len(missing) - 1} other files")
    if foreign := sorted(set(files) - needed - {PROPRIO}):
        raise UserError(f"it lists the unknown {foreign[0]!r}")
    if index.image_format == ImageFormat.raw:
        for view in index.views:
            for shard in range(index.num_shards):
                expected = index.rows_of(shard) * index.frame_bytes(view)
                if files[shard_name(view, shard)].bytes != expected:
                    raise UserError(f"{shard_name(view, shard)} must have {expected} bytes")
    return index


def _check_counts(index: PackedIndex) -> None:
    sizes = [entry.bytes for entry in index.files.values()]
    counts = [index.rows, index.shard_rows, *(n for size in index.views.values() for n in size), *sizes]
    if not all(type(count) is int and 0 < count < 2**48 for count in counts) or index.num_shards > len(index.files):
        raise UserError("counts and sizes must be positive whole numbers, and every shard a file")
    if index.image_format not in list(ImageFormat):
        raise UserError(f"image_format={index.image_format!r} is unknown")
    for view, size in index.views.items():
        check_view(view)
        if len(size) != 2:
            raise UserError(f"view {view!r} must have a height and a width, not {size}")
    if not isinstance(index.origin, dict):
        raise UserError("origin must be a table")


def check_view(view: str) -> None:
    """Refuse a view that cannot be part of a file name."""
    if not re.fullmatch(r"\w[\w.-]*", view):
        raise UserError(f"view {view!r} cannot be packed: name it with letters, digits, '_', '.' and '-'")


def check_files(folder: Path, index: PackedIndex) -> None:
    """Compare names and sizes with the index.

    Raises:
        FileNotFoundError: a file is missing.
        UserError: a file has another size.
    """
    for name, expected in index.files.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist. {again(folder)}")
        if (size := path.stat().st_size) != expected.bytes:
            raise UserError(f"{path} has {size} bytes, expected {expected.bytes}. {again(folder)}")


def open_array(path: Path, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
    """Map a .npy file read-only.

    Args:
        path: the file.
        dtype: what it must hold.
        shape: what it must have; None: any.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged, or holds something else.
    """
    try:
        with path.open("rb") as file:
            header, start = read_header(file), file.tell()
        fits = len(header.shape) == len(shape) and header.dtype == dtype and not header.fortran
        if not fits or any(want not in (None, have) for have, want in zip(header.shape, shape, strict=True)):
            raise UserError(f"it holds {header.dtype} {header.shape}, expected {np.dtype(dtype)} {shape}")
        if path.stat().st_size - start != math.prod(header.shape) * header.dtype.itemsize:
            raise UserError(f"its size is not that of {header.shape}")
        array = np.memmap(path, dtype, "r", start, header.shape)
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}. {again(path.parent)}") from error
    return np.asarray(array)  # without the subclass, whose slices cost several times as much


def open_episodes(folder: Path, index: PackedIndex, texts: int) -> Int64[np.ndarray, "e 6"]:
    """Map the table of episodes, with the columns COLUMNS.

    Raises:
        FileNotFoundError: it is missing.
        UserError: it is damaged, or refers to frames or texts that there are not.
    """
    path = folder / EPISODES
    table = open_array(path, np.int64, (None, len(COLUMNS)))
    limits = np.array([index.rows, index.rows, texts - 1, texts - 1, *[index.files[SOURCES].bytes] * 2])
    if not len(table) or (table < 0).any() or (table > limits).any() or (table[:, 0] + table[:, 1] > index.rows).any():
        raise UserError(f"{path} refers to frames or texts that there are not. {again(folder)}")
    return table

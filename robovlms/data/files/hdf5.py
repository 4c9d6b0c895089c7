"""HDF5 files of others, read so that nothing outside them is followed and every fault names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from robovlms.errors import UserError
from robovlms.files import refuse_pointer
from robovlms.images.decoding import decode_picture, read_header

MAX_ROWS = 10**6  # of a demonstration: half a day at 20 Hz; a file of a few bytes may claim any number
MAX_ROW_BYTES = 2**26  # of one row, and 8 of them of a chunk: a picture of 4096 x 4096


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what the HDF5 library says of a damaged file into a ValueError that names it; ours pass."""
    try:
        yield
    except (
        OSError,
        RuntimeError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        UnicodeError,
        MemoryError,
    ) as error:
        refuse_pointer(path)
        raise UserError(f"{path} cannot be read as HDF5 ({error}): download it again.") from error


def open_hdf5(path: Path) -> Any:
    """Open a file for reading, without a lock: loader processes share it, and folders may be read-only.

    Raises:
        ImportError: h5py is not installed; says how to install it.
        FileNotFoundError: there is no such file.
        UserError: it is truncated, or not HDF5.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError('HDF5 files are read with h5py: run pip install -e ".[libero]".') from error
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    with naming(path):
        return h5py.File(path, "r", locking=False)


def top_level(path: Path) -> set[str]:
    """Return the names of what lies directly in a file; none where it cannot be read."""
    try:
        with open_hdf5(path) as file:
            return set(file)
    except (ImportError, OSError, ValueError):
        return set()


def is_group(found: Any) -> bool:
    """Tell groups from datasets and nothing."""
    import h5py

    return isinstance(found, h5py.Group)


def child(group: Any, name: str) -> Any:
    """Return the group or dataset at a path below `group`, or None where there is none; links are not followed.

    Raises:
        UserError: on the way lies a link, to another place or another file.
    """
    import h5py

    for part in name.split("/"):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{group.file.filename}: {group.name}/{part} is a link, and links are not followed.")
        group = group[part]
    return group


def names(group: Any) -> list[str]:
    """List the datasets of numbers at or just below a group, as `action` or `obs/ee_pos`; links are left out."""
    import h5py

    found = []
    for name in group:
        member = child(group, name) if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
        if isinstance(member, h5py.Dataset):
            found.append(name)
        elif isinstance(member, h5py.Group) and group.name.count("/") < 3:
            found += [f"{name}/{inner}" for inner in names(member)]
    return found


def dataset(group: Any, name: str) -> Any:
    """Return a dataset of numbers, one row a frame, that lies in this file.

    Raises:
        UserError: there is none, or it is of another kind, size or place.
    """
    import h5py

    found = child(group, name)
    told = f"{group.file.filename}: {group.name}/{name}"
    if not isinstance(found, h5py.Dataset):
        known = ", ".join(names(group)) or "nothing"
        raise UserError(f"{told} is not there; {group.name} has {known}.")
    if found.is_virtual or found.external:
        raise UserError(f"{told} lies in another file, which is not followed.")
    if found.dtype.kind not in "fiub" or found.dtype.itemsize > 8 or not found.shape:
        raise UserError(f"{told} holds {found.dtype} {found.shape}, expected numbers, one row a frame.")
    row, chunk = (
        int(np.prod(size, dtype=np.float64)) * found.dtype.itemsize for size in (found.shape[1:], found.chunks or ())
    )
    if found.shape[0] > MAX_ROWS or row > MAX_ROW_BYTES or chunk > 8 * MAX_ROW_BYTES:
        raise UserError(f"{told} has the shape {found.shape} in pieces of {found.chunks}: too large to be true.")
    return found


def read_rows(found: Any, steps: Int64[np.ndarray, "n"]) -> np.ndarray:
    """Read the rows `steps` (increasing, may repeat): in one slice, or one by one where they lie far apart."""
    first, last = int(steps[0]), int(steps[-1])
    if last - first < 2 * len(steps) or found.ndim < 3:
        rows: np.ndarray = found[first : last + 1]
        return rows[steps - first]
    unique, places = np.unique(steps, return_inverse=True)
    return np.stack([found[int(step)] for step in unique])[places]


def picture_size(found: Any) -> tuple[int, int]:
    """Return height and width of a dataset of pictures: pixels, or an encoded picture a row, padded with zeros.

    Raises:
        UserError: it holds something else.
    """
    if found.dtype == np.uint8 and found.ndim == 4 and found.shape[3] == 3 and 0 not in found.shape:
        return found.shape[1], found.shape[2]
    if found.dtype == np.uint8 and found.ndim == 2 and 0 not in found.shape:
        header = read_header(found[0].tobytes())
        return header.height, header.width
    raise UserError(
        f"is {found.dtype} {found.shape}, but must be pictures: uint8, frames x height x width x 3, or frames x bytes "
        "of JPEG or PNG."
    )


def read_pictures(found: Any, steps: Int64[np.ndarray, "w"]) -> UInt8[np.ndarray, "w _h _x c"]:
    """Read the pictures of `steps` (increasing, may repeat) of a dataset that `picture_size` accepts.

    Raises:
        UserError: one is damaged, or of another size than the first.
    """
    if found.ndim == 4:
        return read_rows(found, steps)
    size = picture_size(found)
    unique, places = np.unique(steps, return_inverse=True)
    pictures = []
    for step in unique.tolist():
        try:
            pictures.append(decode_picture(found[step].tobytes(), size=size))
        except ValueError as error:
            raise UserError(f"{found.file.filename}: {found.name}, frame {step}: {error}") from error
    return np.stack(pictures)[places]

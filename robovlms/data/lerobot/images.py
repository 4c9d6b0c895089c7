"""Images that a LeRobotDataset keeps in the cells of its tables, or in files that the cells name."""

from __future__ import annotations

from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from robovlms.errors import UserError
from robovlms.images.decoding import decode_picture, read_header

FORMATS = ("PNG", "JPEG")  # what the datasets library writes
_BATCH_ROWS = 256  # an episode's row group in one read, and no more of a foreign, huge one than needed


class ParquetImages:
    """Encoded images of a memory-mapped parquet file, by row; reads a row group only up to the last row needed."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, memory_map=True)
        groups = self._file.metadata
        self._ends = np.cumsum([groups.row_group(group).num_rows for group in range(groups.num_row_groups)])

    def read(self, key: str, row: int, count: int) -> list[dict[str, Any] | None]:
        """Return {"bytes": PNG or JPEG, "path": text} of `count` rows, either of which may be None.

        Raises:
            UserError: there is no such column.
        """
        schema = self._file.schema_arrow
        kind = schema.field(key).type if schema.names.count(key) == 1 else pa.null()
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise UserError(f"there is no column of images called '{key}'")
        fields = [name for name in ("bytes", "path") if kind.get_field_index(name) >= 0]
        first, last = np.searchsorted(self._ends, [row, row + count - 1], side="right")
        skip = row - (int(self._ends[first - 1]) if first else 0)
        size = min(_BATCH_ROWS, skip + count)
        batches = self._file.iter_batches(
            batch_size=size,
            row_groups=list(range(first, last + 1)),
            columns=[f"{key}.{field}" for field in fields],
            use_threads=False,
        )
        needed = list(islice(batches, (skip + count - 1) // size + 1))
        cells: list[dict[str, Any] | None] = pa.Table.from_batches(needed).slice(skip, count)[key].to_pylist()
        return cells


def decode_cell(cell: dict[str, Any] | None, root: Path) -> UInt8[np.ndarray, "_h _x c"]:
    """Return the picture of a cell.

    Raises:
        UserError: it cannot be decoded; see `decode_picture`.
    """
    return decode_picture(encoded_cell(cell, root), FORMATS)


def check_cell(cell: dict[str, Any] | None, root: Path) -> None:
    """Refuse a cell whose picture's header says that it is no photograph; decodes nothing.

    Raises:
        UserError: see `decode_picture`.
    """
    read_header(encoded_cell(cell, root), FORMATS)


def encoded_cell(cell: dict[str, Any] | None, root: Path) -> bytes:
    """Return the embedded bytes, or those of the file that the cell names below the folder."""
    cell = cell or {}
    data, name = cell.get("bytes"), cell.get("path")
    if isinstance(data, bytes):
        return data
    if not isinstance(name, str) or not name:
        raise UserError("there is no image in the parquet file")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not (root / path).is_file():
        raise UserError(f"the image is not embedded in the parquet file, and {root} has no {name!r}")
    return (root / path).read_bytes()

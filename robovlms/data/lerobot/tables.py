"""JSON and parquet files of downloaded folders, read so that every fault names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robovlms.errors import UserError
from robovlms.files import refuse_pointer

REPAIR = "download or record it again, or point data.root at another LeRobotDataset folder"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {REPAIR}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        refuse_pointer(path)
        raise UserError(f"{path} is not valid JSON ({error}): {REPAIR}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: {REPAIR}.")
    return content


def read_json_lines(path: Path, fields: dict[str, type]) -> list[dict[str, Any]]:
    """Read one object a line, as far as `fields`; whole numbers are at least 0.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: a line is not such an object; names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {REPAIR}.")
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not all(type(row[name]) is kind for name, kind in fields.items()):
                raise TypeError(f"expected {', '.join(f'{name}: {kind.__name__}' for name, kind in fields.items())}")
            if any(kind is int and not 0 <= row[name] < 2**31 for name, kind in fields.items()):
                raise UserError("numbers must be at least 0 and below 2 ** 31")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            refuse_pointer(path)
            raise UserError(f"{path}, line {number}: {error!r}") from error
        rows.append(row)
    return rows


def read_table(path: Path, columns: list[str] | None = None, rows: int | None = None) -> pa.Table:
    """Read a parquet file, or some of its columns.

    Args:
        path: the file.
        columns: those to read; no other is looked at.
        rows: how many the file must have; another number is refused before anything is read.

    Raises:
        FileNotFoundError: the file is missing.
        UserError: it is no parquet file, lacks a column, or has another number of rows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {REPAIR}.")
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            known = file.schema_arrow.names
            if missing := [name for name in columns or [] if known.count(name) != 1]:
                raise UserError(f"{path} has no column {', '.join(missing)} (or two); it has {', '.join(known)}.")
            if rows is not None and file.metadata.num_rows != rows:
                raise UserError(
                    f"{path} holds {file.metadata.num_rows} rows, but not the {rows} that meta/episodes lists: the "
                    f"folder is damaged; {REPAIR}."
                )
            table = file.read(columns=columns, use_threads=False)
            table.validate(full=True)  # text that is not UTF-8 would raise later, without the file's name
            return table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        refuse_pointer(path)
        raise UserError(f"{path} cannot be read as parquet ({error}): {REPAIR}.") from error


def count_rows(path: Path) -> int | None:
    """Return how many rows a parquet file holds, by its footer; None where it cannot be read."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return None


def read_rows(path: Path, whole: list[str], seconds: list[str]) -> list[dict[str, Any]]:
    """Read the rows of a parquet table of whole numbers from 0 on and of times.

    Raises:
        FileNotFoundError: the file is missing.
        UserError: it is no parquet file, lacks a column, or one holds something else.
    """
    table = read_table(path, [*whole, *seconds])
    for name in whole + seconds:
        column, kind = table[name], table.schema.field(name).type
        fits = pa.types.is_integer(kind) or (name in seconds and pa.types.is_floating(kind))
        values = column.to_numpy() if fits and not column.null_count else np.array([np.nan])
        if not ((values >= 0) & (values < 2**31)).all():
            raise UserError(f"{path}: column '{name}' must hold numbers from 0 to 2 ** 31, but holds {kind}.")
    return table.to_pylist()


def column_numbers(path: Path, key: str, column: pa.Array) -> np.ndarray:
    """Return a column's numbers: "n" for scalars, "n d" for vectors.

    Raises:
        UserError: it is not numeric, or ragged.
    """
    rows = len(column)
    is_vector = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
    values = column.flatten() if is_vector else column
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise UserError(f"{path}: column '{key}' holds {column.type}, expected numbers.")
    lengths = {len(values) // max(rows, 1)} if not pa.types.is_list(column.type) else set(_lengths(column))
    if column.null_count or values.null_count or len(lengths) > 1:
        raise UserError(
            f"{path}: column '{key}' has missing or ragged rows, expected one vector of fixed length a frame."
        )
    numbers: np.ndarray = values.to_numpy(zero_copy_only=False)
    return numbers.reshape(rows, max(lengths, default=0)) if is_vector else numbers


def _lengths(column: pa.Array) -> list[int]:
    return np.unique(np.diff(column.offsets.to_numpy())).tolist()

"""Where the records of TFRecord files lie, and the numbers of their steps: found in one pass, kept in a file.

The file lies in `cache_folder`. Its name holds a hash of the shards' names, sizes and times and of the keys, so that
another data set or other keys get another file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64

from robovlms.data.bad_records import BadRecords
from robovlms.data.files.cache_folder import keep
from robovlms.data.rlds.features import STEPS, Shard, StepFeature
from robovlms.data.rlds.steps import read_numbers, read_texts
from robovlms.data.rlds.tfrecord import Feature, parse_example, scan_records
from robovlms.errors import UserError
from robovlms.files import pointer_problem
from robovlms.progress import track
from robovlms.workers import Pool

logger = logging.getLogger(__name__)

_VERSION = 4  # of the index file; raise it when its content changes
_PLACES = ("shard", "record", "offset", "length", "success", "steps")
WORKERS = "ROBOVLMS_INDEX_WORKERS"  # environment variable: processes that index, if not one for each core
WORTH_PROCESSES = 100e6  # bytes; less is indexed sooner than processes have started
_STRETCHES = ("stretch_record", "stretch_step", "stretch_instruction")


@dataclass(frozen=True)
class IndexRequest:
    """Which records are indexed, and what is kept of their steps."""

    name: str  # of data set and split, for people
    shards: list[Shard]
    numeric: dict[str, StepFeature]  # keys of a step
    language: str  # place of the instruction in a record: steps/... or of the episode
    language_spec: StepFeature
    success: str | None = None  # key of an episode

    def digest(self) -> str:
        """Return a hash that changes with the files, those that are missing included, or with the keys."""
        files = [(shard.path.name, shard.num_records, *_stamp(shard.path)) for shard in self.shards]
        numeric = sorted((key, *spec) for key, spec in self.numeric.items())
        texts = [self.language, *self.language_spec, self.success]
        return hashlib.sha256(json.dumps([_VERSION, files, numeric, texts]).encode()).hexdigest()


@dataclass(frozen=True)
class RecordIndex:
    """Readable records in the order of the files, the steps of all of them one behind another, and what was wrong.

    A record has a stretch for each instruction, one behind another; most have one.
    """

    shard: Int64[np.ndarray, "n"]
    record: Int64[np.ndarray, "n"]  # number within the shard
    offset: Int64[np.ndarray, "n"]  # of the payload, in bytes
    length: Int64[np.ndarray, "n"]  # of the payload
    success: Int64[np.ndarray, "n"]  # 1, or 0 where the episode's flag says no
    steps: Int64[np.ndarray, "n"]
    stretch_record: Int64[np.ndarray, "m"]  # increasing
    stretch_step: Int64[np.ndarray, "m"]  # the first, counted in its record
    stretch_instruction: Int64[np.ndarray, "m"]  # into `instructions`
    instructions: list[str]
    columns: dict[str, Float32[np.ndarray, "s _"]]  # by key of a step
    faults: list[str]  # of records and shards that are left out


class _Row(NamedTuple):
    places: tuple[int, int, int, int]
    success: int
    stretches: list[tuple[int, str]]  # first step and instruction
    columns: dict[str, np.ndarray]


_Found: TypeAlias = _Row | UserError | FileNotFoundError


def load_index(request: IndexRequest, folder: Path, bad: BadRecords) -> RecordIndex:
    """Read the index from the cache folder, or make it and keep it there.

    Args:
        request: what to index.
        folder: of `cache_folder`.
        bad: decides whether damaged records are an error, or listed in `faults` and counted.

    Raises:
        UserError: a record is damaged; names file, record and byte.
        FileNotFoundError: a shard does not exist.
    """
    name = re.sub(r"[^\w.-]", "_", request.name)[:80]
    path = folder / f"rlds-{name}-{request.digest()[:24]}.npz"
    index, _ = keep(path, lambda: _build(request, bad), _to_arrays, lambda arrays: _from_arrays(arrays, request))
    for fault in index.faults:
        bad.refuse_or_skip(UserError(fault))
    return index


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _build(request: IndexRequest, bad: BadRecords) -> RecordIndex:
    start = time.perf_counter()
    size = sum(max(_stamp(shard.path)[0], 0) for shard in request.shards)
    logger.info("%s: reading %.1f GB in %d files once, to index it", request.name, size / 1e9, len(request.shards))
    rows: list[_Row] = []
    faults: list[str] = []
    for found in _scan(request, size):
        if isinstance(found, _Row):
            rows.append(found)
            continue
        bad.refuse(found)
        faults.append(str(found))
    logger.info("%s: %d records indexed in %.0f s", request.name, len(rows), time.perf_counter() - start)
    steps = [len(next(iter(row.columns.values()))) for row in rows]
    places = np.array([(*row.places, row.success, n) for row, n in zip(rows, steps, strict=True)], np.int64)
    stretches = [(i, step, text) for i, row in enumerate(rows) for step, text in row.stretches]
    instructions = sorted({text for _, _, text in stretches})
    numbers = {text: i for i, text in enumerate(instructions)}
    columns = {
        key: np.concatenate([np.zeros((0, spec.width), np.float32), *(row.columns[key] for row in rows)])
        for key, spec in request.numeric.items()
    }
    numbered = np.array([(i, step, numbers[text]) for i, step, text in stretches], np.int64)
    return _index(places.reshape(-1, 6).T, numbered.reshape(-1, 3).T, instructions, columns, faults)


def _scan(request: IndexRequest, size: int) -> Iterator[_Found]:
    """Yield what is found in the shards, in their order, read by all cores at once."""
    num_workers = min(_count_processes(), len(request.shards)) if size >= WORTH_PROCESSES else 1
    count, waiting, turn = len(request.shards), dict[int, list[_Found]](), 0
    with Pool(partial(_scanner, request), num_workers, WORKERS) as pool:
        for number, found in track(pool.run(range(count)), f"indexing {request.name}", count, "file"):
            waiting[number] = found
            while turn in waiting:
                yield from waiting.pop(turn)
                turn += 1


def _count_processes() -> int:
    if (given := os.environ.get(WORKERS)) is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"{WORKERS}={given} must be a whole number of at least 1: the processes that index.")
    return int(given)


@contextmanager
def _scanner(request: IndexRequest) -> Iterator[Callable[[int], list[_Found]]]:
    """Give what indexes the shard of a number."""
    yield lambda number: list(_index_shard(request, number, request.shards[number]))


def _index(
    places: Int64[np.ndarray, "6 n"],
    stretches: Int64[np.ndarray, "3 m"],
    instructions: list[str],
    columns: dict[str, np.ndarray],
    faults: list[str],
) -> RecordIndex:
    fields = dict(zip(_PLACES + _STRETCHES, [*places, *stretches], strict=True))
    return RecordIndex(**fields, instructions=instructions, columns=columns, faults=faults)


def _index_shard(request: IndexRequest, number: int, shard: Shard) -> Iterator[_Found]:
    if not shard.path.is_file():
        yield FileNotFoundError(f"{shard.path} does not exist: complete the download.")
        return
    if (problem := pointer_problem(shard.path)) is not None:
        yield UserError(f"{shard.path} cannot be read: {problem}.")
        return
    record = -1
    for record, scanned in enumerate(scan_records(shard.path)):
        fault = scanned.fault
        if fault is None:
            try:
                yield _Row((number, record, scanned.offset, len(scanned.payload)), *_look(request, scanned.payload))
            except ValueError as error:
                fault = str(error)
        if fault is not None:
            yield UserError(f"{shard.path}, record {record} at byte {scanned.offset}: {fault}. Download it again.")
    if record + 1 != shard.num_records:
        yield UserError(
            f"{shard.path} has {record + 1} records, but dataset_info.json says {shard.num_records}: download it again."
        )


def _look(request: IndexRequest, payload: bytes) -> tuple[int, list[tuple[int, str]], dict[str, np.ndarray]]:
    """Return an episode's success, instructions and numbers; no picture is decoded."""
    names = [*(STEPS + key for key in request.numeric), request.language]
    flags = [] if request.success is None else [request.success]
    example = parse_example(payload, [*names, *flags])
    columns: dict[str, np.ndarray] = {}
    texts: list[str] = []
    for name in names:
        if name not in example:
            raise UserError(f"it has no {name!r}, which features.json lists")
        try:
            if name == request.language:
                texts = read_texts(request.language_spec, example[name])
            else:
                key = name.removeprefix(STEPS)
                columns[key] = read_numbers(request.numeric[key], example[name])
        except ValueError as error:
            raise UserError(f"{name!r}: {error}") from error
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"its keys have different numbers of steps: {lengths}")
    expected = next(iter(lengths.values())) if request.language.startswith(STEPS) else 1
    if len(texts) not in (0, expected):
        raise UserError(f"{request.language!r}: it has {len(texts)} texts, expected {expected}")
    return int(all(_flag(example, flag) for flag in flags)), _stretches(texts), columns


def _stretches(texts: list[str]) -> list[tuple[int, str]]:
    """Return the step at which each text begins, with the text; no text is an empty one."""
    starts = [step for step, text in enumerate(texts) if not step or text != texts[step - 1]]
    return [(step, texts[step]) for step in starts] or [(0, "")]


def _flag(example: dict[str, Feature], name: str) -> bool:
    values = example[name].ints().tolist() if name in example else []
    if len(values) != 1:
        raise UserError(f"it has {len(values)} values of {name!r}, expected 1")
    return bool(values[0])


def _to_arrays(index: RecordIndex) -> dict[str, Any]:
    texts = {"instructions": index.instructions, "faults": index.faults, "columns": list(index.columns)}
    arrays = {f"column{i}": column for i, column in enumerate(index.columns.values())}
    arrays["texts"] = np.frombuffer(json.dumps(texts).encode(), np.uint8)
    tables = {"places": _PLACES, "stretches": _STRETCHES}
    return arrays | {key: np.stack([getattr(index, name) for name in names]) for key, names in tables.items()}


def _from_arrays(arrays: dict[str, Any], request: IndexRequest) -> RecordIndex:
    texts = json.loads(arrays["texts"].tobytes())
    columns = {key: arrays[f"column{i}"] for i, key in enumerate(texts["columns"])}
    for table in ("places", "stretches"):
        if arrays[table].dtype != np.int64 or (arrays[table] < 0).any():
            raise UserError(f"its {table} are not whole numbers")
    index = _index(arrays["places"], arrays["stretches"], texts["instructions"], columns, texts["faults"])
    is_within = (index.stretch_instruction < len(index.instructions)).all()
    if not is_within or not all(isinstance(text, str) for text in index.instructions):
        raise UserError("its instructions are not texts")
    if not np.array_equal(np.unique(index.stretch_record), np.arange(len(index.steps))):
        raise UserError("its stretches are not of its records")
    num_steps = int(index.steps.sum())
    shapes = {key: (num_steps, spec.width) for key, spec in request.numeric.items()}
    if {key: column.shape for key, column in index.columns.items()} != shapes:
        raise UserError("its columns are not those asked for")
    return index

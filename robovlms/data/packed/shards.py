"""The shards of a packed folder: which frame is stored where, and how a shard is written."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from robovlms.config.choices import ImageFormat
from robovlms.data.base import Clip, Reader
from robovlms.data.packed.index import FileRecord, check_view, offsets_name, record, shard_name
from robovlms.errors import UserError
from robovlms.files import digest, write_text

QUALITY = 95  # with 4:4:4 about 40 dB on CALVIN's frames, in a fifth of the room
SHARD_BYTES, MIN_SHARD_ROWS, MIN_SHARDS = 2**30, 256, 16
STEPS_AT_ONCE = 32  # frames asked of the reader in one call
UNFINISHED = "unfinished"


class Span(NamedTuple):
    """Rows `row` ... `row + length - 1` are the frames `step` ... of an episode."""

    row: int
    episode: int
    step: int
    length: int


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """What is packed into which rows; the same at every attempt."""

    fingerprint: str
    origin: dict[str, Any]
    image_format: str
    rows: int
    shard_rows: int
    views: dict[str, list[int]]

    def rows_of(self, shard: int) -> int:
        """Return the number of frames in a shard."""
        return min(self.shard_rows, self.rows - shard * self.shard_rows)


def lay_out(reader: Reader) -> tuple[Int64[np.ndarray, "e"], list[Span]]:
    """Return each episode's first row, and what every row is to be read from; shared frames get one row."""
    lengths = [episode.length for episode in reader.episodes]
    starts = [reader.recorded(number) for number in range(len(lengths))]
    order = sorted(range(len(lengths)), key=lambda number: -1 if (start := starts[number]) is None else start)
    firsts, spans = np.zeros(len(lengths), np.int64), []
    rows, reached = 0, -1  # rows so far, and the recorded frame behind the last of them
    for number in order:
        start, length = starts[number], lengths[number]
        shared = 0 if start is None or start > reached else reached - start  # frames that have a row already
        firsts[number] = rows - shared
        if length > shared:
            spans.append(Span(rows, number, shared, length - shared))
            rows += length - shared
            reached = -1 if start is None else start + length
    if not rows:
        raise UserError(f"{reader.summary()} has no frame to pack.")
    return firsts, spans


def make_plan(reader: Reader, spans: list[Span], image_format: ImageFormat, origin: dict[str, Any]) -> ShardPlan:
    """Divide the rows into shards, by the size of the first frame.

    Raises:
        UserError: the reader has no view, or one that cannot be the name of a file.
    """
    rows = spans[-1].row + spans[-1].length
    frames = reader.frames(spans[0].episode, np.array([spans[0].step]))
    views = {view: [int(n) for n in images.shape[1:3]] for view, images in frames.items()}
    if not views:
        raise UserError("there is nothing to pack without a view: choose view=side or another.")
    for view in views:
        check_view(view)
    largest = max(height * width * 3 for height, width in views.values())
    shard_rows = min(max(1, SHARD_BYTES // largest), max(MIN_SHARD_ROWS, -(-rows // MIN_SHARDS)))
    return ShardPlan(
        fingerprint=digest(reader.fingerprint()),
        origin=origin,
        image_format=image_format.value,
        rows=rows,
        shard_rows=shard_rows,
        views=views,
    )


def numbers_of(target: Path, shard: int) -> Path:
    """Say where the numbers of a finished shard wait."""
    return target / UNFINISHED / f"numbers-{shard:05d}.npz"


class Packer:
    """Write one shard after another."""

    def __init__(self, reader: Reader, plan: ShardPlan, spans: list[Span], target: Path) -> None:
        self._reader, self._plan, self._target = reader, plan, target
        self._spans = spans
        self._starts = np.array([span.row for span in spans])

    def write(self, shard: int) -> None:
        """Write pixels and numbers, and then the record that says so."""
        names = [shard_name(view, shard) for view in self._plan.views]
        files = {view: _HashedFile(self._target / name) for view, name in zip(self._plan.views, names, strict=True)}
        numbers = []
        try:
            for span in self._pieces(shard):
                clip = self._read(span)
                for view, file in files.items():
                    self._append(file, clip.frames[view])
                numbers.append(clip.numbers)
        finally:
            records = {file.path.name: file.close() for file in files.values()}
        columns = {"actions": np.concatenate([n.actions for n in numbers])}
        if numbers[0].proprio is not None:
            columns["proprio"] = np.concatenate([n.proprio for n in numbers])
        np.savez(numbers_of(self._target, shard), **columns)  # type: ignore[arg-type]
        _sync(numbers_of(self._target, shard))
        if self._plan.image_format == ImageFormat.jpeg:
            for view, file in files.items():
                path = self._target / offsets_name(view, shard)
                np.save(path, np.cumsum([0, *file.sizes], dtype=np.int64))
                _sync(path)
                records[path.name] = record(path)
        note = self._target / UNFINISHED / f"shard-{shard:05d}.json"
        write_text(note, json.dumps({name: asdict(entry) for name, entry in records.items()}))

    def _pieces(self, shard: int) -> Iterator[Span]:
        """Return a shard's rows, in pieces that the reader is asked for."""
        row = shard * self._plan.shard_rows
        end = min(row + self._plan.shard_rows, self._plan.rows)
        while row < end:
            span = self._spans[int(np.searchsorted(self._starts, row, side="right")) - 1]
            count = min(STEPS_AT_ONCE, end - row, span.row + span.length - row)
            yield Span(row, span.episode, span.step + row - span.row, count)
            row += count

    def _read(self, span: Span) -> Clip:
        steps = np.arange(span.step, span.step + span.length)
        clip = self._reader.read(span.episode, steps, steps)
        for view, size in self._plan.views.items():
            if (found := clip.frames[view].shape) != (span.length, *size, 3):
                raise UserError(
                    f"{self._reader.location(span.episode, span.step, span.step + span.length - 1)}: episode "
                    f"{span.episode} has frames of {found[1]} x {found[2]} in view {view!r}, but the first has "
                    f"{size[0]} x {size[1]}. Frames of a packed view are of one size: leave the episode out, or read "
                    "natively (data.cache=native)."
                )
        return clip

    def _append(self, file: _HashedFile, frames: UInt8[np.ndarray, "n _h _x c"]) -> None:
        if self._plan.image_format == ImageFormat.raw:
            file.write(np.ascontiguousarray(frames).data)
            return
        for frame in frames:
            file.write(encode_jpeg(frame))


class _HashedFile:
    """A file that is written from beginning to end, with its SHA-256 and the sizes of what was written."""

    def __init__(self, path: Path) -> None:
        self.path, self.sizes = path, list[int]()
        self._file: BinaryIO = path.open("wb")
        self._hash = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.sizes.append(memoryview(data).nbytes)

    def close(self) -> FileRecord:
        """Bring everything to the disk: a record of it must not survive what it records."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return FileRecord(bytes=sum(self.sizes), sha256=self._hash.hexdigest())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def encode_jpeg(frame: UInt8[np.ndarray, "h x c"]) -> bytes:
    """Return a JPEG without chroma subsampling, which would cost 5 dB on a robot's edges."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=QUALITY, subsampling=0)
    return file.getvalue()

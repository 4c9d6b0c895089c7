"""Episodes of a packed folder (`packing` has the layout): raw frames without a copy, or JPEGs."""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from jaxtyping import Int64, UInt8

from robovlms.config.choices import ImageFormat
from robovlms.data.base import Clip, EpisodeInfo, Numbers, Reader
from robovlms.data.files.opened import OpenFiles
from robovlms.data.packed.index import (
    ACTIONS,
    PROPRIO,
    SOURCES,
    TEXTS,
    again,
    check_files,
    load_index,
    offsets_name,
    open_array,
    open_episodes,
    shard_name,
)
from robovlms.errors import UserError
from robovlms.images.decoding import decode_own_jpeg

MAX_OPEN = 256  # mapped shards of one process


class PackedReader(Reader):
    """The episodes that were packed. Their table and numbers are mapped: nothing grows with the data set but address
    space.

    Frames of a raw folder are read-only views of the mapped file where `steps` follow one another within a shard, and
    copies elsewhere.

    Args:
        folder: what `packing.pack` wrote.
        views: those to read, by our names.

    Raises:
        FileNotFoundError: the folder is incomplete.
        UserError: it is damaged, of another version, or lacks a view.
    """

    def __init__(self, folder: Path, *, views: Sequence[str]) -> None:
        self.folder, self.index, self._views = folder, load_index(folder), list(views)
        if missing := [view for view in views if view not in self.index.views]:
            raise UserError(f"{folder} holds the views {list(self.index.views)}, not {missing}. {again(folder)}")
        check_files(folder, self.index)
        self._texts = _read_texts(folder)
        self._table = open_episodes(folder, self.index, len(self._texts))
        self._actions = open_array(folder / ACTIONS, np.float32, (self.index.rows, None))
        self._proprio = None
        if PROPRIO in self.index.files:
            self._proprio = open_array(folder / PROPRIO, np.float32, (self.index.rows, None))
        self._raw = self.index.image_format == ImageFormat.raw
        self._shards = OpenFiles(self._open_shard, MAX_OPEN)
        self._offsets = OpenFiles(self._open_offsets, MAX_OPEN)
        self._places = {view: [folder / shard_name(view, i) for i in range(self.index.num_shards)] for view in views}
        self.episodes = _Episodes(self._table, self._texts)

    def read(self, episode: int, observed: Int64[np.ndarray, "w"], acted: Int64[np.ndarray, "n"]) -> Clip:
        """Take everything from the mapped files."""
        first = self._table[episode, 0]
        proprio = None if self._proprio is None else self._proprio[first + observed]
        return Clip(self.frames(episode, observed), self.numbers(episode, acted), proprio)

    def frames(self, episode: int, steps: Int64[np.ndarray, "w"]) -> dict[str, UInt8[np.ndarray, "w _h _x c"]]:
        """Return a view of the mapped pixels, or decode JPEGs.

        Raises:
            FileNotFoundError: a shard has gone.
            UserError: a shard or a picture is damaged.
        """
        first, last = int(steps[0]), int(steps[-1])
        row = int(self._table[episode, 0]) + first
        shard, start = divmod(row, self.index.shard_rows)
        stop = start + last - first + 1
        if last - first + 1 == len(steps) and stop <= self.index.shard_rows and _follow(steps):
            return {view: self._take(view, shard, start, stop) for view in self._views}
        rows = (self._table[episode, 0] + steps).tolist()
        return {view: np.concatenate([self._frame(view, row) for row in rows]) for view in self._views}

    def numbers(self, episode: int, steps: Int64[np.ndarray, "n"]) -> Numbers:
        """Take rows of the mapped tables."""
        rows = self._table[episode, 0] + steps
        return Numbers(self._actions[rows], None if self._proprio is None else self._proprio[rows])

    def location(self, episode: int, first: int, last: int) -> str:
        """Name the packed rows, and the recording they are of."""
        start, end = self._table[episode, 4:].tolist()
        with (self.folder / SOURCES).open("rb") as file:
            file.seek(start)
            recorded = file.read(end - start).decode("utf-8", "replace")
        row = int(self._table[episode, 0])
        return f"{self.folder}: rows {row + first}-{row + last}, frames {first}-{last} of {recorded}"

    def summary(self) -> str:
        """Describe the folder in one line."""
        return f"packed {self.index.image_format} ({self.folder}) of {self.index.summary}"

    def fingerprint(self) -> str:
        """Return that of what was packed."""
        return f"packed {self.index.image_format} {self.index.fingerprint}"

    def _frame(self, view: str, row: int) -> UInt8[np.ndarray, "1 h x c"]:
        shard, start = divmod(row, self.index.shard_rows)
        return self._take(view, shard, start, start + 1)

    def _take(self, view: str, shard: int, start: int, stop: int) -> UInt8[np.ndarray, "w h x c"]:
        path = self._places[view][shard]
        pixels = self._shards[path]
        if self._raw:
            return pixels[start:stop]
        height, width = self.index.views[view]
        frames = np.empty((stop - start, height, width, 3), np.uint8)
        ends = self._offsets[path][start : stop + 1].tolist()
        for i in range(stop - start):
            try:
                frames[i] = decode_own_jpeg(pixels[ends[i] : ends[i + 1]].tobytes(), height, width)
            except ValueError as error:
                raise UserError(
                    f"{path}: frame {start + i} cannot be decoded: {error}. {again(self.folder)}"
                ) from error
        return frames

    def _open_shard(self, path: Path) -> np.ndarray:
        expected = self.index.files[path.name].bytes
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(mapped) != expected:
            raise UserError(f"{path} has {len(mapped)} bytes, expected {expected}. {again(self.folder)}")
        pixels = np.frombuffer(mapped, np.uint8)
        if not self._raw:
            return pixels
        view, number = path.stem.rsplit("-", 1)
        return pixels.reshape(self.index.rows_of(int(number)), *self.index.views[view], 3)

    def _open_offsets(self, path: Path) -> Int64[np.ndarray, "n"]:
        view, number = path.stem.rsplit("-", 1)
        rows = self.index.rows_of(int(number))
        offsets = open_array(path.with_name(offsets_name(view, int(number))), np.int64, (rows + 1,))
        if offsets[0] != 0 or offsets[-1] != self.index.files[path.name].bytes or (np.diff(offsets) <= 0).any():
            raise UserError(f"the places of pictures in {path} are damaged. {again(self.folder)}")
        return offsets


class _Episodes(Sequence[EpisodeInfo]):
    """Episodes made of a mapped table's row when they are asked for."""

    def __init__(self, table: Int64[np.ndarray, "e 6"], texts: list[str]) -> None:
        self._table, self._texts = table, texts

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, number: int) -> EpisodeInfo: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[EpisodeInfo]: ...
    def __getitem__(self, number: int | slice) -> EpisodeInfo | Sequence[EpisodeInfo]:
        if isinstance(number, slice):
            return _Episodes(self._table[number], self._texts)
        _, length, instruction, task, _, _ = self._table[number].tolist()
        return EpisodeInfo(length, self._texts[instruction], self._texts[task])


def _follow(steps: Int64[np.ndarray, "w"]) -> bool:
    return bool((steps[1:] - steps[:-1] == 1).all())


def _read_texts(folder: Path) -> list[str]:
    path = folder / TEXTS
    try:
        texts = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}. {again(folder)}") from error
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path} must be a list of texts. {again(folder)}")
    return texts

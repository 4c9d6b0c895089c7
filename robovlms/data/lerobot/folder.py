"""A LeRobotDataset v3.0 folder while it is written: tables, tasks, statistics, places of videos; whole or not at all.

Source: github.com/huggingface/lerobot, src/lerobot/datasets/{dataset_writer,dataset_metadata,compute_stats}.py.
"""

from __future__ import annotations

import io
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

from robovlms.data.lerobot.features import IMAGE_TYPE, SCALARS, arrow_schema, make_tasks_table
from robovlms.data.lerobot.format import (
    CHUNKS_SIZE,
    DATA_PATH,
    EPISODES_PATH,
    INFO_PATH,
    STATS_PATH,
    TASKS_PATH,
    VERSION,
    VIDEO_PATH,
)
from robovlms.data.lerobot.stats import PixelCounts, Stats, number_stats
from robovlms.data.lerobot.tables import column_numbers
from robovlms.errors import UserError

_DATA_FILE_MB = 100  # a new parquet file is started beyond this size
_VIDEO_FILE_MB = 200  # recorded for lerobot


class VideoSpan(NamedTuple):
    """Where an episode is shown."""

    file: int  # of `FolderWriter.video_path`
    start: float  # seconds: when its first frame is shown


class FolderWriter:
    """Episodes in, a data set folder out, all at once: nothing lies at `root` before `finalize`.

    The same episodes give the same bytes. As a context manager it finalizes on success and removes its temporary folder
    after an error. Frame i is stamped i / fps seconds.

    Args:
        root: the folder to create.
        fps: control steps a second.
        robot_type: recorded in `meta/info.json`.
        features: as `meta/info.json` describes them; those of every data set (`SCALARS`) are made here.

    Raises:
        FileExistsError: `root` exists.
    """

    def __init__(self, root: Path, *, fps: int, robot_type: str | None, features: dict[str, dict[str, Any]]) -> None:
        if root.exists():
            raise FileExistsError(f"{root} exists: choose another folder or delete it first.")
        self._root = root
        self._fps = fps
        self._robot_type = robot_type
        self.features = features
        self._schema = arrow_schema(features)
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._numbers: dict[str, list[np.ndarray]] = {}  # of every episode, for the statistics of the whole
        self._pixels: dict[str, PixelCounts] = {}
        self._videos: dict[str, int] = {}  # files of every feature so far
        self._rows = 0
        self._data_file = -1
        self._data_writer: pq.ParquetWriter | None = None
        self._data_bytes = 0
        self._folder = root.with_name(f".{root.name}.partial-{uuid.uuid4().hex[:8]}")
        self._folder.mkdir(parents=True)

    def __enter__(self) -> FolderWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finalize()
        else:
            self._close_data()
            shutil.rmtree(self._folder)

    def add_rows(
        self,
        columns: Mapping[str, np.ndarray | pa.Array],
        tasks: Mapping[str, Sequence[str]],
        *,
        pixels: Mapping[str, PixelCounts],
        videos: Mapping[str, VideoSpan],
    ) -> None:
        """Append an episode.

        Args:
            columns: a row a frame, of every feature that is no video and is not made here.
            tasks: texts a frame, of the columns that number them; `task_index` is one.
            pixels: of every camera, what its statistics are made of.
            videos: of every camera that is a video, where the episode is shown.
        """
        number, length = len(self._episodes), len(tasks["task_index"])
        steps = np.arange(length)
        told = {
            key: np.array([self._tasks.setdefault(text, len(self._tasks)) for text in texts])
            for key, texts in tasks.items()
        }
        values = dict(columns) | {
            "timestamp": (steps / self._fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, number),
            "index": self._rows + steps,
            **told,
        }
        arrays = {key: _column(self._schema.field(key).type, values[key]) for key in self._schema.names}
        self._write_rows(pa.table(list(arrays.values()), schema=self._schema))
        row = {
            "episode_index": number,
            "data/chunk_index": self._data_file // CHUNKS_SIZE,
            "data/file_index": self._data_file % CHUNKS_SIZE,
            "dataset_from_index": self._rows,
            "dataset_to_index": self._rows + length,
            **self._places(videos, length),
            "tasks": list(dict.fromkeys(tasks["task_index"])),
            "length": length,
        }
        for key, stats in self._add_stats(pixels, values, arrays).items():
            row |= {f"stats/{key}/{name}": value.tolist() for name, value in stats.items()}
        self._episodes.append({**row, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self._rows += length

    def video_path(self, key: str) -> tuple[int, Path]:
        """Return the number and the place of a feature's next video file; its folder is there."""
        number = self._videos.get(key, 0)
        self._videos[key] = number + 1
        path = self._folder / VIDEO_PATH.format(video_key=key, **_place(number))
        path.parent.mkdir(parents=True, exist_ok=True)
        return number, path

    def finalize(self) -> None:
        """Write `meta/` and move the folder to `root`.

        Raises:
            UserError: there is no episode.
            FileExistsError: `root` has appeared meanwhile; the written folder stays beside it.
        """
        if not self._episodes:
            self._folder.rmdir()
            raise UserError(f"No episode was added, so {self._root} would be empty.")
        self._close_data()
        path = self._folder / EPISODES_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._episodes), path)
        pq.write_table(make_tasks_table(list(self._tasks)), self._folder / TASKS_PATH)
        _write_json(self._folder / INFO_PATH, self._info())
        _write_json(self._folder / STATS_PATH, self._stats())
        if self._root.exists():
            raise FileExistsError(
                f"{self._root} has been created meanwhile; the data set lies complete in {self._folder}."
            )
        self._folder.rename(self._root)

    def _write_rows(self, table: pa.Table) -> None:
        if self._data_writer is None or self._data_bytes + table.nbytes > _DATA_FILE_MB * 2**20:
            self._open_data()
        assert self._data_writer is not None
        self._data_writer.write_table(table, row_group_size=len(table))  # one row group an episode, as lerobot writes
        self._data_bytes += table.nbytes

    def _open_data(self) -> None:
        self._close_data()
        self._data_file += 1
        path = self._folder / DATA_PATH.format(**_place(self._data_file))
        path.parent.mkdir(parents=True, exist_ok=True)
        images = [f"{key}.bytes" for key, feature in self.features.items() if feature["dtype"] == "image"]
        self._data_writer = pq.ParquetWriter(
            path,
            self._schema,
            use_dictionary=list(SCALARS),
            compression=dict.fromkeys(images, "NONE") or "snappy",  # PNG does not shrink; reading it is a copy
            write_statistics=list(SCALARS),
        )
        self._data_bytes = 0

    def _close_data(self) -> None:
        if self._data_writer is not None:
            self._data_writer.close()
            self._data_writer = None

    def _places(self, videos: Mapping[str, VideoSpan], length: int) -> dict[str, Any]:
        """Return the columns of `meta/episodes` about videos."""
        row: dict[str, Any] = {}
        for key, (file, start) in videos.items():
            times = {"from_timestamp": start, "to_timestamp": start + length / self._fps}
            row |= {f"videos/{key}/{name}": value for name, value in {**_place(file), **times}.items()}
        return row

    def _add_stats(
        self, pixels: Mapping[str, PixelCounts], values: Mapping[str, Any], arrays: Mapping[str, pa.Array]
    ) -> dict[str, Stats]:
        """Return the episode's statistics and remember what those of the whole need."""
        for key, counts in pixels.items():
            self._pixels[key] = self._pixels[key] + counts if key in self._pixels else counts
        numbers = {
            key: values[key] if isinstance(values[key], np.ndarray) else column_numbers(self._root, key, array)
            for key, array in arrays.items()
            if _is_numeric(self.features[key])
        }
        for key, rows in numbers.items():
            self._numbers.setdefault(key, []).append(rows)
        return {key: counts.stats() for key, counts in pixels.items()} | {
            key: number_stats(rows) for key, rows in numbers.items()
        }

    def _stats(self) -> dict[str, dict[str, Any]]:
        stats = {key: counts.stats() for key, counts in self._pixels.items()}
        stats |= {key: number_stats(np.concatenate(rows)) for key, rows in self._numbers.items()}
        return {key: {name: value.tolist() for name, value in entry.items()} for key, entry in stats.items()}

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": VERSION,
            "robot_type": self._robot_type,
            "total_episodes": len(self._episodes),
            "total_frames": self._rows,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNKS_SIZE,
            "data_files_size_in_mb": _DATA_FILE_MB,
            "video_files_size_in_mb": _VIDEO_FILE_MB,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._videos else None,
            "features": self.features,
        }


def _place(number: int) -> dict[str, int]:
    return {"chunk_index": number // CHUNKS_SIZE, "file_index": number % CHUNKS_SIZE}


def _is_numeric(feature: dict[str, Any]) -> bool:
    return len(feature["shape"]) <= 1 and feature["dtype"] not in ("image", "video", "string", "binary")


def _column(kind: pa.DataType, values: np.ndarray | pa.Array) -> pa.Array:
    if kind == IMAGE_TYPE and isinstance(values, np.ndarray):
        rows = [{"bytes": encode_png(frame), "path": f"frame-{step:06d}.png"} for step, frame in enumerate(values)]
        return pa.array(rows, kind)
    flat = pa.array(values.reshape(-1)) if isinstance(values, np.ndarray) else values
    while pa.types.is_list(flat.type) or pa.types.is_fixed_size_list(flat.type):
        if not (pa.types.is_fixed_size_list(kind) or pa.types.is_primitive(kind)):
            return flat.cast(kind)
        flat = flat.flatten()
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(flat.cast(kind.value_type), type=kind)
    return flat.cast(kind)


def encode_png(frame: UInt8[np.ndarray, "_h _x c"]) -> bytes:
    """Return a picture as PNG, which keeps it exactly."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")

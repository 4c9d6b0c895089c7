"""Demonstrations into a LeRobotDataset v3.0 folder that lerobot itself loads.

Source: github.com/huggingface/lerobot, src/lerobot/datasets/{dataset_writer,dataset_metadata,compute_stats}.py.
"""

from __future__ import annotations

import io
import json
import shutil
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, UInt8
from PIL import Image

from robovlms.data.files.video import write_video
from robovlms.data.lerobot.features import (
    IMAGE_TYPE,
    SCALARS,
    arrow_schema,
    feature_key,
    make_features,
    make_tasks_table,
)
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
from robovlms.errors import UserError

_DATA_FILE_MB = 100  # a new parquet file is started beyond this size
_VIDEO_FILE_MB = 200  # recorded for lerobot; here every episode is a video file


class LeRobotWriter:
    """Episodes in, a data set folder out, all at once: nothing lies at `root` before `finalize`.

    The same episodes give the same bytes. As a context manager it finalizes on success and removes its temporary folder
    after an error. Frame i is stamped i / fps seconds.

    Args:
        root: the folder to create.
        fps: control steps a second.
        robot_type: recorded in `meta/info.json`.
        action_names: one per action entry.
        proprio_names: one per entry of observation.state.
        image_keys: (height, width) by view; view `side` becomes the feature observation.images.side.
        video: h264 mp4 (lossy, small) instead of PNG embedded in parquet (exact).

    Raises:
        FileExistsError: `root` exists.
        UserError: a view has a dotted name, or an odd size and `video`.
    """

    def __init__(
        self,
        root: Path,
        *,
        fps: int,
        robot_type: str,
        action_names: list[str],
        proprio_names: list[str],
        image_keys: dict[str, tuple[int, int]],
        video: bool = False,
    ) -> None:
        if root.exists():
            raise FileExistsError(f"{root} exists: choose another folder or delete it first.")
        for view, size in image_keys.items():
            if "." in view or "/" in view:
                raise UserError(f"view '{view}': give the bare name; it is stored as observation.images.<view>.")
            if video and any(side % 2 for side in size):
                raise UserError(
                    f"view '{view}' is {size[0]} x {size[1]}: h264 needs even sizes; choose PNG or another size."
                )
        self._root = root
        self._fps = fps
        self._robot_type = robot_type
        self._sizes = image_keys
        self._is_video = video
        self._features = make_features(fps, action_names, proprio_names, image_keys, video)
        self._schema = arrow_schema(self._features)
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._numbers: list[dict[str, np.ndarray]] = []  # per episode, for the statistics of the whole
        self._pixels: dict[str, PixelCounts] = {}
        self._rows = 0
        self._data_file = -1
        self._data_writer: pq.ParquetWriter | None = None
        self._data_bytes = 0
        self._folder = root.with_name(f".{root.name}.partial-{uuid.uuid4().hex[:8]}")
        self._folder.mkdir(parents=True)

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finalize()
        else:
            self._close_data()
            shutil.rmtree(self._folder)

    def add_episode(
        self,
        frames: dict[str, UInt8[np.ndarray, "t _h _x c"]],
        actions: Float32[np.ndarray, "t a"],
        proprio: Float32[np.ndarray, "t p"],
        task: str,
    ) -> None:
        """Append one episode: frame i, the state in it and the action taken there.

        Raises:
            UserError: lengths, sizes or views disagree with the constructor, or a number is not finite.
        """
        self._check(frames, actions, proprio, task)
        number, length = len(self._episodes), len(actions)
        steps = np.arange(length)
        numbers = {
            "observation.state": proprio,
            "action": actions,
            "timestamp": (steps / self._fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, number),
            "index": self._rows + steps,
            "task_index": np.full(length, self._tasks.setdefault(task, len(self._tasks))),
        }
        images = {feature_key(view): frames[view] for view in self._sizes}
        videos = self._write_videos(number, images) if self._is_video else {}
        self._write_rows({**numbers, **({} if self._is_video else images)})
        row = {
            "episode_index": number,
            "data/chunk_index": self._data_file // CHUNKS_SIZE,
            "data/file_index": self._data_file % CHUNKS_SIZE,
            "dataset_from_index": self._rows,
            "dataset_to_index": self._rows + length,
            **videos,
            "tasks": [task],
            "length": length,
        }
        for key, stats in self._add_stats(images, numbers).items():
            row |= {f"stats/{key}/{name}": value.tolist() for name, value in stats.items()}
        self._episodes.append({**row, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self._rows += length

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

    def _check(self, frames: dict[str, Any], actions: np.ndarray, proprio: np.ndarray, task: str) -> None:
        if set(frames) != set(self._sizes):
            raise UserError(f"frames hold the views {sorted(frames)}, expected {sorted(self._sizes)}.")
        expected = {view: (len(actions), *size, 3) for view, size in self._sizes.items()}
        expected |= {key: (len(actions), *self._features[key]["shape"]) for key in ("action", "observation.state")}
        for key, array in {**frames, "action": actions, "observation.state": proprio}.items():
            if array.shape != expected[key]:
                raise UserError(f"'{key}' has shape {array.shape}, expected {expected[key]}.")
        if not (np.isfinite(actions).all() and np.isfinite(proprio).all()):
            raise UserError(f"episode {len(self._episodes)} ('{task}') has actions or states that are not finite.")
        if not len(actions) or not task:
            raise UserError(
                f"episode {len(self._episodes)} has {len(actions)} frames and task '{task}', expected some."
            )

    def _write_rows(self, values: dict[str, np.ndarray]) -> None:
        columns = [_column(self._schema.field(key).type, values[key]) for key in self._schema.names]
        table = pa.table(columns, schema=self._schema)
        if self._data_writer is None or self._data_bytes + table.nbytes > _DATA_FILE_MB * 2**20:
            self._open_data()
        assert self._data_writer is not None
        self._data_writer.write_table(table, row_group_size=len(table))  # one row group an episode, as lerobot writes
        self._data_bytes += table.nbytes

    def _open_data(self) -> None:
        self._close_data()
        self._data_file += 1
        path = self._folder / DATA_PATH.format(
            chunk_index=self._data_file // CHUNKS_SIZE, file_index=self._data_file % CHUNKS_SIZE
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        images = [f"{feature_key(view)}.bytes" for view in self._sizes if not self._is_video]
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

    def _write_videos(self, number: int, images: dict[str, np.ndarray]) -> dict[str, Any]:
        """Write one file per view and give its columns of `meta/episodes`."""
        row: dict[str, Any] = {}
        for key, frames in images.items():
            place = {"chunk_index": number // CHUNKS_SIZE, "file_index": number % CHUNKS_SIZE}
            path = self._folder / VIDEO_PATH.format(video_key=key, **place)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, frames, self._fps)
            times = {"from_timestamp": 0.0, "to_timestamp": len(frames) / self._fps}
            row |= {f"videos/{key}/{name}": value for name, value in {**place, **times}.items()}
        return row

    def _add_stats(self, images: dict[str, np.ndarray], numbers: dict[str, np.ndarray]) -> dict[str, Stats]:
        """Return the episode's statistics and remember what those of the whole need."""
        self._numbers.append(numbers)
        pixels = {key: PixelCounts.of(frames) for key, frames in images.items()}
        self._pixels = {key: self._pixels[key] + new if key in self._pixels else new for key, new in pixels.items()}
        images_stats = {key: counts.stats() for key, counts in pixels.items()}
        return images_stats | {key: number_stats(values) for key, values in numbers.items()}

    def _stats(self) -> dict[str, dict[str, Any]]:
        stats = {key: counts.stats() for key, counts in self._pixels.items()}
        for key in self._numbers[0]:
            stats[key] = number_stats(np.concatenate([numbers[key] for numbers in self._numbers]))
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
            "video_path": VIDEO_PATH if self._is_video else None,
            "features": self._features,
        }


def _column(kind: pa.DataType, values: np.ndarray) -> pa.Array:
    if kind == IMAGE_TYPE:
        rows = [{"bytes": _png(frame), "path": f"frame-{step:06d}.png"} for step, frame in enumerate(values)]
        return pa.array(rows, kind)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), pa.float32()), type=kind)
    return pa.array(values.reshape(-1), kind)


def _png(frame: UInt8[np.ndarray, "_h _x c"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")

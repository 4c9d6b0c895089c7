"""The LeRobotDataset v3.0 folder: its paths, and its `meta/` files as typed values.

    meta/info.json, meta/stats.json, meta/tasks.parquet, meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet                     many episodes, one row per frame, images possibly embedded
    videos/<feature key>/chunk-000/file-000.mp4         many episodes, found by their start time

Source: github.com/huggingface/lerobot, src/lerobot/datasets/{utils,io_utils,dataset_metadata}.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

VERSION = "v3.0"
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNKS_SIZE = 1000  # files in one chunk folder
SCALARS = {  # columns of every data set, one number a frame
    "timestamp": "float32",  # seconds since the episode's first frame
    "frame_index": "int64",  # within the episode
    "episode_index": "int64",
    "index": "int64",  # within the data set
    "task_index": "int64",
}
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # the `Image` of the `datasets` library

_INFO_KEYS = ("fps", "features", "total_episodes", "total_frames", "total_tasks", "data_path")
_REPAIR = "collect with scripts/collect_demos.py or point data.root at a LeRobotDataset v3.0 folder"


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """`meta/info.json`, as far as reading needs it; fields that it does not know are ignored."""

    root: Path
    fps: float
    features: dict[str, dict[str, Any]]  # key -> dtype, shape, names
    total_episodes: int
    total_frames: int
    total_tasks: int
    data_path: str
    video_path: str

    def keys(self, *dtypes: str) -> list[str]:
        """List the features stored as one of `dtypes`, e.g. "image" (embedded in parquet) or "video" (mp4)."""
        return [key for key, feature in self.features.items() if feature["dtype"] in dtypes]


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Where one episode lies."""

    index: int
    length: int  # frames, and as many actions
    file: Path  # parquet file of its rows
    row: int  # its first row in that file
    videos: dict[str, tuple[Path, float]]  # feature key -> mp4 file and the time of its first frame there, in seconds


def read_info(root: Path) -> DatasetInfo:
    """Read `meta/info.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, lacks a field, or is of another version than v3.x.
    """
    path = root / INFO_PATH
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {_REPAIR}.")
    try:
        raw = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): {_REPAIR}.") from error
    version = str(raw.get("codebase_version"))
    if not version.startswith("v3."):
        raise ValueError(
            f"{path} says codebase_version={version}, supported is v3.x: convert the folder with lerobot's "
            "convert_dataset_v21_to_v30, or point data.root at another one."
        )
    if missing := [key for key in _INFO_KEYS if key not in raw]:
        raise ValueError(f"{path} lacks {', '.join(missing)}: {_REPAIR}.")
    fields = {key: raw[key] for key in _INFO_KEYS} | {"fps": float(raw["fps"])}
    return DatasetInfo(root=root, video_path=raw.get("video_path") or VIDEO_PATH, **fields)


def read_tasks(info: DatasetInfo) -> dict[int, str]:
    """Read the instructions by task index.

    Raises:
        FileNotFoundError: there is no `meta/tasks.parquet`.
        ValueError: it disagrees with `meta/info.json`.
    """
    table = read_table(info.root / TASKS_PATH)
    text = next(name for name in table.column_names if name != "task_index")  # the index of a pandas frame, if named
    tasks = dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))
    _check_total(info, "total_tasks", len(tasks), TASKS_PATH)
    return tasks


def read_episodes(info: DatasetInfo, video_keys: list[str]) -> list[Episode]:
    """Read where every episode lies, in order; only the `video_keys` are located.

    Raises:
        FileNotFoundError: there is no `meta/episodes/*/*.parquet`.
        ValueError: the episodes disagree with `meta/info.json`.
    """
    paths = sorted((info.root / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{info.root / 'meta/episodes'} has no */*.parquet: {_REPAIR}.")
    columns = ["episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index"]
    for key in video_keys:
        columns += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    rows = [row for path in paths for row in read_table(path, columns).to_pylist()]
    rows.sort(key=lambda row: row["episode_index"])
    _check_total(info, "total_episodes", len(rows), "meta/episodes")
    _check_total(info, "total_frames", sum(row["length"] for row in rows), "meta/episodes")
    file_starts: dict[Path, int] = {}
    for row in rows:
        file = _data_file(info, row)
        file_starts[file] = min(row["dataset_from_index"], file_starts.get(file, row["dataset_from_index"]))
    return [_episode(info, row, file_starts, video_keys) for row in rows]


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a parquet file, or some of its columns.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no parquet file, or lacks a column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {_REPAIR}.")
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            if missing := [name for name in columns or [] if name not in file.schema_arrow.names]:
                raise ValueError(f"{path} has no column {', '.join(missing)}: {_REPAIR}.")
            return file.read(columns=columns, use_threads=False)
    except pa.ArrowException as error:
        raise ValueError(f"{path} cannot be read as parquet ({error}): {_REPAIR}.") from error


def read_numbers(path: Path, episodes: list[Episode], keys: list[str]) -> dict[str, np.ndarray]:
    """Read numeric columns of a data file, one row per frame: "n" for scalars, "n d" for vectors.

    Args:
        path: the data file.
        episodes: every episode that lies in it.
        keys: the columns.

    Raises:
        ValueError: its rows are not those that `meta/episodes` promises, or a column is not numeric or ragged.
    """
    table = read_table(path, ["episode_index", *keys])
    ordered = sorted(episodes, key=lambda episode: episode.row)
    expected = np.repeat([episode.index for episode in ordered], [episode.length for episode in ordered])
    if not np.array_equal(table["episode_index"].to_numpy(), expected):
        raise ValueError(
            f"{path} holds {table.num_rows} rows, but not the {len(expected)} that meta/episodes lists "
            f"for episodes {ordered[0].index}-{ordered[-1].index}: the folder is damaged; {_REPAIR}."
        )
    return {key: _numbers(path, key, table[key].combine_chunks()) for key in keys}


def _numbers(path: Path, key: str, column: pa.Array) -> np.ndarray:
    rows = len(column)
    is_vector = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
    values = column.flatten() if is_vector else column
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise ValueError(f"{path}: column '{key}' holds {column.type}, expected numbers.")
    if values.null_count or len(values) % rows:
        raise ValueError(
            f"{path}: column '{key}' has missing or ragged rows, expected one vector of fixed length a frame."
        )
    numbers: np.ndarray = values.to_numpy(zero_copy_only=False)
    return numbers.reshape(rows, -1) if is_vector else numbers


def _check_total(info: DatasetInfo, key: str, found: int, where: str) -> None:
    if getattr(info, key) != found:
        raise ValueError(
            f"{info.root / INFO_PATH} says {key}={getattr(info, key)}, but {where} holds {found}: "
            f"the folder is incomplete or damaged; {_REPAIR}."
        )


def _data_file(info: DatasetInfo, row: dict[str, Any]) -> Path:
    return info.root / info.data_path.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])


def _episode(info: DatasetInfo, row: dict[str, Any], file_starts: dict[Path, int], video_keys: list[str]) -> Episode:
    file = _data_file(info, row)
    videos = {}
    for key in video_keys:
        chunk, number = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
        path = info.video_path.format(video_key=key, chunk_index=chunk, file_index=number)
        videos[key] = (info.root / path, float(row[f"videos/{key}/from_timestamp"]))
    first = row["dataset_from_index"] - file_starts[file]
    return Episode(index=row["episode_index"], length=row["length"], file=file, row=first, videos=videos)


def feature_key(view: str) -> str:
    """Give the feature that holds a camera's frames."""
    return f"observation.images.{view}"


def make_features(
    fps: int, action_names: list[str], proprio_names: list[str], sizes: dict[str, tuple[int, int]], video: bool
) -> dict[str, dict[str, Any]]:
    """Describe the features of a data set as `meta/info.json` does; `sizes` are (height, width) by view."""
    features: dict[str, dict[str, Any]] = {}
    for view, (height, width) in sizes.items():
        feature: dict[str, Any] = {"shape": [height, width, 3], "names": ["height", "width", "channels"]}
        if video:
            info = {"height": height, "width": width, "channels": 3, "fps": fps, "codec": "h264", "pix_fmt": "yuv420p"}
            info = {f"video.{key}": value for key, value in info.items()}
            feature["info"] = {**info, "video.is_depth_map": False, "has_audio": False}
        features[feature_key(view)] = {"dtype": "video" if video else "image", **feature}
    for key, names in (("observation.state", proprio_names), ("action", action_names)):
        features[key] = {"dtype": "float32", "shape": [len(names)], "names": names}
    return features | {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in SCALARS.items()}


def arrow_schema(features: dict[str, dict[str, Any]]) -> pa.Schema:
    """Give the columns of a data file, with the note by which the `datasets` library recognises images."""
    columns = {key: _column_type(feature) for key, feature in features.items() if feature["dtype"] != "video"}
    notes = {key: note for key, (_, note) in columns.items()}
    fields = [(key, kind) for key, (kind, _) in columns.items()]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": notes}})})


def _column_type(feature: dict[str, Any]) -> tuple[pa.DataType, dict[str, Any]]:
    dtype, size = feature["dtype"], feature["shape"][0]
    if dtype == "image":
        return IMAGE_TYPE, {"_type": "Image"}
    kind, note = pa.type_for_alias(dtype), {"dtype": dtype, "_type": "Value"}
    if size == 1:  # lerobot stores vectors of one entry as scalars
        return kind, note
    return pa.list_(kind, size), {"feature": note, "length": size, "_type": "Sequence"}


def make_tasks_table(tasks: list[str]) -> pa.Table:
    """Give the table that pandas reads as a frame of `task_index`, indexed by the instruction."""
    name = "__index_level_0__"
    text: dict[str, Any] = {"pandas_type": "unicode", "numpy_type": "object"}
    number: dict[str, Any] = {"pandas_type": "int64", "numpy_type": "int64"}
    note = {
        "index_columns": [name],
        "column_indexes": [{**text, "name": None, "field_name": None, "metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", **number, "metadata": None},
            {"name": None, "field_name": name, **text, "metadata": None},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.3",
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), name: pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(note)})

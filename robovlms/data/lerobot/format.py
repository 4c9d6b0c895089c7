"""The LeRobotDataset folder: its paths, and its `meta/` files as typed values.

v3.0:

    meta/info.json, meta/stats.json, meta/tasks.parquet, meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet                     many episodes, one row per frame, images possibly embedded
    videos/<feature key>/chunk-000/file-000.mp4         many episodes, found by their start time
v2.0 and v2.1: one file an episode
    meta/info.json, meta/tasks.jsonl, meta/episodes.jsonl
    data/chunk-000/episode_000000.parquet
    videos/chunk-000/<feature key>/episode_000000.mp4

Source: github.com/huggingface/lerobot, src/lerobot/datasets/{utils,io_utils,dataset_metadata}.py.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from robovlms.data.lerobot.tables import REPAIR, column_numbers, read_json, read_json_lines, read_rows, read_table
from robovlms.errors import UserError

logger = logging.getLogger(__name__)

VERSION = "v3.0"
INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
TASKS_V2_PATH = "meta/tasks.jsonl"
EPISODES_V2_PATH = "meta/episodes.jsonl"
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
    is_v2: bool = False  # one file an episode, and JSON lines in meta/
    chunks_size: int = CHUNKS_SIZE

    def keys(self, *dtypes: str) -> list[str]:
        """List the features stored as one of `dtypes`, e.g. "image" (embedded in parquet) or "video" (mp4)."""
        return [key for key, feature in self.features.items() if feature["dtype"] in dtypes]


@dataclass(frozen=True, kw_only=True)
class EpisodeFiles:
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
        UserError: it is not JSON, lacks a field, or is of another version than v2.x and v3.x.
    """
    path = root / INFO_PATH
    raw = read_json(path)
    version = str(raw.get("codebase_version"))
    if not version.startswith(("v3.", "v2.")):
        raise UserError(
            f"{path} says codebase_version={version}, supported are v2.0, v2.1 and v3.x: convert the folder with "
            "lerobot, or point data.root at another one."
        )
    is_v2 = version.startswith("v2.")
    if missing := [key for key in _INFO_KEYS if key not in raw]:
        raise UserError(f"{path} lacks {', '.join(missing)}: {REPAIR}.")
    for key in ("total_episodes", "total_frames", "total_tasks"):
        if type(raw[key]) is not int:
            raise UserError(f"{path}: {key}={raw[key]!r} is not a whole number: {REPAIR}.")
    features = raw["features"]
    if not isinstance(features, dict) or not all(_is_feature(feature) for feature in features.values()):
        raise UserError(f"{path}: features must map keys to dtype and shape: {REPAIR}.")
    video_path = raw.get("video_path") or VIDEO_PATH
    _check_template(path, "data_path", raw["data_path"], is_v2)
    if raw.get("video_path"):
        _check_template(path, "video_path", video_path, is_v2)
    return DatasetInfo(
        root=root,
        is_v2=is_v2,
        video_path=video_path,
        chunks_size=int(_number(path, "chunks_size", raw.get("chunks_size") or CHUNKS_SIZE)),
        **{key: raw[key] for key in _INFO_KEYS} | {"fps": _number(path, "fps", raw["fps"])},
    )


def _is_feature(feature: object) -> bool:
    return (
        isinstance(feature, dict)
        and isinstance(feature.get("dtype"), str)
        and isinstance(feature.get("shape"), list)
        and all(type(size) is int and size >= 0 for size in feature["shape"])
    )


def _number(path: Path, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < 2**31:
        raise UserError(f"{path}: {key}={value!r} is not a number above 0.")
    return float(value)


def _check_template(path: Path, key: str, text: Any, is_v2: bool) -> None:
    """Refuse what could name a file outside the folder, or is no template of this version."""
    names = "episode_chunk|episode_index" if is_v2 else "chunk_index|file_index"
    if key == "video_path":
        names += "|video_key(?=})"
    bare = re.sub(rf"{{({names})(:0?\d{{1,2}}d)?}}", "0", text) if isinstance(text, str) else "{"
    if {"{", "}"} & set(bare) or Path(bare).is_absolute() or ".." in Path(bare).parts:
        raise UserError(f"{path}: {key}={text!r} is not a path below the folder with {{{names.replace('|', '}, {')}}}.")


def read_tasks(info: DatasetInfo) -> dict[int, str]:
    """Read the instructions by task index.

    Raises:
        FileNotFoundError: there is no `meta/tasks.parquet` (v3) or `meta/tasks.jsonl` (v2).
    """
    if info.is_v2:
        rows = read_json_lines(info.root / TASKS_V2_PATH, {"task_index": int, "task": str})
        tasks = {row["task_index"]: row["task"] for row in rows}
    else:
        path = info.root / TASKS_PATH
        rows = read_table(path).to_pylist()  # the text is the index of a pandas frame, and so its name varies
        pairs = [(row.get("task_index"), next((v for k, v in row.items() if k != "task_index"), None)) for row in rows]
        if not all(type(number) is int and isinstance(text, str) for number, text in pairs):
            raise UserError(f"{path} must hold one whole task_index and one text a row: {REPAIR}.")
        tasks = dict(pairs)
    if not tasks:
        raise UserError(f"{info.root / 'meta'} lists no task: {REPAIR}.")
    _compare_total(info, "total_tasks", len(tasks), "meta/tasks")
    return tasks


def read_episodes(info: DatasetInfo, video_keys: list[str]) -> list[EpisodeFiles]:
    """Read where every episode lies, in order; only the `video_keys` are located.

    Raises:
        FileNotFoundError: there is no `meta/episodes/*/*.parquet` (v3) or `meta/episodes.jsonl` (v2).
    """
    if info.is_v2:
        rows = read_json_lines(info.root / EPISODES_V2_PATH, {"episode_index": int, "length": int})
    else:
        paths = sorted((info.root / "meta/episodes").glob("*/*.parquet"))
        if not paths:
            raise FileNotFoundError(f"{info.root / 'meta/episodes'} has no */*.parquet: {REPAIR}.")
        columns = ["episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index"]
        columns += [f"videos/{key}/{name}" for key in video_keys for name in ("chunk_index", "file_index")]
        starts = [f"videos/{key}/from_timestamp" for key in video_keys]
        rows = [row for path in paths for row in read_rows(path, columns, starts)]
    rows.sort(key=lambda row: row["episode_index"])
    if len({row["episode_index"] for row in rows}) != len(rows) or not rows:
        raise UserError(f"{info.root / 'meta'} lists no episode, or one twice: {REPAIR}.")
    _compare_total(info, "total_episodes", len(rows), "meta/episodes")
    _compare_total(info, "total_frames", sum(row["length"] for row in rows), "meta/episodes")
    if info.is_v2:
        return [_episode_v2(info, row, video_keys) for row in rows]
    file_starts: dict[Path, int] = {}
    for row in rows:
        file = _data_file(info, row)
        file_starts[file] = min(row["dataset_from_index"], file_starts.get(file, row["dataset_from_index"]))
    return [_episode(info, row, file_starts, video_keys) for row in rows]


def read_numbers(path: Path, episodes: list[EpisodeFiles], keys: list[str]) -> dict[str, np.ndarray]:
    """Read numeric columns of a data file, one row per frame: "n" for scalars, "n d" for vectors.

    Args:
        path: the data file.
        episodes: every episode that lies in it.
        keys: the columns.

    Raises:
        UserError: its rows are not those that `meta/episodes` promises, or a column is not numeric or ragged.
    """
    ordered = sorted(episodes, key=lambda episode: episode.row)
    lengths = np.array([episode.length for episode in ordered])
    keys = list(dict.fromkeys(keys))
    table = read_table(path, ["episode_index", *(key for key in keys if key != "episode_index")], int(lengths.sum()))
    expected = np.repeat([episode.index for episode in ordered], lengths)
    starts = np.cumsum(lengths) - lengths
    contiguous = [episode.row for episode in ordered] == starts.tolist()
    found = column_numbers(path, "episode_index", table["episode_index"].combine_chunks())
    if not contiguous or not np.array_equal(found, expected):
        raise UserError(
            f"{path} holds other rows than those that meta/episodes lists for episodes {ordered[0].index}-"
            f"{ordered[-1].index}: the folder is damaged; {REPAIR}."
        )
    return {key: column_numbers(path, key, table[key].combine_chunks()) for key in keys}


def _compare_total(info: DatasetInfo, key: str, found: int, where: str) -> None:
    if getattr(info, key) != found:
        logger.warning(
            "%s says %s=%s, but %s holds %d: the latter counts",
            info.root / INFO_PATH,
            key,
            getattr(info, key),
            where,
            found,
        )


def _episode_v2(info: DatasetInfo, row: dict[str, Any], video_keys: list[str]) -> EpisodeFiles:
    number = row["episode_index"]
    place = {"episode_chunk": number // info.chunks_size, "episode_index": number}
    file = info.root / info.data_path.format(**place)
    videos = {key: (info.root / info.video_path.format(video_key=key, **place), 0.0) for key in video_keys}
    return EpisodeFiles(index=number, length=row["length"], file=file, row=0, videos=videos)


def _data_file(info: DatasetInfo, row: dict[str, Any]) -> Path:
    return info.root / info.data_path.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])


def _episode(
    info: DatasetInfo, row: dict[str, Any], file_starts: dict[Path, int], video_keys: list[str]
) -> EpisodeFiles:
    file = _data_file(info, row)
    videos = {}
    for key in video_keys:
        chunk, number = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
        path = info.video_path.format(video_key=key, chunk_index=chunk, file_index=number)
        videos[key] = (info.root / path, float(row[f"videos/{key}/from_timestamp"]))
    first = row["dataset_from_index"] - file_starts[file]
    return EpisodeFiles(index=row["episode_index"], length=row["length"], file=file, row=first, videos=videos)


def feature_key(view: str) -> str:
    """Return the feature that holds a camera's frames."""
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
    """Return the columns of a data file, with the note by which the `datasets` library recognises images."""
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
    """Return the table that pandas reads as a frame of `task_index`, indexed by the instruction."""
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

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

import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robovlms.data.lerobot.tables import (
    REPAIR,
    column_numbers,
    count_rows,
    read_json,
    read_json_lines,
    read_rows,
    read_table,
)
from robovlms.data.lerobot.timing import VideoPlace
from robovlms.errors import UserError
from robovlms.registry import nearest

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
    robot_type: str | None = None

    def keys(self, *dtypes: str) -> list[str]:
        """List the features stored as one of `dtypes`, e.g. "image" (embedded in parquet) or "video" (mp4)."""
        return [key for key, feature in self.features.items() if feature["dtype"] in dtypes]

    @property
    def depth_keys(self) -> list[str]:
        """List the cameras that record depth, as `is_depth_map` or their type says."""
        flagged = [key for key, feature in self.features.items() if any(map(_is_depth, (feature, *feature.values())))]
        return [*flagged, *self.keys("depth")]


@dataclass(frozen=True, kw_only=True)
class EpisodeFiles:
    """Where one episode lies."""

    index: int
    length: int  # frames, and as many actions
    file: Path  # parquet file of its rows
    row: int  # its first row in that file
    videos: dict[str, VideoPlace]  # by feature key
    first: int = 0  # frame of the recording that it begins with: recordings are divided where the instruction changes

    @property
    def paths(self) -> list[Path]:
        """List its files."""
        return [self.file, *(place.path for place in self.videos.values())]

    @property
    def start(self) -> int:
        """Number the row of its first frame in the file."""
        return self.row + self.first


def read_info(root: Path) -> DatasetInfo:
    """Read `meta/info.json`.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is not JSON, lacks a field, or is of another version than v2.x and v3.x.
    """
    path = root / INFO_PATH
    if not path.is_file():
        raise FileNotFoundError(_no_folder(root))
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
        robot_type=None if raw.get("robot_type") is None else str(raw["robot_type"]),
        chunks_size=int(_number(path, "chunks_size", raw.get("chunks_size") or CHUNKS_SIZE)),
        **{key: raw[key] for key in _INFO_KEYS} | {"fps": _number(path, "fps", raw["fps"])},
    )


def _no_folder(root: Path) -> str:
    """Say why there is no data set at `data.root`, and which one is close to it."""
    start = f"data.root={root} has no {INFO_PATH}" if root.is_dir() else f"data.root={root} is not a folder"
    above = [folder for folder in root.absolute().parents[:2] if (folder / INFO_PATH).is_file()]
    below = sorted(path.parents[1] for depth in ("*", "*/*") for path in root.glob(f"{depth}/{INFO_PATH}"))
    if above:
        return f"{start}: it lies within a LeRobotDataset folder. Set data.root={above[0]}."
    if below:
        more = f" or {len(below) - 5} others" if len(below) > 5 else ""
        return f"{start}, but there is a data set below it. Set data.root={' or '.join(map(str, below[:5]))}{more}."
    if root.is_dir():
        holds = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        start = f"{start}; it holds {holds}"
    siblings = [path.name for path in root.parent.iterdir() if path.is_dir()] if root.parent.is_dir() else []
    hint = "" if root.is_dir() else nearest(root.name, siblings)
    return f"{start}.{hint} Set data.root to a LeRobotDataset folder, the one that holds meta/, data/ and videos/."


def _is_feature(feature: object) -> bool:
    return (
        isinstance(feature, dict)
        and isinstance(feature.get("dtype"), str)
        and isinstance(feature.get("shape"), list)
        and all(type(size) is int and size >= 0 for size in feature["shape"])
    )


def _is_depth(note: object) -> bool:
    """Tell whether a part of a feature's description (its `info`, `video_info`) flags depth."""
    flags = {"is_depth_map", "video.is_depth_map", "image.is_depth_map", "is_depth"}
    return isinstance(note, dict) and any(note.get(flag) in (True, "true", "True", 1) for flag in flags)


def _number(path: Path, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < 2**31:
        raise UserError(f"{path}: {key}={value!r} is not a number above 0: write there what it is.")
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
    return [_episode(info, row, *place, video_keys) for row, place in zip(rows, _locate(info, rows), strict=True)]


def _locate(info: DatasetInfo, rows: list[dict[str, Any]]) -> list[tuple[Path, int]]:
    """Return data file and first row in it of every episode of v3.

    Where the files do not hold as many rows as `data/file_index` says, that index is stale, and rows are found by their
    number in the data set, as lerobot finds them. Source: github.com/huggingface/lerobot/issues/2401.
    """
    said = [
        info.root / info.data_path.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        for row in rows
    ]
    firsts = [row["dataset_from_index"] for row in rows]
    totals: Counter[Path] = Counter()
    starts: dict[Path, int] = {}
    for file, first, row in zip(said, firsts, rows, strict=True):
        totals[file] += row["length"]
        starts[file] = min(first, starts.get(file, first))
    places = [(file, first - starts[file]) for file, first in zip(said, firsts, strict=True)]
    if all(count_rows(file) in (None, total) for file, total in totals.items()):
        return places
    held = _first_rows(info)
    moved = 0
    for number, (row, (file, _)) in enumerate(zip(rows, places, strict=True)):
        first = firsts[number]
        found = [(path, first - start) for path, (start, end) in held.items() if start <= first < end]
        if len(found) == 1 and row["length"]:
            places[number] = found[0]
            moved += found[0][0] != file
    if moved:
        logger.warning(
            "%s lists %d episodes in another data file than holds them (lerobot#2401): they are read by their number "
            "in the data set, as lerobot does",
            info.root / "meta/episodes",
            moved,
        )
    return places


def _first_rows(info: DatasetInfo) -> dict[Path, tuple[int, int]]:
    """Return which rows of the data set every data file holds, by its own column `index`: the first, and one past the
    last.
    """
    held = {}
    for path in sorted(info.root.glob(re.sub(r"{[^}]*}", "*", info.data_path))):
        if count_rows(path):
            try:
                numbers = column_numbers(path, "index", read_table(path, ["index"])["index"].combine_chunks())
            except UserError:  # without such a column the index in meta/episodes counts, and is held against the rows
                continue
            held[path] = (int(numbers[0]), int(numbers[-1]) + 1)
    return held


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
    videos = {key: VideoPlace(info.root / info.video_path.format(video_key=key, **place), 0.0) for key in video_keys}
    return EpisodeFiles(index=number, length=row["length"], file=file, row=0, videos=videos)


def _episode(info: DatasetInfo, row: dict[str, Any], file: Path, first: int, video_keys: list[str]) -> EpisodeFiles:
    videos = {}
    for key in video_keys:
        chunk, number = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
        path = info.video_path.format(video_key=key, chunk_index=chunk, file_index=number)
        videos[key] = VideoPlace(info.root / path, float(row[f"videos/{key}/from_timestamp"]))
    return EpisodeFiles(index=row["episode_index"], length=row["length"], file=file, row=first, videos=videos)

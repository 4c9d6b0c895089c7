"""LeRobotDataset v3.0 folders, with embedded images or mp4 videos, read window by window.

Source: github.com/huggingface/lerobot, codebase version v3.0.
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, UInt8
from PIL import Image, UnidentifiedImageError

from robovlms.config import LeRobotDataConfig
from robovlms.data.base import RobotDataset, WindowIndex
from robovlms.data.lerobot_format import Episode, read_episodes, read_info, read_numbers, read_tasks
from robovlms.data.video import open_video, read_frames
from robovlms.registry import DATASETS, nearest
from robovlms.types import Sample

logger = logging.getLogger(__name__)

F = TypeVar("F")

_BATCH_ROWS = 256  # an episode's row group in one read, and no more of a foreign, huge one than needed


class OpenFiles(Generic[F]):
    """Files opened on first use, the least recently used closed beyond `limit`.

    Each process opens its own: a pickled copy and a forked child start with none, because processes that share a file
    position corrupt what both read.
    """

    def __init__(self, open_file: Callable[[Path], F], limit: int = 16) -> None:
        self._open_file = open_file
        self._limit = limit
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[Path, F] = OrderedDict()

    def __getitem__(self, path: Path) -> F:
        if self._process != os.getpid():
            self._forget()
        if path not in self._files:
            self._files[path] = self._open_file(path)
            if len(self._files) > self._limit:
                self._files.popitem(last=False)
        self._files.move_to_end(path)
        return self._files[path]

    def __getstate__(self) -> dict[str, Any]:
        return {"_open_file": self._open_file, "_limit": self._limit, "_files": OrderedDict(), "_process": -1}


class ParquetImages:
    """Encoded images of a memory-mapped parquet file, by row; reads a row group only up to the last row needed."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, memory_map=True)
        groups = self._file.metadata
        self._ends = np.cumsum([groups.row_group(group).num_rows for group in range(groups.num_row_groups)])

    def read(self, key: str, row: int, count: int) -> list[bytes | None]:
        """Give the PNG or JPEG bytes of `count` rows, None where a row has none."""
        first, last = np.searchsorted(self._ends, [row, row + count - 1], side="right")
        skip = row - (int(self._ends[first - 1]) if first else 0)
        batches = self._file.iter_batches(
            batch_size=_BATCH_ROWS, row_groups=list(range(first, last + 1)), columns=[f"{key}.bytes"], use_threads=False
        )
        needed = list(islice(batches, (skip + count - 1) // _BATCH_ROWS + 1))
        table = pa.Table.from_batches(needed).slice(skip, count)
        return [cell["bytes"] if cell else None for cell in table[key].to_pylist()]


@DATASETS.register("lerobot")
class LeRobotDataset(RobotDataset):
    """Windows of a LeRobotDataset v3.0 folder.

    An episode of T frames has T actions, so it holds T - w + 1 windows; actions past its end repeat the last one and
    are masked. The validation split is the last `validation_fraction` of every task's episodes, the training split the
    rest. Numbers are read once into memory (4 bytes x frames x (action + proprio entries), and 12 more a frame);
    images are read on demand through files that every loader process opens for itself.

    Args:
        config: `views` maps our views to feature keys such as observation.images.side.
        split: "train" or "validation".
        views: the views to read, by our names; none reads no image.
        window_size: observed steps w.
        chunk_size: predicted steps k.

    Raises:
        FileNotFoundError: the folder or a file of it is missing.
        ValueError: the folder contradicts itself or the config; the message names the file and the option to change.
    """

    def __init__(
        self, config: LeRobotDataConfig, split: str, *, views: list[str], window_size: int, chunk_size: int
    ) -> None:
        _check_options(config, split)
        self._config = config
        self._split = split
        self._window_size = window_size
        self._chunk_size = chunk_size
        self._root = Path(config.root)
        self._info = read_info(self._root)
        self._keys = {view: self._image_key(view) for view in views}
        self._check_numeric_keys()
        self._videos = OpenFiles(open_video)
        self._images = OpenFiles(ParquetImages)
        self._tasks = read_tasks(self._info)
        episodes = read_episodes(self._info, [key for key in self._keys.values() if key in self._info.keys("video")])
        self._columns = self._read_columns(episodes)
        self._episodes = self._choose(self._keep_good(episodes))
        self._windows = WindowIndex([episode.length for episode in self._episodes], window_size)
        if not len(self._windows):
            longest = max(episode.length for episode in self._episodes)
            raise ValueError(
                f"window.window_size={window_size} is longer than every episode of the {split} split of {self._root} "
                f"(the longest has {longest} frames): choose a shorter window."
            )

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Sample:
        number, first = self._windows.locate(index)
        episode = self._episodes[number]
        columns = self._columns[episode.file]
        steps = np.arange(first, first + self._window_size + self._chunk_size - 1)
        observed = slice(episode.row + first, episode.row + first + self._window_size)
        proprio_key = self._config.proprio_key
        return Sample(
            frames={view: self._read_frames(key, episode, first) for view, key in self._keys.items()},
            actions=columns[self._config.action_key][episode.row + np.minimum(steps, episode.length - 1)],
            action_mask=steps < episode.length,
            instruction=self._tasks[int(columns["task_index"][observed][-1])],
            proprio=columns[proprio_key][observed].copy() if proprio_key else None,
        )

    def actions(self, max_rows: int) -> Float32[np.ndarray, "r a"]:
        """Give up to `max_rows` raw action rows of this split, evenly spread over its frames."""
        return self._rows_of(self._config.action_key, max_rows)

    def proprio(self, max_rows: int) -> Float32[np.ndarray, "r p"]:
        """Give up to `max_rows` raw rows of proprioception of this split, evenly spread over its frames."""
        assert self._config.proprio_key is not None
        return self._rows_of(self._config.proprio_key, max_rows)

    def _rows_of(self, key: str, max_rows: int) -> Float32[np.ndarray, "r _n"]:
        rows = np.concatenate([self._columns[episode.file][key][_rows(episode)] for episode in self._episodes])
        count = min(max_rows, len(rows))
        chosen: Float32[np.ndarray, "r _n"] = rows[np.arange(count) * len(rows) // max(count, 1)]
        return chosen

    def source(self, index: int) -> str:
        """Name the data file, episode and frames of a window."""
        number, first = self._windows.locate(index)
        episode = self._episodes[number]
        return f"{episode.file}: episode {episode.index}, frames {first}-{first + self._window_size - 1}"

    def summary(self) -> str:
        """Describe the split in one line."""
        frames = sum(episode.length for episode in self._episodes)
        tasks = {self._task(episode) for episode in self._episodes}
        return (
            f"lerobot {self._root} ({self._split}): {len(self._episodes)} episodes, {frames} frames, "
            f"{len(self)} windows, {len(tasks)} instructions"
        )

    def _image_key(self, view: str) -> str:
        key, known = self._config.views[view], self._info.keys("image", "video")
        if key not in known:
            raise ValueError(
                f"data.views.{view}={key} is not a camera of {self._root}.{nearest(key, known)} "
                f"It has: {', '.join(known) or 'none'}. Set data.views.{view}=<key>."
            )
        return key

    def _check_numeric_keys(self) -> None:
        action_key, proprio_key = self._config.action_key, self._config.proprio_key
        known = self._info.keys("float32", "float64")
        for option, key in (("data.action_key", action_key), ("data.proprio_key", proprio_key)):
            if key is not None and key not in known:
                raise ValueError(
                    f"{option}={key} is not a float feature of {self._root}.{nearest(key, known)} "
                    f"It has: {', '.join(known) or 'none'}. Set {option}=<key>."
                )
        hz, fps = self._config.contract.control_hz, self._info.fps
        if abs(hz - fps) > 0.5:  # a recording's rate is often rounded
            raise ValueError(
                f"{self._root} was recorded at {fps:g} frames a second, but data.contract.control_hz={hz:g}: set it to "
                f"{fps:g}, which is how often the policy's actions will have to be executed."
            )
        self._check_width("data.contract.names", action_key, self._config.contract.names, "data.action_key")
        if proprio_key is not None:
            self._check_width("data.proprio_names", proprio_key, self._config.proprio_names, "data.proprio_key")

    def _check_width(self, option: str, key: str, names: list[str], key_option: str) -> None:
        shape = self._info.features[key]["shape"]
        if list(shape) != [len(names)]:
            raise ValueError(
                f"'{key}' of {self._root} has shape {list(shape)}, but {option} lists {len(names)} entries "
                f"({', '.join(names)}): set {option.removesuffix('.names')} to what this data set records, or choose "
                f"another {key_option}."
            )

    def _read_columns(self, episodes: list[Episode]) -> dict[Path, dict[str, np.ndarray]]:
        by_file: dict[Path, list[Episode]] = {}
        for episode in episodes:
            by_file.setdefault(episode.file, []).append(episode)
        vectors = [self._config.action_key, *([self._config.proprio_key] if self._config.proprio_key else [])]
        columns = {}
        for file, members in by_file.items():
            if not file.is_file() and self._config.skip_bad:
                continue
            columns[file] = read_numbers(file, members, [*vectors, "timestamp", "task_index"])
            for key in vectors:
                columns[file][key] = columns[file][key].astype(np.float32).reshape(len(columns[file][key]), -1)
            if unknown := set(np.unique(columns[file]["task_index"]).tolist()) - set(self._tasks):
                raise ValueError(f"{file} has task_index {sorted(unknown)}, which meta/tasks.parquet does not list.")
        return columns

    def _keep_good(self, episodes: list[Episode]) -> list[Episode]:
        problems = {episode.index: self._problem(episode) for episode in episodes}
        bad = {index: problem for index, problem in problems.items() if problem is not None}
        if not bad:
            return episodes
        first = next(iter(bad.values()))
        if not self._config.skip_bad or len(bad) == len(episodes):
            raise first
        logger.warning("%s: %d of %d episodes dropped; the first: %s", self._root, len(bad), len(episodes), first)
        return [episode for episode in episodes if episode.index not in bad]

    def _problem(self, episode: Episode) -> Exception | None:
        hint = "complete the folder, or set data.skip_bad=true to drop such episodes"
        for path in (episode.file, *(path for path, _ in episode.videos.values())):
            if not path.is_file():
                return FileNotFoundError(f"{path} (episode {episode.index}) does not exist: {hint}.")
        for key in filter(None, (self._config.action_key, self._config.proprio_key)):
            finite = np.isfinite(self._columns[episode.file][key][_rows(episode)]).all(axis=1)
            if not finite.all():
                frame = int(np.argmin(finite))
                return ValueError(
                    f"{episode.file}: '{key}' of episode {episode.index}, frame {frame} is not finite: {hint}."
                )
        return None

    def _choose(self, episodes: list[Episode]) -> list[Episode]:
        kept_out = _validation_episodes([self._task(e) for e in episodes], self._config.validation_fraction)
        chosen = [
            e for e, is_kept_out in zip(episodes, kept_out, strict=True) if is_kept_out == (self._split != "train")
        ]
        if not chosen:
            raise ValueError(
                f"The {self._split} split of {self._root} is empty: each of its {len(self._tasks)} tasks has "
                "one episode. Add episodes: the last of every task with several goes to validation."
            )
        if self._split == "train":
            count = _share(self._config.fraction, len(chosen))
            chosen = [chosen[i * len(chosen) // count] for i in range(count)]
        return chosen

    def _task(self, episode: Episode) -> int:
        return int(self._columns[episode.file]["task_index"][episode.row])

    def _read_frames(self, key: str, episode: Episode, first: int) -> UInt8[np.ndarray, "w _h _x c"]:
        row = episode.row + first
        path = episode.videos[key][0] if key in episode.videos else episode.file
        try:
            if key not in episode.videos:
                return np.stack([_decode(image) for image in self._images[path].read(key, row, self._window_size)])
            rows = slice(row, row + self._window_size)
            times = episode.videos[key][1] + self._columns[episode.file]["timestamp"][rows].astype(np.float64)
            return read_frames(self._videos[path], times, 0.25 / self._info.fps)
        except (ValueError, OSError, pa.ArrowException, av.FFmpegError) as error:
            raise ValueError(
                f"{path}: cannot read '{key}' of episode {episode.index}, frames "
                f"{first}-{first + self._window_size - 1}: {error}. Repair the file or remove the episode."
            ) from error


def _check_options(config: LeRobotDataConfig, split: str) -> None:
    if split not in ("train", "validation"):
        raise ValueError(f"split={split} does not exist. Options: train, validation.")
    if not 0 < config.fraction <= 1:
        raise ValueError(f"data.fraction={config.fraction} must lie in (0, 1].")
    if not 0 <= config.validation_fraction < 1:
        raise ValueError(f"data.validation_fraction={config.validation_fraction} must lie in [0, 1).")


def _rows(episode: Episode) -> slice:
    return slice(episode.row, episode.row + episode.length)


def _validation_episodes(tasks: list[int], fraction: float) -> list[bool]:
    """Mark the last ceil(fraction * n) of every task's n episodes: at least one, and never all of them."""
    totals = Counter(tasks)
    remaining = Counter(tasks)
    marks = []
    for task in tasks:
        kept_out = min(max(1, _share(fraction, totals[task])), totals[task] - 1)
        marks.append(remaining[task] <= kept_out)
        remaining[task] -= 1
    return marks


def _share(fraction: float, total: int) -> int:
    """Give ceil(fraction * total), with 0.07 * 100 = 7."""
    return math.ceil(round(fraction * total, 6))


def _decode(image: bytes | None) -> UInt8[np.ndarray, "_h _x c"]:
    if image is None:
        raise ValueError("the image is not embedded in the parquet file")
    try:
        return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    except (UnidentifiedImageError, SyntaxError) as error:
        raise ValueError("neither PNG nor JPEG") from error

"""A LeRobotDataset held against itself when it is opened: where each row's picture is, and what is wrong with episodes.

Only indices of containers, headers of first pictures and columns of numbers are looked at; no picture is decoded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from robovlms.data.files.cache_folder import cache_folder, keep
from robovlms.data.files.video import VideoIndex, index_video
from robovlms.data.lerobot.format import EpisodeFiles
from robovlms.data.lerobot.images import ParquetImages, check_cell
from robovlms.data.lerobot.timing import ClockError, VideoPlace, place_video, shared_frames
from robovlms.errors import UserError
from robovlms.files import digest
from robovlms.images.decoding import NotAPhotographError

KEEP_FROM = 500  # videos whose indices are kept in the cache folder: reading them takes about a second
THREADS = 8  # that wait for files; network file systems answer late
_VERSION = 1  # of what is kept

Problems = dict[int, Exception]
"""What is wrong with episodes, by their number; the first thing found."""


def place_videos(
    episodes: Sequence[EpisodeFiles],
    stamps: Callable[[EpisodeFiles], Float64[np.ndarray, "_t"]],
    *,
    fps: float,
    tolerance: float,
    is_alone: bool,
    cache_dir: str | None,
) -> tuple[list[EpisodeFiles], Problems]:
    """Return the episodes with the places of their frames in the videos, and those that do not fit theirs.

    Args:
        episodes: with the videos that are read.
        stamps: gives an episode's timestamps, in seconds.
        fps: frames a second, as the folder says.
        tolerance: see `place_video`.
        is_alone: every video holds one episode.
        cache_dir: `data.cache_dir`.
    """
    paths = sorted({place.path for episode in episodes for place in episode.videos.values()})
    indices, problems, placed = _index_videos(paths, cache_dir), Problems(), []
    spans: list[tuple[int, str, VideoPlace, float]] = []
    for episode in episodes:
        places, recorded = {}, stamps(episode)
        for key, place in episode.videos.items():
            index = indices[place.path]
            try:
                if isinstance(index, str):
                    raise UserError(index)
                places[key] = place_video(place, recorded, index, fps=fps, tolerance=tolerance, is_alone=is_alone)
                if episode.length:
                    last = places[key].times(recorded, np.array([episode.length - 1]), fps)
                    spans.append((episode.index, key, places[key], float(last[0])))
            except UserError as error:
                where = "" if str(place.path) in str(error) else f"{place.path}, episode {episode.index}: "
                told = f"{where}{error}"
                problem = ClockError(told, error.off) if isinstance(error, ClockError) else UserError(told)
                problems.setdefault(episode.index, problem)
        if episode.index not in problems:
            placed.append(replace(episode, videos=places))
    shared = shared_frames(spans)
    return [episode for episode in placed if episode.index not in shared], {**shared, **problems}


def _index_videos(paths: Sequence[Path], cache_dir: str | None) -> dict[Path, VideoIndex | str]:
    """Index files side by side, or read what was kept of many; text says why one cannot be."""
    stats = [path.stat() for path in paths]
    known = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, stats, strict=True)]

    def index_all() -> list[VideoIndex | str]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda file: _index(*file), known))

    if len(paths) < KEEP_FROM:
        return dict(zip(paths, index_all(), strict=True))
    name = f"videos-{digest(json.dumps([_VERSION, known], default=str))[:24]}.npz"
    found, _ = keep(cache_folder(cache_dir) / name, index_all, _to_arrays, _from_arrays)
    again = [_index(*file) if isinstance(index, str) else index for file, index in zip(known, found, strict=True)]
    return dict(zip(paths, again, strict=True))


@lru_cache(maxsize=100_000)  # the splits of a folder are opened one after another
def _index(path: Path, size: int, changed_ns: int) -> VideoIndex | str:
    try:
        return index_video(path)
    except UserError as error:
        return str(error)


def _to_arrays(indices: list[VideoIndex | str]) -> dict[str, np.ndarray]:
    rows = [VideoIndex(0.0, 0.0, 0, None, "") if isinstance(index, str) else index for index in indices]
    texts = [index if isinstance(index, str) else "" for index in indices]
    uneven = [np.zeros(0) if row.uneven is None else row.uneven for row in rows]
    said = json.dumps([texts, [row.pixel_format for row in rows]]).encode()
    return {
        "numbers": np.array(
            [(row.first, row.period, row.num_frames, len(u)) for row, u in zip(rows, uneven, strict=True)]
        ),
        "uneven": np.concatenate([np.zeros(0), *uneven]),
        "texts": np.frombuffer(said, np.uint8),
    }


def _from_arrays(arrays: dict[str, np.ndarray]) -> list[VideoIndex | str]:
    texts, formats = json.loads(arrays["texts"].tobytes())
    ends = np.cumsum(arrays["numbers"][:, 3].astype(np.int64))
    uneven = np.split(arrays["uneven"], ends)
    return [
        text or VideoIndex(first, period, int(count), times if len(times) else None, pixel_format)
        for text, pixel_format, (first, period, count, _), times in zip(
            texts, formats, arrays["numbers"].tolist(), uneven[:-1], strict=True
        )
    ]


def image_problems(episodes: Sequence[EpisodeFiles], keys: Sequence[str], root: Path) -> Problems:
    """Return what the header of the first picture in every data file tells, by episode.

    One that is no photograph (depth) is a problem of all episodes of its file, one that is damaged of its own.
    """
    by_file: dict[Path, list[EpisodeFiles]] = {}
    for episode in episodes:
        if episode.length:
            by_file.setdefault(episode.file, []).append(episode)
    problems = Problems()
    for file, members in by_file.items() if keys else ():
        images, first = ParquetImages(file), min(members, key=lambda episode: episode.row)
        for key in keys:
            try:
                check_cell(images.read(key, first.row, 1)[0], root)
            except (UserError, OSError, UnicodeError, pa.ArrowException) as error:
                is_camera = not isinstance(error, NotAPhotographError)
                hint = "" if is_camera else ". Choose a camera of colours in data.views"
                for episode in [first] if is_camera else members:
                    told = (
                        f"{file}: the first picture of '{key}' in episode {episode.index} cannot be used: {error}{hint}"
                    )
                    problems.setdefault(episode.index, UserError(told))
    return problems

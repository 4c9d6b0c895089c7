"""LeRobotDataset folders, v2.0, v2.1 and v3.0, with images in or beside the tables, or mp4 videos.

Source: github.com/huggingface/lerobot, codebase versions v2.0, v2.1 and v3.0.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64, UInt8

from robovlms.data.bad_records import BadRecords
from robovlms.data.base import EpisodeInfo, Numbers, Reader
from robovlms.data.files.opened import OpenFiles
from robovlms.data.files.vectors import VectorSpec
from robovlms.data.files.video import open_video, read_frames
from robovlms.data.lerobot.format import EpisodeFiles, read_episodes, read_info, read_numbers, read_tasks
from robovlms.data.lerobot.images import ParquetImages, decode_cell
from robovlms.data.lerobot.names import order_problem, recorded_names
from robovlms.data.lerobot.recording import Problems, image_problems, place_videos
from robovlms.data.lerobot.schema import LeRobotDataConfig
from robovlms.data.lerobot.timing import SHARE, ClockError, clock_note
from robovlms.data.splits import choose_episodes
from robovlms.errors import UserError
from robovlms.registry import DATASETS, nearest

logger = logging.getLogger(__name__)

_NUMERIC = ("float32", "float64", "int64", "int32", "uint8", "bool")  # features that have a column of numbers


@DATASETS.register("lerobot")
class LeRobotReader(Reader):
    """Episodes of a LeRobotDataset folder.

    Numbers are read once into memory (4 bytes x frames x (action + proprio entries), and 12 more a frame); of the other
    columns none is opened, pickled ones least of all. Images are read on demand through files that every loader process
    opens for itself. Where meta/info.json and the tables disagree on totals, the tables count.

    Args:
        config: `views` maps our views to feature keys such as observation.images.side.
        split: "train" or "validation": see `choose_episodes`.
        views: the views to read, by our names; none reads no image.

    Raises:
        FileNotFoundError: the folder or a file of it is missing.
        UserError: the folder contradicts itself or the config; the message names the file and the option to change.
    """

    def __init__(self, config: LeRobotDataConfig, split: str, *, views: list[str]) -> None:
        self._config, self._split, self._root = config, split, Path(config.root).expanduser()
        self._info = read_info(self._root)
        self.fps = self._info.fps
        self._keys = {view: self._image_key(view) for view in views}
        shapes = {key: self._info.features[key]["shape"] for key in self._info.keys(*_NUMERIC)}
        self._action = VectorSpec(config.action_key, "data.action_key", shapes, self._root)
        self._proprio = None
        if config.proprio_key:
            self._proprio = VectorSpec(config.proprio_key, "data.proprio_key", shapes, self._root)
        if config.language_key not in shapes:
            raise UserError(
                f"data.language_key={config.language_key} is not a column of numbers of {self._root}."
                f"{nearest(config.language_key, shapes)} It has: {', '.join(shapes)}."
            )
        self._check_numeric_keys()
        self._videos = OpenFiles(open_video)
        self._images = OpenFiles(ParquetImages)
        self._tasks = read_tasks(self._info)
        found = read_episodes(self._info, [key for key in self._keys.values() if key in self._info.keys("video")])
        self._columns, faults = self._read_columns(found)
        good = self._keep_good(found, faults)
        chosen = choose_episodes([self._task(e) for e in good], split, config.validation_fraction, config.fraction)
        self._files = [stretch for i in chosen for stretch in self._stretches(good[i])]
        texts = self._tasks if config.instruction is None else dict.fromkeys(self._tasks, config.instruction)
        self.episodes = [EpisodeInfo(e.length, texts[self._task(e)]) for e in self._files]

    def frames(self, episode: int, steps: Int64[np.ndarray, "w"]) -> dict[str, UInt8[np.ndarray, "w _h _x c"]]:
        """Decode a video in one pass, or the images of the rows."""
        return {view: self._read_frames(key, self._files[episode], steps) for view, key in self._keys.items()}

    def numbers(self, episode: int, steps: Int64[np.ndarray, "n"]) -> Numbers:
        """Take rows of the tables in memory."""
        place = self._files[episode]
        columns, rows = self._columns[place.file], place.start + steps
        return Numbers(columns["action"][rows], columns["proprio"][rows] if self._proprio else None)

    def location(self, episode: int, first: int, last: int) -> str:
        """Name the data file, episode and frames."""
        place = self._files[episode]
        return f"{place.file}: episode {place.index}, frames {place.first + first}-{place.first + last}"

    def summary(self) -> str:
        """Describe the split in one line."""
        return f"lerobot {self._root} ({self._split}): {self.counts()}"

    def fingerprint(self) -> str:
        """Return the data files with sizes and times, and the episodes that are used."""
        files = [f"{f} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in sorted({e.file for e in self._files})]
        return f"lerobot {self._root.resolve()} {files} {[e.index for e in self._files]}"

    def _image_key(self, view: str) -> str:
        key, known = self._config.views[view], self._info.keys("image", "video", "depth")
        if key not in known:
            raise UserError(
                f"data.views.{view}={key} is not a camera of {self._root}.{nearest(key, known)} "
                f"It has: {', '.join(known) or 'none'}. Set data.views.{view}=<key>."
            )
        if key in self._info.depth_keys:
            colour = [other for other in known if other not in self._info.depth_keys]
            raise UserError(
                f"data.views.{view}={key} is a depth map (meta/info.json of {self._root}), and policies see colours. "
                f"Cameras are: {', '.join(colour) or 'none'}. Set data.views.{view}=<key>."
            )
        return key

    def _check_numeric_keys(self) -> None:
        vectors = [(self._action, self._config.contract.names, "data.contract.names")]
        if self._proprio is not None:
            vectors.append((self._proprio, self._config.proprio_names, "data.proprio_names"))
        for spec, names, option in vectors:
            spec.check_width(names, option)
            recorded = recorded_names(spec, self._info.features)
            if recorded is not None and (problem := order_problem(recorded, names)) is not None:
                raise UserError(
                    f"{option}={names}: {problem} in meta/info.json of {self._root}, which names them "
                    f"{', '.join(recorded)}. Write {option} in the order of the recording; entries are put in another "
                    f"order by {spec.option}, e.g. {spec.option}=<key>[1:7]+<key>[0]."
                )

    def _read_columns(
        self, episodes: list[EpisodeFiles]
    ) -> tuple[dict[Path, dict[str, np.ndarray]], dict[Path, Exception]]:
        """Return the numbers of every data file, and why those of others cannot be used."""
        by_file: dict[Path, list[EpisodeFiles]] = {}
        for episode in episodes:
            by_file.setdefault(episode.file, []).append(episode)
        specs = {"action": self._action} | ({"proprio": self._proprio} if self._proprio else {})
        keys = sorted({key for spec in specs.values() for key in spec.keys})
        order = ["frame_index"] if "frame_index" in self._info.features else []
        columns: dict[Path, dict[str, np.ndarray]] = {}
        faults: dict[Path, Exception] = {}
        for file, members in by_file.items():
            try:
                read = read_numbers(file, members, [*keys, *order, "timestamp", self._config.language_key])
                columns[file] = {name: spec.take(read, file) for name, spec in specs.items()}
                columns[file] |= {name: read[name].reshape(-1) for name in ("timestamp", *order)}
                columns[file]["task"] = self._read_tasks(read, file)
            except (UserError, FileNotFoundError) as error:
                faults[file] = error
        return columns, faults

    def _read_tasks(self, read: dict[str, np.ndarray], file: Path) -> Int64[np.ndarray, "r"]:
        key = self._config.language_key
        numbers = read[key].reshape(-1)
        if len(numbers) != len(read["timestamp"]):
            raise UserError(f"{file}: data.language_key={key} holds vectors, expected one number of a task a frame.")
        if unknown := sorted(set(np.unique(numbers).tolist()) - set(self._tasks)):
            raise UserError(
                f"{file} has {key} {unknown[:5]}, which the tasks of {self._root / 'meta'} do not list: "
                "set data.language_key to the column of task numbers."
            )
        return numbers.astype(np.int64)

    def _keep_good(self, episodes: list[EpisodeFiles], faults: dict[Path, Exception]) -> list[EpisodeFiles]:
        """Return the episodes that can be read, with the places of their frames in the videos.

        Raises:
            FileNotFoundError, UserError: one cannot, and `data.skip_bad` is false; or none can.
        """
        found = {episode.index: self._problem(episode, faults) for episode in episodes}
        bad: Problems = {number: problem for number, problem in found.items() if problem is not None}
        good, unplaced = place_videos(
            [episode for episode in episodes if episode.index not in bad],
            self._stamps,
            fps=self._info.fps,
            tolerance=self._tolerance(),
            is_alone=self._info.is_v2,
            cache_dir=self._config.cache_dir,
        )
        embedded = [key for key in self._keys.values() if key in self._info.keys("image")]
        bad |= unplaced | image_problems(good, embedded, self._root)
        BadRecords(f"episodes of {self._root}", self._config.skip_bad).settle_all(
            [bad[number] for number in sorted(bad)], len(episodes), _hint(bad, len(episodes))
        )
        good = [episode for episode in good if episode.index not in bad]
        if (note := clock_note(map(self._stamps, good), self._info.fps)) is not None:
            logger.warning("%s: %s", self._root, note)
        return good

    def _problem(self, episode: EpisodeFiles, faults: dict[Path, Exception]) -> Exception | None:
        """Return what the files' presence and numbers show to be wrong."""
        for path in (episode.file, *(place.path for place in episode.videos.values())):
            if not path.is_file():
                return FileNotFoundError(f"{path} (episode {episode.index}) does not exist")
        if fault := faults.get(episode.file):
            return fault
        columns, rows = self._columns[episode.file], slice(episode.row, episode.row + episode.length)
        for name, key in (("action", self._config.action_key), ("proprio", self._config.proprio_key)):
            if name not in columns:
                continue
            finite = np.isfinite(columns[name][rows]).all(axis=1)
            if not finite.all():
                frame = int(np.argmin(finite))
                return UserError(f"{episode.file}: '{key}' of episode {episode.index}, frame {frame} is not finite")
        if "frame_index" in columns and (np.diff(columns["frame_index"][rows]) <= 0).any():
            return UserError(f"{episode.file}: the rows of episode {episode.index} are not in order of frame_index")
        return None

    def _stamps(self, episode: EpisodeFiles) -> Float64[np.ndarray, "_t"]:
        stamps = self._columns[episode.file]["timestamp"][episode.row : episode.row + episode.length]
        return stamps.astype(np.float64)

    def _tolerance(self) -> float:
        """Return the seconds by which a timestamp may differ from frame_index / fps."""
        asked = self._config.timestamp_tolerance_s
        return SHARE / self._info.fps if asked is None else asked

    def _stretches(self, episode: EpisodeFiles) -> Sequence[EpisodeFiles]:
        """Divide an episode where its instruction changes, so that no window has two."""
        tasks = self._columns[episode.file]["task"][episode.row : episode.row + episode.length]
        starts = [0, *(np.flatnonzero(np.diff(tasks)) + 1).tolist()]
        ends = [*starts[1:], episode.length]
        return [replace(episode, first=start, length=end - start) for start, end in zip(starts, ends, strict=True)]

    def _task(self, episode: EpisodeFiles) -> int:
        return int(self._columns[episode.file]["task"][episode.start]) if episode.length else min(self._tasks)

    def _read_frames(
        self, key: str, episode: EpisodeFiles, steps: Int64[np.ndarray, "w"]
    ) -> UInt8[np.ndarray, "w _h _x c"]:
        place = episode.videos.get(key)
        path = episode.file if place is None else place.path
        try:
            if place is None:
                rows = episode.start + steps
                cells = self._images[path].read(key, int(rows[0]), int(rows[-1] - rows[0]) + 1)
                images = [decode_cell(cells[row - rows[0]], self._root) for row in rows.tolist()]
                if len(sizes := {image.shape[:2] for image in images}) > 1:
                    raise UserError(f"the pictures have different sizes, {sorted(sizes)}")
                return np.stack(images)
            stamps = self._columns[episode.file]["timestamp"][episode.row : episode.start + episode.length]
            times = place.times(stamps.astype(np.float64), episode.first + steps, self._info.fps)
            return read_frames(self._videos[path], times, SHARE / self._info.fps)
        except (UserError, OSError, UnicodeError, pa.ArrowException, av.FFmpegError) as error:
            raise UserError(
                f"{path}: cannot read '{key}' of episode {episode.index}, frames {steps[0]}-{steps[-1]}: {error}."
            ) from error


def _hint(bad: Problems, total: int) -> str:
    """Say what helps against several episodes' problems at once."""
    told = []
    missing = sum(isinstance(problem, FileNotFoundError) for problem in bad.values())
    if missing > 1:
        told.append(f"Files of {missing} of {total} episodes are missing: the download is incomplete, complete it.")
    if off := [problem.off for problem in bad.values() if isinstance(problem, ClockError)]:
        told.append(
            "If the frames lie in the videos in the order of the rows, data.timestamp_tolerance_s="
            f"{1.05 * max(off) + 0.001:.2g} finds them by number; else correct the timestamps."
        )
    return " ".join(told)

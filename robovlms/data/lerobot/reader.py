"""LeRobotDataset folders, v2.0, v2.1 and v3.0, with embedded images or mp4 videos.

Source: github.com/huggingface/lerobot, codebase versions v2.0, v2.1 and v3.0.
"""

from __future__ import annotations

import io
import logging
import struct
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt8
from PIL import Image, UnidentifiedImageError

from robovlms.data.base import EpisodeInfo, Numbers, Reader
from robovlms.data.files.opened import OpenFiles
from robovlms.data.files.vectors import VectorSpec
from robovlms.data.files.video import open_video, read_frames
from robovlms.data.lerobot.format import EpisodeFiles, read_episodes, read_info, read_numbers, read_tasks
from robovlms.data.lerobot.schema import LeRobotDataConfig
from robovlms.data.splits import choose_episodes
from robovlms.errors import UserError
from robovlms.registry import DATASETS, nearest

logger = logging.getLogger(__name__)

_NUMERIC = ("float32", "float64", "int64", "int32", "uint8", "bool")  # features that have a column of numbers
_BATCH_ROWS = 256  # an episode's row group in one read, and no more of a foreign, huge one than needed


class ParquetImages:
    """Encoded images of a memory-mapped parquet file, by row; reads a row group only up to the last row needed."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path, memory_map=True)
        groups = self._file.metadata
        self._ends = np.cumsum([groups.row_group(group).num_rows for group in range(groups.num_row_groups)])

    def read(self, key: str, row: int, count: int) -> list[bytes | None]:
        """Return the PNG or JPEG bytes of `count` rows, None where a row has none."""
        schema = self._file.schema_arrow
        kind = schema.field(key).type if schema.names.count(key) == 1 else pa.null()
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise UserError(f"there is no column of images called '{key}'")
        first, last = np.searchsorted(self._ends, [row, row + count - 1], side="right")
        skip = row - (int(self._ends[first - 1]) if first else 0)
        batches = self._file.iter_batches(
            batch_size=_BATCH_ROWS, row_groups=list(range(first, last + 1)), columns=[f"{key}.bytes"], use_threads=False
        )
        needed = list(islice(batches, (skip + count - 1) // _BATCH_ROWS + 1))
        table = pa.Table.from_batches(needed).slice(skip, count)
        return [cell["bytes"] if cell else None for cell in table[key].to_pylist()]


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
        self._faults: dict[Path, Exception] = {}
        self._tasks = read_tasks(self._info)
        found = read_episodes(self._info, [key for key in self._keys.values() if key in self._info.keys("video")])
        self._columns = self._read_columns(found)
        good = self._keep_good(found)
        chosen = choose_episodes([self._task(e) for e in good], split, config.validation_fraction, config.fraction)
        self._files = [good[i] for i in chosen]
        self.episodes = [EpisodeInfo(e.length, self._tasks[self._task(e)]) for e in self._files]

    def frames(self, episode: int, steps: Int64[np.ndarray, "w"]) -> dict[str, UInt8[np.ndarray, "w _h _x c"]]:
        """Decode a video in one pass, or the images of the rows."""
        return {view: self._read_frames(key, self._files[episode], steps) for view, key in self._keys.items()}

    def numbers(self, episode: int, steps: Int64[np.ndarray, "n"]) -> Numbers:
        """Take rows of the tables in memory."""
        place = self._files[episode]
        columns, rows = self._columns[place.file], place.row + steps
        return Numbers(columns["action"][rows], columns["proprio"][rows] if self._proprio else None)

    def location(self, episode: int, first: int, last: int) -> str:
        """Name the data file, episode and frames."""
        return f"{self._files[episode].file}: episode {self._files[episode].index}, frames {first}-{last}"

    def summary(self) -> str:
        """Describe the split in one line."""
        return f"lerobot {self._root} ({self._split}): {self.counts()}"

    def fingerprint(self) -> str:
        """Return the data files with sizes and times, and the episodes that are used."""
        files = [f"{f} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in sorted({e.file for e in self._files})]
        return f"lerobot {self._root.resolve()} {files} {[e.index for e in self._files]}"

    def _image_key(self, view: str) -> str:
        key, known = self._config.views[view], self._info.keys("image", "video")
        if key not in known:
            raise UserError(
                f"data.views.{view}={key} is not a camera of {self._root}.{nearest(key, known)} "
                f"It has: {', '.join(known) or 'none'}. Set data.views.{view}=<key>."
            )
        return key

    def _check_numeric_keys(self) -> None:
        self._action.check_width(self._config.contract.names, "data.contract.names")
        if self._proprio is not None:
            self._proprio.check_width(self._config.proprio_names, "data.proprio_names")

    def _read_columns(self, episodes: list[EpisodeFiles]) -> dict[Path, dict[str, np.ndarray]]:
        by_file: dict[Path, list[EpisodeFiles]] = {}
        for episode in episodes:
            by_file.setdefault(episode.file, []).append(episode)
        specs = {"action": self._action} | ({"proprio": self._proprio} if self._proprio else {})
        keys = sorted({key for spec in specs.values() for key in spec.keys})
        columns: dict[Path, dict[str, np.ndarray]] = {}
        for file, members in by_file.items():
            if not file.is_file() and self._config.skip_bad:
                continue
            try:
                read = read_numbers(file, members, [*keys, "timestamp", self._config.language_key])
                columns[file] = {name: spec.take(read, file) for name, spec in specs.items()}
                columns[file] |= {"timestamp": read["timestamp"].reshape(-1), "task": self._read_tasks(read, file)}
            except ValueError as error:
                if not self._config.skip_bad:
                    raise
                self._faults[file] = error
        return columns

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

    def _keep_good(self, episodes: list[EpisodeFiles]) -> list[EpisodeFiles]:
        problems = {episode.index: self._problem(episode) for episode in episodes}
        bad = {index: problem for index, problem in problems.items() if problem is not None}
        if not bad:
            return episodes
        first = next(iter(bad.values()))
        if not self._config.skip_bad or len(bad) == len(episodes):
            raise first
        logger.warning("%s: %d of %d episodes dropped; the first: %s", self._root, len(bad), len(episodes), first)
        return [episode for episode in episodes if episode.index not in bad]

    def _problem(self, episode: EpisodeFiles) -> Exception | None:
        hint = "complete the folder, or set data.skip_bad=true to drop such episodes"
        for path in (episode.file, *(path for path, _ in episode.videos.values())):
            if not path.is_file():
                return FileNotFoundError(f"{path} (episode {episode.index}) does not exist: {hint}.")
        if fault := self._faults.get(episode.file):
            return fault
        rows = slice(episode.row, episode.row + episode.length)
        for name, key in (("action", self._config.action_key), ("proprio", self._config.proprio_key)):
            if name not in self._columns[episode.file]:
                continue
            finite = np.isfinite(self._columns[episode.file][name][rows]).all(axis=1)
            if not finite.all():
                return ValueError(
                    f"{episode.file}: '{key}' of episode {episode.index}, frame {int(np.argmin(finite))} is not "
                    f"finite: {hint}."
                )
        return None

    def _task(self, episode: EpisodeFiles) -> int:
        return int(self._columns[episode.file]["task"][episode.row]) if episode.length else min(self._tasks)

    def _read_frames(
        self, key: str, episode: EpisodeFiles, steps: Int64[np.ndarray, "w"]
    ) -> UInt8[np.ndarray, "w _h _x c"]:
        rows = episode.row + steps
        path = episode.videos[key][0] if key in episode.videos else episode.file
        try:
            if key not in episode.videos:
                cells = self._images[path].read(key, int(rows[0]), int(rows[-1] - rows[0]) + 1)
                return np.stack([_decode(cells[row - rows[0]]) for row in rows.tolist()])
            stamps = self._columns[episode.file]["timestamp"]
            passed = stamps[rows].astype(np.float64) - float(stamps[episode.row])  # some count from 1 / fps
            return read_frames(self._videos[path], episode.videos[key][1] + passed, 0.25 / self._info.fps)
        except (ValueError, OSError, pa.ArrowException, av.FFmpegError) as error:
            raise UserError(
                f"{path}: cannot read '{key}' of episode {episode.index}, frames {steps[0]}-{steps[-1]}: {error}. "
                "Repair the file or remove the episode."
            ) from error


def _decode(image: bytes | None) -> UInt8[np.ndarray, "_h _x c"]:
    if image is None:
        raise UserError("the image is not embedded in the parquet file")
    try:
        return np.asarray(Image.open(io.BytesIO(image), formats=["PNG", "JPEG"]).convert("RGB"))
    except (UnidentifiedImageError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise UserError("neither PNG nor JPEG") from error

"""A LeRobot folder of any version as it is recorded: every column and camera, under new names where they are given."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from robovlms.data.editing.base import Copying, Recording, Recordings, Take
from robovlms.data.editing.videos import Videos
from robovlms.data.lerobot.features import IMAGE_TYPE, SCALARS
from robovlms.data.lerobot.folder import FolderWriter
from robovlms.data.lerobot.format import EpisodeFiles, read_episodes, read_info, read_tasks
from robovlms.data.lerobot.images import decode_cell, encoded_cell
from robovlms.data.lerobot.recording import Problems, place_videos
from robovlms.data.lerobot.stats import PixelCounts, sampled_steps
from robovlms.data.lerobot.tables import column_numbers, read_table
from robovlms.data.lerobot.timing import SHARE
from robovlms.data.selection import in_short
from robovlms.errors import UserError
from robovlms.registry import nearest

ANNOTATION = "annotation."  # GR00T's columns of numbers of tasks


class LeRobotFolder(Recordings):
    """Episodes of a LeRobotDataset v2.0, v2.1 or v3.0, with all their columns; nothing is decoded but for statistics.

    Args:
        root: the folder.
        names: new names of features, by the old ones; those that it does not have are ignored.
        dropped: features that are left out.
        said: new instructions, by the old ones.
        instruction: of all episodes.
        idle_key: the feature that tells where the robot is.
    """

    def __init__(
        self,
        root: Path,
        *,
        names: Mapping[str, str],
        dropped: Sequence[str],
        said: Mapping[str, str],
        instruction: str | None,
        idle_key: str,
    ) -> None:
        self.where, self._idle_key = str(root), idle_key
        self.info = read_info(root)
        self.robot_type = self.info.robot_type
        if self.info.fps != round(self.info.fps):
            raise UserError(f"{root}/meta/info.json says fps={self.info.fps:g}: LeRobot v3.0 counts whole frames.")
        self.fps = round(self.info.fps)
        self.said, self.instruction = said, instruction
        self.names = {key: names.get(key, key) for key in self.info.features if key not in (*dropped, *SCALARS)}
        made = {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in SCALARS.items()}
        self.features = {new: copy.deepcopy(self.info.features[old]) for old, new in self.names.items()} | made
        self.videos = [key for key in self.info.keys("video") if key in self.names]
        self.tasks = read_tasks(self.info)
        self.episodes = read_episodes(self.info, self.videos)
        self.told = ["task_index", *(key for key in self.names if self._is_told(key))]
        self.table = lru_cache(maxsize=1)(self._read_file)
        self._first_tasks = lru_cache(maxsize=1)(_read_task_numbers)
        self._places = {episode.index: place for place, episode in enumerate(self.episodes)}
        self.listed = [
            Recording(number=episode.index, length=episode.length, instruction=self._instruction(episode))
            for episode in self.episodes
        ]

    def rows(self, place: int) -> pa.Table:
        """Return the rows of an episode.

        Raises:
            FileNotFoundError, UserError: the file is missing, damaged, or holds other rows than meta/ promises.
        """
        episode = self.episodes[place]
        table = self.table(episode.file).slice(episode.row, episode.length)
        found = column_numbers(episode.file, "episode_index", table["episode_index"].combine_chunks())
        if len(found) != episode.length or (found != episode.index).any():
            raise UserError(
                f"{episode.file} holds other rows than those that meta/episodes lists for episode {episode.index}: the "
                f"folder is damaged. Leave it out with drop={episode.index}."
            )
        return table

    def positions(self, recording: int) -> Float64[np.ndarray, "t _d"]:
        """Return the values of `idle_key`.

        Raises:
            UserError: there is no such feature of numbers.
        """
        vectors = [key for key in self.info.keys("float32", "float64") if key in self.names and key != "timestamp"]
        if self._idle_key not in vectors:
            raise UserError(
                f"idle_key={self._idle_key} is no feature of numbers of {self.where}."
                f"{nearest(self._idle_key, vectors)} Set it to one that stays the same while the robot waits: "
                f"{', '.join(vectors)}."
            )
        column = self.rows(recording)[self._idle_key].combine_chunks()
        return (
            column_numbers(self.episodes[recording].file, self._idle_key, column).reshape(len(column), -1).astype(float)
        )

    def prepare(self, takes: Sequence[Take]) -> None:
        """Refuse missing files and frames, and place the frames of all episodes in the videos.

        Raises:
            FileNotFoundError, UserError: says which episodes or features to leave out.
        """
        chosen = {take.number: self.episodes[take.recording] for take in takes}
        for key in self.videos:
            lost = [number for number, episode in chosen.items() if not episode.videos[key].path.is_file()]
            if lost:
                to_do = f"drop_features=[{key}]" if len(lost) == len(chosen) else f"drop={in_short(lost)}"
                raise FileNotFoundError(
                    f"{chosen[lost[0]].videos[key].path} does not exist, and {len(lost)} of {len(chosen)} episodes "
                    f"lack their video of '{key}': complete the folder, or set {to_do}."
                )
        placed, problems = list(chosen.values()), Problems()
        if self.videos:
            is_v2 = self.info.is_v2
            placed, problems = place_videos(
                placed, self.stamps, fps=self.info.fps, tolerance=SHARE / self.info.fps, is_alone=is_v2, cache_dir=None
            )
        if bad := [number for number, episode in chosen.items() if episode.index in problems]:
            first = str(problems[chosen[bad[0]].index]).rstrip(".")
            raise UserError(f"{first}. Leave such episodes out with drop={in_short(bad)}.")
        self.placed = {episode.index: episode for episode in placed}

    def into(self, writer: FolderWriter, takes: Sequence[Take]) -> Copying:
        """Return what copies rows, and files of videos that stay whole."""
        return _LeRobotCopying(self, writer, takes)

    def stamps(self, episode: EpisodeFiles) -> Float64[np.ndarray, "_t"]:
        """Return the timestamps of an episode, in seconds."""
        rows = self.rows(self._places[episode.index])
        return column_numbers(episode.file, "timestamp", rows["timestamp"].combine_chunks()).reshape(-1).astype(float)

    def texts(self, place: int, key: str) -> list[str]:
        """Return what a column of numbers of tasks says, in the new words.

        Raises:
            UserError: a number is not among the tasks.
        """
        file = self.episodes[place].file
        numbers = column_numbers(file, key, self.rows(place)[key].combine_chunks()).reshape(-1).tolist()
        if unknown := sorted(set(numbers) - set(self.tasks)):
            raise UserError(f"{file} has {key} {unknown[:5]}, which the tasks of {self.where}/meta do not list.")
        if key == "task_index" and self.instruction is not None:
            return [self.instruction] * len(numbers)
        return [self.said.get(text, text) for text in map(self.tasks.__getitem__, numbers)]

    def _is_told(self, key: str) -> bool:
        feature = self.info.features[key]
        return key.startswith(ANNOTATION) and feature["dtype"].startswith("int") and feature["shape"] in ([], [1])

    def _instruction(self, episode: EpisodeFiles) -> str:
        if self.instruction is not None:
            return self.instruction
        if not episode.length or not episode.file.is_file():
            return ""
        numbers = self._first_tasks(episode.file)
        text = self.tasks.get(int(numbers[episode.row]), "") if episode.row < len(numbers) else ""
        return self.said.get(text, text)

    def _read_file(self, file: Path) -> pa.Table:
        columns = [key for key in self.names if key not in self.videos]
        try:
            return read_table(file, [*columns, "episode_index", "timestamp", "task_index"])
        except UserError as error:
            raise UserError(
                f"{error} What is listed in meta/info.json alone can go with drop_features=[...]."
            ) from error


def _read_task_numbers(file: Path) -> np.ndarray:
    return column_numbers(file, "task_index", read_table(file, ["task_index"])["task_index"].combine_chunks()).reshape(
        -1
    )


class _LeRobotCopying(Copying):
    """Rows and videos of a LeRobot folder on their way into a new one."""

    def __init__(self, source: LeRobotFolder, writer: FolderWriter, takes: Sequence[Take]) -> None:
        self._source, self._writer = source, writer
        ours = [(take, source.placed[source.episodes[take.recording].index]) for take in takes]
        whole = [episode for take, episode in ours if take.length == episode.length]
        self._videos = Videos(source.episodes, whole, writer, source.info.fps)
        self.counts = self._videos.counts

    def write(self, take: Take) -> None:
        """Append the rows of a take, the texts of its tasks, and its part of every video."""
        source = self._source
        episode = source.placed[source.episodes[take.recording].index]
        rows = source.rows(take.recording).slice(take.first, take.length)
        columns: dict[str, Any] = {}
        for old, new in source.names.items():
            if old in source.videos or old in source.told:
                continue
            column = rows[old].combine_chunks()
            columns[new] = self._cells(column) if old in source.info.keys("image") else column
        span = slice(take.first, take.first + take.length)
        self._writer.add_rows(
            columns,
            {source.names.get(key, key): source.texts(take.recording, key)[span] for key in source.told},
            pixels=self._pixels(take, episode, rows),
            videos={
                source.names[key]: self._videos.write(key, source.names[key], episode, self._times(take, episode, key))
                for key in source.videos
            },
        )

    def _cells(self, column: pa.Array) -> pa.Array:
        """Return encoded pictures as they are, embedded where they were files."""
        root = Path(self._source.where)
        rows = [
            {"bytes": encoded_cell(cell, root), "path": f"frame-{step:06d}.png"}
            for step, cell in enumerate(column.to_pylist())
        ]
        return pa.array(rows, IMAGE_TYPE)

    def _times(
        self, take: Take, episode: EpisodeFiles, key: str, steps: np.ndarray | None = None
    ) -> Float64[np.ndarray, "t"]:
        steps = np.arange(take.length) if steps is None else steps
        source = self._source
        stamps = source.stamps(source.episodes[take.recording])
        return episode.videos[key].times(stamps, take.first + steps, source.info.fps)

    def _pixels(self, take: Take, episode: EpisodeFiles, rows: pa.Table) -> dict[str, PixelCounts]:
        """Count the levels of every camera of colours, in the frames that lerobot looks at, too."""
        source, steps, found = self._source, sampled_steps(take.length), {}
        for key in (*source.videos, *(key for key in source.info.keys("image") if key in source.names)):
            if key in source.info.depth_keys:
                continue
            try:
                if key in source.videos:
                    sample = self._videos.read(episode.videos[key].path, self._times(take, episode, key, steps))
                else:
                    cells = rows[key].combine_chunks().take(pa.array(steps)).to_pylist()
                    sample = np.stack([decode_cell(cell, Path(source.where)) for cell in cells])
                found[source.names[key]] = PixelCounts.of_sample(sample)
            except ValueError as error:
                raise UserError(
                    f"{episode.file}: cannot read '{key}' of episode {episode.index}: {error}. Leave it out with "
                    f"drop={take.number}, or drop_features=[{key}]."
                ) from error
        return found

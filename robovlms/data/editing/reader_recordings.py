"""A data set of any format, as its reader gives it: actions, proprioception and the views of a data config."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, UInt8

from robovlms.config.choices import CacheMode, Representation
from robovlms.config.data import DataConfig, gripper_entries
from robovlms.data.base import Reader
from robovlms.data.editing.base import Copying, Recording, Recordings, Take
from robovlms.data.files.video import write_video
from robovlms.data.lerobot.features import IMAGE_TYPE, feature_key, make_features
from robovlms.data.lerobot.folder import FolderWriter, VideoSpan, encode_png
from robovlms.data.lerobot.stats import PixelCounts, sampled_steps
from robovlms.data.opening import open_reader
from robovlms.errors import UserError

BLOCK = 32  # frames that are read at once


class ReaderRecordings(Recordings):
    """The training episodes of a data config, none kept for validation, with actions as recorded.

    Args:
        config: of one data set.
        robot_type: recorded in the new folder.
        instruction: of all episodes; None: as recorded.
        is_video: write h264 (lossy) instead of PNG.

    Raises:
        FileNotFoundError, UserError: what the reader raises; the rate is not a whole number.
    """

    def __init__(self, config: DataConfig, *, robot_type: str, instruction: str | None, is_video: bool) -> None:
        hz = config.contract.control_hz
        if hz != round(hz):
            raise UserError(f"data.contract.control_hz={hz:g}: LeRobot v3.0 counts whole frames a second.")
        whole: dict[str, Any] = {"validation_fraction": 0.0} if hasattr(config, "validation_fraction") else {}
        config = replace(config, cache=CacheMode.native, **whole)
        self.reader: Reader = open_reader(config, "train", list(config.views))
        self.config, self.where, self.fps, self.robot_type = config, config.root, round(hz), robot_type
        self.instruction, self.is_video = instruction, is_video
        first = self.reader.frames(0, np.array([0]))
        sizes = {view: (frames.shape[1], frames.shape[2]) for view, frames in first.items()}
        if is_video and (odd := [view for view, size in sizes.items() if size[0] % 2 or size[1] % 2]):
            raise UserError(f"video=true: view '{odd[0]}' is {sizes[odd[0]]}, and h264 needs even sizes: omit it.")
        self.features = make_features(self.fps, config.contract.names, config.proprio_names, sizes, is_video)
        self.listed = [
            Recording(number=i, length=episode.length, instruction=instruction or episode.instruction)
            for i, episode in enumerate(self.reader.episodes)
        ]

    def positions(self, recording: int) -> Float64[np.ndarray, "t _d"]:
        """Return the proprioception; without it absolute actions, or the sums of deltas beside the gripper."""
        actions, proprio = self.reader.numbers(recording, np.arange(self.listed[recording].length))
        if proprio is not None:
            return proprio.astype(float)
        track = actions.astype(float)
        if self.config.contract.representation is Representation.delta:
            names = self.config.contract.names
            arm = sorted(set(range(len(names))) - set(gripper_entries(names)))
            track[:, arm] = np.cumsum(track[:, arm], axis=0)
        return track

    def prepare(self, takes: Sequence[Take]) -> None:
        """Do nothing: the reader has looked at its folder."""

    def into(self, writer: FolderWriter, takes: Sequence[Take]) -> Copying:
        """Return what writes numbers, and pictures as PNG or h264."""
        return _ReaderCopying(self, writer)


class _ReaderCopying(Copying):
    """Episodes of a reader on their way into a folder."""

    def __init__(self, source: ReaderRecordings, writer: FolderWriter) -> None:
        self._source, self._writer = source, writer
        self.counts = Counter()

    def write(self, take: Take) -> None:
        """Append the numbers and pictures of a take."""
        source, steps = self._source, take.first + np.arange(take.length)
        numbers = source.reader.numbers(take.recording, steps)
        columns: dict[str, Any] = {"action": numbers.actions}
        if numbers.proprio is not None:
            columns["observation.state"] = numbers.proprio
        videos: dict[str, VideoSpan] = {}
        if source.is_video:
            for view in source.config.views:
                number, path = self._writer.video_path(feature_key(view))
                write_video(path, (frames[view] for frames in self._frames(take)), source.fps)
                videos[feature_key(view)] = VideoSpan(number, 0.0)
        else:
            columns |= self._cells(take)
        sample = source.reader.frames(take.recording, steps[sampled_steps(take.length)])
        self._writer.add_rows(
            columns,
            {"task_index": [take.instruction] * take.length},
            pixels={feature_key(view): PixelCounts.of_sample(frames) for view, frames in sample.items()},
            videos=videos,
        )

    def _cells(self, take: Take) -> dict[str, pa.Array]:
        cells: dict[str, list[dict[str, Any]]] = {feature_key(view): [] for view in self._source.config.views}
        for step, frames in enumerate(self._frames(take)):
            for view, frame in frames.items():
                cells[feature_key(view)].append({"bytes": encode_png(frame), "path": f"frame-{step:06d}.png"})
        return {key: pa.array(rows, IMAGE_TYPE) for key, rows in cells.items()}

    def _frames(self, take: Take) -> Iterator[dict[str, UInt8[np.ndarray, "_h _x c"]]]:
        for start in range(0, take.length, BLOCK):
            steps = take.first + np.arange(start, min(start + BLOCK, take.length))
            read = self._source.reader.frames(take.recording, steps)
            for i in range(len(steps)):
                yield {view: frames[i] for view, frames in read.items()}

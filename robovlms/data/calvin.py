"""CALVIN: windows over the language segments of a folder with one npz file per 30 Hz frame.

Source: github.com/mees/calvin dataset/README.md (layout); RoboVLMs robovlms/data/calvin_dataset.py (windows).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from robovlms.config import CalvinDataConfig
from robovlms.data.base import RobotDataset, WindowIndex
from robovlms.data.calvin_segments import (
    Segment,
    drop_segments,
    index_faults,
    read_segments,
    select_segments,
    split_folder,
    spread,
)
from robovlms.data.numpy_files import read_npz
from robovlms.registry import DATASETS
from robovlms.types import Sample

ACTION_KEY = "rel_actions"  # 3 x 0.02 m, 3 x 0.05 rad (world frame), gripper -1 closed, +1 open
ACTION_DIM = 7


class Frame(NamedTuple):
    """What is read of one npz file."""

    images: dict[str, UInt8[np.ndarray, "_h _x c"]]
    action: Float32[np.ndarray, "a"]
    proprio: Float32[np.ndarray, "p"] | None


@DATASETS.register("calvin")
class CalvinDataset(RobotDataset):
    """The windows RoboVLMs trains on: a segment (s, e) has e - s + 1 - w of them, starting at s, ..., e - w.

    Actions reach k - 1 frames past the window. From frame e on they are padding: masked copies of frame e's action.
    The constructor reads the annotations, lists the folder and opens one frame. With `data.skip_bad` it opens every
    annotated frame instead (about 1 ms each, so a quarter of an hour for all of CALVIN, on every rank), because a
    segment found bad later could not be taken out of the numbering; a file that breaks after that still raises.

    Args:
        split: "train" or "validation". `data.few_shot_file` and `data.fraction` thin the training split only.
        views: our names of the cameras to read, keys of `data.views`.

    Raises:
        FileNotFoundError: the folder, its annotations or frames of a segment are missing.
        ValueError: the folder holds something else than expected, or nothing that is long enough for a window.
    """

    def __init__(
        self, config: CalvinDataConfig, split: str, *, views: list[str], window_size: int, chunk_size: int
    ) -> None:
        self._split, self._window_size, self._chunk_size = split, window_size, chunk_size
        self._folder = split_folder(config, split)
        self._keys = {view: config.views[view] for view in views}
        self._proprio_key, self._proprio_names = config.proprio_key, config.proprio_names
        self._image_shapes: dict[str, tuple[int, ...]] = {}  # per view, as in the first readable frame
        segments = read_segments(self._folder)
        if split == "train":
            segments = select_segments(segments, config)
        faults = index_faults(segments, self._folder)
        if config.skip_bad:
            faults |= self._frame_faults(segments, skip=set(faults))
            segments = drop_segments(segments, faults, self._folder)
        elif faults:
            raise next(iter(faults.values()))
        else:
            self._read(segments[0].start, self._keys)
        self._segments = segments
        self._index = WindowIndex([segment.length for segment in segments], window_size)
        self._check_window()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Sample:
        """Open w frames for their images and the k - 1 after them for their action only.

        Raises:
            ValueError: a file is damaged, lacks a key, or holds another shape or type, or an action that is not finite.
        """
        segment, first = self._locate(index)
        frames = np.arange(first, first + self._window_size + self._chunk_size - 1)
        read = [self._read(frame, self._keys) for frame in range(first, first + self._window_size)]
        read += [self._read(frame, {}) for frame in range(first + self._window_size, min(frames[-1], segment.end) + 1)]
        actions = np.stack([frame.action for frame in read])
        observed = read[: self._window_size]
        return Sample(
            frames={view: np.stack([frame.images[view] for frame in observed]) for view in self._keys},
            actions=actions[np.minimum(frames, segment.end) - first],
            action_mask=frames < segment.end,
            instruction=segment.instruction,
            proprio=_stack_proprio(observed),
        )

    def actions(self, max_rows: int) -> Float32[np.ndarray, "r a"]:
        """Read up to `max_rows` raw actions, evenly spread over the frames whose actions count."""
        return np.stack([frame.action for frame in self._read_spread(max_rows)])

    def proprio(self, max_rows: int) -> Float32[np.ndarray, "r p"]:
        """Read up to `max_rows` raw rows of proprioception, evenly spread over the frames whose actions count."""
        rows = _stack_proprio(self._read_spread(max_rows))
        assert rows is not None
        return rows

    def _read_spread(self, max_rows: int) -> list[Frame]:
        frames = self._annotated_frames()
        rows = spread(len(frames), min(max_rows, len(frames)))
        return [self._read(frame, {}) for frame in frames[rows].tolist()]

    def source(self, index: int) -> str:
        """Name the folder, the frames and the instruction of a window."""
        segment, first = self._locate(index)
        last = first + self._window_size - 1
        return f"{self._path(first)} to {self._path(last).name} ({segment.task}: {segment.instruction!r})"

    def summary(self) -> str:
        """Describe the data set in one line."""
        tasks = len({segment.task for segment in self._segments})
        instructions = len({segment.instruction for segment in self._segments})
        return (
            f"calvin {self._split} ({self._folder}): {len(self._segments)} segments, {len(self._annotated_frames())} "
            f"frames, {len(self)} windows of {self._window_size}, {tasks} tasks, {instructions} instructions"
        )

    def _locate(self, index: int) -> tuple[Segment, int]:
        number, offset = self._index.locate(index)
        segment = self._segments[number]
        return segment, segment.start + offset

    def _path(self, frame: int) -> Path:
        return self._folder / f"episode_{frame:07d}.npz"

    def _annotated_frames(self) -> Int64[np.ndarray, "f"]:
        return np.unique(np.concatenate([np.arange(segment.start, segment.end) for segment in self._segments]))

    def _read(self, frame: int, views: dict[str, str]) -> Frame:
        """Give the images of `views`, the action and the proprioception of one frame, checked."""
        path = self._path(frame)
        proprio_key = self._proprio_key
        try:
            arrays = read_npz(path, [ACTION_KEY, *views.values(), *([proprio_key] if proprio_key else [])])
            images = {view: arrays[key] for view, key in views.items()}
            self._check(path, arrays[ACTION_KEY], images)
            proprio = self._check_proprio(path, arrays[proprio_key]) if proprio_key else None
        except KeyError as error:
            raise ValueError(
                f"{error.args[0]} Choose another view=, or change data.views={self._keys} or data.proprio_key="
                f"{proprio_key}."
            ) from error
        except ValueError as error:
            raise ValueError(f"{error}. Replace the file, or set data.skip_bad=true to drop its segment.") from error
        return Frame(images, arrays[ACTION_KEY].astype(np.float32), proprio)

    def _check(self, path: Path, action: np.ndarray, images: dict[str, np.ndarray]) -> None:
        if action.shape != (ACTION_DIM,) or action.dtype.kind != "f" or not np.isfinite(action).all():
            raise ValueError(f"{path}: {ACTION_KEY} must be {ACTION_DIM} finite floats, but is {action!r}")
        for view, image in images.items():
            found = f"{path}: {self._keys[view]} is {image.dtype} {image.shape}"
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f"{found}, but data.views.{view} must be images (uint8, height x width x 3)")
            expected = self._image_shapes.setdefault(view, image.shape)
            if image.shape != expected:
                raise ValueError(f"{found}, but the first frame of the data set has {expected}")

    def _check_proprio(self, path: Path, proprio: np.ndarray) -> Float32[np.ndarray, "p"]:
        if proprio.shape != (len(self._proprio_names),) or proprio.dtype.kind != "f" or not np.isfinite(proprio).all():
            raise ValueError(
                f"{path}: {self._proprio_key} must be {len(self._proprio_names)} finite floats, as many as "
                f"data.proprio_names lists, but is {proprio!r}"
            )
        return proprio.astype(np.float32)

    def _frame_faults(self, segments: list[Segment], skip: set[int]) -> dict[int, Exception]:
        """Open every frame of every segment not in `skip`, and give the first fault of each segment that has one."""
        faults: dict[int, Exception] = {}
        seen: dict[int, Exception | None] = {}  # segments overlap
        for number, segment in enumerate(segments):
            for frame in range(segment.start, segment.end + 1) if number not in skip else ():
                if frame not in seen:
                    seen[frame] = self._frame_fault(frame)
                if (fault := seen[frame]) is not None:
                    faults[number] = fault
                    break
        return faults

    def _frame_fault(self, frame: int) -> Exception | None:
        try:
            self._read(frame, self._keys)
        except (OSError, ValueError) as error:
            return error
        return None

    def _check_window(self) -> None:
        if len(self) == 0:
            longest = max(segment.length for segment in self._segments)
            raise ValueError(
                f"window.window_size={self._window_size} exceeds every segment of {self._folder}: the longest has "
                f"{longest} usable frames (its last frame is padding). Choose window.window_size <= {longest}."
            )


def _stack_proprio(frames: list[Frame]) -> Float32[np.ndarray, "w p"] | None:
    rows = [frame.proprio for frame in frames if frame.proprio is not None]
    return np.stack(rows) if rows else None

"""CALVIN: the language segments of a folder with one npz file per 30 Hz frame.

Source: github.com/mees/calvin dataset/README.md (layout); RoboVLMs robovlms/data/calvin_dataset.py (windows).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from robovlms.data.bad_records import BadRecords
from robovlms.data.base import Clip, EpisodeInfo, Numbers, Reader
from robovlms.data.calvin.schema import CalvinDataConfig
from robovlms.data.calvin.segments import (
    Segment,
    choose_segments,
    find_annotations,
    index_faults,
    read_rate,
    read_segments,
    select_segments,
    split_folder,
)
from robovlms.data.files.npz import read_npz
from robovlms.data.splits import evenly_spaced
from robovlms.errors import UserError
from robovlms.progress import track
from robovlms.registry import DATASETS
from robovlms.types import SimulatorState

ACTION_KEY = "rel_actions"  # 3 x 0.02 m, 3 x 0.05 rad (world frame), gripper -1 closed, +1 open
ACTION_DIM = 7
STATE_KEYS = ("robot_obs", "scene_obs")  # what CALVIN's environment starts from, 15 and 24 numbers
MAX_STAMPS = 1000  # frames whose size and time tell whether the data changed


class Frame(NamedTuple):
    """What is read of one npz file."""

    images: dict[str, UInt8[np.ndarray, "_h _x c"]]
    action: Float32[np.ndarray, "a"]
    proprio: Float32[np.ndarray, "p"] | None


@DATASETS.register("calvin")
class CalvinReader(Reader):
    """Language segments (s, e) as episodes of e - s frames; frame e itself is only ever padding, as in RoboVLMs.

    The constructor reads the annotations, lists the folder and opens one frame. With `data.skip_bad` it opens every
    annotated frame instead (about 1 ms each, so a quarter of an hour for all of CALVIN, on every rank) and drops the
    segments that have a bad one.

    Args:
        split: "train" or "validation". What thins the data set (`data.few_shot_file`, `fraction`, `scenes`,
            `exclude_tasks`) thins the training split only, and `data.episodes` chooses from its folder: the other
            folder has numbers of its own.
        views: our names of the cameras to read, keys of `data.views`.

    Raises:
        FileNotFoundError: the folder, its annotations or frames of a segment are missing.
        UserError: the folder holds something else than expected.
    """

    def __init__(self, config: CalvinDataConfig, split: str, *, views: list[str]) -> None:
        self._split = split
        self._folder = split_folder(config, split)
        self.fps = read_rate(self._folder)
        self._keys = {view: config.views[view] for view in views}
        self._proprio_key, self._proprio_names = config.proprio_key, config.proprio_names
        self._image_shapes: dict[str, tuple[int, ...]] = {}  # per view, as in the first readable frame
        self._annotations = find_annotations(config, split, self._folder)
        segments = read_segments(self._annotations)
        if split == "train" or config.validation_split == config.train_split:
            segments = choose_segments(segments, config, self._annotations)
        if split == "train":
            segments = select_segments(segments, config, self._folder)
        faults = index_faults(segments, self._annotations, self._folder)
        if config.skip_bad:
            faults |= self._frame_faults(segments, skip=set(faults))
        elif not faults and (fault := self._frame_fault(segments[0].start)) is not None:
            faults[0] = fault
        bad = BadRecords(f"segments of {self._folder}", config.skip_bad)
        bad.settle_all([faults[number] for number in sorted(faults)], len(segments))
        self._segments = [segment for number, segment in enumerate(segments) if number not in faults]
        self.episodes = [EpisodeInfo(segment.length, segment.instruction, segment.task) for segment in self._segments]

    def read(self, episode: int, observed: Int64[np.ndarray, "w"], acted: Int64[np.ndarray, "n"]) -> Clip:
        """Open every file once: for its images those that are observed, the others for their numbers only.

        Raises:
            UserError: a file is damaged, lacks a key, or holds another shape or type, or an action that is not finite.
        """
        start, shown = self._segments[episode].start, set(observed.tolist())
        steps = sorted(shown | set(acted.tolist()))
        read = {step: self._read(start + step, self._keys if step in shown else {}) for step in steps}
        seen = [read[step] for step in observed.tolist()]
        images = {view: np.stack([frame.images[view] for frame in seen]) for view in self._keys}
        return Clip(images, _stack([read[step] for step in acted.tolist()]), _stack(seen).proprio)

    def frames(self, episode: int, steps: Int64[np.ndarray, "w"]) -> dict[str, UInt8[np.ndarray, "w _h _x c"]]:
        """Open the frames for their images."""
        return self.read(episode, steps, steps[:1]).frames

    def numbers(self, episode: int, steps: Int64[np.ndarray, "n"]) -> Numbers:
        """Open the frames for their numbers."""
        start = self._segments[episode].start
        return _stack([self._read(start + step, {}) for step in steps.tolist()])

    def number(self, episode: int) -> int:
        """Return its place in the annotations."""
        return self._segments[episode].number

    def recorded(self, episode: int) -> int | None:
        """Return the first frame's number: segments overlap."""
        return self._segments[episode].start

    def simulator_state(self, episode: int) -> SimulatorState | None:
        """Return `robot_obs` and `scene_obs` of the first frame; CALVIN annotates what its oracle saw solved.

        Raises:
            UserError: they are not there.
        """
        path = self._path(self._segments[episode].start)
        try:
            arrays = read_npz(path, list(STATE_KEYS))
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: the simulator's state cannot be read ({error.args[0]}).") from error
        values = np.concatenate([arrays[key].astype(np.float64).reshape(-1) for key in STATE_KEYS])
        return SimulatorState(values=values, solved=True)

    def location(self, episode: int, first: int, last: int) -> str:
        """Name the folder, the frames and the instruction."""
        segment = self._segments[episode]
        paths = self._path(segment.start + first), self._path(segment.start + last).name
        return f"{paths[0]} to {paths[1]} ({segment.task}: {segment.instruction!r})"

    def summary(self) -> str:
        """Describe the split in one line."""
        tasks = len({segment.task for segment in self._segments})
        instructions = len({segment.instruction for segment in self._segments})
        return (
            f"calvin {self._split} ({self._folder}): {len(self._segments)} segments, {len(self._covered())} frames, "
            f"{tasks} tasks, {instructions} instructions"
        )

    def fingerprint(self) -> str:
        """Return the segments that are used, and size and time of the annotations and of frames, evenly spread."""
        frames = self._covered()
        seen = frames[evenly_spaced(len(frames), min(len(frames), MAX_STAMPS))].tolist()
        stats = [path.stat() for path in (self._annotations, *map(self._path, seen))]
        segments = [(segment.start, segment.end) for segment in self._segments]
        return f"calvin {self._folder.resolve()} {[(s.st_size, s.st_mtime_ns) for s in stats]} {segments}"

    def _covered(self) -> Int64[np.ndarray, "f"]:
        return np.unique(np.concatenate([np.arange(segment.start, segment.end) for segment in self._segments]))

    def _path(self, frame: int) -> Path:
        return self._folder / f"episode_{frame:07d}.npz"

    def _read(self, frame: int, views: dict[str, str]) -> Frame:
        """Return the images of `views`, the action and the proprioception of one frame, checked."""
        path = self._path(frame)
        proprio_key = self._proprio_key
        try:
            arrays = read_npz(path, [ACTION_KEY, *views.values(), *([proprio_key] if proprio_key else [])])
            images = {view: arrays[key] for view, key in views.items()}
            self._check(path, arrays[ACTION_KEY], images)
            proprio = self._check_proprio(path, arrays[proprio_key]) if proprio_key else None
        except KeyError as error:
            raise UserError(
                f"{error.args[0]} Choose another view=, or change data.views={self._keys} or data.proprio_key="
                f"{proprio_key}."
            ) from error
        except ValueError as error:
            raise UserError(f"{error}.") from error
        return Frame(images, arrays[ACTION_KEY].astype(np.float32), proprio)

    def _check(self, path: Path, action: np.ndarray, images: dict[str, np.ndarray]) -> None:
        if action.shape != (ACTION_DIM,) or action.dtype.kind != "f" or not np.isfinite(action).all():
            raise UserError(f"{path}: {ACTION_KEY} must be {ACTION_DIM} finite floats, but is {action!r}")
        for view, image in images.items():
            found = f"{path}: {self._keys[view]} is {image.dtype} {image.shape}"
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise UserError(f"{found}, but data.views.{view} must be images (uint8, height x width x 3)")
            expected = self._image_shapes.setdefault(view, image.shape)
            if image.shape != expected:
                raise UserError(f"{found}, but the first frame of the data set has {expected}")

    def _check_proprio(self, path: Path, proprio: np.ndarray) -> Float32[np.ndarray, "p"]:
        if proprio.shape != (len(self._proprio_names),) or proprio.dtype.kind != "f" or not np.isfinite(proprio).all():
            raise UserError(
                f"{path}: {self._proprio_key} must be {len(self._proprio_names)} finite floats, as many as "
                f"data.proprio_names lists, but is {proprio!r}"
            )
        return proprio.astype(np.float32)

    def _frame_faults(self, segments: list[Segment], skip: set[int]) -> dict[int, Exception]:
        """Open every frame of every segment not in `skip`, and give the first fault of each segment that has one."""
        faults: dict[int, Exception] = {}
        seen: dict[int, Exception | None] = {}  # segments overlap
        for number, segment in track(enumerate(segments), "opening frames", len(segments), "segment"):
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


def _stack(frames: list[Frame]) -> Numbers:
    proprio = [frame.proprio for frame in frames if frame.proprio is not None]
    return Numbers(np.stack([frame.action for frame in frames]), np.stack(proprio) if proprio else None)

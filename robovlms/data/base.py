"""The dataset contract: a reader knows one format's episodes; windows, splits and conversions are the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from robovlms.types import Sample, SimulatorState


class WindowIndex:
    """Enumerate the windows of many segments by arithmetic: O(segments) memory, O(log segments) look-up.

    A segment of `length` usable frames holds `length - window_size + 1` windows (none if it is shorter).
    """

    def __init__(self, lengths: Sequence[int] | Int64[np.ndarray, "e"], window_size: int) -> None:
        counts = np.maximum(np.asarray(lengths, dtype=np.int64) - window_size + 1, 0)
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, index: int) -> tuple[int, int]:
        """Return (segment, first frame of the window inside that segment)."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        segment = int(np.searchsorted(self._ends, index, side="right"))
        return segment, index - (int(self._ends[segment - 1]) if segment else 0)

    def windows(self, segment: int) -> range:
        """Number the windows of a segment."""
        return range(int(self._ends[segment - 1]) if segment else 0, int(self._ends[segment]))


class EpisodeInfo(NamedTuple):
    """A stretch of frames with one instruction; every frame may be observed and has an action."""

    length: int
    instruction: str
    task: str = ""  # what splits are balanced over, where it is not the instruction


class Numbers(NamedTuple):
    """What an episode's table says of some of its frames, as recorded."""

    actions: Float32[np.ndarray, "n a"]
    proprio: Float32[np.ndarray, "n p"] | None


class Clip(NamedTuple):
    """What is read for one window."""

    frames: dict[str, UInt8[np.ndarray, "w _h _x c"]]
    numbers: Numbers
    proprio: Float32[np.ndarray, "w p"] | None  # of the observed frames


class Reader(ABC):
    """The episodes of one split of a folder, in its own format, by random access.

    Reading is stateless, so that loader processes and resumed runs need no hand-over. Constructors take `(config,
    split, views=...)`, read indices only, and raise for what is wrong with the folder; reading raises ValueError or
    OSError for what is wrong with a frame, and names the file.
    """

    episodes: Sequence[EpisodeInfo]
    fps: float | None = None  # frames a second, where the format records it
    skips_idle: bool = False  # it leaves out idle steps itself, as `data.skip_idle` says
    # of a data set on the Hub, patterns of the files that tell which others are read (`needed_files`); none: all are
    index_files: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def needed_files(cls, config: Any, views: list[str]) -> list[str]:
        """Return paths, or patterns of them, that are read below `data.root`, by its `index_files`."""
        return ["*"]

    @abstractmethod
    def frames(self, episode: int, steps: Int64[np.ndarray, "w"]) -> dict[str, UInt8[np.ndarray, "w _h _x c"]]:
        """Decode the frames `steps` (increasing, may repeat) of every view, as recorded."""

    @abstractmethod
    def numbers(self, episode: int, steps: Int64[np.ndarray, "n"]) -> Numbers:
        """Read actions and proprioception of the frames `steps`; no image is decoded."""

    def read(self, episode: int, observed: Int64[np.ndarray, "w"], acted: Int64[np.ndarray, "n"]) -> Clip:
        """Read frames and proprioception of `observed`, and the numbers of `acted`."""
        frames, numbers = self.frames(episode, observed), self.numbers(episode, acted)
        return Clip(frames, numbers, self.numbers(episode, observed).proprio)

    def counts(self) -> str:
        """Say how many episodes, frames and instructions there are."""
        frames = sum(episode.length for episode in self.episodes)
        instructions = len({episode.instruction for episode in self.episodes})
        return f"{len(self.episodes)} episodes, {frames} frames, {instructions} instructions"

    def number(self, episode: int) -> int:
        """Return the folder's own number of an episode, by which `data.episodes` chooses; stretches of one recording
        share it, and what has none has -1.
        """
        return episode

    def recorded(self, episode: int) -> int | None:
        """Return the number of an episode's first frame in a recording that episodes share, or None."""
        return None

    def simulator_state(self, episode: int) -> SimulatorState | None:
        """Return the state of the simulator at an episode's first action, where the format records it."""
        return None

    @abstractmethod
    def location(self, episode: int, first: int, last: int) -> str:
        """Name the file and these frames of it, for error messages."""

    @abstractmethod
    def summary(self) -> str:
        """Describe the split in one line: format, folder, episodes, frames, instructions."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a text that changes when the data do; nothing but names, sizes and times of files is looked at."""


class RobotDataset(ABC):
    """Windows of robot demonstrations, by number."""

    sizes: list[int]  # windows of its parts: one, but for a mixture
    weights: list[float]  # share of its parts in the training samples

    @abstractmethod
    def __len__(self) -> int:
        """Number of windows."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Read one window: w frames per view, s = w + k - 1 actions in raw units with their mask."""

    @abstractmethod
    def location(self, index: int) -> str:
        """Name the file and frames of a window, for error messages."""

    @abstractmethod
    def summary(self) -> str:
        """Describe the data set in one line: segments, frames, windows, instructions."""


def unlabelled(episodes: Sequence[EpisodeInfo]) -> dict[int, str]:
    """Return the episodes that nothing can be learned from, by their number, and why."""
    found = {}
    for number, (length, instruction, _) in enumerate(episodes):
        if not length:
            found[number] = "it has no frame"
        elif not instruction.strip():
            found[number] = "its instruction is empty"
    return found

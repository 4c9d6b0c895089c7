"""The dataset contract: windows by number, raw actions as columns, and a name for every sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from robovlms.types import Sample


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
        """Give (segment, first frame of the window inside that segment)."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        segment = int(np.searchsorted(self._ends, index, side="right"))
        return segment, index - (int(self._ends[segment - 1]) if segment else 0)


class RobotDataset(ABC):
    """Windows of robot demonstrations, by number.

    Reading is random access and stateless, so that loader processes and resumed runs need no hand-over. Constructors
    read indices only and raise for what is wrong with the folder; `__getitem__` raises for what is wrong with a frame.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Number of windows."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Read one window: w frames per view, s = w + k - 1 actions in raw units with their mask."""

    @abstractmethod
    def actions(self, max_rows: int) -> Float32[np.ndarray, "r a"]:
        """Read up to `max_rows` raw action rows, evenly spread over the frames, without decoding an image."""

    @abstractmethod
    def proprio(self, max_rows: int) -> Float32[np.ndarray, "r p"]:
        """Read up to `max_rows` raw rows of `data.proprio_key`, like `actions`."""

    @abstractmethod
    def source(self, index: int) -> str:
        """Name the file and frames of a window, for error messages."""

    @abstractmethod
    def summary(self) -> str:
        """Describe the data set in one line: segments, frames, windows, instructions."""

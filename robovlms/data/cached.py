"""Windows of a small data set, kept in memory once they were read."""

from __future__ import annotations

from robovlms.data.base import RobotDataset
from robovlms.types import Sample


class CachedDataset(RobotDataset):
    """Remember what `dataset` gave, up to `megabytes` (10**6 bytes) of pixels; what no longer fits is read every time.

    Nothing is evicted: windows are drawn without repetition, so the least recently used is the next to come. Every
    loader process has a cache of its own and meets its share of the windows only.
    """

    def __init__(self, dataset: RobotDataset, megabytes: int) -> None:
        self._dataset = dataset
        self._bytes_left = megabytes * 10**6
        self._samples: dict[int, Sample] = {}
        self.sizes, self.weights = dataset.sizes, dataset.weights

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        if index not in self._samples:
            sample = self._dataset[index]
            size = sum(frames.nbytes for frames in sample.frames.values())
            if size > self._bytes_left:
                return sample
            self._bytes_left -= size
            self._samples[index] = sample
        return self._samples[index]

    def location(self, index: int) -> str:
        """Name the file and frames of a window."""
        return self._dataset.location(index)

    def summary(self) -> str:
        """Describe the data set."""
        return self._dataset.summary()

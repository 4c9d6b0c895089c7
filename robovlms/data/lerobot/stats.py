"""The statistics that LeRobotDataset v3.0 keeps of every feature: of an episode, and of the whole data set.

Source: github.com/huggingface/lerobot, src/lerobot/datasets/compute_stats.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Num, UInt8

_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Stats = dict[str, np.ndarray]
"""min, max, mean, std, count, q01, q10, q50, q90, q99; `count` has one entry, the number of frames."""


def sampled_steps(length: int) -> Int64[np.ndarray, "n"]:
    """Return the frames of an episode that pixel statistics are made of: t ** 0.75, but at least 100 or all."""
    number = max(min(100, length), min(int(length**0.75), 10_000))
    return np.round(np.linspace(0, length - 1, number)).astype(np.int64)


def number_stats(values: Num[np.ndarray, "t ..."]) -> Stats:
    """Return the statistics of every entry over the frames; those of integers keep integer bounds."""
    rows = values.reshape(len(values), -1)
    exact = rows.astype(np.float64)
    stats = {"min": rows.min(0), "max": rows.max(0), "mean": exact.mean(0), "std": exact.std(0)}
    quantiles = {name: np.quantile(exact, share, axis=0) for name, share in _QUANTILES.items()}
    return {**stats, "count": np.array([len(rows)]), **quantiles}


@dataclass(frozen=True)
class PixelCounts:
    """How often each channel shows each of 256 levels: exact statistics of many frames in constant memory."""

    counts: Int64[np.ndarray, "c 256"]
    frames: int

    @classmethod
    def of(cls, frames: UInt8[np.ndarray, "t _h _x c"]) -> PixelCounts:
        """Count the frames of `sampled_steps`; of large ones every n-th pixel, so 150 a side remain."""
        return cls.of_sample(frames[sampled_steps(len(frames))])

    @classmethod
    def of_sample(cls, sample: UInt8[np.ndarray, "n _h _x c"]) -> PixelCounts:
        """Count frames that are a sample already."""
        number, height, width, channels = sample.shape
        stride = max(height, width) // 150 if max(height, width) >= 300 else 1
        sample = sample[:, ::stride, ::stride]
        counts = [np.bincount(sample[..., channel].reshape(-1), minlength=256) for channel in range(channels)]
        return cls(np.stack(counts), number)

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(self.counts + other.counts, self.frames + other.frames)

    def stats(self) -> Stats:
        """Return statistics of every channel, pixels in [0, 1], shaped [c, 1, 1]; quantiles are levels that occur."""
        levels = np.arange(256) / 255
        share = self.counts / self.counts.sum(axis=1, keepdims=True)
        mean = share @ levels
        std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))
        shown = [levels[channel > 0] for channel in self.counts]
        stats = {
            "min": np.array([s[0] for s in shown]),
            "max": np.array([s[-1] for s in shown]),
            "mean": mean,
            "std": std,
        }
        reached = np.cumsum(self.counts, axis=1) / self.counts.sum(axis=1, keepdims=True)
        stats |= {name: levels[(reached < quantile).sum(axis=1)] for name, quantile in _QUANTILES.items()}
        return {"count": np.array([self.frames]), **{name: value.reshape(-1, 1, 1) for name, value in stats.items()}}

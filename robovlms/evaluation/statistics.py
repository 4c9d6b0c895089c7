"""Success rates with intervals that stay honest for ten episodes and for rates of 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a success rate, inside [0, 1].

    Unlike mean +- 1.96 standard errors it is not empty at 0 of n or n of n, and it covers well for few trials.

    Raises:
        ValueError: no trials, more successes than trials, or a confidence outside (0, 1).
    Source:
        Wilson 1927, doi:10.1080/01621459.1927.10502953; recommended for small n by Brown, Cai and DasGupta 2001,
        doi:10.1214/ss/1009213286.
    """
    _check(successes, trials)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, e.g. 0.95.")
    from scipy.stats import binomtest  # here: its import takes a second

    interval = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_mean(values: Sequence[float | int], confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean, from 10 000 resamples of a fixed seed.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    import numpy as np

    numbers = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(0).integers(len(numbers), size=(10_000, len(numbers)))
    low, high = np.quantile(numbers[picks].mean(1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check(successes: int, trials: int) -> None:
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials is no rate: 0 <= successes <= trials >= 1.")


@dataclass(frozen=True)
class Rate:
    """Successes out of at least one trial."""

    successes: int
    trials: int

    def __post_init__(self) -> None:
        _check(self.successes, self.trials)

    @property
    def mean(self) -> float:
        """The share of successes, in [0, 1]."""
        return self.successes / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval."""
        return wilson_interval(self.successes, self.trials)

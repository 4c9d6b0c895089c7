"""Evidence that may be looked at after every pair of episodes: the chance of a false alarm is bounded over all looks.

Somebody bets on the differences of the pairs at odds that are fair if their mean is some m. Had they been drawn with
the mean m, the capital would stay below 1/alpha for ever with probability 1 - alpha at least (Ville's inequality),
whatever the number of pairs and of looks. The bets are fixed shares of the capital, spread over all that are allowed,
half of it on either side. So the capital depends on how often each difference came, not on the order in which they
came, and for successes and failures it is a mixture of likelihood ratios of the discordant pairs.

Source: Waudby-Smith and Ramdas 2024, Estimating means of bounded random variables by betting, arXiv:2010.09686; Robbins
1970, doi:10.1214/aoms/1177696786.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

BETS = ((np.arange(100) + 0.5) / 100) ** 1.5  # shares of what may be bet; many are small, for small differences
LIMIT = 10**7  # pairs; who needs more needs another question


class Bets:
    """What betting on the differences of pairs makes of them, each in [-1, 1]."""

    def __init__(self, differences: Sequence[float | int]) -> None:
        """Count the differences.

        Raises:
            ValueError: one lies outside [-1, 1].
        """
        values, counts = np.unique(np.asarray(differences, dtype=np.float64), return_counts=True)
        if len(values) and not (values[0] >= -1 and values[-1] <= 1):
            raise ValueError(f"differences reach from {values[0]:g} to {values[-1]:g}: scale them into [-1, 1].")
        self.values, self.counts = (values + 1) / 2, counts

    def p_value(self, factor: float = 1.0) -> float:
        """Return the p-value of a mean difference of 0, which holds at every look.

        Args:
            factor: as if every difference had come so many times as often.
        """
        return min(1.0, math.exp(-max(self._log_capital(0.5, side, factor) for side in (1, -1))))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return an interval of the mean difference, inside [-1, 1], which holds at every look."""
        limit = -math.log(1 - confidence)
        low = _crossing(lambda mean: self._log_capital(mean, 1) - limit, 0.0, self._mean)
        high = _crossing(lambda mean: self._log_capital(mean, -1) - limit, 1.0, self._mean)
        return 2 * low - 1, 2 * high - 1

    def pairs_needed(self, level: float) -> int | None:
        """Return at how many pairs `p_value` falls to `level` if all goes on as it did; None: at none up to `LIMIT`."""
        pairs = int(self.counts.sum())
        low, high = 0, LIMIT
        if not pairs or self.p_value(LIMIT / pairs) > level:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.p_value(middle / pairs) <= level else (middle, high)
        return high

    @property
    def _mean(self) -> float:
        return float(self.values @ self.counts / self.counts.sum()) if len(self.values) else 0.5

    def _log_capital(self, mean: float, side: int, factor: float = 1.0) -> float:
        """Return the logarithm of half the capital that bets on a mean above (side 1) or below (-1) `mean` have made.

        Args:
            mean: of the differences on [0, 1], where 0.5 is none.
            side: of the bets.
            factor: as if every difference had come so many times as often.
        """
        gains = self.values / mean - 1 if side > 0 else (1 - self.values) / (1 - mean) - 1
        logs: Float[np.ndarray, "bets"] = factor * (np.log1p(BETS[:, None] * gains) @ self.counts)
        top = logs.max()
        return float(top + np.log(np.exp(logs - top).mean()) + math.log(0.5))


def _crossing(excess: Callable[[float], float], end: float, mean: float) -> float:
    """Return where the capital falls below its limit on the way from an end of [0, 1] to the mean of the data."""
    from scipy.optimize import brentq  # here: its import takes a second

    nearest = abs(end - 1e-9)
    if abs(mean - end) <= 1e-9 or excess(nearest) <= 0:
        return end
    return float(brentq(excess, nearest, mean))

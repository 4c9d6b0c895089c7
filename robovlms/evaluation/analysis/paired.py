"""Two runs on the same episodes: exact tests, differences with intervals, and corrections for many comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided p-value of so uneven a split, were both outcomes of a differing pair equally likely.

    For successes and failures this is McNemar's exact test. Pairs that do not differ say nothing about which is better.

    Raises:
        ValueError: a negative count.
    Source:
        McNemar 1947, doi:10.1007/BF02295996; Dixon and Mood 1946, doi:10.1080/01621459.1946.10501898.
    """
    if min(wins, losses) < 0:
        raise ValueError(f"{wins} wins and {losses} losses are no counts.")
    if wins + losses == 0:
        return 1.0
    from scipy.stats import binomtest  # here: its import takes a second

    return float(binomtest(wins, wins + losses).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values as large as makes the chance of any false alarm among all of them at most the level that they are
    held against, in the order given.

    Source: Holm 1979, Scandinavian Journal of Statistics 6:65-70.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def tango_interval(wins: int, losses: int, pairs: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a difference of two success rates over the same episodes, inside [-1, 1].

    Args:
        wins: pairs of which only the first succeeded.
        losses: pairs of which only the second succeeded.
        pairs: all, with those that do not differ.
        confidence: inside (0, 1).

    Raises:
        ValueError: no pairs, or counts that contradict each other.
    Source:
        Tango 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B; recommended for small n by
        Fagerland, Lydersen and Laake 2014, doi:10.1002/sim.6148.
    """
    if pairs < 1 or min(wins, losses) < 0 or wins + losses > pairs:
        raise ValueError(f"{wins} wins and {losses} losses of {pairs} pairs are no counts.")
    from scipy.optimize import brentq  # here: its import takes a second
    from scipy.stats import norm

    z, estimate = float(norm.isf((1 - confidence) / 2)), (wins - losses) / pairs
    low = -1.0 if estimate == -1 else brentq(lambda d: _tango_score(d, wins, losses, pairs) - z, -1.0, estimate)
    high = 1.0 if estimate == 1 else brentq(lambda d: _tango_score(d, wins, losses, pairs) + z, estimate, 1.0)
    return float(low), float(high)


def _tango_score(difference: float, wins: int, losses: int, pairs: int) -> float:
    """Return how many standard errors the data lie above a difference; +-inf at the ends that they exclude."""
    linear = (2 * pairs - wins + losses) * difference - wins - losses
    root = math.sqrt(max(linear**2 + 8 * pairs * losses * difference * (1 - difference), 0.0))
    only_second = (root - linear) / (4 * pairs)  # the likeliest chance of a loss, given the difference
    variance = pairs * (2 * only_second + difference * (1 - difference))
    above = wins - losses - pairs * difference
    if variance <= 1e-12:
        return math.copysign(math.inf, above) if abs(above) > 1e-9 else 0.0
    return above / math.sqrt(variance)


def not_beaten(names: Sequence[str], better: Sequence[tuple[str, str]]) -> list[str]:
    """Return the set of best: all that none is significantly better than.

    It is read from all pairs, not from tests against whichever came out on top, which would be a choice made from the
    same data. With p-values that `holm` adjusted over all pairs, it holds the truly best with the confidence of one
    test.

    Args:
        names: of the runs.
        better: (winner, loser) of every pair that is significant.
    """
    beaten = {loser for _, loser in better}
    return [name for name in names if name not in beaten]


def corrected_confidence(choices: int, confidence: float = 0.95) -> float:
    """Return the confidence that each of several intervals needs, so that the one of whichever is chosen by its result
    keeps `confidence`: all of them hold together (Bonferroni).

    Source: Benjamini, Hechtlinger and Stark 2019, arXiv:1906.00505, on intervals for selected parameters.
    """
    return 1 - (1 - confidence) / choices

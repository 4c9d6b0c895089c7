"""How well the states follow the actions: at which delay, how far, along which axes, at which rate.

Both are summed over half a second before they are compared: a controller that is a little late, or measures with
noise, then changes little, and a wrong sign, unit, axis or rate still shows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

SECONDS, LATE = 0.5, 0.2  # summed before comparing; longest delay that is looked for
MIN_STEPS, MIN_LATE = 3, 3  # the same in steps, at least
STILL = 0.02  # of the group's largest movement: an entry that moves less is not judged
TRIM = 0.1  # of the rows, those that fit worst, are left out

Series = list[Float64[np.ndarray, "_n m"]]


class Fit(NamedTuple):
    """States against actions, per entry, at one delay."""

    lag: int
    gain: Float64[np.ndarray, "m"]  # states' move for each of the actions', with its sign
    correlation: Float64[np.ndarray, "m"]  # NaN: one of both does not move


def sizes(hz: float) -> tuple[int, int]:
    """Return how many steps are summed, and the largest delay in steps."""
    return max(MIN_STEPS, round(SECONDS * hz)), max(MIN_LATE, round(LATE * hz))


def paired(commanded: Series, observed: Series, lag: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return moves over `width` steps of actions and of states `lag` steps later, all stretches together."""
    pieces = [[x[0][:0].reshape(0, x[0].shape[1]) for x in (commanded, observed)]]
    for asked, did in zip(commanded, observed, strict=True):
        count = min(len(asked), len(did) - lag)
        if count < 2:
            continue
        window = min(width, count)
        pieces.append([_over(window, x) for x in (asked[:count], did[lag : lag + count])])
    return np.concatenate([piece[0] for piece in pieces]), np.concatenate([piece[1] for piece in pieces])


def _over(width: int, moves: Float64[np.ndarray, "_n m"]) -> Float64[np.ndarray, "_k m"]:
    """Return the moves over every `width` neighbouring steps."""
    places = np.concatenate([np.zeros((1, moves.shape[1])), np.cumsum(moves, axis=0)])
    return places[width:] - places[:-width]


def correlations(asked: Float64[np.ndarray, "n m"], did: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "m k"]:
    """Return the correlation about zero of every entry asked for with every one that moved; NaN where one is still."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = asked.T @ did / np.outer(np.linalg.norm(asked, axis=0), np.linalg.norm(did, axis=0))
    moves_asked, moves_did = _moves(asked), _moves(did)
    found[~moves_asked] = np.nan
    found[:, ~moves_did] = np.nan
    return found


def _moves(values: Float64[np.ndarray, "n m"]) -> np.ndarray:
    if not len(values):
        return np.zeros(values.shape[1], bool)
    sizes = np.sqrt((values**2).mean(axis=0))
    return (sizes > 1e-7) & (sizes > STILL * sizes.max())


def best_lag(commanded: Series, observed: Series, hz: float) -> int:
    """Return the delay at which the states move most like the actions, whatever the axis and sign."""
    width, late = sizes(hz)
    scores = []
    for lag in range(late + 1):
        found = np.nan_to_num(np.abs(correlations(*paired(commanded, observed, lag, width))))
        scores.append(float(found.max(axis=1).mean()) if found.size else 0.0)
    return int(np.argmax(np.round(scores, 3)))


def fit(commanded: Series, observed: Series, hz: float, lag: int) -> Fit:
    """Compare entry by entry at a delay; a tenth of the rows, those that fit worst, are left out."""
    asked, did = paired(commanded, observed, lag, sizes(hz)[0])
    gains, found = [], []
    for x, y, r in zip(asked.T, did.T, np.diag(correlations(asked, did)), strict=True):
        if np.isnan(r):
            gains.append(np.nan)
            found.append(np.nan)
            continue
        error = np.abs(y - _slope(x, y) * x)
        kept = error <= np.quantile(error, 1 - TRIM)
        gains.append(_slope(x[kept], y[kept]))
        found.append(float(x[kept] @ y[kept] / max(np.linalg.norm(x[kept]) * np.linalg.norm(y[kept]), 1e-30)))
    return Fit(lag, np.array(gains), np.array(found))


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Return the slope that noise in either leaves alike."""
    return float(np.sign(x @ y) * np.linalg.norm(y) / max(np.linalg.norm(x), 1e-30))


def at_pace(commanded: Series, observed: Series, pace: int) -> tuple[Series, Series]:
    """Return moves as if one state were recorded for every `pace` actions or, where negative, the reverse."""
    if pace > 0:
        pairs = [(_sums(asked, pace), did) for asked, did in zip(commanded, observed, strict=True)]
    else:
        pairs = [(asked, _sums(did, -pace)) for asked, did in zip(commanded, observed, strict=True)]
    counts = [min(len(asked), len(did)) for asked, did in pairs]
    return (
        [asked[:count] for (asked, _), count in zip(pairs, counts, strict=True)],
        [did[:count] for (_, did), count in zip(pairs, counts, strict=True)],
    )


def _sums(moves: Float64[np.ndarray, "_n m"], count: int) -> Float64[np.ndarray, "_k m"]:
    whole = len(moves) // count * count
    return moves[:whole].reshape(-1, count, moves.shape[1]).sum(axis=1)

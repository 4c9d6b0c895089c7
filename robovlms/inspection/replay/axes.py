"""Do the three axes of a position or a turn agree with those of the states? If not, in which plain words do they?"""

from __future__ import annotations

from itertools import permutations, product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.spatial import transform

MIN_EXPLAINED = 0.6  # of the states' moves, by axes that are believed
GOOD = 0.9  # explained by the declared axes: nothing is wrong with them
BETTER = 0.5  # of the unexplained that may be left by axes that are believed instead of the declared ones
SAME = 1.2  # the simplest axes that leave at most this many times the least unexplained are named
Moves = Float64[np.ndarray, "n 3"]


class Axes(NamedTuple):
    """How the actions' axes lie in the states, and the share of the states' moves that it explains (1: all)."""

    matrix: Float64[np.ndarray, "3 3"]  # from the moves asked for to those made, but for a scale
    explained: float


def own_axes(asked: Moves, did: Moves) -> float:
    """Return the share of the moves explained if every axis keeps its own scale and sign."""
    scales = (asked * did).sum(axis=0) / np.maximum((asked**2).sum(axis=0), 1e-30)
    return _explained(asked * scales, did)


def other_axes(asked: Moves, did: Moves) -> Axes:
    """Return the simplest exchange or rotation of the axes that explains the moves about as well as any."""
    found = [Axes(matrix, _scaled(asked, did, matrix)) for matrix in [*_EXCHANGES, _nearest_rotation(asked, did)]]
    least = min(1 - axes.explained for axes in found)
    return next(axes for axes in found if 1 - axes.explained <= SAME * least + 1e-3)


def same_axes(asked: Moves, did: Moves) -> float:
    """Return the share explained if all axes are as declared, with one scale."""
    return _scaled(asked, did, np.eye(3))


def is_better(explained: float, than: float) -> bool:
    """Tell whether an explanation is to be believed instead of another one."""
    return than < GOOD and explained > MIN_EXPLAINED and 1 - explained < BETTER * (1 - than)


def describe(matrix: Float64[np.ndarray, "3 3"], names: list[str]) -> str:
    """Say what a matrix of axes does to entries, which are named in the order x, y, z."""
    if not np.isin(np.round(np.abs(matrix), 6), (0, 1)).all():
        return _rotated(matrix, names)
    order = np.abs(matrix).argmax(axis=1)  # axis i of the states follows entry order[i]
    signs = matrix[range(3), order]
    moved = [i for i in range(3) if order[i] != i]
    if np.linalg.det(matrix) > 0 and (signs < 0).any():
        return _rotated(matrix, names)
    inverted = [names[order[i]] for i in range(3) if signs[i] < 0]
    if len(moved) == 2:
        text = f"{names[moved[0]]} and {names[moved[1]]} look swapped"
    else:
        text = f"{', '.join(names)} look as if they were in the order {', '.join(names[i] for i in np.argsort(order))}"
    return text + (f", and {' and '.join(inverted)} inverted" if inverted else "")


def _rotated(matrix: np.ndarray, names: list[str]) -> str:
    turn = transform.Rotation.from_matrix(matrix.T).as_rotvec()  # of the entries, back to the states' axes
    angle = float(np.linalg.norm(turn))
    axis = turn / angle
    main = int(np.abs(axis).argmax())
    about = "xyz"[main] if abs(axis[main]) > 0.95 else f"({', '.join(f'{value:.2f}' for value in axis)})"
    degrees = np.degrees(angle) * (np.sign(axis[main]) if len(about) == 1 else 1)
    return f"{', '.join(names)} look rotated by {degrees:.0f} degrees about {about}: frame?"


def _scaled(asked: Moves, did: Moves, matrix: np.ndarray) -> float:
    turned = asked @ matrix.T
    scale = (turned * did).sum() / max((turned**2).sum(), 1e-30)
    return _explained(scale * turned, did) if scale > 0 else 0.0


def _explained(predicted: Moves, did: Moves) -> float:
    return float(1 - ((did - predicted) ** 2).sum() / max((did**2).sum(), 1e-30))


def _exchanges() -> list[np.ndarray]:
    """Return the orders and signs of three axes that are no mere signs: simple exchanges first, mirrored ones last."""
    found = []
    for order, signs in product(list(permutations(range(3)))[1:], product((1.0, -1.0), repeat=3)):
        matrix = np.zeros((3, 3))
        matrix[range(3), order] = signs
        found.append(matrix)
    return sorted(found, key=lambda m: (-np.trace(np.abs(m)), (m < 0).sum() if (m < 0).sum() != 1 else 0.5))


def _nearest_rotation(asked: Moves, did: Moves) -> np.ndarray:
    """Return the rotation that leads best from the moves asked for to those made (Kabsch)."""
    left, _, right = np.linalg.svd(did.T @ asked)
    sign = np.sign(np.linalg.det(left @ right))
    return np.asarray(left @ np.diag([1.0, 1.0, sign]) @ right)


_EXCHANGES = _exchanges()

"""Which episodes are trained on, and which are kept for validation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from robovlms.errors import UserError


def check_split(split: str) -> None:
    """Refuse anything but train and validation."""
    if split not in ("train", "validation"):
        raise ValueError(f"split={split!r} does not exist: choose 'train' or 'validation'.")


def choose_episodes(tasks: Sequence[str | int], split: str, validation_fraction: float, fraction: float) -> list[int]:
    """Divide episodes: validation is the last share of every task's, training an evenly spread share of the rest.

    Of every task with several episodes at least one is for validation, and never all; a share of 0 keeps none. Where
    every episode has a task of its own, they are divided as if they shared one.

    Raises:
        UserError: a split that is empty.
        ValueError: an unknown split.
    """
    check_split(split)
    if len(set(tasks)) == len(tasks):
        tasks = [""] * len(tasks)
    totals = Counter(tasks)
    remaining = Counter(tasks)
    chosen = []
    for number, task in enumerate(tasks):
        kept_out = min(share(validation_fraction, totals[task]) or int(validation_fraction > 0), totals[task] - 1)
        if (remaining[task] <= kept_out) == (split != "train"):
            chosen.append(number)
        remaining[task] -= 1
    if not chosen and split == "train":
        raise UserError(f"there is no episode to train on: of {len(tasks)} none can be used. Add episodes.")
    return thin(chosen, fraction) if split == "train" else chosen


def thin(numbers: list[int], fraction: float) -> list[int]:
    """Keep a share, evenly spread, at least one."""
    count = max(1, share(fraction, len(numbers)))
    return [numbers[i * len(numbers) // count] for i in range(count)]


def share(fraction: float, total: int) -> int:
    """Return ceil(fraction * total), with 0.07 * 100 = 7."""
    return math.ceil(round(fraction * total, 6))


def evenly_spaced(total: int, count: int) -> Int64[np.ndarray, "_count"]:
    """Return `count` of the numbers below `total`, evenly spread and beginning with 0."""
    return np.arange(count) * total // max(count, 1)

"""The page of one episode: pictures, action curves and windows, played in a browser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from robovlms.inspection.episode import Replay
from robovlms.reports.pages import write_page

MAX_POINTS = 2000  # of a curve
WIDTH, HEIGHT, PAD = 1000.0, 64.0, 5.0  # of a curve, in its own units


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A column of numbers as the page draws it."""

    name: str
    extent: str  # least and largest value
    points: str  # of an SVG polyline
    zero: str | None  # height of the line at 0, where the curve crosses it


def write_episode(replay: Replay, path: Path, *, title: str) -> Path:
    """Write the page of an episode and return its path; a number behind # in its address is the step it opens at."""
    data = {
        "steps": replay.num_steps,
        "hz": replay.hz,
        "window": replay.window_size,
        "chunk": replay.chunk_size,
        "stride": replay.stride,
        "masks": replay.masks,
        "pictures": replay.pictures,
        "values": [_plain(column) for column in [*replay.actions.T, *replay.proprio.T]],
    }
    return write_page(
        path,
        "episode.html",
        script="episode.js",
        title=f"{title}, episode {replay.episode}",
        name=title,
        replay=replay,
        data=data,
        actions=_curves(replay.actions, replay.names),
        proprio=_curves(replay.proprio, replay.proprio_names),
    )


def _plain(column: Float32[np.ndarray, "t"]) -> list[float]:
    return [float(f"{value:.5g}") for value in np.nan_to_num(column).tolist()]


def _curves(columns: Float32[np.ndarray, "t n"], names: list[str]) -> list[Curve]:
    return [_curve(*column) for column in zip(np.nan_to_num(columns).T, names, strict=True)]


def _curve(values: Float32[np.ndarray, "t"], name: str) -> Curve:
    low, high = float(values.min()), float(values.max())
    span = high - low
    steps = np.arange(0, len(values), -(-len(values) // MAX_POINTS))
    x = (steps + 0.5) * WIDTH / len(values)
    share = (values[steps] - low) / span if span > 0 else np.full(len(steps), 0.5)
    y = HEIGHT - PAD - share * (HEIGHT - 2 * PAD)
    level = HEIGHT - PAD + low / span * (HEIGHT - 2 * PAD) if low < 0 < high else None
    return Curve(
        name=name,
        extent=f"{low:.3g} … {high:.3g}" if span > 0 else "never changes",
        points=" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)),
        zero=None if level is None else f"{level:.1f}",
    )

"""The page of an open loop: what a policy would have done in recorded episodes, beside what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from robovlms.actions.checks import Finding
from robovlms.evaluation.open_loop import EntryError, Replayed
from robovlms.reports.pages import write_page

WIDTH, HEIGHT, PAD = 1000.0, 96.0, 6.0  # of a curve, in its own units
HEADER = ["entry", "policy", "mean action", "last action", "variance explained"]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What was seen at a step."""

    step: int
    pictures: dict[str, str]  # data URIs by view


@dataclass(frozen=True, kw_only=True)
class Section:
    """The episodes of one source, and how well they are predicted."""

    source: str
    hz: float
    execute_steps: int
    errors: list[EntryError]
    episodes: list[Replayed]
    moments: list[list[Moment]]  # of every episode


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One entry of an episode as the page draws it."""

    name: str
    extent: str  # least and largest value
    error: str
    recorded: str  # points of SVG polylines
    predicted: str
    mean: str  # height of the line of the episodes' mean action
    moves: bool  # whether there is anything to see


def write_open_loop_page(
    path: Path, sections: Sequence[Section], findings: Sequence[Finding], *, title: str, about: str
) -> Path:
    """Write the page and return its path; `about` says what was replayed."""
    return write_page(
        path,
        "open_loop.html",
        title=title,
        about=about,
        found=findings,
        header=HEADER,
        sections=[
            {
                "source": section.source,
                "hz": section.hz,
                "tiles": _tiles(section),
                "rows": [_cells(error) for error in section.errors],
                "episodes": [_shown(section, *each) for each in zip(section.episodes, section.moments, strict=True)],
            }
            for section in sections
        ],
    )


def _shown(section: Section, episode: Replayed, moments: Sequence[Moment]) -> dict[str, object]:
    """Return what the page shows of one episode."""
    count, panels = len(episode.recorded), _panels(section, episode)
    return {
        "recording": episode.recording,
        "seconds": count / section.hz,
        "moments": [(each, f"{(each.step + 0.5) * WIDTH / count:.1f}", each.step / section.hz) for each in moments],
        "starts": _starts(count, section.execute_steps),
        "panels": [panel for panel in panels if panel.moves],
        "still": [panel.name for panel in panels if not panel.moves],
    }


def _tiles(section: Section) -> list[tuple[str, str, bool]]:
    """Return value, label and whether it counts against the policy."""
    explained = [error.explained for error in section.errors if error.explained is not None]
    agreed = [(error.policy, error.name, error.policy <= error.mean < 1) for error in section.errors if error.is_binary]
    tiles = []
    if explained:
        mean = float(np.mean(explained))
        tiles.append((f"{mean:.0%}", "of the variance is explained; the mean action: 0 %", mean <= 0))
    tiles += [(f"{share:.0%}", f"of the steps agree in {name}", is_wrong) for share, name, is_wrong in agreed]
    tiles.append((str(section.execute_steps), "actions are executed of a chunk", False))
    return tiles


def _cells(error: EntryError) -> list[str]:
    if error.is_binary:
        return [error.name, *(f"{share:.1%} agree" for share in (error.policy, error.mean, error.last)), ""]
    explained = "never moves" if error.explained is None else f"{error.explained:.1%}"
    return [error.name, *(f"{value:.4g}" for value in (error.policy, error.mean, error.last)), explained]


def _panels(section: Section, episode: Replayed) -> list[Panel]:
    means = np.concatenate([each.recorded for each in section.episodes]).mean(axis=0)
    columns = zip(section.errors, episode.recorded.T, episode.predicted.T, means.tolist(), strict=True)
    return [_panel(error, recorded, predicted, mean) for error, recorded, predicted, mean in columns]


def _panel(
    error: EntryError, recorded: Float32[np.ndarray, "t"], predicted: Float32[np.ndarray, "t"], mean: float
) -> Panel:
    low, high = (float(edge(np.concatenate([recorded, predicted]))) for edge in (np.min, np.max))
    moves = low < high
    if error.is_binary:
        low, high = -1.0, 1.0
        told = f"{np.mean((recorded > 0) == (predicted > 0)):.0%} agree"
    else:
        told = f"error {np.sqrt(np.square(predicted - recorded).mean()):.3g}"
    return Panel(
        name=error.name,
        extent="closed … open" if error.is_binary else f"{low:.3g} … {high:.3g}",
        error=told,
        recorded=_points(recorded, low, high),
        predicted=_points(predicted, low, high),
        moves=moves,
        mean=f"{_height(np.clip([mean], low, high), low, high)[0]:.1f}",
    )


def _points(values: Float32[np.ndarray, "t"], low: float, high: float) -> str:
    x = (np.arange(len(values)) + 0.5) * WIDTH / len(values)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, _height(values, low, high), strict=True))


def _height(values: np.ndarray, low: float, high: float) -> np.ndarray:
    share = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    return HEIGHT - PAD - share * (HEIGHT - 2 * PAD)


def _starts(count: int, execute_steps: int) -> list[str]:
    """Return where chunks begin; none where every step begins one."""
    return [] if execute_steps == 1 else [f"{step * WIDTH / count:.1f}" for step in range(0, count, execute_steps)]

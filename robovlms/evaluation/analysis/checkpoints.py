"""Checkpoints of one run over time, and what may be said of the one with the best result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from robovlms.config.choices import Language
from robovlms.evaluation.analysis.comparison import LEVEL, Score, score_of
from robovlms.evaluation.analysis.paired import corrected_confidence
from robovlms.evaluation.episodes import EpisodeResult

if TYPE_CHECKING:
    from robovlms.evaluation.results import Results

HEADER = ("step", "episodes", "result", "95 % interval", "")


class Checkpoint(NamedTuple):
    """One checkpoint of several that were evaluated."""

    step: int
    episodes: int
    score: Score  # success rate, or of chains the average length
    corrected: Score  # with an interval that holds for whichever is chosen


def over_time(evaluated: Sequence[tuple[int, Results]]) -> list[Checkpoint]:
    """Return what every checkpoint reached, by step.

    The interval of one that was chosen by its result is too narrow and too high. That of `corrected` holds for all n at
    once (Bonferroni), and so for the one that is chosen, however it was; its mean is still favoured by the choice.

    Args:
        evaluated: (step, results) of every checkpoint.
    """
    confidence = corrected_confidence(len(evaluated), 1 - LEVEL)
    rows = []
    for step, results in sorted(evaluated, key=lambda each: each[0]):
        played = [EpisodeResult.from_json(row) for row in results["episodes"]]
        own = [result for result in played if result.episode.language is Language.own]
        rows.append(Checkpoint(step, len(own), score_of(own), score_of(own, confidence)))
    return rows


def best(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Return the one with the best result; of equals the latest, which has seen most."""
    return max(checkpoints, key=lambda each: (each.score.mean, each.step))


def table_cells(checkpoints: Sequence[Checkpoint]) -> list[list[str]]:
    """Return the rows of a table under `HEADER`; the best of several is flagged, with its corrected interval."""
    chosen, count = best(checkpoints), len(checkpoints)
    as_text = _percent if all(each.score.high <= 1 for each in checkpoints) else _length
    rows = []
    for each in checkpoints:
        flag = ""
        if each is chosen and count > 1:
            interval = f"{as_text(each.corrected.low)} .. {as_text(each.corrected.high)}"
            flag = f"best of {count}: {interval} when corrected for the choice"
        score = each.score
        interval = f"{as_text(score.low)} .. {as_text(score.high)}"
        rows.append([f"{each.step:,}", str(each.episodes), as_text(score.mean), interval, flag])
    return rows


def _percent(rate: float) -> str:
    return f"{rate:.1%}"


def _length(goals: float) -> str:
    return f"{goals:.2f}"

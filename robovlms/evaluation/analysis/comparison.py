"""Runs on the same episodes: who is better than whom and by how much, and which may be the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, TypeAlias

from robovlms.config.choices import Language
from robovlms.errors import UserError
from robovlms.evaluation.analysis.paired import corrected_confidence, holm, not_beaten, sign_test, tango_interval
from robovlms.evaluation.analysis.sequential import Bets
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.statistics import bootstrap_mean, wilson_interval
from robovlms.sims.base import Episode

LEVEL = 0.05  # chance of any false alarm among all pairs

Key: TypeAlias = tuple[str, Episode]  # the simulator and what is played in it


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What one evaluation has played."""

    name: str  # no two of a comparison have the same
    simulator: str
    results: tuple[EpisodeResult, ...]
    conditions: Mapping[str, str]  # that may make a difference beside the policy, e.g. the renderer
    choices: int = 1  # checkpoints that this one was chosen from by its result

    def own(self) -> dict[Key, EpisodeResult]:
        """Return the results of instructions as the benchmark words them."""
        kept = [result for result in self.results if result.episode.language is Language.own]
        return {(self.simulator, result.episode): result for result in kept}


class Score(NamedTuple):
    """What a run reached: a success rate, or of chains the average length, with its 95 % interval."""

    mean: float
    low: float
    high: float


class Contrast(NamedTuple):
    """How two runs differ on the same episodes; above 0 speaks for the first."""

    wins: int  # episodes in which the first reached more goals
    losses: int
    mean: float  # of the differences: of success rates, or of average lengths
    low: float  # 95 % interval, by itself
    high: float
    p_value: float
    is_for_first: bool  # what the test speaks for, if it speaks
    pairs_needed: int | None = None  # episodes that will decide it, if all goes on as it did; sequential only


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs, that of the higher score first."""

    first: str
    second: str
    contrast: Contrast
    adjusted: float  # p-value with Holm's correction for all pairs

    @property
    def better(self) -> tuple[str, str] | None:
        """The better and the other one; None: that is not decided."""
        if self.adjusted > LEVEL:
            return None
        return (self.first, self.second) if self.contrast.is_for_first else (self.second, self.first)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the episodes that all runs have played say of them."""

    scores: dict[str, Score]  # best first
    num_episodes: int
    num_goals: int  # of the longest chain
    pairs: list[Pair]
    best: list[str]  # that none is significantly better than
    notes: list[str]  # what a reader must know of the runs
    is_sequential: bool  # p-values and intervals hold at every look


def compare_runs(runs: Sequence[Evaluated], *, is_sequential: bool = False) -> Comparison:
    """Compare at least two runs, all pairs of them, on the episodes that every one has played.

    Holm's correction is over all pairs. A run that was chosen from n checkpoints counts as n hypotheses (Bonferroni).

    Raises:
        UserError: there is no episode that all have played; names the runs.
    """
    played = {run.name: run.own() for run in runs}
    shared = _shared(played)
    num_goals = max(len(episode.goals) for _, episode in shared)
    reached = {name: [own[key].reached for key in shared] for name, own in played.items()}
    scores = {name: _score(counts, num_goals) for name, counts in reached.items()}
    order = sorted(scores, key=lambda name: -scores[name].mean)
    choices, contrasts = {run.name: run.choices for run in runs}, {}
    for first, second in combinations(order, 2):
        hypotheses = choices[first] * choices[second]
        level = LEVEL * 2 / len(runs) / (len(runs) - 1)  # of one of all pairs
        contrasts[first, second] = (
            contrast_at_any_time(reached[first], reached[second], num_goals, hypotheses, level)
            if is_sequential
            else contrast(reached[first], reached[second], num_goals, hypotheses)
        )
    adjusted = holm([each.p_value for each in contrasts.values()])
    pairs = [
        Pair(first=first, second=second, contrast=each, adjusted=p_value)
        for ((first, second), each), p_value in zip(contrasts.items(), adjusted, strict=True)
    ]
    return Comparison(
        scores={name: scores[name] for name in order},
        num_episodes=len(shared),
        num_goals=num_goals,
        pairs=pairs,
        best=not_beaten(order, [pair.better for pair in pairs if pair.better]),
        notes=list(_notes(runs, played, len(shared))),
        is_sequential=is_sequential,
    )


def contrast(a: Sequence[int], b: Sequence[int], num_goals: int, hypotheses: int = 1) -> Contrast:
    """Compare goals reached, episode by episode, by an exact test that is made once.

    Of single goals that is McNemar's, with Tango's interval; of chains the sign test of their lengths, with a bootstrap
    over episodes.

    Args:
        a: of the first run.
        b: of the second.
        num_goals: of the longest chain.
        hypotheses: that these two were chosen from by their results; p-value and interval are corrected for them.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    wins, losses = sum(each > 0 for each in differences), sum(each < 0 for each in differences)
    confidence = corrected_confidence(hypotheses, 1 - LEVEL)
    if num_goals == 1:
        low, high = tango_interval(wins, losses, len(differences), confidence)
    elif len(set(differences)) > 1:
        low, high = bootstrap_mean(differences, confidence)
    else:  # equal differences resampled give an interval of no width
        low, high = Bets([each / num_goals for each in differences]).interval(confidence)
        low, high = num_goals * low, num_goals * high
    mean = sum(differences) / len(differences)
    return Contrast(wins, losses, mean, low, high, min(1.0, hypotheses * sign_test(wins, losses)), wins > losses)


def contrast_at_any_time(
    a: Sequence[int], b: Sequence[int], num_goals: int, hypotheses: int = 1, level: float = LEVEL
) -> Contrast:
    """Compare goals reached, episode by episode, so that it may be done again after every episode.

    Args:
        a: as in `contrast`.
        b: as in `contrast`.
        num_goals: as in `contrast`.
        hypotheses: as in `contrast`.
        level: p-value at which the comparison is decided.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    bets, mean = Bets([each / num_goals for each in differences]), sum(differences) / len(differences)
    low, high = bets.interval(corrected_confidence(hypotheses, 1 - LEVEL))
    return Contrast(
        wins=sum(each > 0 for each in differences),
        losses=sum(each < 0 for each in differences),
        mean=mean,
        low=num_goals * low,
        high=num_goals * high,
        p_value=min(1.0, hypotheses * bets.p_value()),
        is_for_first=mean > 0,
        pairs_needed=bets.pairs_needed(level / hypotheses),
    )


def _shared(played: Mapping[str, Mapping[Key, EpisodeResult]]) -> list[Key]:
    """Return what all have played, in the order of the first."""
    first, *others = played.values()
    if shared := [key for key in first if all(key in other for other in others)]:
        return shared
    for (a, of_a), (b, of_b) in combinations(played.items(), 2):
        if not of_a.keys() & of_b.keys():
            raise UserError(
                f"{a} and {b} have no episode in common ({_example(of_a)}; {_example(of_b)}): evaluate both with the "
                "same sim, sim.tasks, sim.seed and sim.max_steps, or compare other runs."
            )
    raise UserError(
        f"there is no episode that all of {', '.join(played)} have played, though any two have some in common: leave "
        "one out, or evaluate all with the same sim.tasks, sim.seed and sim.episodes."
    )


def _example(own: Mapping[Key, EpisodeResult]) -> str:
    return next((f"{simulator}: {episode}" for simulator, episode in own), "one has none")


def score_of(results: Sequence[EpisodeResult], confidence: float = 1 - LEVEL) -> Score:
    """Return what the results of at least one episode amount to."""
    num_goals = max(len(result.episode.goals) for result in results)
    return _score([result.reached for result in results], num_goals, confidence)


def _score(reached: Sequence[int], num_goals: int, confidence: float = 1 - LEVEL) -> Score:
    mean = sum(reached) / len(reached)
    if num_goals > 1:
        return Score(mean, *bootstrap_mean(reached, confidence))
    return Score(mean, *wilson_interval(sum(reached), len(reached), confidence))


def _notes(runs: Sequence[Evaluated], played: Mapping[str, Mapping[Key, EpisodeResult]], num_shared: int) -> list[str]:
    """List what makes the comparison less than one of policies on all their episodes."""
    notes = [
        f"{name}: {num_shared} of its {len(own)} episodes are compared; not all other runs have played the rest."
        for name, own in played.items()
        if len(own) > num_shared
    ]
    notes += [
        f"{run.name} is the best of {run.choices} checkpoints: its p-values and intervals are corrected for the choice "
        "(Bonferroni); its mean is too high by what the choice favours."
        for run in runs
        if run.choices > 1
    ]
    for key in dict.fromkeys(key for run in runs for key in run.conditions):
        known = {run.name: run.conditions[key] for run in runs if key in run.conditions}
        if len(set(known.values())) > 1:
            values = ", ".join(f"{value} ({name})" for name, value in known.items())
            notes.append(f"The runs differ in {key} as well: {values}.")
    return notes

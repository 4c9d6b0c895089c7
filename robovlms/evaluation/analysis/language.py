"""What a policy makes of its instructions: the same scenes played with its own and with other ones, pair by pair."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypedDict

from robovlms.config.choices import Language
from robovlms.evaluation.analysis.comparison import LEVEL, contrast
from robovlms.evaluation.analysis.paired import holm
from robovlms.evaluation.episodes import EpisodeResult

TOLD = {
    Language.opposite: "the opposite instruction",
    Language.empty: "no instruction",
    Language.paraphrase: "paraphrased instructions",
    Language.spelling: "capitals and a full stop",
}
TELLING = (Language.opposite, Language.empty)  # by which a policy shows whether it listens; the first that was played


class Effect(TypedDict):
    """What one kind of other instructions changes; of chains the average length, but for the opposite the first goal,
    which alone it is the opposite of.
    """

    language: str
    pairs: int
    own: float  # goals reached with the benchmark's own instructions, mean over the pairs
    other: float
    difference: float  # own - other
    low: float  # 95 % interval of it
    high: float
    p_value: float  # corrected for the number of kinds (Holm)


class Instructions(TypedDict):
    """The effects of other instructions, and what they say of the policy."""

    verdict: str  # "": neither opposite nor empty instructions were played
    ignores_language: bool | None  # None: not decided
    effects: list[Effect]


def judge_instructions(results: Sequence[EpisodeResult]) -> Instructions | None:
    """Return what other instructions change; None: there are none beside the benchmark's own."""
    kinds: dict[Language, dict[Hashable, EpisodeResult]] = {}
    for result in results:
        kinds.setdefault(result.episode.language, {})[_place(result)] = result
    own = kinds.pop(Language.own, {})
    effects = [effect for kind, played in kinds.items() if (effect := _effect(kind, own, played))]
    if not effects:
        return None
    for effect, p_value in zip(effects, holm([effect["p_value"] for effect in effects]), strict=True):
        effect["p_value"] = p_value
    by_kind = {Language(effect["language"]): effect for effect in effects}
    telling = next((by_kind[kind] for kind in TELLING if kind in by_kind), None)
    ignores = None if telling is None else ignores_language(telling)
    return {"verdict": _verdict(telling, ignores), "ignores_language": ignores, "effects": effects}


def ignores_language(effect: Effect) -> bool | None:
    """Tell whether a policy does the same whatever it is told; None: there are too few episodes to know.

    It listens if it does the scene's own task significantly more often when that is asked for. It ignores language if
    no difference is found and the interval leaves room for none that is half its success, which is where a policy
    would be that listened every other time.
    """
    if effect["p_value"] <= LEVEL and effect["difference"] > 0:
        return False
    return True if effect["high"] < effect["own"] / 2 else None


def _place(result: EpisodeResult) -> Hashable:
    """Return what an episode has in common with those that differ in their instructions alone."""
    episode = result.episode
    return (episode.scene, episode.seed, episode.group, episode.variant, tuple(goal.task for goal in episode.goals))


def _effect(
    kind: Language, own: Mapping[Hashable, EpisodeResult], other: Mapping[Hashable, EpisodeResult]
) -> Effect | None:
    places = [place for place in other if place in own]
    if not places:
        return None
    num_goals = 1 if kind is Language.opposite else max(len(own[place].episode.goals) for place in places)
    told, changed = ([min(played[place].reached, num_goals) for place in places] for played in (own, other))
    found = contrast(told, changed, num_goals)
    return {
        "language": kind.value,
        "pairs": len(places),
        "own": sum(told) / len(places),
        "other": sum(changed) / len(places),
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "p_value": found.p_value,
    }


def _verdict(effect: Effect | None, ignores: bool | None) -> str:
    if effect is None:
        return ""
    says = {
        True: "The policy ignores its instructions",
        False: "The policy follows its instructions",
        None: "Whether the policy follows its instructions is not decided",
    }[ignores]
    told, pairs = TOLD[Language(effect["language"])], effect["pairs"]
    found = (
        f"on {pairs} starts it reached the scene's goal {effect['own'] * pairs:.0f} times with its own instruction and "
        f"{effect['other'] * pairs:.0f} times with {told} (difference {effect['low']:+.0%} to {effect['high']:+.0%}, "
        f"p = {effect['p_value']:.2g})"
    )
    advice = "" if ignores is not None else " Raise evaluation.language_episodes."
    return f"{says}: {found}.{advice}"


def sentences(judged: Instructions | None) -> list[str]:
    """Return what other instructions change, a sentence each, the verdict first."""
    if judged is None:
        return []
    told = [
        f"With {TOLD[Language(effect['language'])]} instead of its own, on {effect['pairs']} starts: "
        f"{effect['other']:.2f} instead of {effect['own']:.2f} goals reached (difference {effect['difference']:+.2f}, "
        f"95 % interval {effect['low']:+.2f} to {effect['high']:+.2f}, p = {effect['p_value']:.2g})."
        for effect in judged["effects"]
    ]
    return [*filter(None, [judged["verdict"]]), *told]

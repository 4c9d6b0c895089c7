"""What is evaluated and what came out: the plan of an evaluation and the result of one episode."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from robovlms.config.choices import Language
from robovlms.config.closed_loop import EvaluationConfig
from robovlms.errors import UserError
from robovlms.sims.base import Episode, Goal, Simulator, Task


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """How one episode ended."""

    episode: Episode
    goal_steps: tuple[int, ...]  # control steps that each reached goal took, in order
    steps: int | None  # control steps of the whole episode; unknown where an error ended it
    seconds: float  # wall clock
    error: str | None = None  # traceback
    lost: bool = False  # two processes died of it: it counts as an error, and the evaluation goes on

    @property
    def reached(self) -> int:
        """How many goals were reached, whatever the instructions."""
        return len(self.goal_steps)

    @property
    def success(self) -> bool:
        """Whether all were."""
        return self.reached == len(self.episode.goals)

    @property
    def has_failed(self) -> bool:
        """Whether it is no result: an error ended it, and the evaluation must stop."""
        return self.error is not None and not self.lost

    @property
    def as_wanted(self) -> bool:
        """Whether that is what the instructions asked for: with an opposite one, reaching the goal is a mistake."""
        return self.success != (self.episode.language is Language.opposite)

    @property
    def video_name(self) -> str:
        """File name of the episode's video, if it was recorded."""
        episode = self.episode
        language = "" if episode.language is Language.own else episode.language
        group = "" if episode.scene.startswith(episode.group) else episode.group
        parts = filter(None, [group, episode.scene, episode.variant, str(episode.seed), language])
        return re.sub(r"[^\w.-]+", "-", "_".join(parts) + ".mp4")

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, the episode's beside its own."""
        fields = asdict(self)
        episode = fields.pop("episode")
        del episode["record"]
        return {**episode, **fields, "goals": list(episode["goals"]), "goal_steps": list(self.goal_steps)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> EpisodeResult:
        """Read what `to_json` returned.

        Raises:
            TypeError: a value of another type, as an edited or damaged file holds and a report must not show.
            KeyError: one is missing.
            ValueError: one contradicts the others.
        """
        values = dict(values)
        episode = Episode(
            **{name: _typed(values, name, str) for name in ("scene", "group", "variant")},
            **{name: _typed(values, name, int) for name in ("seed", "max_steps")},
            goals=tuple(_goal(each) for each in _typed(values, "goals", list)),
            language=Language(_typed(values, "language", str)),
        )
        result = cls(
            episode=episode,
            goal_steps=tuple(_typed(values, "goal_steps", list)),
            steps=_typed(values, "steps", int | None),
            seconds=_typed(values, "seconds", int | float),
            error=_typed(values, "error", str | None),
            lost=values.pop("lost", False) is True,
        )
        if values or not all(type(count) is int for count in result.goal_steps):
            raise TypeError(f"{', '.join(values) or 'goal_steps'} is not what a result holds")
        if result.reached > len(episode.goals):
            raise ValueError(f"{result.reached} of {len(episode.goals)} goals reached")
        return result


def _typed(values: dict[str, Any], name: str, kind: Any) -> Any:
    value = values.pop(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}")
    return value


def _goal(values: dict[str, Any]) -> Goal:
    goal = Goal(**values)
    if not (isinstance(goal.task, str) and isinstance(goal.instruction, str)):
        raise TypeError(f"goals has {values!r}")
    return goal


def plan_episodes(simulator: Simulator, config: EvaluationConfig) -> list[Episode]:
    """List every episode: the benchmark's own, then for every way of `config.language` the first
    `config.language_episodes` of each scene once more, with other instructions.

    Raises:
        UserError: no episode has a goal whose instruction can be changed in such a way.
    """
    own = simulator.episodes()
    tasks = {task.name: task for task in simulator.tasks()}
    plan = list(own)
    for language in dict.fromkeys(config.language):
        if language is not Language.own:
            plan += _reworded(own, language, tasks, config.language_episodes)
    return list(_recorded(plan, config.videos_per_task))


def _recorded(plan: Sequence[Episode], count: int) -> Iterator[Episode]:
    """Have the first episodes of every scene and language recorded."""
    found: dict[tuple[str, str, Language], int] = defaultdict(int)
    for episode in plan:
        key = (episode.goals[0].task, episode.variant, episode.language)
        found[key] += 1
        yield replace(episode, record=found[key] <= count)


def _reworded(own: Sequence[Episode], language: Language, tasks: dict[str, Task], count: int) -> list[Episode]:
    found: dict[tuple[str, str], int] = defaultdict(int)
    plan = []
    for episode in own:
        key = (episode.goals[0].task, episode.variant)
        goals = _reword(episode, language, tasks, found[key])
        if goals and found[key] < count:
            found[key] += 1
            plan.append(replace(episode, goals=goals, language=language))
    if not plan:
        raise UserError(
            f"evaluation.language has {language}, but no task of {', '.join(tasks)} can be worded so: "
            f"{'none has an opposite among them' if language is Language.opposite else 'none has a paraphrase'}."
        )
    return plan


def _reword(episode: Episode, language: Language, tasks: dict[str, Task], number: int) -> tuple[Goal, ...]:
    """Return an episode's goals with other instructions; (): there are none of this kind.

    Of a chain only the first goal is asked the opposite of: what follows depends on it.
    """
    if language is Language.opposite:
        first = episode.goals[0]
        task = tasks.get(first.task)
        undone = tasks.get(task.opposite or "") if task else None
        return (replace(first, instruction=undone.instruction),) if undone else ()
    reworded = [_other_words(goal, language, tasks.get(goal.task), number) for goal in episode.goals]
    return () if None in reworded else tuple(goal for goal in reworded if goal)


def _other_words(goal: Goal, language: Language, task: Task | None, number: int) -> Goal | None:
    if language is Language.empty:
        return replace(goal, instruction="")
    if language is Language.spelling:
        return replace(goal, instruction=f"{goal.instruction.upper().rstrip('.')}.")
    if task is None or not task.paraphrases:
        return None
    return replace(goal, instruction=task.paraphrases[number % len(task.paraphrases)])

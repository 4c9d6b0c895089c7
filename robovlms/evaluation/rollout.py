"""One episode in closed loop."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from robovlms.config.choices import Language
from robovlms.errors import UserError
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.video import annotate, side_by_side, write_video
from robovlms.sims.base import Episode, Simulator
from robovlms.types import Observation


class PolicyGoneError(UserError):
    """The policy is elsewhere and cannot be asked any more, which is nothing that an episode ended in."""


@runtime_checkable
class Policy(Protocol):
    """Whatever turns observations into actions; it may remember earlier ones of the same episode."""

    def reset(self) -> None:
        """Forget the episode so far."""

    def step(self, observation: Observation) -> Float32[np.ndarray, "a"]:
        """Return the next action, in environment units."""

    def close(self) -> None:
        """Leave whoever is asked."""


Start: TypeAlias = Callable[[], tuple[Policy, Simulator]]
Frames: TypeAlias = list[UInt8[np.ndarray, "h x c"]]


def rollout(policy: Policy, simulator: Simulator, episode: Episode) -> tuple[EpisodeResult, Frames | None]:
    """Play one episode until its last goal is reached, a goal takes too long, or the simulator ends it.

    Returns:
        The result, and for `episode.record` what the policy saw (views side by side), first observation to last.
    """
    started = time.perf_counter()
    policy.reset()
    observation = simulator.reset(episode)
    frames = [side_by_side(observation.frames)] if episode.record else None
    goal_steps: list[int] = []
    steps = 0
    while True:
        told = observation.instruction
        observation, goals_done, done, _ = simulator.step(policy.step(observation))
        steps += 1
        if frames is not None:
            frames.append(side_by_side(observation.frames))
        is_new = goals_done > len(goal_steps) or observation.instruction != told
        for _ in range(goals_done - len(goal_steps)):
            goal_steps.append(steps - sum(goal_steps))
        if is_new and simulator.resets_memory:
            policy.reset()
        late = steps - sum(goal_steps) >= episode.max_steps
        if done or late or goals_done == len(episode.goals):
            return result_of(episode, started, goal_steps=tuple(goal_steps), steps=steps), frames


def attempt(policy: Policy, simulator: Simulator, episode: Episode, videos: Path) -> EpisodeResult:
    """Play an episode and write its video; an error becomes part of the result, so that it can cross processes.

    Raises:
        PolicyGoneError: there is no result.
    """
    started = time.perf_counter()
    try:
        result, frames = rollout(policy, simulator, episode)
        if frames is not None:
            verdict, is_good = _verdict(result)
            told = ", then ".join(f"“{goal.instruction}”" for goal in episode.goals)
            clip = annotate(frames, told, verdict, is_good, hold=round(simulator.contract.control_hz))
            write_video(videos / result.video_name, clip, simulator.contract.control_hz)
    except PolicyGoneError:
        raise
    except Exception:
        return result_of(episode, started, error=traceback.format_exc())
    return result


def _verdict(result: EpisodeResult) -> tuple[str, bool]:
    goals = result.episode.goals
    if result.episode.language is Language.opposite:
        task = goals[0].task
        return (f"DID {task} ANYWAY", False) if result.success else (f"did not do {task}", True)
    if len(goals) > 1:
        return f"{result.reached} OF {len(goals)}", result.success
    return ("SUCCESS", True) if result.success else ("FAIL", False)


def result_of(
    episode: Episode,
    started: float,
    *,
    goal_steps: tuple[int, ...] = (),
    steps: int | None = None,
    error: str | None = None,
    lost: bool = False,
) -> EpisodeResult:
    """Return how an episode ended that began at `started` (`time.perf_counter()`)."""
    seconds = time.perf_counter() - started
    return EpisodeResult(episode=episode, goal_steps=goal_steps, steps=steps, seconds=seconds, error=error, lost=lost)

"""One episode in closed loop."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from robovlms.evaluation.episodes import Episode, EpisodeResult
from robovlms.evaluation.video import annotate, side_by_side, write_video
from robovlms.sims.base import Simulator
from robovlms.types import Observation


@runtime_checkable
class Policy(Protocol):
    """Whatever turns observations into actions; it may remember earlier ones of the same episode."""

    def reset(self) -> None:
        """Forget the episode so far."""

    def step(self, observation: Observation) -> Float32[np.ndarray, "a"]:
        """Return the next action, in environment units."""


Start: TypeAlias = Callable[[], tuple[Policy, Simulator]]
Frames: TypeAlias = list[UInt8[np.ndarray, "h x c"]]


def rollout(policy: Policy, simulator: Simulator, episode: Episode) -> tuple[EpisodeResult, Frames | None]:
    """Play one episode until success or the simulator's step limit.

    Returns:
        The result, and for `episode.record` what the policy saw (views side by side), first observation to last.
    """
    started = time.perf_counter()
    policy.reset()
    observation = simulator.reset(episode.task, episode.seed, episode.instruction)
    frames = [side_by_side(observation.frames)] if episode.record else None
    steps, success, done = 0, False, False
    while not (success or done):
        observation, success, done = simulator.step(policy.step(observation))
        steps += 1
        if frames is not None:
            frames.append(side_by_side(observation.frames))
    return result_of(episode, started, success=bool(success), steps=steps), frames


def attempt(policy: Policy, simulator: Simulator, episode: Episode, videos: Path) -> EpisodeResult:
    """Play an episode and write its video; an error becomes part of the result, so that it can cross processes."""
    started = time.perf_counter()
    try:
        result, frames = rollout(policy, simulator, episode)
        if frames is not None:
            verdict, is_good = _verdict(result)
            clip = annotate(
                frames, f"“{episode.instruction}”", verdict, is_good, hold=round(simulator.contract.control_hz)
            )
            write_video(videos / result.video_name, clip, simulator.contract.control_hz)
    except Exception:
        return result_of(episode, started, success=False, steps=None, error=traceback.format_exc())
    return result


def _verdict(result: EpisodeResult) -> tuple[str, bool]:
    if result.opposite:
        return (f"DID {result.task} ANYWAY", False) if result.success else (f"did not do {result.task}", True)
    return ("SUCCESS", True) if result.success else ("FAIL", False)


def result_of(
    episode: Episode, started: float, *, success: bool, steps: int | None, error: str | None = None
) -> EpisodeResult:
    """Return how an episode ended that began at `started` (`time.perf_counter()`)."""
    return EpisodeResult(
        **episode.key._asdict(), success=success, steps=steps, seconds=time.perf_counter() - started, error=error
    )

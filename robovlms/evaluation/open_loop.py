"""Recorded episodes shown to a policy as a rollout would show them: what it would have done, beside what was done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from robovlms.config.choices import Execution
from robovlms.policy.engine import PolicyEngine, unwrap
from robovlms.types import Observation


class Recording(ABC):
    """An episode that was recorded, step by step."""

    title: str  # episode, file and frames
    instruction: str
    actions: Float32[np.ndarray, "t a"]  # in the robot's units, with the entries of the source's contract

    @abstractmethod
    def observation(self, step: int) -> Observation:
        """Return what was seen at a step."""


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One episode, recorded and predicted: in the robot's units, with the entries of the source's contract."""

    recording: Recording
    recorded: Float32[np.ndarray, "t a"]
    predicted: Float32[np.ndarray, "t a"]  # what would have been executed
    last: Float32[np.ndarray, "t a"]  # the recorded action before the one that a step's chunk begins with


def replay(
    engine: PolicyEngine,
    source: str | None,
    recordings: Sequence[Recording],
    *,
    execution: Execution,
    execute_steps: int,
) -> list[Replayed]:
    """Return what a policy would have done in recorded episodes, side by side in one batch, each in a session of its
    own: observations, history and the execution of chunks are those of a rollout, but for what is seen, which was
    recorded.

    Raises:
        UserError: no such source, the head cannot do what `execution` asks, or an observation cannot be read.
        FloatingPointError: the policy predicts an action that is not finite; names its entries.
    """
    sessions = [
        engine.open(source, execution=execution, execute_steps=execute_steps, may_be_silent=True) for _ in recordings
    ]
    predicted = [np.zeros_like(recording.actions) for recording in recordings]
    for step in range(max(len(recording.actions) for recording in recordings)):
        running = [number for number, recording in enumerate(recordings) if step < len(recording.actions)]
        answers = engine.step([(sessions[number], recordings[number].observation(step)) for number in running])
        for number, answer in zip(running, answers, strict=True):
            predicted[number][step] = unwrap(answer)
    return [
        Replayed(
            recording=recording,
            recorded=recording.actions,
            predicted=rows,
            last=recording.actions[previous(len(rows), execute_steps)],
        )
        for recording, rows in zip(recordings, predicted, strict=True)
    ]


def previous(count: int, execute_steps: int) -> np.ndarray:
    """Return for each of `count` steps the one before its chunk began; 0 for the first chunk, which has none before."""
    steps = np.arange(count)
    return np.maximum(steps - steps % execute_steps - 1, 0)


@dataclass(frozen=True, kw_only=True)
class EntryError:
    """How far the policy and two simple guesses are from what was recorded, in one entry of the action.

    Root mean squares in the robot's units; of a gripper that is open or closed the share of steps that agree. Of the
    guesses no constant is better than the mean; a gripper's is the side where it mostly is.
    """

    name: str
    is_binary: bool
    policy: float
    mean: float  # of always giving these episodes' own mean action
    last: float  # of going on with the last recorded action before every chunk
    explained: float | None  # share of the entry's variance; None: it never moves, or is a gripper


def entry_errors(episodes: Sequence[Replayed], names: Sequence[str], binary: Sequence[int]) -> list[EntryError]:
    """Return the errors of every entry over all steps of all episodes; `binary`: which are open (+1) or closed (-1)."""
    recorded, predicted, last = (
        np.concatenate([getattr(episode, name) for episode in episodes]).astype(np.float64)
        for name in ("recorded", "predicted", "last")
    )
    return [
        _agreement(name, recorded[:, i] > 0, predicted[:, i] > 0, last[:, i] > 0)
        if i in binary
        else _errors(name, recorded[:, i], predicted[:, i], last[:, i])
        for i, name in enumerate(names)
    ]


def _agreement(name: str, recorded: np.ndarray, predicted: np.ndarray, last: np.ndarray) -> EntryError:
    return EntryError(
        name=name,
        is_binary=True,
        policy=float((predicted == recorded).mean()),
        mean=float(max(recorded.mean(), 1 - recorded.mean())),
        last=float((last == recorded).mean()),
        explained=None,
    )


def _errors(name: str, recorded: np.ndarray, predicted: np.ndarray, last: np.ndarray) -> EntryError:
    square, variance = float(np.square(predicted - recorded).mean()), float(recorded.var())
    return EntryError(
        name=name,
        is_binary=False,
        policy=square**0.5,
        mean=variance**0.5,
        last=float(np.square(last - recorded).mean() ** 0.5),
        explained=1 - square / variance if np.ptp(recorded) > 0 else None,
    )


def copied(episodes: Sequence[Replayed], entries: Sequence[int]) -> float | None:
    """Return how far predictions are from the last recorded actions, in shares of how far they are from the right ones:
    0 = copied. Every entry counts in shares of its own spread; None: none of `entries` moves.
    """
    recorded, predicted, last = (
        np.concatenate([getattr(episode, name) for episode in episodes]).astype(np.float64)[:, list(entries)]
        for name in ("recorded", "predicted", "last")
    )
    moving = np.ptp(recorded, axis=0) > 0
    if not moving.any():
        return None
    scale = recorded[:, moving].std(axis=0)
    from_last, from_right = (
        float(np.sqrt(np.square((predicted - other)[:, moving] / scale).mean())) for other in (last, recorded)
    )
    return from_last / max(from_right, 1e-9)

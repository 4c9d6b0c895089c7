"""From chunks to one action a control step."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from robovlms.config.choices import Execution, Representation
from robovlms.config.data import ActionContract
from robovlms.errors import UserError

ENSEMBLE_DECAY = 0.01  # ACT, arXiv:2304.13705: weight exp(-decay * i), i = 0 for the oldest prediction


class Chunk(NamedTuple):
    """A prediction and the control step whose observation it was made from."""

    made: int
    actions: Float32[np.ndarray, "k a"]
    ready: int = 0  # control step from which it is there


class ChunkExecutor:
    """Chunks in, one action a step out.

    Steps are counted, not chunks: a chunk that arrives late is entered at the action that is due now. With a simulated
    `latency` the first chunk is waited for before anything moves; later ones arrive so many steps after the observation
    that they were made from, while the actions of the last one go on. Where these end before, the robot is held.
    """

    def __init__(
        self,
        mode: Execution,
        execute_steps: int,
        contract: ActionContract,
        *,
        latency: int = 0,
    ) -> None:
        """Say how chunks become actions.

        Args:
            mode: what is executed of a chunk.
            execute_steps: actions of a chunk before the next one is asked for.
            contract: of the actions. A mean of binary grippers is made closed or open; an arm is held by an action of
                zeros where actions are deltas, else by its last action once more.
            latency: control steps that every decision but the first takes, for robots that do not wait.

        Raises:
            UserError: the mode asks at every step, and `execute_steps` is more than 1.
        """
        if mode in (Execution.first, Execution.ensemble) and execute_steps != 1:
            raise UserError(
                f"evaluation.execution={mode} asks the policy at every step: evaluation.execute_steps={execute_steps} "
                "must be 1. Use evaluation.execution=chunk to execute more of a chunk."
            )
        self.mode, self.execute_steps, self.latency, self._contract = mode, execute_steps, latency, contract
        self.chunks: list[Chunk] = []  # oldest first
        self._last: Float32[np.ndarray, "a"] | None = None  # action

    def wants(self, step: int) -> bool:
        """Tell whether a new chunk is due; one is decided at a time."""
        if not self.chunks:
            return True
        newest = self.chunks[-1]
        return step - newest.made >= self.execute_steps and step >= newest.ready

    def add(self, chunk: Chunk) -> None:
        """Take a prediction; those that no coming step is part of are dropped."""
        ready = chunk.made + self.latency if self.chunks else chunk.made
        self.chunks.append(chunk._replace(ready=ready))
        self.chunks = [each for each in self.chunks if each.made + len(each.actions) > chunk.made]

    def action(self, step: int) -> Float32[np.ndarray, "a"]:
        """Return the action of a step: of the newest chunk, or of all that reach it (`ensemble`).

        Raises:
            TimeoutError: no chunk reaches as far.
        """
        self._last = self._due(step)
        return self._last

    def _due(self, step: int) -> Float32[np.ndarray, "a"]:
        due = [chunk.actions[step - chunk.made] for chunk in self.reaching(step)]
        if not due and self.latency and self._last is not None:
            return self.held()
        if not due:
            made, count = self.chunks[-1].made, len(self.chunks[-1].actions)
            raise TimeoutError(
                f"the newest chunk was made at step {made} and has {count} actions, but step {step} is due: the policy "
                "is too slow for this control rate. Predict longer chunks (window.chunk_size) or act more slowly."
            )
        if self.mode is not Execution.ensemble:
            return due[-1]
        weights = np.exp(-ENSEMBLE_DECAY * np.arange(len(due)))
        mean = (np.stack(due) * (weights / weights.sum())[:, None]).sum(0).astype(np.float32)
        closed, opened = self._contract.gripper_closed, self._contract.gripper_open
        for i in self._contract.binary:
            mean[i] = opened if (mean[i] - closed) / (opened - closed) > 0.5 else closed
        return mean

    def reaching(self, step: int) -> list[Chunk]:
        """Return the chunks that are there and have an action for a step, the oldest first."""
        return [each for each in self.chunks if each.ready <= step and 0 <= step - each.made < len(each.actions)]

    def held(self) -> Float32[np.ndarray, "a"]:
        """Return the action that leaves the robot where it is, with its grippers as they were, once it has moved."""
        assert self._last is not None, "nothing was executed yet"
        action = self._last.copy()
        if self._contract.representation is Representation.delta:
            action[[i for i in range(len(action)) if i not in self._contract.grippers]] = 0.0
        return action


def check_execute_steps(execute_steps: int, chunk_size: int) -> None:
    """Refuse to execute more of a chunk than there is.

    Raises:
        UserError: names the option.
    """
    if not 1 <= execute_steps <= chunk_size:
        raise UserError(
            f"evaluation.execute_steps={execute_steps} must lie in 1..{chunk_size}, the policy's chunk_size."
        )


def continuity(chunk_size: int, passed: int, delay: int) -> list[float]:
    """Return how much a new chunk must keep of the last one, action by action: 1 for those that will be executed before
    it can arrive, then less and less, 0 where the last one has no action.

    Args:
        chunk_size: actions of a chunk, k.
        passed: steps between the observations of the two chunks.
        delay: steps that the new one will take to arrive, of which no more count than the last one has actions.

    Source: Real-Time Chunking, arXiv:2506.07339, equation 5.
    """
    overlap = chunk_size - passed
    delay = min(delay, overlap)
    weights = []
    for i in range(chunk_size):
        share = (overlap - i) / (overlap - delay + 1)
        soft = share * math.expm1(share) / math.expm1(1) if share > 0 else 0.0
        weights.append(1.0 if i < delay else soft if i < overlap else 0.0)
    return weights

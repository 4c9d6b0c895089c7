"""From chunks to one action a control step."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from robovlms.config.choices import Execution
from robovlms.errors import UserError

ENSEMBLE_DECAY = 0.01  # ACT, arXiv:2304.13705: weight exp(-decay * i), i = 0 for the oldest prediction


class Chunk(NamedTuple):
    """A prediction and the control step whose observation it was made from."""

    made: int
    actions: Float32[np.ndarray, "k a"]


class ChunkExecutor:
    """Chunks in, one action a step out.

    Steps are counted, not chunks: a chunk that arrives late is entered at the action that is due now.
    """

    def __init__(self, mode: Execution, execute_steps: int = 1, *, has_gripper: bool = True) -> None:
        """Say how chunks become actions.

        Args:
            mode: what is executed of a chunk.
            execute_steps: actions of a chunk before the next one is asked for.
            has_gripper: whether the last entry is a gripper, of which a mean is made -1 or +1.

        Raises:
            UserError: the mode asks at every step, and `execute_steps` is more than 1.
        """
        if mode in (Execution.first, Execution.ensemble) and execute_steps != 1:
            raise UserError(
                f"evaluation.execution={mode} asks the policy at every step: evaluation.execute_steps={execute_steps} "
                "must be 1. Use evaluation.execution=chunk to execute more of a chunk."
            )
        self.mode, self.execute_steps, self.has_gripper = mode, execute_steps, has_gripper
        self.chunks: list[Chunk] = []  # oldest first

    def wants(self, step: int) -> bool:
        """Tell whether a new chunk is due."""
        return not self.chunks or step - self.chunks[-1].made >= self.execute_steps

    def add(self, chunk: Chunk) -> None:
        """Take a prediction; those that no coming step is part of are dropped."""
        self.chunks.append(chunk)
        self.chunks = [each for each in self.chunks if each.made + len(each.actions) > chunk.made]

    def action(self, step: int) -> Float32[np.ndarray, "a"]:
        """Return the action of a step: of the newest chunk, or of all that reach it (`ensemble`).

        Raises:
            TimeoutError: no chunk reaches as far.
        """
        due = [chunk.actions[step - chunk.made] for chunk in self.chunks if 0 <= step - chunk.made < len(chunk.actions)]
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
        if self.has_gripper:
            mean[-1] = 1.0 if mean[-1] > 0 else -1.0
        return mean


def continuity(chunk_size: int, passed: int, delay: int) -> list[float]:
    """Return how much a new chunk must keep of the last one, action by action: 1 for those that will be executed before
    it can arrive, then less and less, 0 where the last one has no action.

    Args:
        chunk_size: actions of a chunk, k.
        passed: steps between the observations of the two chunks.
        delay: steps that the new one will take to arrive.

    Source: Real-Time Chunking, arXiv:2506.07339, equation 5.
    """
    overlap = chunk_size - passed
    weights = []
    for i in range(chunk_size):
        share = (overlap - i) / (overlap - delay + 1)
        soft = share * math.expm1(share) / math.expm1(1) if share > 0 else 0.0
        weights.append(1.0 if i < min(delay, overlap) else soft if i < overlap else 0.0)
    return weights

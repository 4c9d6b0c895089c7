"""The runner: one robot, observations in, environment actions out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.plan import Source
from robovlms.config.choices import EngineDtype, Execution, FrameCache
from robovlms.config.closed_loop import EngineConfig
from robovlms.config.data import ActionContract
from robovlms.policy.engine import PolicyEngine, unwrap
from robovlms.policy.execution import ChunkExecutor
from robovlms.policy.memory import Memory
from robovlms.policy.policy import VLAPolicy
from robovlms.types import Observation


class PolicyRunner:
    """Drive one robot with one policy: an engine with one session.

    Every frame goes into the memory; the executor says when a chunk is asked for, and which of its actions is due.
    """

    def __init__(
        self,
        policy: VLAPolicy,
        normalizer: ActionNormalizer,
        source: Source,
        *,
        window_size: int,
        execution: Execution = Execution.chunk,
        execute_steps: int = 1,
        cache: FrameCache = FrameCache.exact,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Take a policy and say how it acts.

        Args:
            policy: in any state; it is set to evaluation.
            normalizer: of its actions.
            source: the data whose actions are wanted.
            window_size: as in `PolicyEngine`.
            execution: as in `PolicyEngine.open`.
            execute_steps: as in `PolicyEngine.open`.
            cache: as in `PolicyEngine`.
            clock: as in `PolicyEngine.open`.

        Raises:
            UserError: as in both.
        """
        where = EngineConfig(device=str(next(policy.parameters()).device), dtype=EngineDtype.fp32)
        self.engine = PolicyEngine(policy, [(source, normalizer)], window_size=window_size, cache=cache, config=where)
        self.session = self.engine.open(execution=execution, execute_steps=execute_steps, clock=clock)

    @classmethod
    def from_checkpoint(
        cls,
        folder: Path,
        *,
        execution: Execution = Execution.chunk,
        execute_steps: int = 1,
        device: str = "cpu",
        dtype: EngineDtype = EngineDtype.auto,
        contract: ActionContract | None = None,
        clock: Callable[[], float] | None = None,
        source: str | None = None,
    ) -> PolicyRunner:
        """Load a checkpoint folder; what the arguments mean is said in `PolicyEngine`.

        Raises:
            UserError: the contracts differ, execute_steps exceeds the chunk, or the head cannot do what is asked.
        """
        runner = cls.__new__(cls)
        runner.engine = PolicyEngine.from_checkpoint(folder, EngineConfig(device=device, dtype=dtype))
        runner.session = runner.engine.open(
            source, execution=execution, execute_steps=execute_steps, contract=contract, clock=clock
        )
        return runner

    @property
    def policy(self) -> VLAPolicy:
        """What acts."""
        return self.engine.policy

    @property
    def source(self) -> Source:
        """The data whose actions are given."""
        return self.session.source

    @property
    def memory(self) -> Memory:
        """What is kept of the episode."""
        return self.session.memory

    @property
    def executor(self) -> ChunkExecutor:
        """What is being executed."""
        return self.session.executor

    @property
    def delay(self) -> int:
        """Control steps that the last chunk took to arrive."""
        return self.session.delay

    def reset(self) -> None:
        """Forget the episode."""
        self.session.reset()

    def step(self, observation: Observation) -> Float32[np.ndarray, "_a"]:
        """Return the action that is due, in environment units, as `PolicyEngine.step` does.

        Raises:
            UserError: the observation lacks a view or the proprioception the policy was trained with, or holds
                something that cannot be read (`robovlms.policy.observations`).
            FloatingPointError: the policy predicts an action that is not finite; names its entries.
            TimeoutError: with a clock, the policy took longer than its chunks last.
        """
        (action,) = self.engine.step([(self.session, observation)])
        return unwrap(action)

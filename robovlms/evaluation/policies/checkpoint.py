"""A checkpoint's policy acts: one engine in this process, which all processes that play ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from robovlms.actions.contract import check_contract
from robovlms.actions.plan import DataPlan, Source
from robovlms.config.choices import ActingWeights, Execution
from robovlms.config.closed_loop import EngineConfig, EvaluationConfig
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.evaluation.analysis.certificate import PolicyIdentity
from robovlms.evaluation.analysis.latency import check_latencies
from robovlms.evaluation.policies.asking import AskingPolicy, SharedEngine
from robovlms.evaluation.rollout import Policy
from robovlms.hub.repository import address_of
from robovlms.policy.checkpoint import CONFIG, load_config
from robovlms.policy.engine import PolicyEngine, arithmetic_of, device_name, device_of
from robovlms.policy.manifest import checkpoint_digest
from robovlms.policy.spec import check_observations
from robovlms.registry import HEADS
from robovlms.sims.base import Simulator
from robovlms.workers import Answerer


@dataclass(frozen=True)
class CheckpointPolicy:
    """A checkpoint's policy, which acts in this process for all that play."""

    checkpoint: Path  # what results are said to be of
    weights: Path  # the folder that is read
    trained: TrainConfig
    source: Source  # whose actions it gives
    engine: EngineConfig

    @classmethod
    def of(cls, checkpoint: Path, weights: Path, config: EvaluationConfig, simulator: Simulator) -> CheckpointPolicy:
        """Return it, with the source that is asked for or fits a simulator."""
        trained = load_config(weights / CONFIG)
        source = DataPlan.of(trained.data, trained.view.views).find(config.source, simulator.contract)
        return cls(checkpoint, weights, trained, source, config.engine)

    @cached_property
    def identity(self) -> PolicyIdentity:
        """Its folder and digest, and what it runs on."""
        place, digest = address_of(self.checkpoint), checkpoint_digest(self.weights)
        return PolicyIdentity(place, digest, device_name(device_of(self.engine)), {})

    def conditions(self, config: EvaluationConfig) -> dict[str, Any]:
        """Return checkpoint, its weights where they are not the newest, and arithmetic."""
        weights = config.engine.weights
        return {
            "checkpoint": self.identity.place,
            "digest": self.identity.digest,
            "dtype": arithmetic_of(config.engine),
            "max_batch_size": config.engine.max_batch_size,
            **({} if weights is ActingWeights.trained else {"weights": weights.value}),
        }

    def check(self, simulator: Simulator, config: EvaluationConfig) -> None:
        """Refuse a simulator whose actions mean something else, or that shows less than the policy was trained with.

        Raises:
            UserError: lists both sides of every disagreement.
        """
        check_simulator(simulator, self.source)
        self.ways(config)

    def ways(self, config: EvaluationConfig) -> list[Execution]:
        """Return the ways of execution that success against latency is measured for."""
        return ways_of_execution(config, self.trained)

    def start(self, config: EvaluationConfig, simulator: Simulator) -> Policy:
        """Return what asks the engine."""
        entries = [simulator.proprio_names.index(name) for name in self.source.proprio_names]
        return AskingPolicy(self.source.views, entries)

    def answerer(self, config: EvaluationConfig, instructions: Sequence[str]) -> Callable[[], Answerer]:
        """Return what loads the engine."""
        return partial(start_engine, self.weights, replace(config, source=self.source.name), instructions)


def ways_of_execution(config: EvaluationConfig, trained: TrainConfig) -> list[Execution]:
    """Return the ways of execution that success against latency is measured for: those asked for, or all that the
    policy's head can do.

    Raises:
        UserError: the head cannot do one that is asked for, or a chunk has no action left when it arrives.
    """
    can_go_on = HEADS.get(trained.head.name).supports_prefix
    check_latencies(config, trained.window.chunk_size)
    if Execution.real_time in config.executions and not can_go_on:
        raise UserError(
            f"evaluation.executions has real_time, which head={trained.head.name} cannot do: it needs a head that goes "
            "on from a chunk (flow, diffusion)."
        )
    possible = [Execution.chunk, Execution.ensemble, *([Execution.real_time] if can_go_on else [])]
    return config.executions or possible


def check_simulator(simulator: Simulator, source: Source) -> None:
    """Refuse a simulator whose actions mean something else, or that shows less than the policy was trained with.

    Raises:
        UserError: lists both sides of every disagreement.
    """
    name = f"sim={simulator.config.name}"
    check_contract(source.contract, simulator.contract, name)
    check_observations(source.views, source.proprio_names, simulator.views, simulator.proprio_names, name)


def start_engine(checkpoint: Path, config: EvaluationConfig, instructions: Sequence[str]) -> SharedEngine:
    """Load the policy that all evaluation processes ask.

    Raises:
        UserError: what it cannot do, or an instruction that it cannot read, before anything is played.
    """
    engine = PolicyEngine.from_checkpoint(checkpoint, config.engine)
    engine.policy.processor.check_instructions(instructions)
    open_session = partial(
        engine.open,
        config.source,
        execution=config.execution,
        execute_steps=config.execute_steps,
        latency=config.decision_steps,
        may_be_silent=True,  # `evaluation.language` may ask for it
    )
    open_session()  # refuses what does not fit
    return SharedEngine(engine, open_session, config.engine)

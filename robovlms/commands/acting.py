"""A policy acts in a simulator: what plays the episodes of an evaluation, and those that are played again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from robovlms.actions.contract import check_contract
from robovlms.actions.plan import DataPlan, Source
from robovlms.config.choices import ActingWeights, Execution, Language
from robovlms.config.closed_loop import EngineConfig, EvaluationConfig, SimConfig
from robovlms.config.fields import DEMO, fields_that_keep
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.evaluation.analysis.certificate import PolicyIdentity
from robovlms.evaluation.analysis.latency import Point, check_latencies, measure
from robovlms.evaluation.asking import AskingPolicy, SharedEngine
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.folder import LATENCY
from robovlms.evaluation.rollout import Policy
from robovlms.evaluation.rollouts import run_episodes
from robovlms.evaluation.share import Share
from robovlms.hub.repository import address_of
from robovlms.policy.checkpoint import CONFIG, load_config
from robovlms.policy.engine import PolicyEngine, arithmetic_of, device_name, device_of
from robovlms.policy.manifest import checkpoint_digest
from robovlms.policy.spec import check_observations
from robovlms.registry import HEADS, SIMULATORS
from robovlms.sims.base import Episode, Simulator
from robovlms.workers import Answerer

if TYPE_CHECKING:
    from robovlms.evaluation.remote import ServedPolicy


@runtime_checkable
class ActingPolicy(Protocol):
    """The policy that an evaluation is of: a checkpoint's, or one behind a server."""

    @property
    def identity(self) -> PolicyIdentity:
        """What results say of it."""

    def conditions(self, config: EvaluationConfig) -> dict[str, Any]:
        """Return what results depend on besides episodes, simulator and execution: JSON values."""

    def check(self, simulator: Simulator, config: EvaluationConfig) -> None:
        """Refuse a simulator that it does not fit, and what it cannot do, before anything is played.

        Raises:
            UserError: lists both sides of every disagreement.
        """

    def ways(self, config: EvaluationConfig) -> list[Execution]:
        """Return the ways of execution that success against latency is measured for."""

    def start(self, config: EvaluationConfig, simulator: Simulator) -> Policy:
        """Return what acts in one simulator, in its process."""

    def answerer(self, config: EvaluationConfig, instructions: Sequence[str]) -> Callable[[], Answerer] | None:
        """Return what builds what all processes ask in this one; None: they ask nobody here."""


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


@dataclass(frozen=True)
class Stage:
    """What episodes are played by and in."""

    policy: ActingPolicy
    simulator: Simulator  # closed; every process builds its own
    share: Share  # of the episodes that is this process's

    def play(self, config: EvaluationConfig, episodes: Sequence[Episode], folder: Path) -> list[EpisodeResult]:
        """Play the episodes that `folder` lacks and return the results of all, in the order of `episodes`."""
        sim = self.simulator.config
        conditions = {
            **self.policy.conditions(config),
            "sim": {key: value for key, value in asdict(sim).items() if key not in fields_that_keep(sim, DEMO)},
            "renderer": self.simulator.renderer,
            "execution": config.execution.value,
            "execute_steps": config.execute_steps,
            "decision_steps": config.decision_steps,
        }
        instructions = sorted({goal.instruction for episode in episodes for goal in episode.goals})
        order = random.Random(0).sample(episodes, len(episodes)) if config.shuffle else episodes
        played = run_episodes(
            partial(start_rollout, sim, self.policy, config),
            order,
            folder=folder,
            conditions=conditions,
            num_workers=config.num_workers,
            start_answerer=self.policy.answerer(config, instructions),
            share=self.share,
        )
        results = {result.episode: result for result in played}
        return [results[episode] for episode in episodes]

    def measure_latency(self, config: EvaluationConfig, played: Sequence[EpisodeResult], folder: Path) -> list[Point]:
        """Return what is reached under every latency and way of execution, each played in a folder of its own.

        Args:
            config: of the evaluation.
            played: under `config`; those with own instructions are played again.
            folder: of the evaluation.
        """
        own = [result for result in played if result.episode.language is Language.own]
        episodes = [replace(result.episode, record=False) for result in own]

        def play_under(some: EvaluationConfig) -> list[EpisodeResult]:
            if (some.execution, some.decision_steps) == (config.execution, config.decision_steps):
                return own
            return self.play(some, episodes, folder / LATENCY / f"{some.execution}_{some.decision_steps}")

        return measure(config, self.policy.ways(config), play_under)


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


def find_server(address: str, token: str | None, patience_s: float) -> ServedPolicy:
    """Return the policy behind a server.

    Raises:
        ConnectionError: nobody listens there, or the token is not the right one.
        UserError: it is no server of ours, or it is busy.
    """
    from robovlms.evaluation.remote import ServedPolicy  # needs the packages of the extra `serving`

    return ServedPolicy.find(address, token, patience_s)


def check_simulator(simulator: Simulator, source: Source) -> None:
    """Refuse a simulator whose actions mean something else, or that shows less than the policy was trained with.

    Raises:
        UserError: lists both sides of every disagreement.
    """
    name = f"sim={simulator.config.name}"
    check_contract(source.interface, simulator.contract, name)
    check_observations(source.views, source.proprio_names, simulator.views, simulator.proprio_names, name)


def start_rollout(sim: SimConfig, policy: ActingPolicy, config: EvaluationConfig) -> tuple[Policy, Simulator]:
    """Build a simulator, and what acts in it: what every evaluation process does first."""
    simulator: Simulator = SIMULATORS.get(sim.name)(sim)
    return policy.start(config, simulator), simulator


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

"""A checkpoint acts in a simulator: what plays the episodes of an evaluation, and those that are played again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from robovlms.actions.plan import Source
from robovlms.config.choices import ActingWeights, Execution, Language
from robovlms.config.closed_loop import EngineConfig, EvaluationConfig, SimConfig
from robovlms.config.fields import DEMO, fields_that_keep
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.evaluation.analysis.latency import Point, measure
from robovlms.evaluation.asking import AskingPolicy, SharedEngine
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.folder import LATENCY
from robovlms.evaluation.rollout import Policy
from robovlms.evaluation.rollouts import run_episodes
from robovlms.evaluation.share import Share
from robovlms.policy.engine import PolicyEngine, device_of, dtype_of
from robovlms.policy.manifest import checkpoint_digest
from robovlms.registry import HEADS, SIMULATORS
from robovlms.sims.base import Episode, Simulator


@dataclass(frozen=True)
class Stage:
    """What episodes are played by and in."""

    checkpoint: Path  # what results are said to be of
    weights: Path  # the folder that is read
    simulator: Simulator  # closed; every process builds its own
    source: Source  # whose actions the policy gives
    share: Share  # of the episodes that is this process's

    def play(self, config: EvaluationConfig, episodes: Sequence[Episode], folder: Path) -> list[EpisodeResult]:
        """Play the episodes that `folder` lacks and return the results of all, in the order of `episodes`."""
        sim = self.simulator.config
        conditions = {
            "checkpoint": str(self.checkpoint.resolve()),
            "digest": checkpoint_digest(self.weights),
            "sim": {key: value for key, value in asdict(sim).items() if key not in fields_that_keep(sim, DEMO)},
            "renderer": self.simulator.renderer,
            "execution": config.execution.value,
            "execute_steps": config.execute_steps,
            "decision_steps": config.decision_steps,
            "dtype": str(dtype_of(config.engine)).removeprefix("torch."),
            "max_batch_size": config.engine.max_batch_size,
        }
        if config.engine.weights is ActingWeights.ema:
            conditions["weights"] = config.engine.weights.value
        instructions = sorted({goal.instruction for episode in episodes for goal in episode.goals})
        order = random.Random(0).sample(episodes, len(episodes)) if config.shuffle else episodes
        played = run_episodes(
            partial(start_rollout, sim, self.source.views, self.source.proprio_names),
            order,
            folder=folder,
            conditions=conditions,
            num_workers=config.num_workers,
            start_answerer=partial(start_engine, self.weights, replace(config, source=self.source.name), instructions),
            share=self.share,
        )
        results = {result.episode: result for result in played}
        return [results[episode] for episode in episodes]

    def measure_latency(
        self, config: EvaluationConfig, ways: Sequence[Execution], played: Sequence[EpisodeResult], folder: Path
    ) -> list[Point]:
        """Return what is reached under every latency and way of execution, each played in a folder of its own.

        Args:
            config: of the evaluation.
            ways: of execution.
            played: under `config`; those with own instructions are played again.
            folder: of the evaluation.
        """
        own = [result for result in played if result.episode.language is Language.own]
        episodes = [replace(result.episode, record=False) for result in own]

        def play_under(some: EvaluationConfig) -> list[EpisodeResult]:
            if (some.execution, some.decision_steps) == (config.execution, config.decision_steps):
                return own
            return self.play(some, episodes, folder / LATENCY / f"{some.execution}_{some.decision_steps}")

        return measure(config, ways, play_under)


def ways_of_execution(config: EvaluationConfig, trained: TrainConfig) -> list[Execution]:
    """Return the ways of execution that success against latency is measured for: those asked for, or all that the
    policy's head can do.

    Raises:
        UserError: the head cannot do one that is asked for, or a chunk has no action left when it arrives.
    """
    chunk_size, can_go_on = trained.window.chunk_size, HEADS.get(trained.head.name).supports_prefix
    late = {"decision_steps": config.decision_steps, **{f"latency[{i}]": k for i, k in enumerate(config.latency)}}
    for name, steps in late.items():
        if steps > chunk_size:
            raise UserError(
                f"evaluation.{name}={steps} must be at most {chunk_size}, the policy's chunk_size: later than that no "
                "action of a chunk is left to execute."
            )
    if Execution.real_time in config.executions and not can_go_on:
        raise UserError(
            f"evaluation.executions has real_time, which head={trained.head.name} cannot do: it needs a head that goes "
            "on from a chunk (flow, diffusion)."
        )
    possible = [Execution.chunk, Execution.ensemble, *([Execution.real_time] if can_go_on else [])]
    return config.executions or possible


def start_rollout(sim: SimConfig, views: list[str], proprio_names: list[str]) -> tuple[Policy, Simulator]:
    """Build a simulator, and what asks the engine: what every evaluation process does first."""
    simulator: Simulator = SIMULATORS.get(sim.name)(sim)
    return AskingPolicy(views, [simulator.proprio_names.index(name) for name in proprio_names]), simulator


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


def device_name(config: EngineConfig) -> str:
    """Return what a policy runs on: the name of the GPU, or cpu."""
    device = device_of(config)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

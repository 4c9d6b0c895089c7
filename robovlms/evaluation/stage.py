"""Episodes are played: by a policy, in a simulator, for the first time or once more."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from robovlms.config.choices import Language
from robovlms.config.closed_loop import EvaluationConfig, SimConfig
from robovlms.config.fields import DEMO, fields_that_keep
from robovlms.evaluation.analysis.latency import Point, measure
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.folder import LATENCY
from robovlms.evaluation.policies.base import ActingPolicy
from robovlms.evaluation.rollout import Policy
from robovlms.evaluation.rollouts import run_episodes
from robovlms.evaluation.share import Share
from robovlms.registry import SIMULATORS
from robovlms.sims.base import Episode, Simulator

if TYPE_CHECKING:
    from robovlms.evaluation.policies.served import ServedPolicy


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


def start_rollout(sim: SimConfig, policy: ActingPolicy, config: EvaluationConfig) -> tuple[Policy, Simulator]:
    """Build a simulator, and what acts in it: what every evaluation process does first."""
    simulator: Simulator = SIMULATORS.get(sim.name)(sim)
    return policy.start(config, simulator), simulator


def find_server(address: str, token: str | None, patience_s: float) -> ServedPolicy:
    """Return the policy behind a server.

    Raises:
        ConnectionError: nobody listens there, or the token is not the right one.
        UserError: it is no server of ours, or it is busy.
    """
    from robovlms.evaluation.policies.served import ServedPolicy  # needs the packages of the extra `serving`

    return ServedPolicy.find(address, token, patience_s)

"""A checkpoint acts in a simulator: results, report and videos."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from robovlms.actions.contract import check_contract
from robovlms.actions.plan import DataPlan, Source
from robovlms.config.choices import Execution, Language
from robovlms.config.closed_loop import EvaluationConfig, SimConfig
from robovlms.config.commands import EvaluateConfig
from robovlms.config.fields import DEMO, fields_that_keep
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.evaluation.analysis.certificate import certify
from robovlms.evaluation.analysis.latency import Point, measure
from robovlms.evaluation.episodes import EpisodeResult, plan_episodes
from robovlms.evaluation.folder import LATENCY, RESULTS, SUCCESS, evaluation_folder
from robovlms.evaluation.results import Results, environment_versions, format_table, summarize, write_results
from robovlms.evaluation.rollout import Policy
from robovlms.evaluation.rollouts import run_episodes
from robovlms.policy.checkpoint import CONFIG, load_config, resolve_checkpoint, run_folder_of
from robovlms.policy.manifest import checkpoint_digest
from robovlms.policy.runner import PolicyRunner
from robovlms.policy.spec import check_observations
from robovlms.registry import HEADS, SIMULATORS
from robovlms.reports.evaluation_page import write_report
from robovlms.reports.plots import plot_latency, plot_success
from robovlms.sims.base import Episode, Simulator
from robovlms.training.figures import plot_run
from robovlms.types import Observation

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> Path:
    """Let a checkpoint act in a simulator; write results and report, log the table, give the report's path.

    Raises:
        FileNotFoundError: no checkpoint there.
        UserError: the policy does not fit the simulator, or the folder holds another evaluation.
    """
    checkpoint = resolve_checkpoint(Path(config.checkpoint))
    run_folder = run_folder_of(checkpoint)
    trained = load_config(checkpoint / CONFIG)
    sim = config.sim or trained.sim
    if sim is None:
        raise UserError(f"{checkpoint} was trained without a simulator: choose one, e.g. sim=metaworld.")
    default = run_folder / "evaluation" / f"{sim.name}_{checkpoint.name}"
    folder = Path(config.output_dir) if config.output_dir else default
    simulator: Simulator = SIMULATORS.get(sim.name)(sim)
    plan = DataPlan.of(trained.data, trained.view.views)
    source = plan.find(config.evaluation.source)
    check_simulator(simulator, source, trained)
    episodes = plan_episodes(simulator, config.evaluation)
    simulator.close()
    asked = {"train": asdict(trained), **asdict(config), "sim": asdict(sim)}
    with evaluation_folder(folder, overwrite=config.overwrite):
        played = play(checkpoint, simulator, config.evaluation, episodes, folder)
        counted = summarize(played, config=asked, versions=environment_versions(simulator.packages))
        if config.evaluation.latency:
            counted["latency"] = measure_latency(checkpoint, simulator, config.evaluation, played, folder)
        results = certify(
            counted,
            checkpoint=checkpoint,
            checkpoint_digest=checkpoint_digest(checkpoint),
            renderer=simulator.renderer,
            device=device_name(),
            argv=sys.argv,
        )
        write_results(folder / RESULTS, results)
    log.info("%d episodes\n%s", len(played), format_table(results))
    figures = draw_figures(results, folder, run_folder, plan.action_names)
    report = write_report(folder, results, name=f"{trained.name}, {sim.name}", figures=figures)
    log.info("report: %s", report)
    return report


def play(
    checkpoint: Path, simulator: Simulator, config: EvaluationConfig, episodes: Sequence[Episode], folder: Path
) -> list[EpisodeResult]:
    """Play the episodes that `folder` lacks and return the results of all, in the order of `episodes`."""
    sim = simulator.config
    conditions = {
        "checkpoint": str(checkpoint.resolve()),
        "sim": {key: value for key, value in asdict(sim).items() if key not in fields_that_keep(sim, DEMO)},
        "renderer": simulator.renderer,
        "execution": config.execution.value,
        "execute_steps": config.execute_steps,
        "decision_steps": config.decision_steps,
    }
    start = partial(start_rollout, checkpoint, sim, config)
    order = random.Random(0).sample(episodes, len(episodes)) if config.shuffle else episodes
    played = run_episodes(start, order, folder=folder, conditions=conditions, num_workers=config.num_workers)
    results = {result.episode: result for result in played}
    return [results[episode] for episode in episodes]


def measure_latency(
    checkpoint: Path, simulator: Simulator, config: EvaluationConfig, played: Sequence[EpisodeResult], folder: Path
) -> list[Point]:
    """Play the episodes of own instructions once more for every latency and way of execution, each in a folder of its
    own; what `config` itself asks for has been played.
    """
    own = [result for result in played if result.episode.language is Language.own]
    head = load_config(checkpoint / CONFIG).head
    possible = [Execution.chunk, Execution.ensemble]
    if HEADS.get(head.name).supports_prefix:
        possible.append(Execution.real_time)

    def play_under(some: EvaluationConfig) -> list[EpisodeResult]:
        if (some.execution, some.decision_steps) == (config.execution, config.decision_steps):
            return own
        place = folder / LATENCY / f"{some.execution}_{some.decision_steps}"
        episodes = [replace(result.episode, record=False) for result in own]
        return play(checkpoint, simulator, some, episodes, place)

    return measure(config, config.executions or possible, play_under)


def check_simulator(simulator: Simulator, source: Source, trained: TrainConfig) -> None:
    """Refuse a simulator whose actions mean something else, or that shows less than the policy was trained with.

    Raises:
        UserError: lists both sides of every disagreement.
    """
    name = f"sim={simulator.config.name}"
    check_contract(source.interface, simulator.contract, name)
    check_observations(trained.view.views, source.proprio_names, simulator.views, simulator.proprio_names, name)


def draw_figures(results: Results, folder: Path, run_folder: Path, action_names: list[str]) -> dict[str, list[Path]]:
    """Draw success rates into the evaluation's folder, and where the run is at hand its training; return them by
    heading.
    """
    figures = {"Success rates": [plot_success(results, folder / SUCCESS)]}
    if "latency" in results:
        figures["Success against latency"] = [plot_latency(results["latency"], folder / LATENCY / "latency.png")]
    if (run_folder / "metrics.jsonl").is_file():
        figures |= plot_run(run_folder, action_names)
    return figures


def start_rollout(checkpoint: Path, sim: SimConfig, config: EvaluationConfig) -> tuple[Policy, Simulator]:
    """Load a policy and its simulator: what every evaluation process does first."""
    if config.num_workers > 1:
        torch.set_num_threads(1)  # the processes share the cores
    device = "cuda" if torch.cuda.is_available() else "cpu"
    simulator: Simulator = SIMULATORS.get(sim.name)(sim)
    runner = PolicyRunner.from_checkpoint(checkpoint, device=device, source=config.source)
    runner.session = runner.engine.open(
        config.source,
        execution=config.execution,
        execute_steps=config.execute_steps,
        contract=simulator.contract,
        latency=config.decision_steps,
    )
    entries = [simulator.proprio_names.index(name) for name in runner.source.proprio_names]
    return Attentive(runner, entries), simulator


def device_name() -> str:
    """Return what a policy runs on: the name of the GPU, or cpu."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


class Attentive:
    """A policy that is given the entries of proprioception that it was trained with, and no others."""

    def __init__(self, policy: Policy, entries: Sequence[int]) -> None:
        self.policy, self.entries = policy, list(entries)

    def reset(self) -> None:
        """Forget the episode so far."""
        self.policy.reset()

    def step(self, observation: Observation) -> Float32[np.ndarray, "a"]:
        """Return the next action, in environment units."""
        proprio = observation.proprio[self.entries] if self.entries else None
        return self.policy.step(replace(observation, proprio=proprio))

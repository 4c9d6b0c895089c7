"""A checkpoint acts in a simulator: results, report and videos."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from robovlms.actions.contract import check_contract
from robovlms.actions.plan import DataPlan, Source
from robovlms.config.closed_loop import EvaluationConfig, SimConfig
from robovlms.config.commands import EvaluateConfig
from robovlms.config.fields import DEMO, fields_that_keep
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.evaluation.episodes import plan_episodes
from robovlms.evaluation.folder import RESULTS, SUCCESS, evaluation_folder
from robovlms.evaluation.results import Results, environment_versions, format_table, summarize, write_results
from robovlms.evaluation.rollout import Policy
from robovlms.evaluation.rollouts import run_episodes
from robovlms.policy.checkpoint import CONFIG, load_config, resolve_checkpoint, run_folder_of
from robovlms.policy.runner import PolicyRunner
from robovlms.policy.spec import check_observations
from robovlms.registry import SIMULATORS
from robovlms.reports.evaluation_page import write_report
from robovlms.reports.plots import plot_success
from robovlms.sims.base import Simulator
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
    start = partial(start_rollout, checkpoint, sim, config.evaluation)
    conditions = {
        "checkpoint": str(checkpoint.resolve()),
        "sim": {key: value for key, value in asdict(sim).items() if key not in fields_that_keep(sim, DEMO)},
        "renderer": simulator.renderer,
        "execution": config.evaluation.execution.value,
        "execute_steps": config.evaluation.execute_steps,
    }
    workers, asked = config.evaluation.num_workers, {"train": asdict(trained), **asdict(config), "sim": asdict(sim)}
    with evaluation_folder(folder, overwrite=config.overwrite):
        played = run_episodes(start, episodes, folder=folder, conditions=conditions, num_workers=workers)
        results = summarize(played, config=asked, versions=environment_versions(simulator.packages))
        write_results(folder / RESULTS, results)
    log.info("%d episodes\n%s", len(played), format_table(results))
    figures = draw_figures(results, folder, run_folder, plan.action_names)
    report = write_report(folder, results, name=f"{trained.name}, {sim.name}", figures=figures)
    log.info("report: %s", report)
    return report


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
    if (run_folder / "metrics.jsonl").is_file():
        figures |= plot_run(run_folder, action_names)
    return figures


def start_rollout(checkpoint: Path, sim: SimConfig, config: EvaluationConfig) -> tuple[Policy, Simulator]:
    """Load a policy and its simulator: what every evaluation process does first."""
    if config.num_workers > 1:
        torch.set_num_threads(1)  # the processes share the cores
    device = "cuda" if torch.cuda.is_available() else "cpu"
    simulator: Simulator = SIMULATORS.get(sim.name)(sim)
    runner = PolicyRunner.from_checkpoint(
        checkpoint,
        execution=config.execution,
        execute_steps=config.execute_steps,
        device=device,
        contract=simulator.contract,
        source=config.source,
    )
    entries = [simulator.proprio_names.index(name) for name in runner.source.proprio_names]
    return Attentive(runner, entries), simulator


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

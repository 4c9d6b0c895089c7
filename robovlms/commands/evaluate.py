"""A checkpoint acts in a simulator: results, report and videos."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from robovlms.actions.contract import check_contract
from robovlms.actions.plan import DataPlan, Source
from robovlms.config.choices import Execution, Language
from robovlms.config.closed_loop import EngineConfig, EvaluationConfig, SimConfig
from robovlms.config.commands import EvaluateConfig
from robovlms.config.fields import DEMO, fields_that_keep
from robovlms.errors import UserError
from robovlms.evaluation.analysis.certificate import certify
from robovlms.evaluation.analysis.latency import Point, measure
from robovlms.evaluation.asking import AskingPolicy, SharedEngine
from robovlms.evaluation.episodes import EpisodeResult, plan_episodes
from robovlms.evaluation.folder import LATENCY, RESULTS, SUCCESS, evaluation_folder
from robovlms.evaluation.results import Results, environment_versions, format_table, summarize, write_results
from robovlms.evaluation.rollout import Policy
from robovlms.evaluation.rollouts import run_episodes
from robovlms.policy.checkpoint import CONFIG, load_config, resolve_checkpoint, run_folder_of
from robovlms.policy.engine import PolicyEngine, device_of, dtype_of
from robovlms.policy.manifest import checkpoint_digest
from robovlms.policy.spec import check_observations
from robovlms.registry import HEADS, SIMULATORS
from robovlms.reports.evaluation_page import write_report
from robovlms.reports.plots import plot_latency, plot_success
from robovlms.sims.base import Episode, Simulator
from robovlms.training.figures import plot_run

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
    check_simulator(simulator, source)
    episodes = plan_episodes(simulator, config.evaluation)
    simulator.close()
    asked = {"train": asdict(trained), **asdict(config), "sim": asdict(sim)}
    with evaluation_folder(folder, overwrite=config.overwrite):
        play = partial(play_episodes, checkpoint, simulator, source)
        played = play(config.evaluation, episodes, folder)
        counted = summarize(played, config=asked, versions=environment_versions(simulator.packages))
        if config.evaluation.latency:
            counted["latency"] = measure_latency(play, config.evaluation, trained.head.name, played, folder)
        results = certify(
            counted,
            checkpoint=checkpoint,
            checkpoint_digest=checkpoint_digest(checkpoint),
            renderer=simulator.renderer,
            device=device_name(config.evaluation.engine),
            argv=sys.argv,
        )
        write_results(folder / RESULTS, results)
    log.info("%d episodes\n%s", len(played), format_table(results))
    figures = draw_figures(results, folder, run_folder, plan.action_names)
    report = write_report(folder, results, name=f"{trained.name}, {sim.name}", figures=figures)
    log.info("report: %s", report)
    return report


def play_episodes(
    checkpoint: Path,
    simulator: Simulator,
    source: Source,
    config: EvaluationConfig,
    episodes: Sequence[Episode],
    folder: Path,
) -> list[EpisodeResult]:
    """Play the episodes that `folder` lacks and return the results of all, in the order of `episodes`.

    Args:
        checkpoint: its folder.
        simulator: closed; every process builds its own.
        source: whose actions the policy gives.
        config: how it is evaluated.
        episodes: what is played.
        folder: of the journal and the videos.
    """
    sim = simulator.config
    conditions = {
        "checkpoint": str(checkpoint.resolve()),
        "sim": {key: value for key, value in asdict(sim).items() if key not in fields_that_keep(sim, DEMO)},
        "renderer": simulator.renderer,
        "execution": config.execution.value,
        "execute_steps": config.execute_steps,
        "decision_steps": config.decision_steps,
        "dtype": str(dtype_of(config.engine)).removeprefix("torch."),
        "max_batch_size": config.engine.max_batch_size,
    }
    order = random.Random(0).sample(episodes, len(episodes)) if config.shuffle else episodes
    played = run_episodes(
        partial(start_rollout, sim, source.views, source.proprio_names),
        order,
        folder=folder,
        conditions=conditions,
        num_workers=config.num_workers,
        start_answerer=partial(start_engine, checkpoint, config),
    )
    results = {result.episode: result for result in played}
    return [results[episode] for episode in episodes]


def measure_latency(
    play: Callable[[EvaluationConfig, Sequence[Episode], Path], list[EpisodeResult]],
    config: EvaluationConfig,
    head: str,
    played: Sequence[EpisodeResult],
    folder: Path,
) -> list[Point]:
    """Return what was reached under every latency and way of execution, each played in a folder of its own.

    Args:
        play: plays episodes.
        config: of the evaluation.
        head: name of the policy's.
        played: under `config`; those with own instructions are played again.
        folder: of the evaluation.
    """
    own = [result for result in played if result.episode.language is Language.own]
    episodes = [replace(result.episode, record=False) for result in own]
    possible = [Execution.chunk, Execution.ensemble]
    if HEADS.get(head).supports_prefix:
        possible.append(Execution.real_time)

    def play_under(some: EvaluationConfig) -> list[EpisodeResult]:
        if (some.execution, some.decision_steps) == (config.execution, config.decision_steps):
            return own
        return play(some, episodes, folder / LATENCY / f"{some.execution}_{some.decision_steps}")

    return measure(config, config.executions or possible, play_under)


def check_simulator(simulator: Simulator, source: Source) -> None:
    """Refuse a simulator whose actions mean something else, or that shows less than the policy was trained with.

    Raises:
        UserError: lists both sides of every disagreement.
    """
    name = f"sim={simulator.config.name}"
    check_contract(source.interface, simulator.contract, name)
    check_observations(source.views, source.proprio_names, simulator.views, simulator.proprio_names, name)


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


def start_rollout(sim: SimConfig, views: list[str], proprio_names: list[str]) -> tuple[Policy, Simulator]:
    """Build a simulator, and what asks the engine: what every evaluation process does first."""
    simulator: Simulator = SIMULATORS.get(sim.name)(sim)
    return AskingPolicy(views, [simulator.proprio_names.index(name) for name in proprio_names]), simulator


def start_engine(checkpoint: Path, config: EvaluationConfig) -> SharedEngine:
    """Load the policy that all evaluation processes ask."""
    engine = PolicyEngine.from_checkpoint(checkpoint, config.engine)
    open_session = partial(
        engine.open,
        config.source,
        execution=config.execution,
        execute_steps=config.execute_steps,
        latency=config.decision_steps,
        may_be_silent=True,  # `evaluation.language` may ask for it
    )
    open_session()  # refuses what does not fit before anything is played
    return SharedEngine(engine, open_session, config.engine)


def device_name(config: EngineConfig) -> str:
    """Return what a policy runs on: the name of the GPU, or cpu."""
    device = device_of(config)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

"""A checkpoint acts in a simulator: results, report and videos."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from robovlms.actions.contract import check_contract
from robovlms.actions.plan import DataPlan, Source
from robovlms.commands.acting import Stage, device_name, ways_of_execution
from robovlms.config.choices import CheckpointChoice
from robovlms.config.commands import EvaluateConfig
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.evaluation.analysis.certificate import certify
from robovlms.evaluation.analysis.checkpoints import CheckpointRow, flag_best, format_checkpoints, write_checkpoints
from robovlms.evaluation.episodes import plan_episodes
from robovlms.evaluation.folder import LATENCY, REPORT, RESULTS, SUCCESS, evaluation_folder
from robovlms.evaluation.results import (
    Results,
    environment_versions,
    format_table,
    scores,
    summarize,
    write_results,
)
from robovlms.evaluation.share import Share, share_of_launch
from robovlms.policy.checkpoint import (
    CONFIG,
    choose_checkpoints,
    is_checkpoint,
    load_config,
    resolve_checkpoint,
    run_folder_of,
    step_of,
)
from robovlms.policy.manifest import checkpoint_digest
from robovlms.policy.spec import check_observations
from robovlms.registry import SIMULATORS
from robovlms.reports.checkpoints_page import write_checkpoints_page
from robovlms.reports.evaluation_page import write_report
from robovlms.reports.plots import plot_latency, plot_success
from robovlms.sims.base import Simulator
from robovlms.training.figures import plot_run
from robovlms.training.follow import follow
from robovlms.training.launch import end_with_launcher
from robovlms.training.run_folder import CHECKPOINTS
from robovlms.training.tracking import EvaluationTracker

log = logging.getLogger(__name__)


class Evaluated(NamedTuple):
    """A checkpoint that was evaluated."""

    report: Path
    results: Results | None  # None: another process of the launch has them
    trained: TrainConfig
    sim: str


def evaluate_in_launch(config: EvaluateConfig) -> Path:
    """Evaluate together with the other processes that torchrun started, if there are any; see `evaluate`."""
    end_with_launcher()
    with share_of_launch() as share:
        return evaluate(config, share)


def evaluate(config: EvaluateConfig, share: Share | None = None) -> Path:
    """Let a checkpoint, or several of a run, act in a simulator; write results and reports, log the tables, return the
    path of the page.

    Args:
        config: what is evaluated.
        share: this process's, where several of a launch do it together; unset: all of it.

    Raises:
        FileNotFoundError: no checkpoint there.
        UserError: the policy does not fit the simulator, or the folder holds another evaluation.
    """
    share, path = share or Share(), Path(config.checkpoint)
    if config.watch or _choice(config).every is not None:
        return evaluate_several(config, share)
    checkpoint = share.on_main(lambda: str(resolve_checkpoint(path)))
    return evaluate_checkpoint(config, Path(checkpoint), share).report


def _choice(config: EvaluateConfig) -> CheckpointChoice:
    """Return which checkpoints are meant: as the command says, or as the run was trained to be evaluated."""
    path = Path(config.checkpoint)
    if is_checkpoint(path):
        if config.checkpoints is not None:
            raise UserError(
                f"checkpoints={config.checkpoints} chooses among those of a run, and checkpoint={path} is one of them: "
                "give the run, or leave checkpoints out."
            )
        return CheckpointChoice.parse("last")
    said = config.checkpoints or config.evaluation.checkpoints
    if said is None:
        owner = path if (path / CONFIG).is_file() else resolve_checkpoint(path)
        said = load_config(owner / CONFIG).evaluation.checkpoints or "last"
    return CheckpointChoice.parse(said)


def evaluate_several(config: EvaluateConfig, share: Share) -> Path:
    """Evaluate checkpoints of a run, each in a folder of its own, and compare them; return the path of that page.

    Of a run that is watched, scores go to its trackers as they come.

    Raises:
        FileNotFoundError: there are none.
        UserError: as `evaluate`.
    """
    run_folder, wanted = Path(config.checkpoint), _wanted(config)
    page, rows = None, list[CheckpointRow]()
    with ExitStack() as stack:
        while (found := share.on_main(lambda: next(wanted, None))) is not None:
            checkpoint = run_folder / CHECKPOINTS / Path(found).name
            evaluated = evaluate_checkpoint(config, checkpoint, share, weights=Path(found), is_one_of_several=True)
            page = evaluated.report
            if evaluated.results is None:
                continue
            rows.append(CheckpointRow.of(step_of(checkpoint), page.parent, evaluated.results))
            page = _compare(config, evaluated, rows)
            if config.watch:
                if len(rows) == 1:
                    trained = evaluated.trained
                    tracker = EvaluationTracker(trained.tracking, run_folder, asdict(trained))
                    stack.callback(tracker.close)
                tracker.log(step_of(checkpoint), scores(evaluated.results))
    if page is None:
        raise FileNotFoundError(f"checkpoint={run_folder} has ended without a checkpoint that could be evaluated.")
    if rows:
        flag_best(rows)
        log.info("%d checkpoints: %s\n%s", len(rows), page, format_checkpoints(rows))
    return page


def _wanted(config: EvaluateConfig) -> Iterator[str]:
    """Yield the folders of the checkpoints to evaluate, oldest first; of a run that is watched, as they appear."""
    run_folder, choice = Path(config.checkpoint), _choice(config)
    yield from map(str, follow(run_folder, choice) if config.watch else choose_checkpoints(run_folder, choice))


def _compare(config: EvaluateConfig, evaluated: Evaluated, rows: list[CheckpointRow]) -> Path:
    """Write down how the checkpoints of a run did so far."""
    place = f"{evaluated.sim}_checkpoints"
    folder = Path(config.output_dir or Path(config.checkpoint) / "evaluation" / place)
    write_checkpoints(folder, rows)
    return write_checkpoints_page(folder, rows, name=f"{evaluated.trained.name}, {evaluated.sim}, by checkpoint")


def evaluate_checkpoint(
    config: EvaluateConfig,
    checkpoint: Path,
    share: Share,
    *,
    weights: Path | None = None,
    is_one_of_several: bool = False,
) -> Evaluated:
    """Evaluate one checkpoint.

    Args:
        config: what is evaluated.
        checkpoint: its folder, of a run that may delete it meanwhile.
        share: this process's.
        weights: the folder that is read; unset: the checkpoint's own.
        is_one_of_several: `config.output_dir` is the folder of all their folders.

    Raises:
        UserError: as `evaluate`.
    """
    weights, run_folder = weights or checkpoint, run_folder_of(checkpoint)
    trained = load_config(weights / CONFIG)
    sim = config.sim or trained.sim
    if sim is None:
        raise UserError(f"{checkpoint} was trained without a simulator: choose one, e.g. sim=metaworld.")
    folder = run_folder / "evaluation" / f"{sim.name}_{checkpoint.name}"
    if config.output_dir:
        folder = Path(config.output_dir) / (checkpoint.name if is_one_of_several else "")
    simulator: Simulator = SIMULATORS.get(sim.name)(sim)
    plan = DataPlan.of(trained.data, trained.view.views)
    source = plan.find(config.evaluation.source, simulator.contract)
    check_simulator(simulator, source)
    ways = ways_of_execution(config.evaluation, trained)
    episodes = plan_episodes(simulator, config.evaluation)
    simulator.close()
    asked = {"train": asdict(trained), **asdict(config), "sim": asdict(sim)}
    stage = Stage(checkpoint, weights, simulator, source, share)
    evaluated = Evaluated(folder / REPORT, None, trained, sim.name)
    with ExitStack() as stack:
        share.on_main(lambda: stack.enter_context(evaluation_folder(folder, overwrite=config.overwrite)))
        played = stage.play(config.evaluation, episodes, folder)
        points = stage.measure_latency(config.evaluation, ways, played, folder)
        if not share.is_main:
            return evaluated
        results = summarize(played, config=asked, versions=environment_versions(simulator.packages))
        if points:
            results["latency"] = points
        results = certify(
            results,
            checkpoint=checkpoint,
            checkpoint_digest=checkpoint_digest(weights),
            renderer=simulator.renderer,
            device=device_name(config.evaluation.engine),
            argv=sys.argv,
        )
        write_results(folder / RESULTS, results)
    log.info("%s: %d episodes\n%s", checkpoint.name, len(played), format_table(results))
    figures = draw_figures(results, folder, run_folder, plan.action_names)
    report = write_report(folder, results, name=f"{trained.name}, {sim.name}", figures=figures)
    log.info("report: %s", report)
    return evaluated._replace(results=results)


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

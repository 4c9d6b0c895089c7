"""A policy acts in a simulator: results, report and videos."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from robovlms.actions.plan import DataPlan
from robovlms.config.choices import CheckpointChoice
from robovlms.config.commands import EvaluateConfig
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.evaluation.analysis.certificate import certify
from robovlms.evaluation.analysis.checkpoints import CheckpointRow, flag_best, format_checkpoints, write_checkpoints
from robovlms.evaluation.episodes import plan_episodes
from robovlms.evaluation.folder import LATENCY, REPORT, RESULTS, SUCCESS, evaluation_folder
from robovlms.evaluation.policies.checkpoint import CheckpointPolicy
from robovlms.evaluation.results import (
    Results,
    environment_versions,
    format_table,
    scores,
    summarize,
    write_results,
)
from robovlms.evaluation.share import Share, share_of_launch
from robovlms.evaluation.stage import Stage, find_server
from robovlms.policy.checkpoint import (
    CONFIG,
    choose_checkpoints,
    is_checkpoint,
    load_config,
    resolve_checkpoint,
    run_folder_of,
    step_of,
)
from robovlms.registry import SIMULATORS
from robovlms.reports.checkpoints_page import write_checkpoints_page
from robovlms.reports.evaluation_page import write_report
from robovlms.reports.plots import plot_latency, plot_success
from robovlms.sims.base import Simulator
from robovlms.training.checkpoints.run_folder import CHECKPOINTS
from robovlms.training.figures import plot_run
from robovlms.training.follow import follow
from robovlms.training.launch import end_with_launcher
from robovlms.training.tracking import METRICS, EvaluationTracker

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
    """Let a checkpoint, several of a run, or the policy behind a server act in a simulator; write results and reports,
    log the tables, return the path of the page.

    Args:
        config: what is evaluated.
        share: this process's, where several of a launch do it together; unset: all of it.

    Raises:
        FileNotFoundError: no checkpoint there.
        ConnectionError: no server there.
        UserError: the policy does not fit the simulator, or the folder holds another evaluation.
    """
    share, path = share or Share(), Path(config.checkpoint)
    if config.server is not None:
        return evaluate_served(config, share)
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
    policy = CheckpointPolicy.of(checkpoint, weights, config.evaluation, simulator)
    results = play_all(config, Stage(policy, simulator, share), folder, {"train": asdict(trained)})
    evaluated = Evaluated(folder / REPORT, results, trained, sim.name)
    if results is not None:
        plan = DataPlan.of(trained.data, trained.view.views)
        training = plot_run(run_folder, plan) if (run_folder / METRICS).is_file() else {}
        report(folder, results, f"{trained.name}, {sim.name}", training)
    return evaluated


def evaluate_served(config: EvaluateConfig, share: Share) -> Path:
    """Evaluate the policy behind a server; return the path of the page.

    Raises:
        ConnectionError: nobody listens there.
        UserError: as `evaluate`, or the server says so.
    """
    assert config.server is not None
    assert config.sim is not None
    policy = find_server(config.server, config.server_token, config.server_patience_s)
    spec, sim = policy.handshake.spec, config.sim
    run = re.sub(r"[^\w-]+", "-", spec.name)
    folder = Path(config.output_dir or f"runs/{run}_served/{sim.name}_{policy.identity.digest[:8]}")
    stage = Stage(policy, SIMULATORS.get(sim.name)(sim), share)
    evaluation = replace(config.evaluation, source=config.evaluation.source or policy.handshake.source)
    results = play_all(replace(config, evaluation=evaluation), stage, folder, {"policy_spec": spec.to_json()})
    if results is not None:
        report(folder, results, f"{spec.name}, {sim.name}", {})
    return folder / REPORT


def play_all(config: EvaluateConfig, stage: Stage, folder: Path, described: Mapping[str, Any]) -> Results | None:
    """Play what is planned, write results into a folder and log them; None: another process of the launch has them.

    Args:
        config: what is evaluated.
        stage: what plays.
        folder: of the evaluation.
        described: what results say of the policy besides its identity, JSON values.
    """
    simulator, policy, share = stage.simulator, stage.policy, stage.share
    policy.check(simulator, config.evaluation)
    episodes = plan_episodes(simulator, config.evaluation)
    simulator.close()
    identity = policy.identity
    with ExitStack() as stack:
        share.on_main(lambda: stack.enter_context(evaluation_folder(folder, overwrite=config.overwrite)))
        played = stage.play(config.evaluation, episodes, folder)
        points = stage.measure_latency(config.evaluation, played, folder)
        if not share.is_main:
            return None
        asked = {**described, **asdict(replace(config, server_token=None)), "sim": asdict(simulator.config)}
        versions = {**environment_versions(simulator.packages), **identity.versions}
        results = summarize(played, config=asked, versions=versions)
        if points:
            results["latency"] = points
        results = certify(
            results,
            checkpoint=identity.place,
            checkpoint_digest=identity.digest,
            renderer=simulator.renderer,
            device=identity.device,
            argv=sys.argv,
        )
        write_results(folder / RESULTS, results)
    log.info("%s: %d episodes\n%s", identity.place, len(played), format_table(results))
    return results


def report(folder: Path, results: Results, name: str, training: Mapping[str, list[Path]]) -> None:
    """Draw success and write the page of an evaluation.

    Args:
        folder: of the evaluation.
        results: that were written into it.
        name: title of the page.
        training: figures of the run by heading; {}: it is not at hand.
    """
    figures = {"Success rates": [plot_success(results, folder / SUCCESS)]}
    if "latency" in results:
        figures["Success against latency"] = [plot_latency(results["latency"], folder / LATENCY / "latency.png")]
    log.info("report: %s", write_report(folder, results, name=name, figures={**figures, **training}))

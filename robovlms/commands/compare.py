"""Runs side by side: success, size and cost of each, and on the same episodes which is better than which."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.evaluation.analysis.comparison import Comparison, Evaluated, compare_runs
from robovlms.evaluation.analysis.reading import JOURNALS, read_evaluation, read_results
from robovlms.evaluation.folder import RESULTS
from robovlms.evaluation.results import summarize
from robovlms.files import read_json_lines, write_text
from robovlms.hub.repository import is_on_hub
from robovlms.policy.checkpoint import CONFIG, load_config, load_policy, resolve_checkpoint, run_folder_of
from robovlms.policy.runner import PolicyRunner
from robovlms.reports.comparison_page import Table, tables_of, write_comparison
from robovlms.reports.plots import plot_comparison, plot_differences
from robovlms.training.tracking import METRICS
from robovlms.types import Observation

log = logging.getLogger(__name__)

COLUMNS = ("run", "success", "95 % interval", "opposite", "val error", "head M", "all M", "train ms", "act ms")
TABLE, PAGE, PICTURE, DIFFERENCES = "comparison.md", "comparison.html", "comparison.png", "differences.png"


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run, or an evaluation without its run."""

    name: str
    folder: Path
    evaluation: Path | None = None  # its folder or results.json
    own: tuple[int, int, float, float] | None = None  # successes, trials, interval
    opposite: tuple[int, int] | None = None
    action_error: float | None = None  # of the last validation, normalised units
    head_millions: float | None = None
    millions: float | None = None
    train_ms: float | None = None  # an optimizer step
    act_ms: float | None = None  # a control step on this CPU, chunk included, median

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        success = "-" if self.own is None else f"{self.own[0]}/{self.own[1]}"
        interval = "-" if self.own is None else f"{self.own[2]:.0%} to {self.own[3]:.0%}"
        opposite = "-" if self.opposite is None else f"{self.opposite[0]}/{self.opposite[1]}"
        numbers = [(self.action_error, 3), (self.head_millions, 2), (self.millions, 2), (self.train_ms, 0)]
        rest = ["-" if value is None else f"{value:.{digits}f}" for value, digits in [*numbers, (self.act_ms, 1)]]
        return (self.name, success, interval, opposite, *rest)


def compare(
    folders: list[str], latency_steps: int, *, sequential: bool = False, output_dir: str | None = None
) -> tuple[str, Path]:
    """Return what is found as markdown, best first, and the page that shows it; both are written beside each other.

    Whatever cannot be read is left out, with a warning that says why.

    Args:
        folders: of runs or of evaluations, or folders that hold some of them; or files results.json.
        latency_steps: control steps that are timed; 0: policies are not loaded, and have no size.
        sequential: evaluations may be unfinished, and the comparison may be made again whenever there is more.
        output_dir: where the page goes; None: into the first of `folders`.

    Raises:
        FileNotFoundError: nothing that can be read is found.
        UserError: the evaluations have no episode in common.
    """
    runs = _distinct(list(_readable([Path(folder) for folder in folders], latency_steps, sequential)))
    if not runs:
        raise FileNotFoundError(
            f"folders={folders} hold no run with a checkpoint and no results.json that can be read: give the "
            "output_dir of a sweep, runs, or folders of evaluations."
        )
    runs.sort(key=lambda run: (-(run.own[0] / run.own[1]) if run.own else 0, run.action_error or 0))
    evaluated = list(_evaluated(runs, sequential))
    comparison = compare_runs(evaluated, is_sequential=sequential) if len(evaluated) > 1 else None
    target = Path(output_dir) if output_dir else Path(folders[0])
    target = target if target.suffix != ".json" else target.parent
    target = run_folder_of(resolve_checkpoint(target)) if is_on_hub(target) else target
    target.mkdir(parents=True, exist_ok=True)
    tables = [Table("Runs", COLUMNS, [run.cells() for run in runs]), *(tables_of(comparison) if comparison else [])]
    text = "\n\n".join(table.markdown() for table in tables)
    write_text(target / TABLE, text + "\n")
    return text, write_comparison(target / PAGE, tables, _draw(runs, comparison, target))


def _draw(runs: Sequence[RunSummary], comparison: Comparison | None, target: Path) -> list[Path]:
    success = {run.name: run.own for run in runs if run.own}
    figures = []
    if success or any(run.act_ms for run in runs):
        acting = {run.name: run.act_ms for run in runs if run.act_ms is not None}
        figures.append(plot_comparison(success, acting, target / PICTURE))
    if comparison:
        figures.append(plot_differences(comparison, target / DIFFERENCES))
    return figures


def _readable(folders: Sequence[Path], latency_steps: int, sequential: bool) -> Iterator[RunSummary]:
    """Read every run and every evaluation without one that the folders are or hold."""
    for place in dict.fromkeys(place for folder in folders for place in _places(folder)):
        try:
            is_model = is_run(place) or is_on_hub(place)
            yield read_run(place, latency_steps, sequential) if is_model else _read_loose(place, sequential)
        except (UserError, FileNotFoundError) as error:
            log.warning("left out: %s: %s", place, error)


def is_run(folder: Path) -> bool:
    """Tell whether a folder is that of a training run."""
    return (folder / CONFIG).is_file() and (folder / "checkpoints").is_dir()


def _places(folder: Path) -> list[Path]:
    """Return the runs that a folder is or holds, and the evaluations that are in none of them."""
    if folder.is_file() or not folder.exists() or (folder / RESULTS).is_file():
        return [folder]
    runs = sorted({path.parent for path in folder.rglob(CONFIG) if is_run(path.parent)})
    found = {path.parent for pattern in (RESULTS, JOURNALS) for path in folder.rglob(pattern)}
    owners = {*runs, *found}  # an evaluation may hold others, of success against latency
    loose = [place for place in sorted(found) if not owners & set(place.parents)]
    return [*runs, *loose]


def read_run(folder: Path, latency_steps: int, sequential: bool = False) -> RunSummary:
    """Read one run's results and metrics, and time its policy unless `latency_steps` is 0; of a checkpoint on the Hub
    only the policy is at hand.
    """
    checkpoint = resolve_checkpoint(folder)
    config = load_config(checkpoint / CONFIG)
    speed = last(folder / METRICS, "train/samples_per_s")
    summary = RunSummary(
        name=describe(config),
        folder=folder,
        action_error=last(folder / METRICS, "val/action_error"),
        train_ms=speed and 1000 * config.batch_size / speed,
    )
    if evaluation := _newest_evaluation(folder, sequential):
        summary = replace(summary, evaluation=evaluation, **_rates(evaluation, sequential))
    if not latency_steps:
        return summary
    trained = load_policy(checkpoint)
    return replace(
        summary,
        head_millions=sum(p.numel() for p in trained.policy.head.parameters()) / 1e6,
        millions=sum(p.numel() for p in trained.policy.parameters()) / 1e6,
        act_ms=1000 * time_control_step(checkpoint, trained.plan.sources[0].name, latency_steps),
    )


def _read_loose(place: Path, sequential: bool) -> RunSummary:
    """Read an evaluation by itself."""
    folder = place if place.is_dir() else place.parent
    return RunSummary(name=folder.name, folder=folder, evaluation=place, **_rates(place, sequential))


def _newest_evaluation(run: Path, sequential: bool) -> Path | None:
    """Return the evaluation of the latest checkpoint.

    Raises:
        UserError: there are some in several simulators.
    """
    patterns = (RESULTS, JOURNALS) if sequential else (RESULTS,)
    found = {path.parent for pattern in patterns for path in run.glob(f"evaluation/*/{pattern}")}
    steps = {folder: re.fullmatch(r"(.+)_step_(\d+)", folder.name) for folder in found}
    kinds = {match[1] for match in steps.values() if match}
    if len(kinds) > 1:
        raise UserError(
            f"it was evaluated in several simulators ({', '.join(sorted(kinds))}): name the folders of the evaluations "
            "themselves, folders=[.../evaluation/...]."
        )
    return max(found, key=lambda folder: (int(match[2]) if (match := steps[folder]) else -1, folder), default=None)


def _rates(evaluation: Path, sequential: bool) -> dict[str, Any]:
    """Return the fields of a summary that an evaluation tells."""
    file = evaluation / RESULTS if evaluation.is_dir() else evaluation
    language: Mapping[str, Any] = read_results(file).get("language", {}) if file.is_file() else {}
    if not language:
        played = read_evaluation(evaluation, "", with_running=sequential).results
        language = summarize(played, config={}, versions={})["language"]
    rows = {kind: language[kind]["overall"] for kind in ("own", "opposite") if kind in language}
    own, opposite = rows.get("own"), rows.get("opposite")
    return {
        "own": own and (own["successes"], own["trials"], own["low"], own["high"]),
        "opposite": opposite and (opposite["successes"], opposite["trials"]),
    }


def _evaluated(runs: Sequence[RunSummary], sequential: bool) -> Iterator[Evaluated]:
    """Return the episodes of all runs that were evaluated."""
    for run in runs:
        if run.evaluation is None:
            continue
        try:
            yield read_evaluation(run.evaluation, run.name, with_running=sequential)
        except UserError as error:
            log.warning("not compared with others: %s: %s", run.name, error)


def _distinct(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """Return runs with names that tell them apart."""
    counts = Counter(run.name for run in runs)
    runs = [replace(run, name=f"{run.name} ({run.folder.name})") if counts[run.name] > 1 else run for run in runs]
    counts = Counter(run.name for run in runs)
    return [replace(run, name=str(run.evaluation or run.folder)) if counts[run.name] > 1 else run for run in runs]


def describe(config: TrainConfig) -> str:
    """Name what a run is: backbone, structure and head, with what makes a head another one."""
    head: Any = config.head
    kind = head.name
    if getattr(head, "parallel", False):
        kind += ", parallel" if head.discrete else f", parallel, {head.loss}"
    return f"{config.backbone.name}, {config.structure.name}, {kind}"


def last(metrics: Path, key: str) -> float | None:
    """Return the newest value of `key`; None: there is none, or no such file."""
    values = [row[key] for row in read_json_lines(metrics) if key in row]
    return float(values[-1]) if values else None


def time_control_step(checkpoint: Path, source: str, steps: int) -> float:
    """Return the median seconds of an observation that a chunk is asked for, once the window is full.

    Args:
        checkpoint: its folder.
        source: whose actions a policy of a mixture gives; which one does not change the time.
        steps: that are timed.
    """
    runner = PolicyRunner.from_checkpoint(checkpoint, execute_steps=1, source=source)
    policy = runner.policy
    size = policy.processor.image_spec.size
    frames = {view: np.zeros((size, size, 3), np.uint8) for view in policy.processor.views}
    proprio = np.zeros(len(runner.source.proprio_names), np.float32)
    observation = Observation(frames=frames, instruction="open the drawer", proprio=proprio)
    seconds = []
    for _ in range(runner.engine.window_size + steps):
        start = time.perf_counter()
        runner.step(observation)
        seconds.append(time.perf_counter() - start)
    return median(seconds[runner.engine.window_size :])

"""Finished runs side by side: success with its interval, size, and what training and acting cost."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.files import read_json_lines
from robovlms.policy.checkpoint import CONFIG, load_policy, resolve_checkpoint
from robovlms.policy.runner import PolicyRunner
from robovlms.reports.plots import plot_comparison
from robovlms.training.tracking import METRICS
from robovlms.types import Observation

log = logging.getLogger(__name__)

COLUMNS = ("run", "success", "95 % interval", "opposite", "val error", "head M", "all M", "train ms", "act ms")


@dataclass(kw_only=True)
class RunSummary:
    """One finished run."""

    name: str
    own: tuple[int, int, float, float] | None  # successes, trials, interval
    opposite: tuple[int, int] | None
    action_error: float | None  # of the last validation, normalised units
    head_millions: float
    millions: float
    train_ms: float | None  # an optimizer step
    act_ms: float  # a control step on this CPU, chunk included, median

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        success = "-" if self.own is None else f"{self.own[0]}/{self.own[1]}"
        interval = "-" if self.own is None else f"{self.own[2]:.0%} to {self.own[3]:.0%}"
        opposite = "-" if self.opposite is None else f"{self.opposite[0]}/{self.opposite[1]}"
        error = "-" if self.action_error is None else f"{self.action_error:.3f}"
        train = "-" if self.train_ms is None else f"{self.train_ms:.0f}"
        sizes = (f"{self.head_millions:.2f}", f"{self.millions:.2f}")
        return (self.name, success, interval, opposite, error, *sizes, train, f"{self.act_ms:.1f}")


def compare(folders: list[str], latency_steps: int) -> tuple[str, Path]:
    """Return a markdown table of every run below `folders`, best first, and the picture beside the first of them.

    A run that cannot be read is left out, with a warning that says why.

    Raises:
        FileNotFoundError: there is no finished run that can be read.
    """
    roots = [Path(folder) for folder in folders]
    found = sorted(
        {path.parent for root in roots for path in root.rglob(CONFIG) if (path.parent / "checkpoints").is_dir()}
    )
    runs = []
    for folder in found:
        try:
            runs.append(read_run(folder, latency_steps))
        except (UserError, FileNotFoundError) as error:
            log.warning("left out: %s: %s", folder, error)
    if not runs:
        raise FileNotFoundError(f"folders={folders} hold no run with a checkpoint: give the output_dir of a sweep.")
    runs.sort(key=lambda run: (-(run.own[0] / run.own[1]) if run.own else 0, run.action_error or 0))
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(run.cells() for run in runs)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    picture = roots[0] / "comparison.png"
    plot_comparison({run.name: run.own for run in runs if run.own}, {run.name: run.act_ms for run in runs}, picture)
    (roots[0] / "comparison.md").write_text(table + "\n", encoding="utf-8")
    return table, picture


def read_run(folder: Path, latency_steps: int) -> RunSummary:
    """Read one run's results and metrics, and time its policy."""
    checkpoint = resolve_checkpoint(folder)
    trained = load_policy(checkpoint)
    config, policy = trained.config, trained.policy
    results = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("evaluation/*/results.json"))
    ]
    language = results[-1].get("language", {}) if results else {}
    own, opposite = language.get("own"), language.get("opposite")
    rate = own and own["overall"]
    count = sum(p.numel() for p in policy.head.parameters())
    speed = last(folder / METRICS, "train/samples_per_s")
    return RunSummary(
        name=describe(config),
        own=rate and (rate["successes"], rate["trials"], rate["low"], rate["high"]),
        opposite=opposite and (opposite["overall"]["successes"], opposite["overall"]["trials"]),
        action_error=last(folder / METRICS, "val/action_error"),
        head_millions=count / 1e6,
        millions=sum(p.numel() for p in policy.parameters()) / 1e6,
        train_ms=speed and 1000 * config.batch_size / speed,
        act_ms=1000 * time_control_step(checkpoint, trained.plan.sources[0].name, latency_steps),
    )


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
    proprio = None if policy.proprio is None else np.zeros(len(policy.proprio.mean), np.float32)
    observation = Observation(frames=frames, instruction="open the drawer", proprio=proprio)
    seconds = []
    for _ in range(runner.engine.window_size + steps):
        start = time.perf_counter()
        runner.step(observation)
        seconds.append(time.perf_counter() - start)
    return median(seconds[runner.engine.window_size :])

"""From episodes to numbers: rates per task and overall, the console table, and `results.json`."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

from robovlms import __version__
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.statistics import Rate
from robovlms.files import write_text
from robovlms.terminal import printable

HEADER = ("task", "success", "mean", "95 % interval", "steps to success")
PACKAGES = ("torch", "transformers", "numpy", "gymnasium", "mujoco", "metaworld")


class Row(TypedDict):
    """A success rate; rates and interval bounds in [0, 1]."""

    successes: int
    trials: int
    mean: float
    low: float  # 95 % Wilson interval
    high: float
    steps_to_success: float | None  # mean over the successful episodes
    errors: int  # episodes that ended in an error; they count as failures


class Group(TypedDict):
    """The rates of one kind of episodes."""

    overall: Row
    tasks: dict[str, Row]  # in the order of the plan


class Results(TypedDict):
    """What `results.json` holds."""

    own: Group  # with the task's own instruction
    opposite: Group | None  # with the opposite one: success counts against the policy
    config: dict[str, Any]
    versions: dict[str, str]
    episodes: list[dict[str, Any]]  # the fields of EpisodeResult


def summarize(episodes: Sequence[EpisodeResult], *, config: Mapping[str, Any], versions: Mapping[str, str]) -> Results:
    """Count successes per task and overall, apart for own and opposite instructions.

    Overall rates are over episodes, so that a task with more of them weighs more.

    Raises:
        UserError: there is no episode with its task's own instruction.
    """
    own = [episode for episode in episodes if not episode.opposite]
    opposite = [episode for episode in episodes if episode.opposite]
    return {
        "own": _group(own),
        "opposite": _group(opposite) if opposite else None,
        "config": dict(config),
        "versions": dict(versions),
        "episodes": [asdict(episode) for episode in episodes],
    }


def _group(episodes: Sequence[EpisodeResult]) -> Group:
    by_task: dict[str, list[EpisodeResult]] = {}
    for episode in episodes:
        by_task.setdefault(episode.task, []).append(episode)
    return {"overall": _row(episodes), "tasks": {task: _row(some) for task, some in by_task.items()}}


def _row(episodes: Sequence[EpisodeResult]) -> Row:
    rate = Rate(sum(episode.success for episode in episodes), len(episodes))
    steps = [episode.steps for episode in episodes if episode.success and episode.steps is not None]
    return {
        "successes": rate.successes,
        "trials": rate.trials,
        "mean": rate.mean,
        "low": rate.interval[0],
        "high": rate.interval[1],
        "steps_to_success": sum(steps) / len(steps) if steps else None,
        "errors": sum(episode.error is not None for episode in episodes),
    }


def environment_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions a result may depend on: Python, the system, ours and those of the installed `packages`."""
    found = {"python": platform.python_version(), "system": platform.platform(), "robovlms": __version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # a simulator that is not installed took no part
    return found


def write_results(path: Path, results: Results) -> None:
    """Write `results` as JSON; the file appears whole or not at all."""
    write_text(path, json.dumps(results, indent=1))


def format_table(results: Results) -> str:
    """Lay the rates out as aligned plain text, with a section for the opposite instructions if there are any."""
    lines = [list(HEADER), *_section("own instruction", results["own"])]
    if results["opposite"]:
        lines += _section("opposite instruction (success counts against the policy)", results["opposite"])
    widths = [max(len(line[i]) for line in lines if len(line) > 1) for i in range(len(HEADER))]
    text = []
    for name, *cells in lines:
        text.append("  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=False))]))
    return "\n".join(line.rstrip() for line in text)


def _section(title: str, group: Group) -> list[list[str]]:
    rows = [*group["tasks"].items(), ("overall", group["overall"])]
    return [[""], [title], *(row_cells(f"  {printable(name, keep='')}", row) for name, row in rows)]


def row_cells(name: str, row: Row) -> list[str]:
    """Return the texts of one table row: name, k/n, mean, interval, steps to success."""
    steps = row["steps_to_success"]
    errors = f" ({row['errors']} errors)" if row["errors"] else ""
    return [
        name,
        f"{row['successes']}/{row['trials']}{errors}",
        f"{row['mean']:.1%}",
        f"{row['low']:.1%} .. {row['high']:.1%}",
        "-" if steps is None else f"{steps:.0f}",
    ]

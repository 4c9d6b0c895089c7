"""From episodes to numbers: rates per task and overall, the console table, and `results.json`."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

from robovlms import __version__
from robovlms.config.choices import Language
from robovlms.evaluation.analysis.certificate import Certificate
from robovlms.evaluation.analysis.language import Instructions, judge_instructions, sentences
from robovlms.evaluation.analysis.latency import Point
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.statistics import Rate, bootstrap_mean
from robovlms.files import write_text
from robovlms.terminal import printable

SECTIONS = {
    Language.own: "own instruction",
    Language.opposite: "opposite instruction (success counts against the policy)",
    Language.empty: "no instruction",
    Language.paraphrase: "paraphrased instruction",
    Language.spelling: "capitals and a full stop",
}
HEADER = ("task", "success", "mean", "95 % interval", "steps to success")
PACKAGES = ("torch", "transformers", "numpy")


class Row(TypedDict):
    """A success rate; rates and interval bounds in [0, 1]."""

    successes: int
    trials: int
    mean: float
    low: float  # 95 % Wilson interval
    high: float
    steps_to_success: float | None  # mean over the successes
    errors: int  # episodes that ended in an error; they count as failures


class Chains(TypedDict):
    """How far episodes of several goals in a row came."""

    rates: list[Row]  # of reaching the first goal, the first two, ...
    average_length: float  # goals reached, mean over the chains
    low: float  # 95 % bootstrap interval of it, over chains
    high: float


class Rates(TypedDict):
    """The rates of the episodes with one kind of instruction."""

    overall: Row  # of reaching all goals of an episode
    tasks: dict[str, Row]  # of every goal that was due, in the order of the plan
    groups: dict[str, Row]  # as overall, over the episodes of every group and variant; {}: there are none
    chains: Chains | None  # None: episodes have one goal


class Results(TypedDict):
    """What `results.json` holds."""

    language: dict[str, Rates]  # by the kind of instruction, "own" first; for "opposite" success is a mistake
    instructions: Instructions | None  # what other instructions change; None: there are none
    config: dict[str, Any]
    versions: dict[str, str]
    episodes: list[dict[str, Any]]  # `EpisodeResult.to_json`
    latency: NotRequired[list[Point]]  # success against latency, where that was measured
    certificate: NotRequired[Certificate]
    chosen_from: NotRequired[int]  # checkpoints of a run, of which this one had the best result


def summarize(results: Sequence[EpisodeResult], *, config: Mapping[str, Any], versions: Mapping[str, str]) -> Results:
    """Count successes per task, per group and overall, apart for every kind of instruction.

    Overall rates are over episodes, so that a task with more of them weighs more.

    Raises:
        UserError: there is no episode with its own instruction.
    """
    kinds: dict[str, list[EpisodeResult]] = {Language.own.value: []}
    for result in results:
        kinds.setdefault(result.episode.language.value, []).append(result)
    return {
        "language": {language: _rates(some) for language, some in kinds.items()},
        "instructions": judge_instructions(results),
        "config": dict(config),
        "versions": dict(versions),
        "episodes": [result.to_json() for result in results],
    }


def _rates(results: Sequence[EpisodeResult]) -> Rates:
    tasks: dict[str, list[Trial]] = {}
    groups: dict[str, list[Trial]] = {}
    for result in results:
        for task, trial in _trials(result):
            tasks.setdefault(task, []).append(trial)
        for name in filter(None, [result.episode.group, result.episode.variant]):
            groups.setdefault(name, []).append(_whole(result))
    return {
        "overall": _row([_whole(result) for result in results]),
        "tasks": {task: _row(some) for task, some in tasks.items()},
        "groups": {name: _row(some) for name, some in groups.items()},
        "chains": _chains(results) if any(len(result.episode.goals) > 1 for result in results) else None,
    }


class Trial(NamedTuple):
    """Something that was tried once."""

    success: bool
    steps: int | None
    is_error: bool


def _whole(result: EpisodeResult) -> Trial:
    return Trial(result.success, result.steps, result.error is not None)


def _trials(result: EpisodeResult) -> Iterator[tuple[str, Trial]]:
    """Return the goals that were due, by their tasks: those reached, and the one that was not."""
    goals = result.episode.goals
    for goal, steps in zip(goals[: result.reached], result.goal_steps, strict=True):
        yield goal.task, Trial(True, steps, False)
    if not result.success:
        yield goals[result.reached].task, Trial(False, None, result.error is not None)


def _chains(results: Sequence[EpisodeResult]) -> Chains:
    lengths = [result.reached for result in results]
    longest = max(len(result.episode.goals) for result in results)
    low, high = bootstrap_mean(lengths)
    return {
        "rates": [
            _row([Trial(result.reached >= count, None, result.error is not None) for result in results])
            for count in range(1, longest + 1)
        ],
        "average_length": sum(lengths) / len(lengths),
        "low": low,
        "high": high,
    }


def _row(trials: Sequence[Trial]) -> Row:
    rate = Rate(sum(trial.success for trial in trials), len(trials))
    steps = [trial.steps for trial in trials if trial.success and trial.steps is not None]
    return {
        "successes": rate.successes,
        "trials": rate.trials,
        "mean": rate.mean,
        "low": rate.interval[0],
        "high": rate.interval[1],
        "steps_to_success": sum(steps) / len(steps) if steps else None,
        "errors": sum(trial.is_error for trial in trials),
    }


def environment_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions a result may depend on: Python, the system, ours, PyTorch's and those of the installed
    `packages` of a simulator.
    """
    found = {"python": platform.python_version(), "system": platform.platform(), "robovlms": __version__}
    for package in (*PACKAGES, *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # a simulator that is not installed took no part
    return found


def write_results(path: Path, results: Results) -> None:
    """Write `results` as JSON; the file appears whole or not at all."""
    write_text(path, json.dumps(results, indent=1))


def scores(results: Results) -> dict[str, float]:
    """Return the rates as metrics of a tracker: `eval/success`, `eval/<task>`; otherwise told, `eval/empty/success`."""
    found: dict[str, float] = {}
    for language, rates in results["language"].items():
        place = "eval" if language == Language.own else f"eval/{language}"
        found[f"{place}/success"] = rates["overall"]["mean"]
        if chains := rates["chains"]:
            found[f"{place}/average_length"] = chains["average_length"]
        found |= {f"{place}/{name}": row["mean"] for name, row in {**rates["groups"], **rates["tasks"]}.items()}
    return found


def format_table(results: Results) -> str:
    """Lay the rates out as aligned plain text, with a section for every kind of instruction."""
    lines = [list(HEADER)]
    for language, rates in results["language"].items():
        lines += _section(SECTIONS[Language(language)], rates)
    if said := sentences(results["instructions"]):
        lines += [[""], *([sentence] for sentence in said)]
    widths = [max(len(line[i]) for line in lines if len(line) > 1) for i in range(len(HEADER))]
    text = []
    for name, *cells in lines:
        columns = zip(cells, widths[1 : 1 + len(cells)], strict=True)  # a heading is alone in its line
        text.append("  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in columns)]))
    return "\n".join(line.rstrip() for line in text)


def _section(title: str, rates: Rates) -> list[list[str]]:
    lines = [[""], [title]]
    if chains := rates["chains"]:
        lines[-1] = [f"{title}: average length {length_text(chains)}"]
    return [*lines, *(row_cells(f"  {printable(name, keep='')}", row) for name, row in table_rows(rates))]


def table_rows(rates: Rates) -> list[tuple[str, Row]]:
    """Return the rows of one table: tasks, groups, how far chains came, and all together."""
    chains = rates["chains"]
    in_a_row = [(f"{count} in a row", row) for count, row in enumerate(chains["rates"], 1)] if chains else []
    return [*rates["tasks"].items(), *rates["groups"].items(), *in_a_row, ("overall", rates["overall"])]


def length_text(chains: Chains) -> str:
    """Return the average length with its interval as text."""
    return f"{chains['average_length']:.2f} of {len(chains['rates'])} ({chains['low']:.2f} .. {chains['high']:.2f})"


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

"""Figures of a run: training curves, predicted against target actions, success rates. Matplotlib loads on first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32

from robovlms.errors import UserError
from robovlms.evaluation.analysis.checkpoints import best_checkpoint
from robovlms.evaluation.results import table_rows
from robovlms.files import atomic_file, read_json_lines
from robovlms.reports.palette import BLUE, GREEN, INK, LINE, ORANGE, RED, SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from robovlms.evaluation.analysis.checkpoints import CheckpointRow
    from robovlms.evaluation.analysis.comparison import Comparison
    from robovlms.evaluation.analysis.latency import Point
    from robovlms.evaluation.results import Results, Row

Curve = tuple[list[int], list[float]]  # steps and values
LOSS_TERMS = ("loss", "arm", "gripper")  # drawn first, and also without validation
MAX_LABEL = 32  # characters of a run's name beside an axis
LANGUAGES = {"own": BLUE, "opposite": RED, "empty": SOFT, "paraphrase": GREEN, "spelling": ORANGE}
EXECUTIONS = {"first": SOFT, "chunk": BLUE, "ensemble": ORANGE, "real_time": GREEN}
WIDTH = 9.2  # inches, of every figure
MAX_ROWS, MAX_POINTS = 300, 5000  # windows of a time series, dots of a scatter plot


def plot_training(metrics: Path, out_dir: Path) -> list[Path]:
    """Draw `loss.png` (the terms that validation reports, training beside them) and `lr.png` from `metrics.jsonl`.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it holds neither `train/loss` nor `val/loss`.
    """
    curves = _read_curves(metrics)
    if not {"train/loss", "val/loss"} & curves.keys():
        raise UserError(
            f"{metrics} holds no train/loss or val/loss to draw, only {sorted(curves)}: let the run log a step."
        )
    reported = {key.removeprefix("val/") for key in curves if key.startswith("val/") and key.count("/") == 1}
    known = [term for term in LOSS_TERMS if term in reported or f"train/{term}" in curves]
    terms = known + sorted(reported - set(known))
    rows = (len(terms) + 1) // 2
    figure, panels = _figure(rows, 2, height=2.9 * rows)
    for axes, term in zip_longest(chain(*panels), terms):
        if term is None:
            axes.set_visible(False)
        else:
            _draw_term(axes, term, curves)
    written = [_save(figure, out_dir / "loss.png")]
    if "train/lr" in curves:
        figure, panels = _figure(1, 1, height=2.6)
        panels[0][0].plot(*curves["train/lr"], color=BLUE)
        panels[0][0].set(title="learning rate", xlabel="optimizer step", ylim=(0, None))
        panels[0][0].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        written.append(_save(figure, out_dir / "lr.png"))
    return written


def plot_actions(
    predicted: Float32[np.ndarray, "r k a"],
    target: Float32[np.ndarray, "r k a"],
    mask: Bool[np.ndarray, "r k"],
    names: Sequence[str],
    binary: Sequence[int],
    path: Path,
) -> Path:
    """Draw one row per action entry: the first action of each chunk along the windows, and all against the targets.

    A binary gripper (closed below 0, open above) has counts of agreement instead of dots.

    Args:
        predicted: in the units of `target`; r windows in their order in the data.
        target: the demonstrated chunks.
        mask: False where a target is padding.
        names: one per action entry.
        binary: which of them are binary grippers.
        path: the PNG to write.
    """
    figure, panels = _figure(len(names), 2, height=1.45 * len(names) + 0.4, width_ratios=[3.0, 1.0])
    rows = np.flatnonzero(mask[:, 0])[:MAX_ROWS]
    for i, (name, (series, scatter)) in enumerate(zip(names, panels, strict=True)):
        series.plot(target[rows, 0, i], color=SOFT, label="target", linewidth=1.6)
        series.plot(predicted[rows, 0, i], color=ORANGE, label="predicted", linewidth=1.1)
        series.set(ylabel=name, xlim=(0, max(len(rows) - 1, 1)))
        true, guess = target[mask][:, i], predicted[mask][:, i]
        if i in binary:
            _draw_agreement(scatter, true > 0, guess > 0)
        else:
            _draw_scatter(scatter, true, guess)
    panels[0][0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    panels[0][0].set_title("first action of every chunk", loc="left")
    panels[0][1].set_title("all actions")
    panels[-1][0].set_xlabel("window" if len(rows) < MAX_ROWS else f"window (first {MAX_ROWS})")
    return _save(figure, path)


def plot_success(results: Results, path: Path) -> Path:
    """Draw success rates with 95 % intervals as bars, per task and overall, for every kind of instruction."""
    kinds = results["language"]
    names = [*dict.fromkeys(name for rates in kinds.values() for name, _ in table_rows(rates))]
    thickness = 0.76 / len(kinds) if len(kinds) > 1 else 0.6
    figure, panels = _figure(1, 1, height=1.2 + (0.22 + 0.2 * len(kinds)) * len(names))
    axes = panels[0][0]
    for number, (language, rates) in enumerate(kinds.items()):
        shift = (number - (len(kinds) - 1) / 2) * thickness
        label = "opposite instruction (lower is better)" if language == "opposite" else f"{language} instruction"
        _draw_bars(axes, names, dict(table_rows(rates)), shift, thickness, LANGUAGES[language], label)
    if len(kinds) > 1:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(len(kinds), 3), frameon=False)
    axes.set(
        yticks=range(len(names)), yticklabels=names, xlim=(0, 1), xlabel="reached the task's goal, with 95 % interval"
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.axhline(len(names) - 1.5, color=SOFT, linewidth=0.8)
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    return _save(figure, path)


def plot_comparison(
    success: Mapping[str, tuple[int, int, float, float]], act_ms: Mapping[str, float], path: Path
) -> Path:
    """Draw runs side by side: success with its 95 % interval, and milliseconds of a control step.

    Args:
        success: of every run that was evaluated, best first: successes, trials, interval.
        act_ms: of every run that was timed; {}: none was.
        path: of the picture.
    """
    names = [*success, *(name for name in act_ms if name not in success)]
    columns = 2 if act_ms else 1
    figure, (panels,) = _figure(1, columns, height=1.2 + 0.32 * len(names), width_ratios=[3.0, 2.0][:columns])
    rows = {
        name: {"successes": done, "trials": n, "mean": done / n, "low": low, "high": high}
        for name, (done, n, low, high) in success.items()
    }
    _draw_bars(panels[0], names, rows, 0.0, 0.6, BLUE, "success")  # type: ignore[arg-type]
    panels[0].set(
        yticks=range(len(names)), yticklabels=map(_label, names), xlim=(0, 1), title="success, with 95 % interval"
    )
    panels[0].xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if act_ms:
        known = [i for i, name in enumerate(names) if name in act_ms]
        panels[1].barh(known, [act_ms[names[i]] for i in known], 0.6, color=ORANGE, alpha=0.85)
        panels[1].set(yticks=[], title="milliseconds of a control step", xscale="log", ylim=panels[0].get_ylim())
    for axes in panels:
        axes.grid(axis="y", visible=False)
        axes.invert_yaxis()
    return _save(figure, path)


def plot_differences(comparison: Comparison, path: Path) -> Path:
    """Draw the difference of every pair of runs with its 95 % interval; those that are decided are coloured."""
    pairs = comparison.pairs
    figure, panels = _figure(1, 1, height=1.1 + 0.3 * len(pairs))
    axes = panels[0][0]
    for place, pair in enumerate(pairs):
        mean, low, high = pair.contrast.mean, pair.contrast.low, pair.contrast.high
        color = SOFT if pair.better is None else BLUE
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=color, capsize=3, markersize=5)
    axes.axvline(0, color=INK, linewidth=0.8)
    what = "success" if comparison.num_goals == 1 else "average length"
    axes.set(
        yticks=range(len(pairs)),
        yticklabels=[f"{_label(pair.first)} - {_label(pair.second)}" for pair in pairs],
        xlabel=f"difference of {what}, with 95 % interval; blue: decided",
        ylim=(len(pairs) - 0.5, -0.5),
    )
    if comparison.num_goals == 1:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.0%}")
    axes.grid(axis="y", visible=False)
    return _save(figure, path)


def plot_latency(points: Sequence[Point], path: Path) -> Path:
    """Draw success, or the average length of chains, against the control steps that a decision takes."""
    figure, panels = _figure(1, 1, height=3.4)
    axes = panels[0][0]
    executions = list(dict.fromkeys(point["execution"] for point in points))
    for number, execution in enumerate(executions):
        curve = [point for point in points if point["execution"] == execution]
        places = [point["latency"] + 0.06 * (number - (len(executions) - 1) / 2) for point in curve]  # side by side
        means = [point["mean"] for point in curve]
        errors = [[p["mean"] - p["low"] for p in curve], [p["high"] - p["mean"] for p in curve]]
        axes.errorbar(places, means, yerr=errors, color=EXECUTIONS[execution], marker="o", capsize=3, label=execution)
    latencies = sorted({point["latency"] for point in points})
    axes.set(xlabel="control steps that a decision takes", ylabel="success, with 95 % interval", xticks=latencies)
    if max(point["high"] for point in points) <= 1:
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    else:
        axes.set(ylabel="average length, with 95 % interval", ylim=(0, None))
    axes.legend(frameon=False, loc="lower left")
    return _save(figure, path)


def plot_checkpoints(rows: Sequence[CheckpointRow], path: Path) -> Path:
    """Draw success, or the average length of chains, against the step of the checkpoint, with 95 % intervals."""
    figure, ((axes,),) = _figure(1, 1, height=3.4)
    steps, scores = [row.step for row in rows], [row.score for row in rows]
    bounds = [row.chains or row.overall for row in rows]
    low = [score - bound["low"] for score, bound in zip(scores, bounds, strict=True)]
    high = [bound["high"] - score for score, bound in zip(scores, bounds, strict=True)]
    axes.errorbar(steps, scores, yerr=[low, high], color=BLUE, ecolor=INK, marker="o", capsize=3)
    if len(rows) > 1:
        best = best_checkpoint(rows)
        axes.plot([best.step], [best.score], "o", color=ORANGE, markersize=9, label=f"best of {len(rows)}")
        axes.legend(frameon=False)
    is_rate = rows[0].chains is None
    axes.set(
        xlabel="training step", ylabel="success" if is_rate else "average length", ylim=(0, 1 if is_rate else None)
    )
    return _save(figure, path)


def _read_curves(metrics: Path) -> dict[str, Curve]:
    if not metrics.is_file():
        raise FileNotFoundError(f"{metrics} does not exist: give the metrics.jsonl in the output_dir of a run.")
    curves: dict[str, Curve] = {}
    for entry in read_json_lines(metrics):  # a run that goes on may be about to write the last
        for key, value in entry.items():
            if key != "step" and isinstance(value, int | float):
                steps, values = curves.setdefault(key, ([], []))
                steps.append(entry["step"])
                values.append(float(value))
    return curves


def _draw_term(axes: Axes, term: str, curves: Mapping[str, Curve]) -> None:
    train, validation = curves.get(f"train/{term}"), curves.get(f"val/{term}")
    if train:
        smooth = _running_mean(train[1])
        axes.plot(*train, color=BLUE, alpha=0.3 if smooth else 1, linewidth=1, label=None if smooth else "training")
        if smooth:
            axes.plot(train[0], smooth, color=BLUE, label="training (running mean)")
    if validation:
        axes.plot(*validation, color=ORANGE, marker="o", markersize=4, label="validation")
    values = [value for curve in (train, validation) if curve for value in curve[1]]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set(title=term.replace("_", " "), xlabel="optimizer step")
    axes.legend(frameon=False)


def _running_mean(values: Sequence[float]) -> list[float] | None:
    """Average each value with 1/40 of the curve on either side; None for a curve too short to need it."""
    span = len(values) // 40
    if span == 0:
        return None
    return [float(np.mean(values[max(i - span, 0) : i + span + 1])) for i in range(len(values))]


def _draw_scatter(axes: Axes, target: Float32[np.ndarray, "n"], predicted: Float32[np.ndarray, "n"]) -> None:
    thin = slice(None, None, len(target) // MAX_POINTS + 1)
    low, high = min(target.min(), predicted.min()), max(target.max(), predicted.max())
    axes.plot([low, high], [low, high], color=SOFT, linewidth=1)
    axes.scatter(target[thin], predicted[thin], s=5, alpha=0.3, color=ORANGE, linewidths=0)
    axes.set(ylabel="predicted")
    error = f"mean abs. error {np.abs(target - predicted).mean():.3g}"
    axes.text(0.03, 0.97, error, transform=axes.transAxes, va="top", fontsize=8, color=SOFT)


def _draw_agreement(axes: Axes, target: Bool[np.ndarray, "n"], predicted: Bool[np.ndarray, "n"]) -> None:
    counts = np.array([[np.sum((predicted == p) & (target == t)) for t in (False, True)] for p in (False, True)])
    axes.imshow(counts, cmap="Oranges", origin="lower", aspect="auto", vmin=0, vmax=2 * counts.max())
    for p, t in np.ndindex(2, 2):
        axes.text(t, p, f"{counts[p, t]}", ha="center", va="center")
    axes.set(xticks=[0, 1], yticks=[0, 1], xticklabels=["closed", "open"], yticklabels=["closed", "open"])
    axes.set(xlabel=f"target ({np.mean(target == predicted):.1%} agree)", ylabel="predicted")
    axes.grid(visible=False)


def _draw_bars(
    axes: Axes, names: Sequence[str], rows: Mapping[str, Row], shift: float, thickness: float, color: str, label: str
) -> None:
    known = [(i + shift, rows[name]) for i, name in enumerate(names) if name in rows]
    places, means = [place for place, _ in known], [row["mean"] for _, row in known]
    errors = [[row["mean"] - row["low"] for _, row in known], [row["high"] - row["mean"] for _, row in known]]
    axes.barh(places, means, thickness, xerr=errors, color=color, alpha=0.85, label=label, ecolor=INK, capsize=3)
    for place, row in known:
        axes.text(1.01, place, f"{row['successes']}/{row['trials']}", va="center", color=color, fontsize=9)


def _label(name: str) -> str:
    """Return a run's name with its middle left out where it would leave no room for the figure; tables have it all."""
    half = MAX_LABEL // 2
    return name if len(name) <= MAX_LABEL else f"{name[: half - 1]}…{name[-half:]}"


def _figure(
    rows: int, columns: int, *, height: float, width_ratios: Sequence[float] | None = None
) -> tuple[Figure, list[list[Axes]]]:
    """Make a grid of panels; without pyplot, so that no window system and no global state is involved."""
    from matplotlib.figure import Figure  # here: its import takes a second

    figure = Figure(figsize=(WIDTH, height), layout="constrained", dpi=130)
    panels = figure.subplots(rows, columns, squeeze=False, width_ratios=width_ratios)
    for axes in panels.flat:
        axes.grid(color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(10)
    return figure, [list(line) for line in panels]


def _save(figure: Figure, path: Path) -> Path:
    with atomic_file(path) as file:  # a run and the evaluation beside it draw the same curves
        figure.savefig(file, format="png")
    return path

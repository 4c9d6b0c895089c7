"""Several checkpoints of a run side by side: the table, and which is best, said to be the best of so many."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from robovlms.evaluation.analysis.certificate import seal
from robovlms.evaluation.analysis.paired import corrected_confidence
from robovlms.evaluation.folder import RESULTS
from robovlms.evaluation.results import Chains, Results, Row, length_text, row_cells, write_results
from robovlms.evaluation.statistics import bootstrap_mean, wilson_interval
from robovlms.files import write_text

TABLE, MARKDOWN, FIGURE, PAGE = "checkpoints.json", "checkpoints.md", "checkpoints.png", "checkpoints.html"
HEADER = ("step", "success", "mean", "95 % interval", "steps to success", "")


class CheckpointRow(NamedTuple):
    """How a checkpoint did with the benchmark's own instructions."""

    step: int
    folder: str  # of its evaluation
    overall: Row
    chains: Chains | None

    @classmethod
    def of(cls, step: int, folder: Path, results: Results) -> CheckpointRow:
        """Return the row of an evaluation."""
        own = results["language"]["own"]
        return cls(step, str(folder), own["overall"], own["chains"])

    def corrected(self, count: int) -> tuple[float, float]:
        """Return an interval of the score that holds for whichever of `count` checkpoints is chosen by its score: as
        wide as lets all of their intervals hold together (Bonferroni).
        """
        confidence = corrected_confidence(count)
        if self.chains is None:
            return wilson_interval(self.overall["successes"], self.overall["trials"], confidence)
        reached = [row["successes"] for row in self.chains["rates"]]  # of at least one goal, two, ...
        numbers = [more - fewer for more, fewer in pairwise([self.overall["trials"], *reached, 0])]
        return bootstrap_mean([length for length, number in enumerate(numbers) for _ in range(number)], confidence)

    @property
    def score(self) -> float:
        """What checkpoints are ranked by: the average length of chains, or the rate of success."""
        return self.chains["average_length"] if self.chains else self.overall["mean"]


def best_checkpoint(rows: Sequence[CheckpointRow]) -> CheckpointRow:
    """Return the one with the highest score, the earliest of equals."""
    return max(rows, key=lambda row: (row.score, -row.step))


def selection_note(rows: Sequence[CheckpointRow]) -> str:
    """Say what a best score is worth that was found among so many."""
    best = best_checkpoint(rows)
    low, high = (f"{bound:.2f}" if best.chains else f"{bound:.1%}" for bound in best.corrected(len(rows)))
    return (
        f"The best of {len(rows)} checkpoints is that of step {best.step}. It was chosen by these very episodes, so "
        f"its score is too good by chance, and its 95 % interval is {low} .. {high} when corrected for the choice "
        "(Bonferroni): evaluate it again from another sim.seed before it is quoted alone."
    )


def table_cells(rows: Sequence[CheckpointRow]) -> list[list[str]]:
    """Return the texts of the table, a line per checkpoint; the best of several is flagged."""
    best = best_checkpoint(rows).step if len(rows) > 1 else None
    return [[*row_cells(str(row.step), row.overall), _remark(row, len(rows), row.step == best)] for row in rows]


def _remark(row: CheckpointRow, count: int, is_best: bool) -> str:
    remarks = [f"average length {length_text(row.chains)}"] if row.chains else []
    return ", ".join([*remarks, f"best of {count}"] if is_best else remarks)


def format_checkpoints(rows: Sequence[CheckpointRow]) -> str:
    """Lay the table out as markdown, its columns aligned, and say what the best is worth."""
    lines = [list(HEADER), *table_cells(rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(HEADER))]
    lines.insert(1, [f"{'-' * (width - 1)}:" for width in widths])
    table = "\n".join(
        f"| {' | '.join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )
    return f"{table}\n\n{selection_note(rows)}" if len(rows) > 1 else table


def write_checkpoints(folder: Path, rows: Sequence[CheckpointRow]) -> None:
    """Write the table into a folder, as JSON and as markdown."""
    best = best_checkpoint(rows)
    content = {
        "checkpoints": [row._asdict() for row in rows],
        "best": {"step": best.step, "of": len(rows), "score": best.score},
    }
    write_text(folder / TABLE, json.dumps(content, indent=1) + "\n")
    write_text(folder / MARKDOWN, format_checkpoints(rows) + "\n")


def flag_best(rows: Sequence[CheckpointRow]) -> None:
    """Write into the results of the best of several that it is that (`chosen_from`), and into no others."""
    best = best_checkpoint(rows)
    for row in rows:
        path = Path(row.folder) / RESULTS
        results: Results = json.loads(path.read_text(encoding="utf-8"))
        was = results.pop("chosen_from", 1)
        chosen_from = len(rows) if row is best else 1
        if chosen_from > 1:
            results["chosen_from"] = chosen_from
        if chosen_from != was:
            write_results(path, seal(results))

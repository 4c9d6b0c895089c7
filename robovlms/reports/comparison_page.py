"""What a comparison of runs says, as tables for console, markdown and page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robovlms.evaluation.analysis.comparison import LEVEL, Comparison, Pair
from robovlms.reports.pages import data_uri, write_page

SCORES = ("run", "on these episodes", "95 % interval", "among the best")
PAIRS = ("runs", "won : lost", "difference", "95 % interval", "p", "p, Holm", "better")
ONCE = "Success is compared by McNemar's exact test, with Tango's interval of the difference."
ONCE_CHAINS = (
    "Chains are compared by the exact sign test of their lengths, with a bootstrap interval over episodes of the "
    "difference of average lengths."
)
AT_ANY_TIME = "P-values and intervals come from bets on the difference (e-values): they hold at every look."
SETS = (
    f"P-values are corrected for all pairs (Holm): the chance of any false 'better' is at most {LEVEL:.0%}, and the "
    "set of best, those that no run is better than, lacks the truly best no more often. Intervals hold one by one."
)


@dataclass(frozen=True)
class Table:
    """A titled table with sentences below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: Sequence[str] = ()
    verdict: str = ""  # the sentence that matters most

    def markdown(self) -> str:
        """Return it as markdown; the first table of a text needs no title."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in lines)
        says = [*filter(None, [self.verdict]), *self.texts]
        return "\n\n".join([*([f"## {self.title}"] if says else []), table, *says])


def tables_of(comparison: Comparison) -> list[Table]:
    """Return what a comparison says: the scores with the set of best, and the pairs."""
    score = _points if comparison.num_goals == 1 else _length
    scores = [
        [name, score(each.mean), f"{score(each.low)} to {score(each.high)}", "yes" if name in comparison.best else "no"]
        for name, each in comparison.scores.items()
    ]
    needed = ("episodes needed",) if comparison.is_sequential else ()
    pairs = [_cells(pair, comparison) for pair in comparison.pairs]
    how = AT_ANY_TIME if comparison.is_sequential else ONCE if comparison.num_goals == 1 else ONCE_CHAINS
    title = f"On the {comparison.num_episodes} episodes that all have played"
    return [
        Table(title, SCORES, scores, comparison.notes, verdict(comparison)),
        Table("Pair by pair", (*PAIRS, *needed), pairs, [f"{how} {SETS}"]),
    ]


def verdict(comparison: Comparison) -> str:
    """Return in a sentence or two which runs may be the best, and in a sequential comparison whether to go on."""
    best = comparison.best
    if len(best) == len(comparison.scores):
        found = "No run is shown to be better than another: all may be the best."
    elif len(best) == 1:
        found = f"The best is {best[0]}."
    else:
        found = f"Any of these may be the best: {', '.join(best)}."
    return f"{found} {_advice(comparison)}" if comparison.is_sequential else found


def _advice(comparison: Comparison) -> str:
    if len(comparison.best) == 1:
        return "Stop: more episodes are not needed to know it."
    open_pairs = [p for p in comparison.pairs if p.better is None and {p.first, p.second} <= set(comparison.best)]
    needed = {pair: pair.contrast.pairs_needed for pair in open_pairs}
    soonest = min((count for count in needed.values() if count is not None), default=None)
    if soonest is None:
        return "Go on, or stop and call them alike within the intervals below: nothing points to a difference yet."
    more = max(soonest - comparison.num_episodes, 1)
    return f"Go on: about {more:,} more episodes will decide a pair of them if all goes on as it did."


def write_comparison(path: Path, tables: Sequence[Table], figures: Sequence[Path]) -> Path:
    """Write the page and return its path: one file that opens offline."""
    return write_page(
        path,
        "comparison.html",
        title="Comparison",
        tables=tables,
        figures=[(figure.stem, data_uri(figure, "image/png")) for figure in figures],
    )


def _cells(pair: Pair, comparison: Comparison) -> list[str]:
    contrast, score = pair.contrast, _signed_points if comparison.num_goals == 1 else _signed_length
    cells = [
        f"{pair.first} - {pair.second}",
        f"{contrast.wins} : {contrast.losses}",
        score(contrast.mean),
        f"{score(contrast.low)} to {score(contrast.high)}",
        _p_value(contrast.p_value),
        _p_value(pair.adjusted),
        pair.better[0] if pair.better else "not decided",
    ]
    needed = contrast.pairs_needed
    return [*cells, "-" if needed is None else f"{needed:,}"] if comparison.is_sequential else cells


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _points(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _length(goals: float) -> str:
    return f"{goals:.2f}"


def _signed_points(difference: float) -> str:
    return f"{100 * difference:+.1f} %"


def _signed_length(difference: float) -> str:
    return f"{difference:+.2f}"

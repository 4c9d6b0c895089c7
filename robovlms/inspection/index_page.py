"""The first page of an inspection: what the report says, as tables, with the contact sheet below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from robovlms.inspection.report import Histogram, Report, Table
from robovlms.inspection.text import FOLLOWING, IDLE, SOLVED, following_cells, idle_cells, shorten, solved_cells
from robovlms.reports.pages import data_uri, write_page

SHOWN = ("mean", "std", "min", "q01", "q50", "q99", "max")
MAX_NUMBERS = 2000  # characters of the episodes' numbers; the JSON has all
MAX_INSTRUCTIONS = 200  # that are listed; the JSON has all


class Bar(NamedTuple):
    """One bar of a histogram: its rectangle in px, and how many values it stands for."""

    x: str
    y: str
    width: str
    height: str
    amount: int


def write_index(report: Report, path: Path, *, pages: Sequence[Path], sheet: Path) -> Path:
    """Write the page and return its path; it holds the contact sheet and links to the files beside it."""
    return write_page(
        path,
        "inspection.html",
        title=report.name,
        report=report,
        tiles=_tiles(report),
        numbers=shorten(report.numbers, MAX_NUMBERS),
        tables=[_statistics(table) for table in report.tables],
        grippers=[(grip, bars(grip.histogram, 420, 70)) for grip in report.grippers],
        length_bars=bars(report.lengths, 420, 70),
        following_heads=["", *FOLLOWING],
        following=[(entry.name, *following_cells(entry)) for entry in report.replay.following],
        solved_heads=["", *SOLVED],
        solved=[(task.task, *solved_cells(task)) for task in report.simulation.tasks] if report.simulation else [],
        replayed_states=[(entry.name, *following_cells(entry)) for entry in report.simulation.states]
        if report.simulation
        else [],
        idle_heads=["", *IDLE],
        idle=idle_cells(report)[:MAX_INSTRUCTIONS],
        round_trip=[
            (e.name, e.undone, f"{e.error:.1g}", f"{e.beyond:,}", f"{e.rows:,}") for e in report.replay.round_trip
        ],
        views=_views(report),
        instructions=list(report.instructions.items())[:MAX_INSTRUCTIONS],
        outliers=[(o.entry, f"{o.value:.5g}", f"{o.low:.4g} … {o.high:.4g}", o.source) for o in report.outliers],
        pages=pages,
        sheet_name=sheet.name,
        sheet=data_uri(sheet, "image/png"),
    )


def _tiles(report: Report) -> list[tuple[str, str, bool]]:
    """Return value, label and whether it is bad news."""
    minutes = report.seconds / 60
    return [
        (f"{report.num_episodes:,}", "episodes", False),
        (f"{report.num_frames:,}", "frames", False),
        (f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h", f"at {report.hz:g} Hz", False),
        (f"{report.num_windows:,}", f"windows of {report.window_size} frames", False),
        (f"{report.masked_share:.1%}", f"actions masked, chunks of {report.chunk_size}", False),
        (f"{len(report.instructions):,}", "instructions", False),
        (f"{report.num_errors}", "errors", bool(report.num_errors)),
        (f"{len(report.findings) - report.num_errors}", "warnings", False),
    ]


def _statistics(table: Table) -> dict[str, object]:
    columns = [getattr(table.statistics, key) for key in SHOWN]
    rows = [
        (name, [f"{column[i]:.4g}" for column in columns], bars(table.histograms[i], 120, 22))
        for i, name in enumerate(table.names)
    ]
    return {"title": table.title, "columns": SHOWN, "rows": rows}


def _views(report: Report) -> list[tuple[str, ...]]:
    return [
        (
            view.name,
            ", ".join(view.sizes),
            f"{view.frames:,}",
            f"{view.repeated_share:.1%}",
            f"{view.longest_run}",
            view.longest_source or "",
        )
        for view in report.views
    ]


def bars(histogram: Histogram, width: int, height: int) -> list[Bar]:
    """Return the bars of a histogram, as high as the roots of the counts, so that rare values are visible, too."""
    top = max(histogram.counts, default=0) ** 0.5 or 1.0
    step = width / len(histogram.counts)
    found = []
    for i, count in enumerate(histogram.counts):
        tall = count**0.5 / top * height
        if count:
            wide = max(step - 1, 1)
            found.append(Bar(f"{i * step:.1f}", f"{height - tall:.1f}", f"{wide:.1f}", f"{tall:.1f}", count))
    return found

"""One HTML file that shows how the checkpoints of a run did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robovlms.evaluation.analysis.checkpoints import FIGURE, HEADER, PAGE, CheckpointRow, selection_note, table_cells
from robovlms.reports.pages import data_uri, write_page
from robovlms.reports.plots import plot_checkpoints


def write_checkpoints_page(folder: Path, rows: Sequence[CheckpointRow], *, name: str) -> Path:
    """Write `checkpoints.html` with table and figure into a folder and return its path."""
    figure = plot_checkpoints(rows, folder / FIGURE)
    return write_page(
        folder / PAGE,
        "checkpoints.html",
        title=name,
        header=HEADER,
        rows=table_cells(rows),
        note=selection_note(rows) if len(rows) > 1 else "",
        figure=data_uri(figure, "image/png"),
        folders=[row.folder for row in rows],
    )

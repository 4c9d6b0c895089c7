"""A data set's report as text for a console."""

from __future__ import annotations

from collections.abc import Sequence

from robovlms.inspection.report import Report
from robovlms.terminal import printable

SHOWN = ("mean", "std", "min", "q01", "q50", "q99", "max")  # columns of the tables of statistics
MAX_INSTRUCTIONS, MAX_OUTLIERS = 20, 10


def format_report(report: Report) -> str:
    """Return the report as text for a console."""
    lines = [
        f"{report.name}: {report.summary}",
        f"{report.num_episodes} episodes, {report.num_frames} frames, {report.seconds / 60:.1f} min at "
        f"{report.hz:g} Hz; {report.lengths.low:g} to {report.lengths.high:g}, median {report.median_length:g} frames",
        f"{report.num_windows} windows of {report.window_size} frames and {report.chunk_size} actions a frame; "
        f"{report.masked_share:.1%} of their actions are masked",
        f"Statistics of {report.scanned}.",
    ]
    for table in report.tables:
        columns = [getattr(table.statistics, key) for key in SHOWN]
        cells = [[f"{column[i]:.4g}" for column in columns] for i in range(len(table.names))]
        lines += ["", table.title, *_align([["", *SHOWN], *([n, *c] for n, c in zip(table.names, cells, strict=True))])]
    for grip in report.grippers:
        lines += [
            "",
            f"{grip.name.capitalize()}: recorded {grip.histogram.low:g} to {grip.histogram.high:g}, declared "
            f"{grip.closed:g} closed and {grip.open:g} open; open in {grip.open_share:.0%} of the rows and at the "
            f"start of {grip.starts_open_share:.0%} of the episodes; {grip.changes:.1f} changes an episode",
        ]
    for view in report.views:
        where = f", {view.longest_source}" if view.longest_source else ""
        lines.append(
            f"View {view.name}: {', '.join(view.sizes)}; {view.repeated_share:.1%} of the steps repeat the picture, "
            f"the longest run is {view.longest_run}{where}"
        )
    lines += ["", f"Instructions: {len(report.instructions)}"]
    lines += [f"  {count:6d}  {text!r}" for text, count in list(report.instructions.items())[:MAX_INSTRUCTIONS]]
    lines += ["", f"Outliers: {report.num_outliers}"]
    lines += [
        f"  {o.entry} = {o.value:.4g}, not in {o.low:.4g} ... {o.high:.4g}: {o.source}"
        for o in report.outliers[:MAX_OUTLIERS]
    ]
    lines += ["", f"Findings: {report.num_errors} errors, {len(report.findings) - report.num_errors} warnings"]
    for finding in report.findings:
        lines += [f"  {finding.severity.upper()}: {finding.what}"]
        lines += [f"    where: {finding.where}", f"    do: {finding.to_do}"]
    return "\n".join(printable(line, keep="") for line in lines)


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + row[0].ljust(widths[0]) + "".join(cell.rjust(w + 2) for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]

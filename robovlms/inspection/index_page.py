"""The first page of an inspection: what the report says, as tables, with the contact sheet below."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from robovlms.inspection.report import Histogram, Report, Table

SHOWN = ("mean", "std", "min", "q01", "q50", "q99", "max")
MAX_INSTRUCTIONS = 200  # that are listed; the JSON has all
STYLE = """
:root { color-scheme: light; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --blue: #2563a8; --red: #b83a3a;
        --amber: #a15c07; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 32px 24px 64px; color: var(--ink); background: #fff;
       font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 19px; margin: 36px 0 8px; } a { color: var(--blue); }
p { margin: 6px 0; color: var(--soft); overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: 8px 14px; }
.tile b { display: block; font-size: 22px; line-height: 1.25; color: var(--blue); font-variant-numeric: tabular-nums; }
.tile.bad b { color: var(--red); } .tile span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 4px 12px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
th.text, td.text { text-align: left; overflow-wrap: anywhere; } th:first-child, td:first-child { padding-left: 0; }
.finding { border-left: 4px solid var(--amber); background: #fdf8ee; border-radius: 0 6px 6px 0; padding: 8px 14px;
       margin: 8px 0; } .finding.error { border-color: var(--red); background: #fdf2f2; }
.finding b { display: block; overflow-wrap: anywhere; } .finding span { font-size: 13px; overflow-wrap: anywhere; }
.finding .where { color: var(--soft); display: block; }
.good { color: #16804a; } img { max-width: 100%; display: block; border: 1px solid var(--line); border-radius: 6px; }
svg { border-bottom: 1px solid var(--line); display: block; } svg rect { fill: var(--blue); }
.bars { width: 420px; max-width: 100%; color: var(--soft); font-size: 12px; margin-top: 8px; }
.bars div { display: flex; justify-content: space-between; }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""


def write_index(report: Report, path: Path, *, pages: Sequence[Path], sheet: Path) -> Path:
    """Write the page; it links to the files beside it."""
    links = " · ".join(
        f'<a href="{escape(page.name)}">Play {escape(page.stem.replace("_", " "))}</a>' for page in pages
    )
    body = [
        f"<h1>{escape(report.name)}</h1>",
        f"<p>{escape(report.summary)}</p>",
        _tiles(report),
        f'<p>{links} · <a href="report.json">report.json</a></p>',
        f"<p>Statistics of {escape(report.scanned)}. Bars are as high as the roots of the counts.</p>",
        "<h2>Findings</h2>",
        *_findings(report),
        *(part for table in report.tables for part in (f"<h2>{escape(table.title)}</h2>", _statistics(table))),
        *_gripper(report),
        *_views(report),
        f"<h2>Instructions ({len(report.instructions)})</h2>",
        _instructions(report),
        "<h2>Lengths of the episodes</h2>",
        f"<p>{report.lengths.low:g} to {report.lengths.high:g} frames, median {report.median_length:g}</p>",
        _labelled(report.lengths),
        f"<h2>Outliers ({report.num_outliers})</h2>",
        _outliers(report),
        "<h2>Contact sheet</h2>",
        f'<img src="{escape(sheet.name)}" alt="frames of several episodes">',
    ]
    path.write_text(PAGE.format(title=escape(report.name), style=STYLE, body="\n".join(body)), encoding="utf-8")
    return path


def _tiles(report: Report) -> str:
    minutes = report.seconds / 60
    tiles = [
        (f"{report.num_episodes:,}", "episodes", ""),
        (f"{report.num_frames:,}", "frames", ""),
        (f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h", f"at {report.hz:g} Hz", ""),
        (f"{report.num_windows:,}", f"windows of {report.window_size} frames", ""),
        (f"{report.masked_share:.1%}", f"actions masked, chunks of {report.chunk_size}", ""),
        (f"{len(report.instructions):,}", "instructions", ""),
        (f"{report.num_errors}", "errors", " bad" if report.num_errors else ""),
        (f"{len(report.findings) - report.num_errors}", "warnings", ""),
    ]
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile{css}"><b>{value}</b><span>{label}</span></div>' for value, label, css in tiles)
        + "</div>"
    )


def _findings(report: Report) -> list[str]:
    if not report.findings:
        return ['<p class="good">Nothing was found that contradicts the config.</p>']
    return [
        f'<div class="finding {finding.severity}"><b>{finding.severity.capitalize()}: {escape(finding.what)}</b>'
        f'<span class="where">{escape(finding.where)}</span><span>{escape(finding.to_do)}</span></div>'
        for finding in report.findings
    ]


def _statistics(table: Table) -> str:
    columns = [getattr(table.statistics, key) for key in SHOWN]
    rows = [
        [f"<b>{escape(name)}</b>", *(f"{column[i]:.4g}" for column in columns), draw_bars(table.histograms[i], 120, 22)]
        for i, name in enumerate(table.names)
    ]
    return _table(["", *SHOWN, "distribution"], rows, texts={0, len(SHOWN) + 1})


def _gripper(report: Report) -> list[str]:
    grip = report.gripper
    if grip is None:
        return ["<h2>Gripper</h2>", "<p>Not recorded: it is never taught.</p>"]
    text = (
        f"Declared {grip.closed:g} closed and {grip.open:g} open. Open in {grip.open_share:.0%} of the rows and at the "
        f"start of {grip.starts_open_share:.0%} of the episodes; {grip.changes:.1f} changes an episode."
    )
    return ["<h2>Gripper</h2>", f"<p>{text}</p>", _labelled(grip.histogram)]


def _views(report: Report) -> list[str]:
    rows = [
        [
            f"<b>{escape(view.name)}</b>",
            escape(", ".join(view.sizes)),
            f"{view.frames:,}",
            f"{view.repeated_share:.1%}",
            f"{view.longest_run}",
            escape(view.longest_source or ""),
        ]
        for view in report.views
    ]
    header = ["", "height x width", "frames", "same as before", "longest run", "where"]
    return ["<h2>Views</h2>", _table(header, rows, texts={0, 1, 5})]


def _instructions(report: Report) -> str:
    listed = list(report.instructions.items())[:MAX_INSTRUCTIONS]
    rows = [[escape(text) or "<i>empty</i>", f"{count:,}"] for text, count in listed]
    rest = len(report.instructions) - len(listed)
    return _table(["instruction", "episodes"], rows, texts={0}) + (
        f"<p>and {rest} more, see report.json</p>" if rest else ""
    )


def _outliers(report: Report) -> str:
    if not report.outliers:
        return "<p>None.</p>"
    rows = [
        [f"<b>{escape(o.entry)}</b>", f"{o.value:.5g}", f"{o.low:.4g} … {o.high:.4g}", escape(o.source)]
        for o in report.outliers
    ]
    rest = report.num_outliers - len(rows)
    more = f"<p>and {rest} more, less far outside</p>" if rest else ""
    return _table(["entry", "value", "usual", "where"], rows, texts={0, 3}) + more


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: set[int]) -> str:
    """Return a table of cells that are HTML already; columns of `texts` are aligned to the left."""

    def line(cells: Sequence[str], tag: str) -> str:
        css = [' class="text"' if i in texts else "" for i in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{c}>{cell}</{tag}>" for c, cell in zip(css, cells, strict=True)) + "</tr>"

    lines = "\n".join([line(header, "th"), *(line(row, "td") for row in rows)])
    return f'<div class="scroll"><table>{lines}</table></div>'


def _labelled(histogram: Histogram) -> str:
    ends = f"<span>{histogram.low:g}</span><span>{histogram.high:g}</span>"
    return f'<div class="bars">{draw_bars(histogram, 420, 70)}<div>{ends}</div></div>'


def draw_bars(histogram: Histogram, width: int, height: int) -> str:
    """Draw a histogram as inline SVG; the roots of the counts, so that rare values are seen beside frequent ones."""
    top = max(histogram.counts, default=0) ** 0.5 or 1.0
    step = width / len(histogram.counts)
    bars = []
    for i, count in enumerate(histogram.counts):
        tall = count**0.5 / top * height
        if count:
            bars.append(
                f'<rect x="{i * step:.1f}" y="{height - tall:.1f}" width="{max(step - 1, 1):.1f}" height="{tall:.1f}">'
                f"<title>{count}</title></rect>"
            )
    return f'<svg width="{width}" height="{height}" role="img">{"".join(bars)}</svg>'

"""One HTML file that shows a run: tables, figures and videos, with nothing to fetch from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.results import HEADER, Group, Results, row_cells

MAX_VIDEO_BYTES = 12_000_000  # of all embedded videos; base64 makes them a third larger
SUMMARY = (  # config keys at the top of the page; the whole config is at its end
    "backbone.name", "backbone.checkpoint", "structure.name", "head.name", "window.window_size", "window.chunk_size",
    "view.views", "data.name", "batch_size", "optimizer.lr", "schedule.total", "precision.name", "sim.name",
    "evaluation.execute_steps", "seed",
)  # fmt: skip
STYLE = """
:root { color-scheme: light; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --blue: #2563a8; --red: #b83a3a; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 32px 24px 64px; color: var(--ink); background: #fff;
       font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 19px; margin: 40px 0 10px; } p { margin: 6px 0; color: var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: 16px; margin: 20px 0; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: 12px 20px; }
.tile b { display: block; font-size: 30px; line-height: 1.2; color: var(--blue); } .tile.bad b { color: var(--red); }
.tile span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px; border-bottom: 1px solid var(--line); text-align: right; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr.overall td { font-weight: 700; border-top: 2px solid var(--ink); border-bottom: 0; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 4px 24px; margin: 12px 0; }
dl div { display: flex; justify-content: space-between; gap: 12px; border-bottom: 1px solid var(--line); }
dt { color: var(--soft); } dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
img { max-width: 100%; display: block; margin: 10px 0; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 18px; }
figure { margin: 0; } video { width: 100%; border-radius: 6px; display: block; } figcaption { font-size: 13px; }
.good { color: #16804a; } .wrong { color: var(--red); } summary { cursor: pointer; font-weight: 600; margin-top: 32px; }
"""


def write_report(
    run_folder: Path,
    results: Results,
    *,
    name: str,
    figures: Mapping[str, Sequence[Path]],
    max_video_bytes: int = MAX_VIDEO_BYTES,
) -> Path:
    """Write `report.html` into `run_folder`: one file that opens offline and can be sent to somebody.

    Args:
        run_folder: of the evaluation; its `videos` are embedded in the order of the plan.
        results: what `summarize` gives.
        name: of the run, the title of the page.
        figures: section title to PNG files, in the order of the page.
        max_video_bytes: when the videos are larger together, the last ones are named instead of shown.
    """
    config = dict(_flatten(results["config"]))
    body = [
        f"<h1>{escape(name)}</h1>",
        _tiles(results),
        _pairs({key: config[key] for key in SUMMARY if key in config}),
        "<h2>Success</h2>",
        _table(results["own"]),
    ]
    if results["opposite"]:
        body += ["<h2>Told the opposite</h2>", f"<p>{OPPOSITE}</p>", _table(results["opposite"])]
    for title, paths in figures.items():
        body += [f"<h2>{escape(title)}</h2>", *(_image(path) for path in paths)]
    body += _videos(run_folder / "videos", results, max_video_bytes)
    body += ["<details><summary>Whole configuration</summary>", _pairs(config), "</details>"]
    body += ["<details><summary>Versions</summary>", _pairs(results["versions"]), "</details>"]
    page = PAGE.format(title=escape(name), style=STYLE, body="\n".join(body))
    path = run_folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


OPPOSITE = (
    "The same scenes, but the policy is told the reverse of the task: in the scene of “close the drawer” it hears "
    "“open the drawer”. Reaching the task's goal counts against it here: it followed what it saw, not what it was told."
)
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""


def _tiles(results: Results) -> str:
    tiles = [("success, told the task", results["own"], "")]
    if results["opposite"]:
        tiles.append(("did the task although told the opposite", results["opposite"], " bad"))
    texts = []
    for label, group, css in tiles:
        _, count, mean, interval, _ = row_cells("", group["overall"])
        texts.append(
            f'<div class="tile{css}"><b>{mean}</b><span>{label}<br>{count} episodes, 95 %: {interval}</span></div>'
        )
    return f'<div class="tiles">{"".join(texts)}</div>'


def _table(group: Group) -> str:
    rows = [(task, row, "") for task, row in group["tasks"].items()]
    rows.append(("overall", group["overall"], ' class="overall"'))
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in HEADER)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row_cells(task, row)) for task, row, _ in rows]
    css = ["", *(css for _, _, css in rows)]
    return "<table>" + "\n".join(f"<tr{a}>{line}</tr>" for a, line in zip(css, lines, strict=True)) + "</table>"


def _pairs(values: Mapping[str, object]) -> str:
    items = (f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>" for key, value in values.items())
    return f"<dl>{''.join(items)}</dl>"


def _image(path: Path) -> str:
    return f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{_base64(path)}">'


def _videos(folder: Path, results: Results, max_bytes: int) -> list[str]:
    """Embed the recorded episodes, each under what it was told and how it ended."""
    shown, omitted, used = [], [], 0
    for episode in (EpisodeResult(**fields) for fields in results["episodes"]):
        path = folder / episode.video_name
        if not path.is_file():
            continue  # most episodes are not recorded
        used += path.stat().st_size
        if used > max_bytes:
            omitted.append(path.name)
        else:
            shown.append(_video(path, episode))
    if not shown and not omitted:
        return []
    rest = f"<p>Too large to embed, see the folder videos: {escape(', '.join(omitted))}</p>" if omitted else ""
    return ["<h2>Videos</h2>", f'<div class="videos">{"".join(shown)}</div>', rest]


def _video(path: Path, episode: EpisodeResult) -> str:
    if episode.opposite:
        verdict = "did it anyway" if episode.success else "did not do it"
    else:
        verdict = "success" if episode.success else "fail"
    css = "good" if episode.success != episode.opposite else "wrong"
    told = "told the opposite, " if episode.opposite else ""
    return (
        '<figure><video controls muted loop playsinline preload="metadata" '
        f'src="data:video/mp4;base64,{_base64(path)}"></video>'
        f"<figcaption>{escape(episode.task)}, {told}“{escape(episode.instruction)}”: "
        f'<b class="{css}">{verdict}</b>, {episode.steps} steps, seed {episode.seed}</figcaption></figure>'
    )


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _flatten(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

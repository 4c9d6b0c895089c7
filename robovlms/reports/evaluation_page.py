"""One HTML file that shows a run: tables, figures and videos, with nothing to fetch from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.results import HEADER, Group, Results, row_cells
from robovlms.reports.pages import data_uri, write_page

MAX_VIDEO_BYTES = 12_000_000  # of all embedded videos; base64 makes them a third larger
SUMMARY = (  # config keys at the top of the page; the whole config is at its end
    "backbone.name", "backbone.checkpoint", "structure.name", "head.name", "window.window_size", "window.chunk_size",
    "view.views", "data.name", "batch_size", "optimizer.lr", "schedule.total", "precision.name", "sim.name",
    "evaluation.execute_steps", "seed",
)  # fmt: skip


def write_report(
    run_folder: Path,
    results: Results,
    *,
    name: str,
    figures: Mapping[str, Sequence[Path]],
    max_video_bytes: int = MAX_VIDEO_BYTES,
) -> Path:
    """Write `report.html` into `run_folder` and return its path: one file that opens offline, to be sent to anybody.

    Args:
        run_folder: of the evaluation; its `videos` are embedded in the order of the plan.
        results: what `summarize` returns.
        name: of the run, the title of the page.
        figures: section title to PNG files, in the order of the page.
        max_video_bytes: when the videos are larger together, the last ones are named instead of shown.
    """
    config = dict(_flatten(results["config"]))
    videos, omitted = _videos(run_folder / "videos", results, max_video_bytes)
    return write_page(
        run_folder / "report.html",
        "evaluation.html",
        title=name,
        tiles=_tiles(results),
        summary={key: config[key] for key in SUMMARY if key in config},
        header=HEADER,
        own=_rows(results["own"]),
        opposite=_rows(results["opposite"]) if results["opposite"] else [],
        figures={
            title: [(path.stem, data_uri(path, "image/png")) for path in paths] for title, paths in figures.items()
        },
        videos=videos,
        omitted=omitted,
        config=config,
        versions=results["versions"],
    )


def _tiles(results: Results) -> list[tuple[str, list[str], bool]]:
    """Return mean, labels and whether it counts against the policy."""
    groups = [("success, own instruction", results["own"], False)]
    if results["opposite"]:
        groups.append(("did the task in spite of the opposite instruction", results["opposite"], True))
    tiles = []
    for label, group, wrong in groups:
        _, count, mean, interval, _ = row_cells("", group["overall"])
        tiles.append((mean, [label, f"{count} episodes, 95 %: {interval}"], wrong))
    return tiles


def _rows(group: Group) -> list[list[str]]:
    return [row_cells(task, row) for task, row in [*group["tasks"].items(), ("overall", group["overall"])]]


def _videos(
    folder: Path, results: Results, max_bytes: int
) -> tuple[list[tuple[str, EpisodeResult, str, bool]], list[str]]:
    """Return the recorded episodes that are embedded, each with its verdict, and the names of those left out."""
    shown, omitted, used = [], [], 0
    for episode in (EpisodeResult(**fields) for fields in results["episodes"]):
        path = folder / episode.video_name
        if not path.is_file():
            continue  # most episodes are not recorded
        used += path.stat().st_size
        if used > max_bytes:
            omitted.append(path.name)
        else:
            as_wanted = episode.success != episode.opposite
            shown.append((data_uri(path, "video/mp4"), episode, _verdict(episode), as_wanted))
    return shown, omitted


def _verdict(episode: EpisodeResult) -> str:
    if episode.opposite:
        return "did it anyway" if episode.success else "did not do it"
    return "success" if episode.success else "fail"


def _flatten(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

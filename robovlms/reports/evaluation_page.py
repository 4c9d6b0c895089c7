"""One HTML file that shows a run: tables, figures and videos, with nothing to fetch from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from robovlms.actions.checks import Finding
from robovlms.evaluation.analysis.language import sentences
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.results import HEADER, Rates, Results, row_cells, table_rows
from robovlms.reports.pages import data_uri, write_page

MAX_VIDEO_BYTES = 12_000_000  # of all embedded videos; base64 makes them a third larger
HEADINGS = {
    "own": "Success",
    "opposite": "Opposite instructions",
    "empty": "No instruction",
    "paraphrase": "Paraphrases",
    "spelling": "Capitals and full stop",
}
TILES = {
    "own": "success, own instruction",
    "opposite": "did the task in spite of the opposite instruction",
    "empty": "success without an instruction",
    "paraphrase": "success with paraphrased instructions",
    "spelling": "success with capitals and a full stop",
}
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
    warnings: Sequence[Finding] = (),
    max_video_bytes: int = MAX_VIDEO_BYTES,
) -> Path:
    """Write `report.html` into `run_folder` and return its path: one file that opens offline, to be sent to anybody.

    Args:
        run_folder: of the evaluation; its `videos` are embedded in the order of the plan.
        results: what `summarize` returns.
        name: of the run, the title of the page.
        warnings: what the validation of the run found.
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
        warnings=warnings,
        summary={key: config[key] for key in SUMMARY if key in config},
        header=HEADER,
        sections={HEADINGS[language]: _rows(rates) for language, rates in results["language"].items()},
        instructions=sentences(results.get("instructions")),
        certificate=results.get("certificate", {}),
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
    tiles = []
    for language, rates in results["language"].items():
        if chains := rates["chains"]:
            rows = ", ".join(f"{row['mean']:.1%}" for row in chains["rates"])
            tiles.append((f"{chains['average_length']:.2f}", [f"average length, {language}", rows], False))
        _, count, mean, interval, _ = row_cells("", rates["overall"])
        tiles.append((mean, [TILES[language], f"{count} episodes, 95 %: {interval}"], language == "opposite"))
    return tiles


def _rows(rates: Rates) -> list[list[str]]:
    return [row_cells(name, row) for name, row in table_rows(rates)]


def _videos(
    folder: Path, results: Results, max_bytes: int
) -> tuple[list[tuple[str, EpisodeResult, str, bool]], list[str]]:
    """Return the recorded episodes that are embedded, failures first, each with its verdict, and the names of those
    left out.
    """
    shown, omitted, used = [], [], 0
    episodes = [EpisodeResult.from_json(fields) for fields in results["episodes"]]
    for result in sorted(episodes, key=lambda each: each.as_wanted):
        path = folder / result.video_name
        if not path.is_file():
            continue  # most episodes are not recorded
        used += path.stat().st_size
        if used > max_bytes:
            omitted.append(path.name)
        else:
            shown.append((data_uri(path, "video/mp4"), result, _verdict(result), result.as_wanted))
    return shown, omitted


def _verdict(result: EpisodeResult) -> str:
    if result.episode.language == "opposite":
        return "did it anyway" if result.success else "did not do it"
    if len(result.episode.goals) > 1:
        return f"{result.reached} of {len(result.episode.goals)}"
    return "success" if result.success else "fail"


def _flatten(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

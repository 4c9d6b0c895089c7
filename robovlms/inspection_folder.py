"""From the config of an inspection to its folder: report.json, contact_sheet.png, an episode's page, index.html."""

from __future__ import annotations

import logging
from pathlib import Path

from robovlms.config import InspectConfig
from robovlms.contact_sheet import draw_contact_sheet
from robovlms.data.windows import WindowDataset
from robovlms.inspection import Report, inspect_dataset
from robovlms.inspection_episode import load_replay
from robovlms.inspection_index import write_index
from robovlms.inspection_page import write_page
from robovlms.parts import Part, check_roots, naming, parts_of
from robovlms.registry import DATASETS

log = logging.getLogger(__name__)


def inspect_data(config: InspectConfig) -> list[tuple[Report, Path]]:
    """Look at a data set, or at every part of a mixture in a folder of its own; give reports and first pages.

    Raises:
        FileNotFoundError, ValueError: the data set cannot be opened, or `episode` is not one that training sees.
    """
    check_roots(config.data)
    parts, folder = parts_of(config.data), Path(config.output_dir)
    datasets = [_open_part(part, config) for part in parts]  # all of them: a wrong option costs no scan
    reports = []
    for part, dataset in zip(parts, datasets, strict=True):
        views = [view for view in config.view.views if view in part.data.views]
        target = folder if len(parts) == 1 else folder / part.name
        name = f"{part.name}, {config.split.value}"
        reports.append(write_inspection(dataset, views, target, name=name, config=config))
    return reports


def _open_part(part: Part, config: InspectConfig) -> WindowDataset:
    views = [view for view in config.view.views if view in part.data.views]
    with naming(part, config.data):
        reader = DATASETS.get(part.data.name)(part.data, config.split.value, views=views)
        window = config.window
        return WindowDataset(reader, part.data, window_size=window.window_size, chunk_size=window.chunk_size)


def write_inspection(
    dataset: WindowDataset, views: list[str], folder: Path, *, name: str, config: InspectConfig
) -> tuple[Report, Path]:
    """Write the folder of a data set that is open; give the report and `index.html`."""
    replay = load_replay(dataset, config.episode, config.max_page_frames)  # first: a wrong episode= costs no scan
    log.info("reading %s", dataset.summary())
    report = inspect_dataset(
        dataset,
        name=name,
        split=config.split.value,
        max_frames=config.max_frames_scanned,
        outlier_iqr=config.outlier_iqr,
    )
    folder.mkdir(parents=True, exist_ok=True)
    report.save(folder / "report.json")
    sheet = draw_contact_sheet(
        dataset.reader,
        views,
        folder / "contact_sheet.png",
        episodes=config.sheet_episodes,
        frames=config.sheet_frames,
    )
    page = write_page(replay, folder / f"episode_{config.episode}.html", title=name)
    return report, write_index(report, folder / "index.html", pages=[page], sheet=sheet)

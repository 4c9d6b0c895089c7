"""From the config of an inspection to its folder: report.json, contact_sheet.png, an episode's page, index.html."""

from __future__ import annotations

import logging
from pathlib import Path

from robovlms.actions.plan import DataPlan, Source
from robovlms.config.commands import InspectConfig
from robovlms.data.opening import native_reader
from robovlms.data.remote import fetch, local_folder, pin
from robovlms.data.windows import WindowDataset
from robovlms.errors import UserError
from robovlms.files import write_text
from robovlms.hub.datasets import DataAddress
from robovlms.inspection.contact_sheet import draw_contact_sheet
from robovlms.inspection.discovery.finding import FoundData, find_data
from robovlms.inspection.episode import load_replay
from robovlms.inspection.episode_page import write_episode
from robovlms.inspection.index_page import write_index
from robovlms.inspection.report import Report, inspect_dataset
from robovlms.registry import SIMULATORS
from robovlms.sims.base import Simulator

log = logging.getLogger(__name__)


def inspect_data(config: InspectConfig) -> list[tuple[Report, Path]]:
    """Look at a data set, or at every source of a mixture in a folder of its own; return reports and first pages.

    Raises:
        FileNotFoundError, ValueError: the data set cannot be opened, or `episode` is not one that training sees; or
            `write` is given, and nothing had to be found out.
    """
    if config.write is not None:
        raise UserError(
            f"write={config.write} writes what is found out of a folder: omit data=, and give data.root=<folder>."
        )
    views = config.view.views
    plan, folder = DataPlan.of(fetch(pin(config.data), views), views), Path(config.output_dir)
    plan.check_roots()
    datasets = [_open_source(plan, source, config) for source in plan.sources]  # all: a wrong option costs no scan
    simulator: Simulator | None = SIMULATORS.get(config.sim.name)(config.sim) if config.sim else None
    reports = []
    try:
        for source, dataset in zip(plan.sources, datasets, strict=True):
            target = folder if len(plan.sources) == 1 else folder / source.name
            name = f"{source.name}, {config.split.value}"
            reports.append(
                write_inspection(dataset, source.views, target, name=name, config=config, simulator=simulator)
            )
    finally:
        if simulator is not None:
            simulator.close()
    return reports


def find_out(root: str, target: Path | None) -> FoundData:
    """Return what a folder holds, or a data set on the Hub, of which all is downloaded; with a `target` its data config
    is written there.

    Raises:
        FileNotFoundError, UserError: the folder is not there, or holds nothing that is read; or the target is there, or
            is no name that `data=` takes for a file.
    """
    if target is not None and target.suffix not in (".yaml", ".yml"):
        raise UserError(f"write={target} must end in .yaml, so that train.py data={target} takes it for a file.")
    if target is not None and target.exists():
        raise UserError(f"write={target} exists, and may hold answers: delete it, or write another.")
    folder = local_folder(root, "data.root")
    found = find_data(folder)
    if (address := DataAddress.parse(root)) is not None:
        found = found.lying_at(folder, str(address))
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, found.text)
    return found


def _open_source(plan: DataPlan, source: Source, config: InspectConfig) -> WindowDataset:
    with plan.naming(source):
        reader = native_reader(source.config, config.split.value, source.views)
        if not len(reader.episodes):
            raise UserError(f"{reader.summary()}: there is nothing to look at. Set split=train.")
        window = config.window
        return WindowDataset(reader, source, window_size=window.window_size, chunk_size=window.chunk_size)


def write_inspection(
    dataset: WindowDataset,
    views: list[str],
    folder: Path,
    *,
    name: str,
    config: InspectConfig,
    simulator: Simulator | None = None,
) -> tuple[Report, Path]:
    """Write the folder of a data set that is open; return the report and `index.html`."""
    replay = load_replay(dataset, config.episode, config.max_page_frames)  # first: a wrong episode= costs no scan
    log.info("reading %s", dataset.summary())
    report = inspect_dataset(
        dataset,
        name=name,
        split=config.split.value,
        max_frames=config.max_frames_scanned,
        outlier_iqr=config.outlier_iqr,
        simulator=simulator,
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
    page = write_episode(replay, folder / f"episode_{config.episode}.html", title=name)
    return report, write_index(report, folder / "index.html", pages=[page], sheet=sheet)

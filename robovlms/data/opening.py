"""From a data config to the reader of a split: the format's own, or that of a packed copy."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robovlms.actions.checks import Finding, Severity
from robovlms.actions.plan import DataPlan, Source
from robovlms.config.choices import CacheMode, ImageFormat
from robovlms.config.data import ActionContract, DataConfig
from robovlms.config.fields import READING, fields_that_keep
from robovlms.config.policy import WindowConfig
from robovlms.data.bad_records import BadRecords
from robovlms.data.base import Reader, RobotDataset, unlabelled
from robovlms.data.cached import CachedDataset
from robovlms.data.files.cache_folder import cache_folder
from robovlms.data.formats import foreign
from robovlms.data.mixture import MixtureDataset
from robovlms.data.packed.index import INDEX, load_index
from robovlms.data.packed.reader import PackedReader
from robovlms.data.windows import WindowDataset
from robovlms.errors import UserError
from robovlms.files import digest
from robovlms.registry import DATASETS

log = logging.getLogger(__name__)

PACKED = "packed"  # folder of the copies, in the cache folder


def build_dataset(plan: DataPlan, window: WindowConfig, split: str) -> RobotDataset:
    """Return the `train` or `validation` windows of the only data set, or of all sources of a mixture."""
    return join_sources(plan, open_sources(plan, window, split), split)


def open_validation(plan: DataPlan, window: WindowConfig, every: str | None) -> list[WindowDataset] | None:
    """Open the validation windows of every source, or return None and say why where nothing is to be validated on.

    Args:
        plan: a source of a mixture may have none.
        window: size of windows and chunks.
        every: `trainer.validate_every`; None asks for none.
    """
    if every is None:
        log.info("validation: none, as trainer.validate_every=null says")
        return None
    windows = open_sources(plan, window, "validation")
    without = [source.name for source, dataset in zip(plan.sources, windows, strict=True) if not len(dataset)]
    if without:
        log.warning(
            "validation: %s keeps no episode for it, all are trained on (data.validation_fraction=0, or tasks of one "
            "episode each)%s",
            ", ".join(without),
            "; no val/ metric is measured" if len(without) == len(windows) else "",
        )
    return None if len(without) == len(windows) else windows


def open_sources(plan: DataPlan, window: WindowConfig, split: str) -> list[WindowDataset]:
    """Open the reader of every source, in the order of their numbers: what costs time when a run starts."""
    plan.check_roots()
    datasets = []
    for source in plan.sources:
        with plan.naming(source):
            datasets.append(_open_source(source, window, split))
    return datasets


def _open_source(source: Source, window: WindowConfig, split: str) -> WindowDataset:
    reader = open_reader(source.config, split, source.views)
    return WindowDataset(reader, source, window_size=window.window_size, chunk_size=window.chunk_size)


def join_sources(plan: DataPlan, windows: list[WindowDataset], split: str) -> RobotDataset:
    """Make one data set of the sources' windows."""
    datasets: list[RobotDataset] = [
        CachedDataset(dataset, source.config.cache_mb) if source.config.cache_mb else dataset
        for source, dataset in zip(plan.sources, windows, strict=True)
    ]
    dataset = MixtureDataset(plan, datasets) if plan.is_mixture else datasets[0]
    log.info("%s: %s", split, dataset.summary())
    return dataset


def rate_findings(reader: Reader, contract: ActionContract) -> list[Finding]:
    """Compare the declared rate with the recorded one, where the format knows it."""
    if reader.fps is None or abs(reader.fps - contract.control_hz) <= 0.5:  # recorded ones are often rounded
        return []
    what = f"recorded at {reader.fps:g} frames a second, but data.contract.control_hz={contract.control_hz:g}"
    to_do = f"Set data.contract.control_hz={reader.fps:g}; to act less often, data.convert.control_hz."
    return [Finding(severity=Severity.error, what=what, where=reader.summary(), to_do=to_do)]


def open_reader(config: DataConfig, split: str, views: list[str]) -> Reader:
    """Return the reader of a split, as `data.cache` says.

    The native reader is opened in any case: its fingerprint tells whether a packed copy is of the data as they are.
    A packed copy may have more views than are asked for.

    Raises:
        FileNotFoundError: `data.cache=packed`, and nothing is packed; gives the command.
        UserError: `data.cache=packed`, and the copy is not of the data as they are; or a copy is damaged. The data
            are not recorded at `data.contract.control_hz`. An episode has no frame or no instruction, and
            `data.skip_bad` is false.
    """
    native = native_reader(config, split, views)
    if wrong_rate := rate_findings(native, config.contract):
        raise UserError(f"{wrong_rate[0].where}: {wrong_rate[0].what}. {wrong_rate[0].to_do}")
    _check_episodes(native, config)
    if config.cache is CacheMode.native or not len(native.episodes):  # of a validation split without episodes
        return native
    fingerprint, stale = digest(native.fingerprint()), None
    for folder in _packed_folders(config, split, views):
        if load_index(folder).fingerprint == fingerprint:
            return PackedReader(folder, views=views)
        stale = folder
    command = _command(config, views)
    if stale is not None:
        message = f"{stale} was packed before {native.summary()} or its selection changed. Pack again: {command}"
        if config.cache is CacheMode.packed:
            raise UserError(message)
        log.warning("data.cache=auto reads natively: %s", message)
    elif config.cache is CacheMode.packed:
        raise FileNotFoundError(f"data.cache=packed, but {native.summary()} is not packed. Pack it: {command}")
    return native


def native_reader(config: DataConfig, split: str, views: list[str]) -> Reader:
    """Return the format's own reader of a split.

    Raises:
        FileNotFoundError: the folder or a file of it is missing, or it holds another format, which is named.
        UserError: the folder contradicts itself or the config.
    """
    try:
        return DATASETS.get(config.name)(config, split, views=views)
    except (FileNotFoundError, ValueError) as error:
        if (said := foreign(Path(config.root).expanduser(), config.name)) is not None:
            raise FileNotFoundError(said) from error
        raise


def _check_episodes(reader: Reader, config: DataConfig) -> None:
    """Refuse episodes that nothing can be learned from; with `data.skip_bad`, warn of them."""
    faults = [
        UserError(f"{reader.location(number, 0, max(reader.episodes[number].length - 1, 0))}: {why}")
        for number, why in sorted(unlabelled(reader.episodes).items())
    ]
    hint = (
        "Instructions may be elsewhere: data.language_key of LeRobot and RLDS, data.instruction of LeRobot, LIBERO and "
        "ALOHA."
    )
    bad = BadRecords(f"episodes of {config.root}", config.skip_bad)
    bad.settle_all(faults, len(reader.episodes), hint)


def packed_folder(config: DataConfig, split: str, views: list[str], reader: Reader, image_format: ImageFormat) -> Path:
    """Return the folder of a packed copy: another for other data, settings, views or format."""
    settings = json.dumps(_origin(config, split, views), sort_keys=True)
    text = f"{settings} {reader.fingerprint()} {image_format.value}"
    return cache_folder(config.cache_dir) / PACKED / f"{config.name}-{digest(text)[:16]}"


def _origin(config: DataConfig, split: str, views: list[str]) -> dict[str, Any]:
    """Return the settings that decide what is read; where it lies is the fingerprint's to say."""
    free = fields_that_keep(config, READING)
    settings = {key: value for key, value in asdict(config).items() if key not in free}
    root = str(Path(config.root).expanduser().resolve())
    return settings | {"split": split, "root": root, "views": {view: config.views[view] for view in views}}


def _packed_folders(config: DataConfig, split: str, views: list[str]) -> Iterator[Path]:
    """Return the finished copies made with these settings and at least these views, raw ones first."""
    wanted = _origin(config, split, views)
    fitting = []
    for path in sorted((cache_folder(config.cache_dir) / PACKED).glob(f"{config.name}-*/{INDEX}")):
        index = load_index(path.parent)
        packed = index.origin.get("views")
        has_views = isinstance(packed, dict) and wanted["views"].items() <= packed.items()
        if has_views and index.origin | {"views": None} == wanted | {"views": None}:
            fitting.append((index.image_format != ImageFormat.raw, path.parent))
    yield from (folder for _, folder in sorted(fitting))


def _command(config: DataConfig, views: list[str]) -> str:
    names = ",".join(views)
    return (
        f"python scripts/convert_data.py data={config.name} data.root={config.root} 'view.views=[{names}]', with the "
        "run's other data options."
    )

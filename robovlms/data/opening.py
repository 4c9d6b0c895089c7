"""From a data config to the reader of a split: the format's own, or that of a packed copy."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robovlms.choices import CacheMode, ImageFormat
from robovlms.config import ConvertDataConfig, DataConfig
from robovlms.data.base import Reader, untaught
from robovlms.data.cache_folder import cache_folder
from robovlms.data.checks import rate_findings
from robovlms.data.packed import PackedReader
from robovlms.data.packed_index import INDEX, digest, load_index
from robovlms.data.packing import PackSummary, pack, verify
from robovlms.parts import check_roots, parts_of
from robovlms.registry import DATASETS

logger = logging.getLogger(__name__)

PACKED = "packed"  # folder of the copies, in the cache folder
# What readers do not look at, or what their fingerprint tells; a setting that is not among these makes another copy.
FREE = {
    "root", "views", "contract", "convert", "normalization", "shift", "augmentation", "proprio_rotation",
    "proprio_seen", "resize", "fit", "num_workers", "cache_mb", "cache", "cache_dir", "weight", "fraction",
}  # fmt: skip


def open_reader(config: DataConfig, split: str, views: list[str]) -> Reader:
    """Give the reader of a split, as `data.cache` says.

    The native reader is opened in any case: its fingerprint tells whether a packed copy is of the data as they are.
    A packed copy may have more views than are asked for.

    Raises:
        FileNotFoundError: `data.cache=packed`, and nothing is packed; gives the command.
        ValueError: `data.cache=packed`, and the copy is not of the data as they are; or a copy is damaged. The data
            are not recorded at `data.contract.control_hz`. An episode has no frame or no instruction, and
            `data.skip_bad` is false.
    """
    native: Reader = DATASETS.get(config.name)(config, split, views=views)
    if wrong_rate := rate_findings(native, config.contract):
        raise ValueError(f"{wrong_rate[0].where}: {wrong_rate[0].what}. {wrong_rate[0].to_do}")
    _check_episodes(native, config)
    if config.cache is CacheMode.native:
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
            raise ValueError(message)
        logger.warning("data.cache=auto reads natively: %s", message)
    elif config.cache is CacheMode.packed:
        raise FileNotFoundError(f"data.cache=packed, but {native.summary()} is not packed. Pack it: {command}")
    return native


def _check_episodes(reader: Reader, config: DataConfig) -> None:
    """Refuse episodes that nothing can be learned from; with `data.skip_bad`, warn of them."""
    faults, total = untaught(reader.episodes), len(reader.episodes)
    if not faults:
        return
    first = min(faults)
    where = reader.source(first, 0, max(reader.episodes[first].length - 1, 0))
    told = f"{len(faults)} of {total} episodes have no frame or no instruction, the first: {where}: {faults[first]}."
    if not config.skip_bad or len(faults) == total:
        raise ValueError(
            f"{told} Correct the recording, take instructions from elsewhere (data.language_key of LeRobot and RLDS, "
            "data.instruction of LIBERO), or set data.skip_bad=true to leave such episodes out."
        )
    logger.warning("data.skip_bad: left out: %s", told)


def convert_data(config: ConvertDataConfig) -> list[PackSummary]:
    """Pack the splits of a data set, or of every part of a mixture; with `pack.verify` check what is packed instead.

    Raises:
        FileNotFoundError: there is nothing to verify, or parts of a mixture are not there.
        ValueError: see `packing.pack` and `packing.verify`.
    """
    check_roots(config.data)
    summaries = []
    for part in parts_of(config.data):
        views = [view for view in config.view.views if view in part.data.views]
        for split in config.pack.splits:
            reader: Reader = DATASETS.get(part.data.name)(part.data, split, views=views)
            folder = packed_folder(part.data, split, views, reader, config.pack.image_format)
            if config.pack.verify:
                size = verify(folder)
                logger.info("%s: %d bytes are as they were written", folder, size)
            else:
                origin = _origin(part.data, split, views)
                summaries.append(
                    pack(
                        reader,
                        folder,
                        image_format=config.pack.image_format,
                        workers=config.pack.workers,
                        origin=origin,
                    )
                )
                logger.info("%s", summaries[-1])
    return summaries


def packed_folder(config: DataConfig, split: str, views: list[str], reader: Reader, image_format: ImageFormat) -> Path:
    """Give the folder of a packed copy: another for other data, settings, views or format."""
    settings = json.dumps(_origin(config, split, views), sort_keys=True)
    text = f"{settings} {reader.fingerprint()} {image_format.value}"
    return cache_folder(config.cache_dir) / PACKED / f"{config.name}-{digest(text)[:16]}"


def _origin(config: DataConfig, split: str, views: list[str]) -> dict[str, Any]:
    """Give the settings that decide what is read; where it lies is the fingerprint's to say."""
    settings = {key: value for key, value in asdict(config).items() if key not in FREE}
    root = str(Path(config.root).expanduser().resolve())
    return settings | {"split": split, "root": root, "views": {view: config.views[view] for view in views}}


def _packed_folders(config: DataConfig, split: str, views: list[str]) -> Iterator[Path]:
    """Give the finished copies made with these settings and at least these views, raw ones first."""
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

"""From a data config to the reader of a split: the format's own, or that of a packed copy."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robovlms.choices import CacheMode, ImageFormat
from robovlms.config import ConvertDataConfig, DataConfig
from robovlms.data.base import Reader
from robovlms.data.packed import PackedReader
from robovlms.data.packed_index import INDEX, digest, load_index
from robovlms.data.packing import PackSummary, pack, verify
from robovlms.parts import check_roots, parts_of
from robovlms.registry import DATASETS

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "ROBOVLMS_CACHE"
# What readers do not look at, or what their fingerprint tells; a setting that is not among these makes another copy.
FREE = {
    "root", "views", "contract", "convert", "normalization", "shift", "augmentation", "proprio_rotation",
    "proprio_seen", "resize", "num_workers", "cache_mb", "cache", "cache_dir", "weight", "fraction",
}  # fmt: skip


def open_reader(config: DataConfig, split: str, views: list[str]) -> Reader:
    """Give the reader of a split, as `data.cache` says.

    The native reader is opened in any case: its fingerprint tells whether a packed copy is of the data as they are.
    A packed copy may have more views than are asked for.

    Raises:
        FileNotFoundError: `data.cache=packed`, and nothing is packed; gives the command.
        ValueError: `data.cache=packed`, and the copy is not of the data as they are; or a copy is damaged.
    """
    native: Reader = DATASETS.get(config.name)(config, split, views=views)
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


def cache_root(config: DataConfig) -> Path:
    """Give the folder that packed copies lie in."""
    chosen = config.cache_dir or os.environ.get(CACHE_VARIABLE) or "~/.cache/robovlms"
    return Path(chosen).expanduser() / "packed"


def packed_folder(config: DataConfig, split: str, views: list[str], reader: Reader, image_format: ImageFormat) -> Path:
    """Give the folder of a packed copy: another for other data, settings, views or format."""
    settings = json.dumps(_origin(config, split, views), sort_keys=True)
    text = f"{settings} {reader.fingerprint()} {image_format.value}"
    return cache_root(config) / f"{config.name}-{digest(text)[:16]}"


def _origin(config: DataConfig, split: str, views: list[str]) -> dict[str, Any]:
    """Give the settings that decide what is read; where it lies is the fingerprint's to say."""
    settings = {key: value for key, value in asdict(config).items() if key not in FREE}
    root = str(Path(config.root).expanduser().resolve())
    return settings | {"split": split, "root": root, "views": {view: config.views[view] for view in views}}


def _packed_folders(config: DataConfig, split: str, views: list[str]) -> Iterator[Path]:
    """Give the finished copies made with these settings and at least these views, raw ones first."""
    wanted = _origin(config, split, views)
    fitting = []
    for path in sorted(cache_root(config).glob(f"{config.name}-*/{INDEX}")):
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

"""The numbers that statistics are made of: read once from a data set, and kept as long as it does not change."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from robovlms.config import DataConfig
from robovlms.data.cache_folder import cache_folder, keep
from robovlms.data.packed_index import digest
from robovlms.data.windows import Rows, WindowDataset

VERSION = 1  # of what `WindowDataset.rows` gives; raise it when a conversion or the choice of steps changes
# What has no influence on them, or what the reader's fingerprint tells.
IRRELEVANT = {
    "root", "views", "normalization", "shift", "augmentation", "resize", "fit", "num_workers", "cache_mb",
    "cache", "cache_dir", "weight",
}  # fmt: skip


def load_rows(dataset: WindowDataset, max_rows: int) -> tuple[Rows, str]:
    """Give `dataset.rows(max_rows)`, read or kept in the cache folder, and say in words which.

    They are kept under a hash of the reader's fingerprint, of all settings that decide on them, and of `VERSION`.
    """
    config, start = dataset.config, time.perf_counter()
    told = json.dumps([VERSION, max_rows, dataset.reader.fingerprint(), _settings(config)], default=str, sort_keys=True)
    path = cache_folder(config.cache_dir) / f"rows-{config.name}-{digest(told)[:24]}.npz"
    rows, is_kept = keep(path, lambda: dataset.rows(max_rows), Rows._asdict, lambda arrays: _rows(dataset, arrays))
    return rows, f"kept in {path}" if is_kept else f"read in {time.perf_counter() - start:.1f} s"


def _settings(config: DataConfig) -> dict[str, Any]:
    return {key: value for key, value in asdict(config).items() if key not in IRRELEVANT}


def _rows(dataset: WindowDataset, arrays: dict[str, np.ndarray]) -> Rows:
    rows = Rows(arrays["actions"], arrays["proprio"])
    widths = len(dataset.converter.target.names), len(dataset.config.seen_names)
    for columns, width in zip(rows, widths, strict=True):
        if columns.shape != (len(rows.actions), width) or columns.dtype != np.float32:
            raise ValueError(f"{columns.dtype} {columns.shape} are not rows of {width} entries")
    return rows

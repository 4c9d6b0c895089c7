"""The numbers that statistics are made of: read once from a data set, and kept as long as it does not change."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64

from robovlms.actions.checks import Severity, numeric_findings, representation_findings, sparse_findings
from robovlms.actions.contract import write_grippers
from robovlms.actions.plan import DataPlan, Source
from robovlms.actions.relative import RelativeActions, relative_findings
from robovlms.actions.statistics import COLUMNS, Statistics, import_statistics
from robovlms.config.data import DataConfig
from robovlms.config.fields import NUMBERS, fields_that_keep
from robovlms.data.base import RobotDataset
from robovlms.data.files.cache_folder import cache_folder, keep
from robovlms.data.splits import evenly_spaced
from robovlms.data.windows import Rows, WindowDataset
from robovlms.errors import UserError
from robovlms.files import digest

log = logging.getLogger(__name__)
VERSION = 2  # of what `WindowDataset.rows` gives; raise it when a conversion or the choice of steps changes
MAX_CHUNKS = 2000  # that a head's tokenizer is fitted to
MAX_EPISODES, MAX_STEPS = 20, 500  # whose course is looked at
MAX_CHUNK_STEPS = 500_000  # actions of all chunks that statistics of relative actions are computed from
MAX_STATS_ROWS = 50_000  # rows that statistics are computed from; larger data sets are sampled evenly


def compute_statistics(plan: DataPlan, windows: list[WindowDataset]) -> dict[str, Statistics]:
    """Return the action statistics of every source's training windows, computed or from `statistics_file`, by name."""
    found = {}
    for source, dataset in zip(plan.sources, windows, strict=True):
        with plan.naming(source):
            found[source.name] = _statistics(source, dataset)
    return found


def _statistics(source: Source, dataset: WindowDataset) -> Statistics:
    normalization = source.config.normalization
    if normalization.statistics_file is not None:
        stats = given_statistics(source, Path(normalization.statistics_file), dataset.chunk_size)
    else:
        rows, origin = load_rows(dataset, MAX_STATS_ROWS)
        check_numbers(source, dataset, rows.actions)
        stats = Statistics.compute(rows.actions)
        log.info("%s: statistics of %s, %s", source.name, _share(stats, dataset.num_steps), origin)
        if source.relative:
            names = [entry.name for entry in source.relative]
            stats = replace(stats, steps=load_steps(dataset, stats), relative=names)
    findings = relative_findings(stats, source.relative) if source.relative else []
    findings += sparse_findings(stats, normalization, source.contract.names, source.contract.binary)
    for finding in findings:
        log.warning("%s: %s", source.name, finding)
    return stats


def given_statistics(source: Source, path: Path, chunk_size: int) -> Statistics:
    """Return what a source's `statistics_file` holds, with those of every step of a chunk where its actions need them.

    Raises:
        UserError: it has none, of too few steps, or of other relative entries.
    """
    key, names = source.config.normalization.statistics_key, [entry.name for entry in source.relative]
    stats = import_statistics(path.expanduser(), key, len(source.contract.names))
    if not names:
        return stats.absolute
    option = f"data.normalization.statistics_file={path}"
    to_do = "Leave it out, and they are computed; or give action_stats.json of a checkpoint that was trained so."
    if not stats.steps:
        raise UserError(
            f"{option} has no statistics of every step of a chunk, which data.convert.relative_to=state needs. {to_do}"
        )
    if set(stats.relative) != set(names):
        there = ", ".join(stats.relative) or "entries that it does not name"
        raise UserError(
            f"{option} has statistics of {there} relative to the state, and this run learns {', '.join(names)} so "
            f"(data.convert.relative). {to_do}"
        )
    if len(stats.steps) < chunk_size:
        raise UserError(
            f"{option} has statistics of chunks of {len(stats.steps)} steps, less than "
            f"window.chunk_size={chunk_size}. {to_do}"
        )
    return replace(stats, steps=stats.steps[:chunk_size])


def _share(stats: Statistics, num_steps: int) -> str:
    if stats.num_rows == num_steps:
        return f"all {num_steps} steps"
    error = f"standard error of q01 and q99: {stats.quantile_error:.2%} of the rows"
    return f"{stats.num_rows} of {num_steps} steps, evenly spread ({error})"


def check_numbers(source: Source, dataset: WindowDataset, rows: Float32[np.ndarray, "r a"]) -> None:
    """Hold a source's actions against its contract; what only looks wrong is a warning.

    Poses are judged as they are converted, grippers as they are recorded and declared.

    Raises:
        UserError: they cannot mean what the contract says.
    """
    recorded = source.config.contract
    contract = replace(source.contract, gripper_closed=recorded.gripper_closed, gripper_open=recorded.gripper_open)
    rows = write_grippers(rows, contract)
    findings = numeric_findings(rows, contract, contract.names)
    findings += representation_findings(_first_rows(dataset), recorded)
    for finding in findings:
        log.warning("%s: %s", source.name, finding)
    if wrong := [str(finding) for finding in findings if finding.severity is Severity.error]:
        raise UserError(
            f"the actions of {source.name} are not what data.contract says:\n  " + "\n  ".join(wrong) + "\n"
            "Look at them with scripts/inspect_data.py."
        )


def _first_rows(dataset: WindowDataset) -> Iterator[Float32[np.ndarray, "_n a"]]:
    """Return the recorded actions of the first steps of some episodes."""
    lengths = [episode.length for episode in dataset.reader.episodes]
    chosen = evenly_spaced(len(lengths), min(len(lengths), MAX_EPISODES)).tolist()
    for episode in chosen:
        if lengths[episode]:
            yield dataset.reader.numbers(episode, np.arange(min(lengths[episode], MAX_STEPS))).actions


def proprio_rows(plan: DataPlan, windows: list[WindowDataset]) -> Float32[np.ndarray, "r p"]:
    """Return rows of the proprioception that the policy sees, as many of every source; NaN: not recorded."""
    sources = [source for source in plan.sources if source.proprio_dims]
    rows = [load_rows(windows[source.number], MAX_STATS_ROWS)[0].proprio for source in sources]
    count = min(len(recorded) for recorded in rows)
    whole = np.full((len(sources), count, len(plan.proprio_names)), np.nan, np.float32)
    for i, (source, recorded) in enumerate(zip(sources, rows, strict=True)):
        whole[i][:, source.proprio_dims] = recorded[evenly_spaced(len(recorded), count)]
    return whole.reshape(-1, whole.shape[-1])


def sample_chunks(
    dataset: RobotDataset, plan: DataPlan, k: int, stats: dict[str, Statistics]
) -> list[Float64[np.ndarray, "k _a"]]:
    """Return normalised first chunks, k actions each, of up to MAX_CHUNKS windows, evenly spread, of the entries that
    their data records; padding repeats the last action.
    """
    normalizers = plan.normalizers(stats)
    count = min(MAX_CHUNKS, len(dataset))
    chunks = []
    for i in range(count):
        sample = dataset[i * len(dataset) // count]
        last = max(int(sample.action_mask[:k].sum()) - 1, 0)
        chunk = torch.from_numpy(sample.actions[np.minimum(np.arange(k), last)])
        state = None if sample.state is None else torch.from_numpy(sample.state[0])
        normalized = normalizers[sample.source].normalize(chunk, state).double().numpy()
        chunks.append(normalized if sample.action_dims is None else normalized[:, sample.action_dims])
    return chunks


def load_rows(dataset: WindowDataset, max_rows: int) -> tuple[Rows, str]:
    """Return `dataset.rows(max_rows)`, read or kept in the cache folder, and say in words which.

    They are kept under a hash of the reader's fingerprint, of all settings that decide on them, and of `VERSION`.
    """
    start, path = time.perf_counter(), _place("rows", dataset, max_rows)
    rows, is_kept = keep(path, lambda: dataset.rows(max_rows), Rows._asdict, lambda arrays: _rows(dataset, arrays))
    return rows, f"kept in {path}" if is_kept else f"read in {time.perf_counter() - start:.1f} s"


def _place(kind: str, dataset: WindowDataset, *numbers: int) -> Path:
    """Return where numbers are kept that depend on the data, their settings and `numbers`."""
    config = dataset.config
    told = json.dumps([VERSION, *numbers, dataset.reader.fingerprint(), _settings(config)], default=str, sort_keys=True)
    return cache_folder(config.cache_dir) / f"{kind}-{config.name}-{digest(told)[:24]}.npz"


def _settings(config: DataConfig) -> dict[str, Any]:
    irrelevant = fields_that_keep(config, NUMBERS)
    return {key: value for key, value in asdict(config).items() if key not in irrelevant}


def load_steps(dataset: WindowDataset, whole: Statistics) -> list[Statistics]:
    """Return the statistics of every step of a chunk, computed from evenly spread chunks or kept in the cache folder.

    Those of relative entries are of the difference from the state; those of all others are those of all actions. A step
    that no episode is long enough for has those of the step before.

    Args:
        dataset: of a source with relative entries.
        whole: of all its actions.

    Raises:
        UserError: a state is not finite.
    """
    places, k = [entry.action for entry in dataset.source.relative], dataset.chunk_size

    def to_arrays(steps: list[Statistics]) -> dict[str, np.ndarray]:
        columns = {name: np.array([getattr(step, name) for step in steps]) for name in COLUMNS}
        return columns | {"num_rows": np.array([step.num_rows for step in steps])}

    def from_arrays(arrays: dict[str, np.ndarray]) -> list[Statistics]:
        if any(arrays[name].shape != (k, len(places)) for name in COLUMNS) or arrays["num_rows"].shape != (k,):
            raise UserError(f"these are not statistics of {k} steps of {len(places)} entries")
        rows = [{name: arrays[name][step].tolist() for name in COLUMNS} for step in range(k)]
        return [Statistics(**row, num_rows=int(n)) for row, n in zip(rows, arrays["num_rows"], strict=True)]

    path = _place("steps", dataset, MAX_CHUNK_STEPS, k)
    steps, is_kept = keep(path, lambda: _relative_steps(dataset), to_arrays, from_arrays)
    origin = f"kept in {path}" if is_kept else "computed"
    log.info("%s: statistics of %d steps of a chunk, %s", dataset.source.name, k, origin)
    return [whole.put(places, step) for step in steps]


def _relative_steps(dataset: WindowDataset) -> list[Statistics]:
    """Compute the statistics of the relative entries alone."""
    entries, names = dataset.source.relative, dataset.source.contract.names
    chunks = dataset.chunks(min(MAX_STATS_ROWS, MAX_CHUNK_STEPS // dataset.chunk_size))
    if not np.isfinite(chunks.state).all():
        lost = [entry.name for entry in entries if not np.isfinite(chunks.state[:, entry.state]).all()]
        raise UserError(
            f"data.convert.relative_to=state: {dataset.reader.summary()} records proprioception that is not finite"
            f"{': ' + ', '.join(lost) if lost else ''}. Leave such episodes out, or such entries with "
            "data.convert.relative."
        )
    relative = RelativeActions(entries, len(names)).subtract(*map(torch.from_numpy, (chunks.actions, chunks.state)))
    values = relative[..., [entry.action for entry in entries]].numpy()
    steps = [Statistics.compute(values[is_real, step]) for step, is_real in enumerate(chunks.mask.T) if is_real.any()]
    return [*steps, *[replace(steps[-1], num_rows=0)] * (dataset.chunk_size - len(steps))]


def _rows(dataset: WindowDataset, arrays: dict[str, np.ndarray]) -> Rows:
    rows = Rows(arrays["actions"], arrays["proprio"])
    widths = len(dataset.converter.target.names), len(dataset.config.seen_names)
    for columns, width in zip(rows, widths, strict=True):
        if columns.shape != (len(rows.actions), width) or columns.dtype != np.float32:
            raise UserError(f"{columns.dtype} {columns.shape} are not rows of {width} entries")
    return rows

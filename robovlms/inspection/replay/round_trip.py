"""Do recorded actions come back from the policy's words as they were: converted, normalised, and both undone?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64

from robovlms.actions.checks import Finding, Severity
from robovlms.actions.contract import is_constant, write_grippers
from robovlms.actions.conversion import ActionConverter
from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.statistics import Statistics, import_statistics
from robovlms.config.data import ActionContract, ConvertConfig, DataConfig
from robovlms.data.statistics import given_statistics, load_steps
from robovlms.data.windows import WindowDataset
from robovlms.inspection.scan import ScannedRows

EXACT = 1e-5  # of an entry's range, up to which it counts as what was recorded
STEPS = 8  # of float32, that several operations may be off by
MAX_CHUNKS = 2000  # of relative actions that are looked at
MUCH = 0.25  # of the rows far outside the bounds, from which on they look wrong


@dataclass(frozen=True, kw_only=True)
class EntryRoundTrip:
    """How an entry comes back."""

    name: str
    binary: bool  # a gripper that is open or closed
    undone: str  # "normalisation", "difference from the state" or "conversion"
    error: float  # largest of the rows that are not cut off, as a share of the entry's range
    resolution: float  # of float32 at the largest number on the way, as a share of the range
    beyond: int  # rows outside the bounds of the normalisation, or of a gripper that is neither open nor closed
    far: int  # of them those that are further outside than half the distance of the bounds
    rows: int


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """Recorded actions to the policy's words and back."""

    entries: list[EntryRoundTrip]
    findings: list[Finding]


def round_trip(dataset: WindowDataset, rows: ScannedRows) -> RoundTrip:
    """Convert and normalise recorded rows as training does, undo it as a rollout does, and compare.

    Where actions are relative to the state, so are chunks of them, with the statistics of every step of a chunk. Where
    `data.convert.control_hz` joins several recorded steps the conversion cannot be undone; only the
    normalisation is compared then.

    Raises:
        UserError: the rows cannot be converted.
    """
    pieces = [_convert(dataset, actions, proprio) for actions, proprio in _episodes(rows)]
    pieces = [piece for piece in pieces if len(piece[1])]
    if not pieces:
        return RoundTrip(entries=[], findings=[])
    converted = np.concatenate([piece[1] for piece in pieces])
    entries = _normalisation(dataset, converted)
    if dataset.source.relative:
        entries += _relative(dataset, converted)
    if not dataset.converter.is_trivial and dataset.converter.rate == 1:
        entries += _conversion(dataset, pieces)
    return RoundTrip(entries=entries, findings=[*_inexact(entries), *_cut_off(entries)])


def _episodes(rows: ScannedRows) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Return the rows of every episode that was read from its first step on and is finite."""
    found = []
    for piece in np.split(np.arange(len(rows.actions)), np.flatnonzero(np.diff(rows.episode)) + 1):
        whole = len(piece) and (rows.step[piece] == np.arange(len(piece))).all()
        proprio = None if rows.proprio is None else rows.proprio[piece]
        finite = np.isfinite(rows.actions[piece]).all() and (proprio is None or np.isfinite(proprio).all())
        if whole and finite:
            found.append((rows.actions[piece], proprio))
    return found


Piece = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # recorded, converted, proprioception


def _convert(dataset: WindowDataset, actions: np.ndarray, proprio: np.ndarray | None) -> Piece:
    converter = dataset.converter
    steps = np.arange(converter.num_steps(len(actions)))
    covered = converter.covered(steps)
    used = actions[covered], None if proprio is None else proprio[covered]
    return used[0], converter(*used, steps), used[1]


def _normalisation(dataset: WindowDataset, converted: np.ndarray) -> list[EntryRoundTrip]:
    target, normalizer = dataset.converter.target, normalizer_of(dataset, converted)
    values = torch.from_numpy(converted)
    back = normalizer.denormalize(normalizer.normalize(values)).double().numpy()
    exact, outside = converted.astype(np.float64), normalizer.beyond(values).double().numpy()
    outside[:, target.binary] = np.abs(np.abs(exact[:, target.binary]) - 1)
    return _entries("normalisation", target, exact, back, outside, float(np.abs(exact).max()))


def normalizer_of(dataset: WindowDataset, converted: np.ndarray) -> ActionNormalizer:
    """Return how training would normalise, by the statistics of these rows or of `data.normalization.statistics_file`;
    what is relative to a state is taken as the absolute action that it is made of.
    """
    target = dataset.converter.target
    statistics = _statistics(dataset, converted)
    return ActionNormalizer(dataset.config.normalization, statistics, target.names, target.binary)


def _statistics(dataset: WindowDataset, converted: np.ndarray) -> Statistics:
    normalization = dataset.config.normalization
    if normalization.statistics_file is None:
        return Statistics.compute(converted)
    path = Path(normalization.statistics_file).expanduser()
    return import_statistics(path, normalization.statistics_key, converted.shape[1]).absolute


def _relative(dataset: WindowDataset, converted: np.ndarray) -> list[EntryRoundTrip]:
    """Take from chunks the state that they are predicted from, normalise them, and undo both."""
    target, source, normalization = dataset.converter.target, dataset.source, dataset.config.normalization
    if normalization.statistics_file is None:
        whole, names = Statistics.compute(converted), [entry.name for entry in source.relative]
        stats = replace(whole, steps=load_steps(dataset, whole), relative=names)
    else:
        stats = given_statistics(source, Path(normalization.statistics_file), dataset.chunk_size)
    normalizer = ActionNormalizer(normalization, stats, target.names, target.binary, source.relative)
    chunks = dataset.chunks(MAX_CHUNKS)
    actions, state, is_real = (torch.from_numpy(values) for values in (chunks.actions, chunks.state, chunks.mask))
    words = normalizer.normalize(actions, state)
    exact, back, outside = (
        values[is_real].double().numpy()
        for values in (actions, normalizer.denormalize(words, state), normalizer.beyond(actions, state))
    )
    for entry in source.relative:
        if entry.turn:  # an angle and the same one a turn on
            i = entry.action
            back[:, i] += entry.turn * np.round((exact[:, i] - back[:, i]) / entry.turn)
    found = _entries("difference from the state", target, exact, back, outside, float(np.abs(exact).max()))
    return [found[entry.action] for entry in source.relative]


def _conversion(dataset: WindowDataset, pieces: list[Piece]) -> list[EntryRoundTrip]:
    source, target = dataset.converter.source, dataset.converter.target
    backwards: DataConfig = replace(dataset.config, contract=target, convert=ConvertConfig())
    undo = ActionConverter(backwards, replace(source, gripper_closed=-1.0, gripper_open=1.0))
    recorded = np.concatenate([actions for actions, _, _ in pieces]).astype(np.float64)
    back = np.concatenate([undo(converted, proprio, np.arange(len(converted))) for _, converted, proprio in pieces])
    back = back.astype(np.float64)
    back = write_grippers(back, source)
    nothing = np.zeros(recorded.shape)
    largest = max(float(np.abs(values).max()) for _, values, _ in pieces)
    return _entries("conversion", source, recorded, back, nothing, largest)


def _entries(
    undone: str,
    contract: ActionContract,
    wanted: Float64[np.ndarray, "n a"],
    found: Float64[np.ndarray, "n a"],
    outside: Float64[np.ndarray, "n a"],
    largest: float,
) -> list[EntryRoundTrip]:
    low, high = wanted.min(axis=0), wanted.max(axis=0)
    constant = np.array([is_constant(*pair) for pair in zip(low, high, strict=True)])
    spans = np.where(constant, np.maximum(np.abs(wanted).max(axis=0), 1.0), high - low)
    errors = np.where(outside > EXACT, 0.0, np.abs(found - wanted) / spans)
    return [
        EntryRoundTrip(
            name=name,
            binary=i in contract.binary,
            undone=undone,
            error=float(errors[:, i].max()),
            resolution=float(STEPS * np.finfo(np.float32).eps * largest / spans[i]),
            beyond=int((outside[:, i] > EXACT).sum()),
            far=int((outside[:, i] > 0.5).sum()),
            rows=len(wanted),
        )
        for i, name in enumerate(contract.names)
    ]


def _inexact(entries: list[EntryRoundTrip]) -> list[Finding]:
    return [
        Finding(
            severity=Severity.error,
            what=f"{entry.name} does not come back from its {entry.undone}: off by {entry.error:.2g} of its range",
            where=f"{entry.rows} rows",
            to_do="float32 does not hold so small a range so far from 0, or the conversion has no inverse there: "
            "record the entry from a nearer origin, or convert less (data.convert).",
        )
        for entry in entries
        if entry.error > max(EXACT, entry.resolution)
    ]


def _cut_off(entries: list[EntryRoundTrip]) -> list[Finding]:
    return [
        Finding(
            severity=Severity.warning,
            what=f"{entry.name}: {entry.far} of {entry.rows} rows are "
            + ("neither open nor closed" if entry.binary else "far outside the bounds of the normalisation"),
            where="data.contract" if entry.binary else "data.normalization",
            to_do="Set data.contract.gripper_closed and gripper_open to what is recorded."
            if entry.binary
            else "Set data.normalization.low and high, or another mode (quantile, min_max).",
        )
        for entry in entries
        if entry.far > MUCH * entry.rows
    ]

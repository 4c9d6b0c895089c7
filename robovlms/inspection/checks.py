"""Does a data set hold what its config declares? Findings that say what is wrong, where, and which option to set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from robovlms.actions.checks import (
    Finding,
    Severity,
    gripper_share,
    numeric_findings,
    polarity_findings,
    representation_findings,
    sparse_findings,
)
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import Resize
from robovlms.config.data import DataConfig
from robovlms.data.bad_records import or_skip
from robovlms.data.base import Reader
from robovlms.data.opening import rate_findings
from robovlms.data.windows import WindowDataset
from robovlms.inspection.scan import Faults, ScannedRows, ViewScan, choose_stretches, scan_numbers, scan_pictures

__all__ = ["Finding", "Severity", "all_findings", "check_data", "gripper_share", "numeric_findings"]
MAX_FRAMES = 2000  # that `check_data` reads
FROZEN_SECONDS, FROZEN_SHARE = 0.5, 0.1  # of identical pictures in a row, and among all
MIN_SIDE = 32  # pixels


def episode_findings(dataset: WindowDataset) -> list[Finding]:
    """Look at lengths and instructions; nothing is read."""
    reader, window_size = dataset.reader, dataset.window_size
    steps = dataset.converter.num_steps
    empty = [number for number, e in enumerate(reader.episodes) if not e.length]
    short = [number for number, e in enumerate(reader.episodes) if e.length and steps(e.length) < window_size]
    silent = [number for number, e in enumerate(reader.episodes) if not e.instruction.strip()]
    total, refused = len(reader.episodes), Severity.warning if dataset.config.skip_bad else Severity.error

    def report(severity: Severity, numbers: list[int], what: str, to_do: str) -> list[Finding]:
        if not numbers:
            return []
        first = numbers[0]
        where = reader.location(first, 0, max(reader.episodes[first].length - 1, 0))
        text = f"{len(numbers)} of {total} episodes {what}"
        return [Finding(severity=severity, what=text, where=where, to_do=to_do)]

    return [
        *report(refused, empty, "have no frame", f"Record them again{or_skip(dataset.config.skip_bad)}."),
        *report(
            Severity.warning,
            short,
            f"have fewer steps than window.window_size={window_size}",
            "They are never seen in training: choose a shorter window= to use them.",
        ),
        *report(
            refused,
            silent,
            "have an empty instruction",
            "Set the data set's key of instructions (data.language_key), or write them"
            f"{or_skip(dataset.config.skip_bad)}.",
        ),
    ]


def picture_findings(views: Mapping[str, ViewScan], reader: Reader, *, hz: float, resize: Resize) -> list[Finding]:
    """Judge what was seen of every view: frozen and blank pictures, sizes."""
    found = []
    for view, scan in views.items():
        found += _sizes(scan, reader, resize)
        run = scan.longest
        too_long = max(3, round(FROZEN_SECONDS * hz))
        if run is not None and (run.length >= too_long or scan.repeated > FROZEN_SHARE * scan.pairs):
            found.append(
                Finding(
                    severity=Severity.warning,
                    what=f"view '{view}' shows the same picture again in {scan.repeated} of {scan.pairs} steps; the "
                    f"longest run is {run.length} frames",
                    where=reader.location(run.episode, run.first, run.first + run.length - 1),
                    to_do="A frozen camera or a waiting robot: drop such stretches from the recording.",
                )
            )
        if scan.first_blank is not None:
            episode, step = scan.first_blank
            what = f"view '{view}' has {scan.blank} pictures of one colour"
            where = reader.location(episode, step, step)
            to_do = "Check the camera and the key in data.views."
            found.append(Finding(severity=Severity.warning, what=what, where=where, to_do=to_do))
    return found


def _sizes(scan: ViewScan, reader: Reader, resize: Resize) -> list[Finding]:
    found = []
    sizes = [f"{height} x {width}" for height, width in scan.sizes]
    if len(sizes) > 1 and resize is Resize.device:
        episode, step = list(scan.size_at.values())[1]
        what = f"view '{scan.name}' has pictures of several sizes: {', '.join(sizes)}"
        to_do = "One batch holds one size: set data.resize=host."
        where = reader.location(episode, step, step)
        found.append(Finding(severity=Severity.error, what=what, where=where, to_do=to_do))
    for size, (episode, step) in scan.size_at.items():
        if min(size) < MIN_SIDE:
            what = f"view '{scan.name}' has pictures of {size[0]} x {size[1]} px"
            where = reader.location(episode, step, step)
            to_do = "Hardly anything is to be seen at this size: check the key in data.views."
            found.append(Finding(severity=Severity.warning, what=what, where=where, to_do=to_do))
    return found


def fault_findings(faults: Faults, kind: str, config: DataConfig) -> list[Finding]:
    """Report what could not be read."""
    if not faults.count:
        return []
    what, where = f"{faults.count} {kind} cannot be read", faults.messages[0]
    to_do = f"Repair the file{or_skip(config.skip_bad)}."
    return [Finding(severity=Severity.error, what=what, where=where, to_do=to_do)]


def _whole_findings(dataset: WindowDataset, rows: ScannedRows) -> list[Finding]:
    """Judge what single rows do not show: distributions, and how episodes run."""
    contract, is_finite = dataset.converter.source, np.isfinite(rows.actions).all(axis=1)
    if not is_finite.any():
        return []
    stats = Statistics.compute(rows.actions[is_finite])
    found = sparse_findings(stats, dataset.config.normalization, contract.names, contract.binary)
    ends = np.flatnonzero(np.diff(rows.episode)) + 1
    episodes = zip(np.split(rows.actions, ends), np.split(is_finite, ends), strict=True)
    return [*found, *representation_findings((actions for actions, good in episodes if good.all()), contract)]


def check_data(dataset: WindowDataset, max_frames: int = MAX_FRAMES) -> list[Finding]:
    """Read up to `max_frames` frames of whole episodes, evenly spread, and hold them against the contract."""
    stretches = choose_stretches(dataset.reader.episodes, max_frames)
    rows = scan_numbers(dataset.reader, stretches)
    views, faults = scan_pictures(dataset.reader, stretches)
    return all_findings(dataset, rows, views, faults)


def all_findings(
    dataset: WindowDataset, rows: ScannedRows, views: Mapping[str, ViewScan], faults: Faults
) -> list[Finding]:
    """Judge what was read of a data set, errors first."""
    reader, contract = dataset.reader, dataset.converter.source
    found = [
        *fault_findings(rows.faults, "rows of numbers", dataset.config),
        *fault_findings(faults, "pictures", dataset.config),
    ]
    found += [*episode_findings(dataset), *rate_findings(reader, contract)]
    if len(rows.actions):

        def locate(row: int) -> str:
            step = int(rows.step[row])
            return reader.location(int(rows.episode[row]), step, step)

        found += numeric_findings(rows.actions, contract, contract.names, locate=locate)
        ends = np.flatnonzero(np.diff(rows.episode)) + 1
        for i in contract.grippers:
            share = gripper_share(rows.actions[:, i], contract)
            found += polarity_findings(np.split(share, ends), contract, contract.names[i])
        found += _whole_findings(dataset, rows)
    found += picture_findings(views, reader, hz=contract.control_hz, resize=dataset.config.resize)
    return sorted(found, key=lambda finding: finding.severity is not Severity.error)

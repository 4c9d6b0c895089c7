"""What a data set holds, as one typed report: counts, statistics, outliers, frozen pictures, gripper, findings."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int64

from robovlms.actions.checks import Finding, Severity, gripper_share
from robovlms.actions.statistics import Statistics
from robovlms.config.data import ActionContract
from robovlms.data.selection import in_short
from robovlms.data.windows import WindowDataset
from robovlms.inspection.checks import all_findings
from robovlms.inspection.quality import Idleness, measure_idleness, quality_findings
from robovlms.inspection.replay.proof import ReplayReport, prove_replay
from robovlms.inspection.replay.simulation import SimulationReport, replay_in
from robovlms.inspection.scan import ScannedRows, ViewScan, choose_stretches, scan_numbers, scan_pictures
from robovlms.sims.base import Simulator

BINS = 24  # of every histogram
MAX_OUTLIERS = 30  # that are named; all are counted


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of equal bins from `low` to `high`."""

    low: float
    high: float
    counts: list[int]

    @classmethod
    def of(cls, values: Float[np.ndarray, "n"] | Int64[np.ndarray, "n"]) -> Histogram:
        """Count finite values."""
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        is_one = high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-300)  # bins would not be told apart
        counts = np.histogram(values.astype(np.float64), bins=BINS, range=(low, low + 1 if is_one else high))[0]
        return cls(low=low, high=high, counts=counts.tolist())


@dataclass(frozen=True, kw_only=True)
class Table:
    """Statistics and distribution of named entries, over finite rows."""

    title: str
    names: list[str]
    statistics: Statistics
    histograms: list[Histogram]


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """A value far outside what 98 % of the rows hold."""

    entry: str
    value: float
    low: float  # from here
    high: float  # to here a value is no outlier
    source: str


@dataclass(frozen=True, kw_only=True)
class ViewReport:
    """What the pictures of a view look like."""

    name: str
    sizes: list[str]  # height x width
    frames: int
    repeated_share: float  # of the steps: the picture is that of the step before, pixel by pixel
    longest_run: int  # identical frames in a row; 1: none is repeated
    longest_source: str | None


@dataclass(frozen=True, kw_only=True)
class GripperReport:
    """What a recorded gripper does."""

    name: str
    histogram: Histogram  # of recorded values
    closed: float  # as declared
    open: float
    open_share: float  # of the rows, by the middle between both
    starts_open_share: float  # of the episodes
    changes: float  # of state, per episode


@dataclass(frozen=True, kw_only=True)
class Report:
    """A data set, looked at."""

    name: str
    split: str
    summary: str
    window_size: int
    chunk_size: int
    hz: float  # recorded steps a second
    numbers: str  # the folder's own of the episodes, as `data.episodes` takes them
    num_episodes: int
    num_frames: int
    num_windows: int
    masked_share: float  # of the actions of all windows: past the end of their episode
    scanned_episodes: int
    scanned_frames: int
    lengths: Histogram  # of episodes, in frames
    median_length: float
    instructions: dict[str, int]  # episodes of each, the most frequent first
    tables: list[Table]
    outliers: list[Outlier]
    num_outliers: int
    views: list[ViewReport]
    grippers: list[GripperReport]
    replay: ReplayReport
    simulation: SimulationReport | None  # None: no simulator was asked for
    idleness: Idleness
    findings: list[Finding]

    @property
    def seconds(self) -> float:
        """Return the duration of all episodes together."""
        return self.num_frames / self.hz

    @property
    def scanned(self) -> str:
        """Say what the statistics are computed from."""
        if self.scanned_frames == self.num_frames:
            return f"all {self.num_frames} frames"
        return (
            f"a sample of {self.scanned_frames} of {self.num_frames} frames ({self.scanned_episodes} of "
            f"{self.num_episodes} episodes, evenly spread)"
        )

    @property
    def num_errors(self) -> int:
        """Count what must be corrected before training."""
        return sum(finding.severity is Severity.error for finding in self.findings)

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def inspect_dataset(
    dataset: WindowDataset,
    *,
    name: str,
    split: str,
    max_frames: int,
    outlier_iqr: float,
    simulator: Simulator | None = None,
) -> Report:
    """Read a data set within a budget of frames, and say what is in it.

    Args:
        dataset: with the views to look at.
        name: title of the report.
        split: named in the report.
        max_frames: frames that are read; of larger data sets whole episodes, evenly spread.
        outlier_iqr: a value further outside q01 ... q99 than this many interquartile ranges is an outlier.
        simulator: in which recorded actions are played again; None: in none.
    """
    reader, contract = dataset.reader, dataset.converter.source
    simulation, unsolved = (None, []) if simulator is None else replay_in(simulator, dataset)  # may refuse: first
    stretches = choose_stretches(reader.episodes, max_frames)
    rows = scan_numbers(reader, stretches)
    views, faults = scan_pictures(reader, stretches)
    findings = all_findings(dataset, rows, views, faults)
    tables, conversion = _tables(dataset, rows)
    replay, broken = prove_replay(dataset, rows)
    idleness = measure_idleness(dataset, rows)
    findings += [*conversion, *broken, *unsolved, *quality_findings(dataset, rows, idleness)]
    outliers, num_outliers = find_outliers(dataset, rows, outlier_iqr)
    lengths = np.array([episode.length for episode in reader.episodes], dtype=np.int64)
    return Report(
        name=name,
        split=split,
        summary=reader.summary(),
        window_size=dataset.window_size,
        chunk_size=dataset.chunk_size,
        hz=contract.control_hz,
        numbers=in_short(found for i in range(len(lengths)) if (found := reader.number(i)) >= 0),
        num_episodes=len(lengths),
        num_frames=int(lengths.sum()),
        num_windows=len(dataset),
        masked_share=_masked_share(dataset),
        scanned_episodes=len(stretches),
        scanned_frames=sum(stretch.length for stretch in stretches),
        lengths=Histogram.of(lengths),
        median_length=float(np.median(lengths)),
        instructions=dict(Counter(episode.instruction for episode in reader.episodes).most_common()),
        tables=tables,
        outliers=outliers,
        num_outliers=num_outliers,
        views=[_view(dataset, scan) for scan in views.values()],
        grippers=_grippers(rows, contract),
        replay=replay,
        simulation=simulation,
        idleness=idleness,
        findings=sorted(findings, key=lambda finding: finding.severity is not Severity.error),
    )


def _masked_share(dataset: WindowDataset) -> float:
    """Count by arithmetic: the last window of an episode misses k - 1 actions, the one before k - 2, ..."""
    counts = np.array([len(dataset.windows(episode)) for episode in range(len(dataset.reader.episodes))])
    missing = dataset.chunk_size - 1
    depth = np.minimum(counts, missing)
    masked = depth * missing - depth * (depth - 1) // 2
    return float(masked.sum() / (counts.sum() * (dataset.window_size + missing)))


def _tables(dataset: WindowDataset, rows: ScannedRows) -> tuple[list[Table], list[Finding]]:
    """Return statistics of what is recorded and, where converted, of the targets; and why there are none of these."""
    source, target = dataset.converter.source, dataset.converter.target
    tables = _table("Actions as recorded", source.names, rows.actions)
    found: list[Finding] = []
    if not dataset.converter.is_trivial:
        try:
            tables += _table("Target actions, converted", target.names, dataset.rows(max(len(rows.actions), 1)).actions)
        except (OSError, ValueError) as error:
            what, to_do = f"the actions cannot be converted: {error}", "Correct what the other findings name first."
            found.append(Finding(severity=Severity.error, what=what, where="data.convert", to_do=to_do))
    if rows.proprio is not None:
        tables += _table("Proprioception as recorded", dataset.config.proprio_names, rows.proprio)
    return tables, found


def _table(title: str, names: list[str], rows: Float32[np.ndarray, "n e"]) -> list[Table]:
    finite = rows[np.isfinite(rows).all(axis=1)]
    if not len(finite):
        return []
    histograms = [Histogram.of(column) for column in finite.T]
    return [Table(title=title, names=names, statistics=Statistics.compute(finite), histograms=histograms)]


def find_outliers(dataset: WindowDataset, rows: ScannedRows, iqr: float) -> tuple[list[Outlier], int]:
    """Find recorded values further than `iqr` interquartile ranges outside q01 ... q99: the furthest, and how many.

    Where half of the values are the same, a quarter of q99 - q01 stands for the range. Binary grippers are left out.
    """
    contract = dataset.converter.source
    numbers = [i for i in range(len(contract.names)) if i not in contract.binary]
    good = np.flatnonzero(np.isfinite(rows.actions).all(axis=1))
    if not len(good):
        return [], 0
    arm = rows.actions[good][:, numbers].astype(np.float64)
    q01, q25, q75, q99 = np.quantile(arm, [0.01, 0.25, 0.75, 0.99], axis=0)
    spread = np.maximum(q75 - q25, (q99 - q01) / 4)
    low, high = q01 - iqr * spread, q99 + iqr * spread
    excess = np.maximum(low - arm, arm - high)
    found = np.argwhere(excess > 1e-6)
    ranks = excess / np.maximum(spread, 1e-6)
    ranked = sorted(found.tolist(), key=lambda place: -ranks[place[0], place[1]])
    named = [
        Outlier(
            entry=contract.names[numbers[column]],
            value=float(arm[row, column]),
            low=float(low[column]),
            high=float(high[column]),
            source=dataset.reader.location(*_place(rows, int(good[row]))),
        )
        for row, column in ranked[:MAX_OUTLIERS]
    ]
    return named, len(found)


def _place(rows: ScannedRows, row: int) -> tuple[int, int, int]:
    return int(rows.episode[row]), int(rows.step[row]), int(rows.step[row])


def _view(dataset: WindowDataset, scan: ViewScan) -> ViewReport:
    run = scan.longest
    source = None if run is None else dataset.reader.location(run.episode, run.first, run.first + run.length - 1)
    return ViewReport(
        name=scan.name,
        sizes=[f"{height} x {width}" for height, width in scan.sizes],
        frames=scan.frames,
        repeated_share=scan.repeated / max(scan.pairs, 1),
        longest_run=1 if run is None else run.length,
        longest_source=source,
    )


def _grippers(rows: ScannedRows, contract: ActionContract) -> list[GripperReport]:
    finite = [(i, np.isfinite(rows.actions[:, i])) for i in contract.grippers if len(rows.actions)]
    return [_gripper(rows.actions[good, i], rows.episode[good], contract, i) for i, good in finite if good.any()]


def _gripper(
    values: Float32[np.ndarray, "n"], episode: Int64[np.ndarray, "n"], contract: ActionContract, entry: int
) -> GripperReport:
    is_open = gripper_share(values, contract) > 0.5
    first = np.flatnonzero(np.diff(episode, prepend=-1))
    changes = int(((np.diff(episode) == 0) & (is_open[1:] != is_open[:-1])).sum())
    return GripperReport(
        name=contract.names[entry],
        histogram=Histogram.of(values),
        closed=contract.gripper_closed,
        open=contract.gripper_open,
        open_share=float(is_open.mean()),
        starts_open_share=float(is_open[first].mean()),
        changes=changes / len(first),
    )

"""Statistics of actions and proprioception: computed, saved with a checkpoint, and read from other projects' files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from robovlms.errors import UserError
from robovlms.files import refuse_pointer

STATS = "action_stats.json"  # in the folders of our runs and checkpoints
COLUMNS = ("mean", "std", "min", "max", "q01", "q10", "q50", "q90", "q99")
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Per-entry statistics of raw rows, grippers included."""

    mean: list[float]
    std: list[float]
    min: list[float]
    max: list[float]
    q01: list[float]
    q10: list[float]
    q50: list[float]
    q90: list[float]
    q99: list[float]
    num_rows: int  # rows the figures are computed from; fewer than the data set's when it is large
    # of each step of a chunk, where entries are learned relative to the state; empty: all steps are alike
    steps: list[Statistics] = field(default_factory=list)
    relative: list[str] = field(default_factory=list)  # names of these entries

    @classmethod
    def compute(cls, rows: Float32[np.ndarray, "r a"]) -> Statistics:
        """Compute in float64; quantiles interpolate linearly."""
        exact = rows.astype(np.float64)
        columns = {"mean": exact.mean(0), "std": exact.std(0), "min": exact.min(0), "max": exact.max(0)}
        columns |= dict(zip(QUANTILES, np.quantile(exact, list(QUANTILES.values()), axis=0), strict=True))
        return cls(**{key: value.tolist() for key, value in columns.items()}, num_rows=len(rows), steps=[], relative=[])

    @property
    def absolute(self) -> Statistics:
        """Return those of the actions as they are recorded, where nothing is learned relative to the state."""
        return replace(self, steps=[], relative=[])

    @property
    def quantile_error(self) -> float:
        """Return the standard error, in ranks of the distribution, of q01 and q99 if the rows are a sample."""
        return float((0.01 * 0.99 / max(self.num_rows, 1)) ** 0.5)

    def scatter(self, places: list[int], size: int) -> Statistics:
        """Return the statistics of rows of `size` entries whose entry places[i] is entry i here; the others are 0.

        One more entry here than places is the gripper that older checkpoints added where none is recorded.
        """
        empty = {name: [0.0] * size for name in COLUMNS}
        steps = [step.scatter(places, size) for step in self.steps]
        blank = Statistics(**empty, num_rows=0, steps=[], relative=[])
        return replace(blank.put(places, self), steps=steps, relative=self.relative)

    def put(self, places: list[int], other: Statistics) -> Statistics:
        """Return these, where entry places[i] and the number of rows are those of `other`, entry i."""

        def with_others(values: list[float], others: list[float]) -> list[float]:
            is_added = len(others) == len(places) + 1
            there = dict(zip(places, others[:-1] if is_added else others, strict=True))
            return [there.get(place, value) for place, value in enumerate(values)]

        columns = {name: with_others(getattr(self, name), getattr(other, name)) for name in COLUMNS}
        return Statistics(**columns, num_rows=other.num_rows, steps=[], relative=[])

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, without steps where there are none."""
        values = {name: getattr(self, name) for name in (*COLUMNS, "num_rows")}
        if self.steps:
            values["steps"] = [step.to_json() for step in self.steps]
        return values | ({"relative": self.relative} if self.relative else {})

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Statistics:
        """Read what `to_json` returned."""
        return cls(**values | {"steps": [cls.from_json(step) for step in values.get("steps", [])]})


def save_statistics(path: Path, statistics: dict[str, Statistics]) -> None:
    """Write {data set: {"action": statistics}}, the layout of OpenVLA's dataset_statistics.json."""
    content = {name: {"action": stats.to_json()} for name, stats in statistics.items()}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_statistics(path: Path) -> dict[str, Statistics]:
    """Read what `save_statistics` wrote."""
    return {
        name: Statistics.from_json(entry["action"])
        for name, entry in json.loads(path.read_text(encoding="utf-8")).items()
    }


def import_statistics(path: Path, key: str | None, dim: int) -> Statistics:
    """Read the action statistics of another project.

    Known are RoboVLMs ({"action": ...}), OpenVLA ({data set: {"action": ...}}, also below "norm_stats" of its
    config.json) and openpi ({"norm_stats": {"actions": ...}}, padded with zeros beyond the robot's entries). What a
    file lacks (min, max, the middle quantiles) is taken from its q01 and q99, or from mean +- std without them. Ours of
    relative actions have those of every step of a chunk, and the names of the relative entries.

    Args:
        path: the JSON file, or a run or checkpoint of ours.
        key: the data set within it, for OpenVLA's.
        dim: entries of our actions, grippers included.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: none of these layouts, the key is not there, or it has fewer entries than `dim`.
    """
    option = f"data.normalization.statistics_file={path}"
    if path.is_dir():
        path = path / STATS
    if not path.is_file():
        raise FileNotFoundError(f"{option}: {path} does not exist.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content = content.get("norm_stats", content)
        found = content.get("actions") or content.get("action")
        if found is None:
            sets = {name: entry["action"] for name, entry in content.items() if "action" in entry}
            if key is None and len(sets) == 1:
                key = next(iter(sets))
            if key not in sets:
                raise UserError(
                    f"{option} has no data set {key!r}: set data.normalization.statistics_key to one of "
                    f"{', '.join(sorted(sets)) or 'none'}"
                )
            found = sets[key]
        steps = [_from_columns(step, dim, f"{option}, a step of a chunk") for step in found.get("steps", [])]
        return replace(_from_columns(found, dim, option), steps=steps, relative=list(found.get("relative", [])))
    except (AttributeError, KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
        refuse_pointer(path)
        raise UserError(f"{option} is not statistics of RoboVLMs, OpenVLA or openpi: {error!r}") from error


def _from_columns(found: dict[str, Any], dim: int, option: str) -> Statistics:
    names = [name for name in COLUMNS if name in found]
    columns = {name: np.asarray(found[name], np.float64) for name in names}
    lengths = {name: len(column) for name, column in columns.items()}
    if {"mean", "std"} - set(names) or len(set(lengths.values())) != 1 or min(lengths.values()) < dim:
        raise UserError(f"{option}: expected mean, std and others of at least {dim} entries, found {lengths}")
    columns = {name: column[:dim] for name, column in columns.items()}
    if not all(np.isfinite(column).all() for column in columns.values()):
        raise UserError(f"{option} holds numbers that are not finite")
    low = columns.get("q01", columns.get("min", columns["mean"] - columns["std"]))
    high = columns.get("q99", columns.get("max", columns["mean"] + columns["std"]))
    defaults = {"min": low, "max": high, "q01": low, "q10": low, "q50": columns["mean"], "q90": high, "q99": high}
    columns = defaults | columns
    return Statistics(**{name: column.tolist() for name, column in columns.items()}, num_rows=0)

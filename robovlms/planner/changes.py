"""The cheapest changes that make a run fit into a GPU's memory, as overrides to paste."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

from robovlms.config.choices import Moments, Precision
from robovlms.config.run import TrainConfig
from robovlms.config.schemas import schema_of
from robovlms.planner.machines import Gpu
from robovlms.planner.plan import Plan
from robovlms.planner.trace import Trace, trace

T = TypeVar("T")

CHECKPOINTING = ("none", "attention", "every_n:2", "full")
PARALLEL = ("ddp", "zero1", "fsdp2")
WORTH = 1.02  # how much faster a combination must be to be preferred to one of fewer changes


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """A run that fits, and what was changed for it."""

    plan: Plan
    overrides: tuple[str, ...]  # none: it fits as it is


class Alternatives:
    """Other ways to compute a run: neither the batch, what is trained nor the data change, only how it is done."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._traces: dict[tuple[Precision, str], Trace] = {}  # precision and checkpointing change what a window needs

    def find(self, gpu: Gpu) -> Fitting | None:
        """Return what fits into a GPU: the run as it is, else the fastest combination, of those alike the one of
        fewest changes, else None.
        """
        found: Fitting | None = None
        for config, overrides in _alternatives(self._plan.config):
            plan = replace(self._plan, config=config, gpu=gpu, trace=self._trace(config))
            if plan.fits:
                fitting = Fitting(plan=plan, overrides=overrides)
                if not overrides:
                    return fitting
                found = fitting if found is None or _is_better(fitting, found) else found
        return found

    def _trace(self, config: TrainConfig) -> Trace:
        planned = self._plan.config
        key, same = ((each.precision.name, each.backbone.checkpointing) for each in (config, planned))
        if key == same:
            return self._plan.trace
        if key not in self._traces:
            self._traces[key] = trace(config, 1)
        return self._traces[key]


def _is_better(new: Fitting, old: Fitting) -> bool:
    faster = old.plan.step_seconds / new.plan.step_seconds
    if len(new.overrides) < len(old.overrides):
        return faster * WORTH >= 1
    return faster > WORTH if len(new.overrides) > len(old.overrides) else faster > 1


def _alternatives(config: TrainConfig) -> Iterator[tuple[TrainConfig, tuple[str, ...]]]:
    """Go through the combinations, those of fewest changes first."""
    several = config.cluster.num_processes > 1
    combinations = [
        _changed(config, *values)
        for values in product(
            _from(config.device_batch_size, _divisors(config)),
            _from(config.precision.name, [Precision.bf16]),
            _from(config.backbone.checkpointing, CHECKPOINTING),
            _from(config.parallel.name, PARALLEL if several else ()),
            _from(config.optimizer.moments, [Moments.int8]),
        )
    ]
    yield from sorted(combinations, key=lambda each: len(each[1]))


def _from(current: T, others: Sequence[T]) -> list[T]:
    return [current, *(other for other in others if other != current)]


def _divisors(config: TrainConfig) -> list[int]:
    """Return the smaller micro-batches that the batch still divides into."""
    share = config.batch_size // max(1, config.cluster.num_processes)
    return [size for size in range(config.device_batch_size - 1, 0, -1) if share % size == 0]


def _changed(
    config: TrainConfig, windows: int, precision: Precision, checkpointing: str, parallel: str, moments: Moments
) -> tuple[TrainConfig, tuple[str, ...]]:
    new = replace(
        config,
        device_batch_size=windows,
        precision=replace(config.precision, name=precision),
        backbone=replace(config.backbone, checkpointing=checkpointing),
        optimizer=replace(config.optimizer, moments=moments),
    )
    if parallel != config.parallel.name:
        new = replace(new, parallel=schema_of("parallel", parallel)(name=parallel))
    overrides = {
        f"device_batch_size={windows}": windows != config.device_batch_size,
        f"precision={precision}": precision != config.precision.name,
        f"backbone.checkpointing={checkpointing}": checkpointing != config.backbone.checkpointing,
        f"parallel={parallel}": parallel != config.parallel.name,
        f"optimizer.moments={moments}": moments != config.optimizer.moments,
    }
    return new, tuple(text for text, differs in overrides.items() if differs)

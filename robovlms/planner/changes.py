"""The cheapest changes that make a run fit into a GPU's memory, as overrides to paste."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

from robovlms.config.choices import Moments, Precision
from robovlms.config.policy import FrozenQuantization
from robovlms.config.run import TrainConfig
from robovlms.config.schemas import schema_of
from robovlms.config.training import Rounding
from robovlms.planner.machines import Gpu
from robovlms.planner.memory import SHARDED
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
    trains_less: bool = False  # adapters in place of the decoder's weights, or 4 bits of what is frozen


class Alternatives:
    """Other ways to compute a run: neither batch nor data change, and what is trained only where nothing else helps."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._traces: dict[tuple[Precision, str], Trace] = {}  # precision and checkpointing change what a window needs
        self._smaller: dict[tuple[str, ...], Alternatives] = {}  # that train less, by the overrides that it takes

    def find(self, gpu: Gpu) -> Fitting | None:
        """Return what fits into a GPU: the run as it is, else the fastest combination, of those alike the one of
        fewest changes, else one that trains less, else None.
        """
        if (found := self._find_alike(gpu)) is not None:
            return found
        for config, overrides in _training_less(self._plan.config):
            if overrides not in self._smaller:
                smaller = replace(self._plan, config=config, trace=trace(config, config.device_batch_size))
                self._smaller[overrides] = Alternatives(smaller)
            if (found := self._smaller[overrides]._find_alike(gpu)) is not None:
                return replace(found, overrides=(*overrides, *found.overrides), trains_less=True)
        return None

    def _find_alike(self, gpu: Gpu) -> Fitting | None:
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
            _from(config.optimizer.rounding, [Rounding.stochastic]),
        )
        if _is_allowed(config, *values)
    ]
    yield from sorted(combinations, key=lambda each: len(each[1]))


def _training_less(config: TrainConfig) -> Iterator[tuple[TrainConfig, tuple[str, ...]]]:
    """Go through runs of fewer trained weights, or of smaller frozen ones: of a decoder adapters, then these in NF4."""
    backbone = config.backbone
    overrides: tuple[str, ...] = ()
    if not (backbone.lora.rank or backbone.freeze_text):
        frozen = [part for part in ("vision", "embeddings") if not getattr(backbone, f"freeze_{part}")]
        overrides = ("backbone.lora.rank=16", *(f"backbone.freeze_{part}=true" for part in frozen))
        lora = replace(backbone.lora, rank=16)
        backbone = replace(backbone, lora=lora, freeze_vision=True, freeze_embeddings=True)
        yield replace(config, backbone=backbone), overrides
    if backbone.quantization is None:
        packed = replace(backbone, quantization=FrozenQuantization.nf4)
        yield replace(config, backbone=packed), (*overrides, "backbone.quantization=nf4")


def _is_allowed(
    config: TrainConfig, _: int, precision: Precision, __: str, parallel: str, ___: Moments, rounding: Rounding
) -> bool:
    """Tell whether bfloat16 weights without masters go with the rest, where they are not what was asked for."""
    if rounding is Rounding.masters:
        return True
    is_spread = config.cluster.num_processes > 1 and parallel in SHARDED
    return precision is Precision.bf16 and config.ema is None and not is_spread


def _from(current: T, others: Sequence[T]) -> list[T]:
    return [current, *(other for other in others if other != current)]


def _divisors(config: TrainConfig) -> list[int]:
    """Return the smaller micro-batches that the batch still divides into."""
    share = config.batch_size // max(1, config.cluster.num_processes)
    return [size for size in range(config.device_batch_size - 1, 0, -1) if share % size == 0]


def _changed(
    config: TrainConfig,
    windows: int,
    precision: Precision,
    checkpointing: str,
    parallel: str,
    moments: Moments,
    rounding: Rounding,
) -> tuple[TrainConfig, tuple[str, ...]]:
    new = replace(
        config,
        device_batch_size=windows,
        precision=replace(config.precision, name=precision),
        backbone=replace(config.backbone, checkpointing=checkpointing),
        optimizer=replace(config.optimizer, moments=moments, rounding=rounding),
    )
    if parallel != config.parallel.name:
        new = replace(new, parallel=schema_of("parallel", parallel)(name=parallel))
    overrides = {
        f"device_batch_size={windows}": windows != config.device_batch_size,
        f"precision={precision}": precision != config.precision.name,
        f"backbone.checkpointing={checkpointing}": checkpointing != config.backbone.checkpointing,
        f"parallel={parallel}": parallel != config.parallel.name,
        f"optimizer.moments={moments}": moments != config.optimizer.moments,
        f"optimizer.rounding={rounding}": rounding != config.optimizer.rounding,
    }
    return new, tuple(text for text, differs in overrides.items() if differs)

"""How `benchmarks/ladder.py` measures: a training run under a stopwatch, and control steps."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import ladder_models as models
import numpy as np
import torch
from ladder_models import Acting, Sizes
from torch.utils.flop_counter import FlopCounterMode

from robovlms.actions.plan import DataPlan
from robovlms.config.run import TrainConfig
from robovlms.training.trainer import Trainer

WARM, TIMED, CONTROL_STEPS = 3, 8, 200


class Stopwatch(Trainer):
    """A run that times its steps instead of training on: all on its first batch, and without a checkpoint."""

    def __init__(self, config: TrainConfig, before_step: Callable[[], Any] | None) -> None:
        super().__init__(config, DataPlan.of(config.data, config.view.views))
        self.before_step = before_step or (lambda: None)
        self.measured: dict[str, Any] = {}

    def _loop(self) -> None:
        self.micro_batches, _ = next(self.feed.steps())
        self.measured["flops"] = self.count_flops()
        is_cuda = self.device.type == "cuda"
        if is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        _, first_s = seconds_of(self.take, self.device)
        terms = [self.terms, *(self.take() for _ in range(WARM - 1))]
        self.measured |= {"first_step_s": first_s, "sync_warnings": count_syncs(self.take) if is_cuda else None}

        def steps() -> None:
            for _ in range(TIMED):
                self.take()

        _, taken = seconds_of(steps, self.device)
        self.measured["seconds"] = taken / TIMED
        for name, key in (("losses", "loss"), ("grad_norms", "grad_norm")):
            self.measured[name] = [each[key].item() for each in terms]
        if is_cuda:
            self.measured["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9

    def count_flops(self) -> int:
        """Return the FLOPs of forward and backward, as three times those of the forward."""
        eager, counter = torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False)
        with self.accelerator.autocast(), eager, counter:
            self.policy(self.micro_batches[0].to(self.device))
        return 3 * int(counter.get_total_flops())

    def take(self) -> dict[str, torch.Tensor]:
        """Take a step and return its terms, on the device."""
        self.before_step()
        self.terms = self.train_step(self.micro_batches)
        self.step += 1
        return self.terms


def seconds_of(function: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Return what a function returns and how long it took, the device's work included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    found = function()
    wait()
    return found, time.perf_counter() - start


def count_syncs(function: Callable[[], Any]) -> int:
    """Return how often the host waited for the GPU, as CUDA's debug mode sees it."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in found)


def planned_gb(config: TrainConfig, windows: int) -> float:
    """Return the peak that the planner counts for a run."""
    from robovlms.planner.memory import memory_of  # not in every checkout that the ladder is to measure
    from robovlms.planner.trace import trace

    return float(memory_of(config, trace(config, windows), windows).peak)


def control(model: str, acting: Acting, sizes: Sizes) -> dict[str, Any]:
    """Return how long an engine takes from an observation to an action, both on the host, one robot alone."""
    engine = models.make_engine(model, acting, sizes)
    seen, session = models.observations(engine.policy, sizes.tokens(model)), engine.open()

    def step(number: int) -> float:
        start = time.perf_counter()
        (answer,) = engine.step([(session, seen[number % len(seen)])])
        if isinstance(answer, Exception):
            raise answer
        return 1000 * (time.perf_counter() - start)

    warm = [step(number) for number in range(engine.window_size + 4)]
    taken = [step(number) for number in range(CONTROL_STEPS if sizes.device == "cuda" else 8)]
    return {"first_step_s": warm[0] / 1000, **percentiles(taken)}


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """Return the middle and the slow end of times."""
    return {"p50_ms": float(np.percentile(milliseconds, 50)), "p99_ms": float(np.percentile(milliseconds, 99))}

"""What happened since the last log line: loss terms that are still on the device, and where the time went.

`profiled` looks closer: a trace of single operations.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robovlms.errors import UserError
from robovlms.types import Batch, Losses

log = logging.getLogger(__name__)

SKIPPED_STEPS, WARM_UP_STEPS = 1, 2  # before a profile: allocation and compilation would be all one sees


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a window costs, as the planner counts it, and what the devices of the run could do."""

    flops: float  # of a window, forward and backward
    tokens: float  # of a window, that the decoder reads
    flops_a_second: float  # of all devices, in large matrix products
    planned_gb: float  # that a device was to need at most

    def speeds(self, windows_a_second: float) -> dict[str, float]:
        """Return the share of the devices' arithmetic that is used (MFU), and tokens a second."""
        return {
            "train/mfu": windows_a_second * self.flops / self.flops_a_second,
            "train/tokens_per_s": windows_a_second * self.tokens,
        }


class Interval:
    """Collect steps without looking at them; `metrics` is the one place where the host waits for the device."""

    def __init__(
        self,
        batch_size: int,
        reduce: Callable[[Tensor], Tensor],
        source: Callable[[int], str],
        work: Work | None = None,
    ) -> None:
        """Take the windows of a step, a sum over ranks, what names a window's source, and what a window costs."""
        self._batch_size, self._reduce, self._source, self._work = batch_size, reduce, source, work
        self._restart()

    def _restart(self) -> None:
        self._terms: list[Losses] = []
        self._windows: list[list[Tensor]] = []
        self._start, self._waited = time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        before = time.perf_counter()
        yield
        self._waited += time.perf_counter() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time inside, e.g. of validation."""
        before = time.perf_counter()
        yield
        self._start += time.perf_counter() - before

    def add(self, micro_batches: Sequence[Batch], terms: Losses) -> None:
        """Remember one step: this rank's share of the terms, and which windows it was made of."""
        self._terms.append(terms)
        # Copies: a batch that came from a loader process would hold its slot of the ring until the next log line.
        self._windows.append([batch.index.clone() for batch in micro_batches if batch.index is not None])

    def metrics(self, step: int) -> dict[str, float]:
        """Average the terms of the collected steps, the last of which made `step`, over all ranks, and start anew.

        Raises:
            UserError: a term of a step is not finite; names step, terms and the samples.
        """
        names = list(self._terms[0])
        local = torch.stack([torch.stack([terms[name].float() for name in names]) for terms in self._terms])
        total = self._reduce(local).cpu()
        for i in (~total.isfinite().all(dim=1)).nonzero().flatten().tolist():
            values = dict(zip(names, total[i].tolist(), strict=True))
            on_this_rank = not bool(local[i].isfinite().all())
            raise self._not_finite(step - len(self._terms) + i, values, self._windows[i] if on_this_rank else [])
        elapsed = time.perf_counter() - self._start
        result = {f"train/{name}": value for name, value in zip(names, total.mean(0).tolist(), strict=True)}
        result["train/samples_per_s"] = len(self._terms) * self._batch_size / elapsed
        if self._work is not None:
            result |= self._work.speeds(result["train/samples_per_s"])
        if torch.cuda.is_available():
            result["train/peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        result["train/data_wait"] = self._waited / elapsed  # share of the time
        self._restart()
        return result

    def _not_finite(self, step: int, values: dict[str, float], windows: list[Tensor]) -> UserError:
        terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        sources = [self._source(int(window)) for window in torch.cat(windows)] if windows else ["(on another rank)"]
        shown = sources[:8] + ([f"... and {len(sources) - 8} more"] if len(sources) > 8 else [])
        return UserError(
            f"the loss is not finite at step {step}: {terms}. Samples of that step:\n  " + "\n  ".join(shown) + "\n"
            "It changed no weight, and nothing was saved since. Look at these samples, or go on from the newest "
            "checkpoint, or from the start, with a lower optimizer.lr."
        )


@contextmanager
def profiled(steps: int, folder: Path) -> Iterator[Callable[[], None]]:
    """Write a trace of `steps` optimizer steps, after a few others, into `folder`; give what is called after each step.

    0 steps: nothing is measured. The file opens in chrome://tracing and ui.perfetto.dev.
    """
    if not steps:
        yield lambda: None
        return
    from torch.profiler import ProfilerActivity, profile, schedule

    def write(profiler: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=30)
        (folder / "operations.txt").write_text(table + "\n", encoding="utf-8")
        log.info("profile of %d steps: %s", steps, folder / "trace.json")

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    plan = schedule(wait=SKIPPED_STEPS, warmup=WARM_UP_STEPS, active=steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step

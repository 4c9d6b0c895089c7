"""What happened since the last log line: loss terms that are still on the device, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from robovlms.types import Batch, Losses


class Interval:
    """Collect steps without looking at them; `metrics` is the one place where the host waits for the device."""

    def __init__(self, batch_size: int, reduce: Callable[[Tensor], Tensor], source: Callable[[int], str]) -> None:
        """Take the windows of a step, a sum over ranks, and what names a window's source."""
        self._batch_size, self._reduce, self._source = batch_size, reduce, source
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
        self._windows.append([batch.index for batch in micro_batches if batch.index is not None])

    def metrics(self, step: int) -> dict[str, float]:
        """Average the terms of the collected steps, the last of which made `step`, over all ranks, and start anew.

        Raises:
            FloatingPointError: a term of a step is not finite; names step, terms and the samples.
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
        result["train/data_wait"] = self._waited / elapsed  # share of the time
        self._restart()
        return result

    def _not_finite(self, step: int, values: dict[str, float], windows: list[Tensor]) -> FloatingPointError:
        terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        sources = [self._source(int(window)) for window in torch.cat(windows)] if windows else ["(on another rank)"]
        shown = sources[:8] + ([f"... and {len(sources) - 8} more"] if len(sources) > 8 else [])
        return FloatingPointError(
            f"the loss is not finite at step {step}: {terms}. Samples of that step:\n  " + "\n  ".join(shown) + "\n"
            "The newest checkpoint is from before: resume it with a lower optimizer.lr, or look at these samples."
        )

"""How a server fares, in the text format of Prometheus."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable

import numpy as np

WINDOW = 2048  # newest measurements that quantiles are taken of
QUANTILES = (0.5, 0.95, 0.99)
REQUESTS, BATCH_SIZE, STAGE = "robovlms_requests_total", "robovlms_batch_size", "robovlms_stage_seconds"
HELP = {
    REQUESTS: ("counter", "Requests by result."),
    BATCH_SIZE: ("summary", "Sessions in one forward."),
    STAGE: ("summary", "Time of a request in a stage: waiting for the policy, in the policy, both."),
}


class Metrics:
    """Counts and durations since the start, and quantiles of the newest."""

    def __init__(self) -> None:
        self._counts = Counter[str]()
        self._values: dict[tuple[str, str], deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self._sums, self._numbers = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        self._gauges: dict[str, Callable[[], float]] = {}

    def count(self, result: str) -> None:
        """Count a request by its result: `ok`, `refused`, `busy` or `failed`."""
        self._counts[result] += 1

    def measure(self, name: str, value: float | int, stage: str = "") -> None:
        """Take a measurement of `BATCH_SIZE`, or of a stage of `STAGE` in seconds."""
        key = name, stage
        self._values[key].append(value)
        self._sums[key] += value  # type: ignore[assignment]  # Counter adds floats as well
        self._numbers[key] += 1

    def watch(self, name: str, value: Callable[[], float]) -> None:
        """Show what `value` returns whenever somebody asks."""
        self._gauges[name] = value

    def text(self) -> str:
        """Return everything as a page of Prometheus, version 0.0.4."""
        lines = []
        for name, (kind, meaning) in HELP.items():
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            if name == REQUESTS:
                lines += [f'{name}{{result="{result}"}} {count}' for result, count in sorted(self._counts.items())]
            for key in sorted(each for each in self._values if each[0] == name):
                lines += self._summary(key)
        for name, value in self._gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value():g}"]
        return "\n".join(lines) + "\n"

    def _summary(self, key: tuple[str, str]) -> list[str]:
        name, stage = key
        label = [f'stage="{stage}"'] if stage else []
        found = np.quantile(list(self._values[key]), QUANTILES)
        shares = [",".join([*label, f'quantile="{share:g}"']) for share in QUANTILES]
        rows = [f"{name}{{{share}}} {value:.6g}" for share, value in zip(shares, found, strict=True)]
        end = f"{{{label[0]}}}" if label else ""
        return [*rows, f"{name}_sum{end} {self._sums[key]:.6g}", f"{name}_count{end} {self._numbers[key]}"]

"""How far long work is: a bar on a terminal, elsewhere a line in the log every half minute."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from math import inf
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

EVERY_S = 30.0
DELAY_S = 1.0  # before a bar is drawn: what is shorter needs none

log = logging.getLogger(__name__)


class Progress:
    """Count the units of long work, as a context manager.

    Args:
        what: the work, e.g. "collecting".
        total: units altogether; 0: not known.
        unit: what is counted, e.g. "demonstration".
        initial: units that were done before.
        every_s: seconds between two lines, where stderr is no terminal.
        is_shown: whether this process is the one that says so.
    """

    def __init__(
        self, what: str, total: int, unit: str, *, initial: int = 0, every_s: float = EVERY_S, is_shown: bool = True
    ) -> None:
        self._what, self._total, self._unit, self._every = what, total, unit, every_s if is_shown else inf
        self._initial, self._count, self._note = initial, initial, ""
        self._start = self._last = time.monotonic()
        self._bar = (
            tqdm(total=total or None, initial=initial, desc=what, unit=unit, dynamic_ncols=True, delay=DELAY_S)
            if is_shown and sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._last > self._start:  # who saw it begin sees it end
            self._say()

    def update(self, count: int = 1, note: str = "") -> None:
        """Count units that are done; `note` stands behind the figures."""
        self._count += count
        self._note = note or self._note
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note)
            self._bar.update(count)
        elif time.monotonic() - self._last >= self._every:
            self._say()

    def _say(self) -> None:
        self._last = time.monotonic()
        rate = (self._count - self._initial) / max(self._last - self._start, 1e-9)
        left = (self._total - self._count) / rate if rate and self._total else 0.0
        of = f" of {self._total}" if self._total else ""
        ending = f", {_clock(left)} left" if left > 0 else ""
        note = f", {self._note}" if self._note else ""
        per_unit = f"{rate:.3g} {self._unit}s/s" if rate >= 0.1 else f"{60 * rate:.3g} {self._unit}s/min"
        log.info("%s: %d%s %ss, %s%s%s", self._what, self._count, of, self._unit, per_unit, ending, note)


def track(items: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
    """Yield items, each counted when the next is asked for."""
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.update()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"

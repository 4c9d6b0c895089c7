"""A log that a client cannot fill."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

BURST, LINES_A_SECOND = 100.0, 5.0


class SparingLog:
    """Writes at most `BURST` lines at once and `LINES_A_SECOND` in the long run, and says how many it left out."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        """Take where lines go, and a clock in seconds."""
        self._log, self._clock = log, clock
        self._lines, self._then, self._left_out = BURST, clock(), 0

    def warning(self, name: str, error: Exception) -> None:
        """Write who did what wrong, or count it."""
        now = self._clock()
        self._lines = min(BURST, self._lines + LINES_A_SECOND * (now - self._then))
        self._then = now
        if self._lines < 1:
            self._left_out += 1
            return
        self._lines -= 1
        if self._left_out:
            self._log.warning("%d messages like the next were left out", self._left_out)
            self._left_out = 0
        self._log.warning("%s: %s", name, error)

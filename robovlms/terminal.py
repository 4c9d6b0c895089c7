"""What a terminal gets to see: texts of data sets, tasks and files are foreign, and must not steer it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

JOINERS = "\u200c\u200d"  # invisible, and part of words in Persian, of Indic scripts and of emoji


def printable(text: str, keep: str = "\n\t") -> str:
    r"""Return a text whose control characters are written out: an escape sequence becomes `\x1b[31m`.

    Args:
        text: anything.
        keep: control characters that stay; none for a name that must stay on its line.
    """
    allowed = keep + JOINERS
    return "".join(c if c.isprintable() or c in allowed else c.encode("unicode_escape").decode() for c in text)


def show(value: object) -> None:
    """Print a text, or what prints as one, on stdout."""
    sys.stdout.write(f"{printable(str(value))}\n")


class PrintableFormatter(logging.Formatter):
    """Writes out the control characters of every message, whoever logs it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, tracebacks included."""
        return printable(super().format(record))


def set_up_logging(level: int, is_shown: Callable[[logging.LogRecord], bool] | None = None) -> None:
    """Log on stderr from `level` on what `is_shown` lets through; where logging is set up already, nothing changes.

    A process that is spawned has no logging yet, and would write warnings as they are.
    """
    if logging.getLogger().handlers:
        return
    handler = logging.StreamHandler()
    handler.setLevel(level)
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    if is_shown is not None:
        handler.addFilter(is_shown)
    logging.basicConfig(level=level, handlers=[handler])

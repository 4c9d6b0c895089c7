"""Errors of a launch by torchrun: told once for the processes of a machine, and again behind torchrun's own summary.

A process that fails takes the others with it: they report a closed connection, and torchrun prints forty lines of its
own, none of which says why. So the first to report speaks for all, an error that may only follow from another's waits
for it, and what was said is said again when torchrun has ended, so that the last line is the cause.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

PATIENCE_S = 5.0  # that an error which may be a consequence waits for its cause

LAUNCHER_S = 60.0  # that the end of torchrun is waited for
SUMMARY_END = b"=" * 20 + b"\n"  # of what torchrun prints


def speaks(*, is_cause: bool) -> bool:
    """Tell whether this process reports its error, or another of its launch on this machine has told the cause.

    Args:
        is_cause: whether its error cannot be a consequence of another process's; otherwise that is waited for.
    """
    mark = _mark()
    if mark is None or is_cause:
        return True
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and not mark.exists():
        time.sleep(0.05)
    return is_first(mark)


def is_first(mark: Path) -> bool:
    """Tell whether no other process has made this mark, and make it."""
    rank = os.environ.get("RANK", "0")
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        with mark.open("x", encoding="utf-8") as file:
            file.write(rank)
    except FileExistsError:
        return mark.read_text(encoding="utf-8") == rank
    except OSError:
        return True
    return True


def say_last(text: str) -> None:
    """Write a line to stderr behind what torchrun, the parent of this process, prints when it ends.

    A process apart does so: torchrun ends those that it started.
    """
    mark = _mark()
    if mark is None or not is_first(mark) or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    command = [sys.executable, "-I", __file__, str(os.getppid()), text]
    with contextlib.suppress(OSError):
        subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)


def _last_words(launcher: int, text: str) -> None:
    """Wait for the launcher's end and say `text`; in a log file that nobody waits for, behind its last line already."""
    end = time.monotonic() + LAUNCHER_S
    while time.monotonic() < end and _is_alive(launcher) and not _has_summary():
        time.sleep(0.01)
    sys.stderr.write(f"{text}\n")


def _is_alive(process: int) -> bool:
    """Tell whether a process runs; one that has ended may wait for its parent, which may wait for our stderr."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:
        return not Path("/proc").exists()  # without it, a process that has not ended was found above


def _has_summary() -> bool:
    """Tell whether stderr is a file that ends with torchrun's summary."""
    try:
        with open("/proc/self/fd/2", "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return False
            file.seek(-min(len(SUMMARY_END), file.seek(0, os.SEEK_END)), os.SEEK_END)
            return file.read() == SUMMARY_END
    except OSError:
        return False


def said_folder() -> Path | None:
    """Return the folder in which the processes of a launch note what was said; None: torchrun launched none.

    torchrun gives every process a file below a folder of the launch.
    """
    given = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(given).parents[1] / "said" if given else None


def _mark() -> Path | None:
    """Return the file that is there once an error was reported."""
    folder = said_folder()
    return None if folder is None else folder / "error"


if __name__ == "__main__":
    _last_words(int(sys.argv[1]), sys.argv[2])

"""What goes wrong with machines, files and accounts: said with what to change, where the user can change it."""

from __future__ import annotations

import errno
import re

from robovlms.registry import requirements

# Errors of the operating system that only a fault of ours can cause.
OURS = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EDEADLK, errno.ECHILD, errno.ESRCH}
FULL = {errno.ENOSPC, errno.EDQUOT}

MEMORY = (
    "not enough memory. Lower device_batch_size (the global batch stays the same), data.num_workers, data.cache_mb, "
    "window.window_size or the sizes of head and backbone; backbone.checkpointing=full costs time instead."
)
KILLED = (
    "a process was killed, most likely because memory ran out: lower data.num_workers, data.cache_mb or "
    "device_batch_size, or ask for more memory."
)
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|Unable to allocate", re.IGNORECASE)
DIED = re.compile(
    r"killed by signal: (Killed|Bus error)|insufficient shared memory|terminated abruptly|exited unexpectedly|"
    r"unexpectedly terminated",
    re.IGNORECASE,
)


def explain_failure(error: BaseException) -> str | None:
    """Return the message for what the user can fix, or None when the program is at fault."""
    if isinstance(error, ImportError):
        return None if (error.name or "").startswith("robovlms") else _missing_package(error)
    if isinstance(error, FloatingPointError):
        return str(error)
    name = f"{type(error).__module__}.{type(error).__name__}"
    if isinstance(error, MemoryError) or name.endswith("OutOfMemoryError") or _matches(error, NO_MEMORY):
        return f"{MEMORY} ({_first_line(error)})"
    if name.endswith(("BrokenProcessPool", "TerminatedWorkerError")) or _matches(error, DIED):
        return f"{KILLED} ({_first_line(error)})"
    if name.startswith("wandb."):
        return (
            f"wandb: {_first_line(error)}. Log in with `wandb login`, set WANDB_API_KEY, or choose "
            "tracking.wandb_mode=offline."
        )
    return _system(error) if isinstance(error, OSError) else None


def _matches(error: BaseException, pattern: re.Pattern[str]) -> bool:
    return isinstance(error, RuntimeError | MemoryError) and pattern.search(str(error)) is not None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _missing_package(error: ImportError) -> str:
    """Say what to install: the extra that the package belongs to, or the package's own requirements again."""
    if "pip install" in str(error) or not error.name:
        return str(error)
    missing = re.compile(rf"{re.escape(error.name.partition('.')[0])}(?![\w-])", re.IGNORECASE)
    needed = [text for text in requirements() if missing.match(text)]
    if not needed:
        return f"{error}."
    extra = re.search(r"extra == ['\"](\w+)", needed[0])
    what = f"'.[{extra[1]}]'" if extra else "."
    return f"{error}: run `pip install -e {what}` in the repository."


def _system(error: OSError) -> str | None:
    """Say what file and what is wrong with it; errors that carry a text of ours say it themselves."""
    if error.errno is None:
        return str(error)
    if error.errno in OURS:
        return None
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in FULL:
        return f"{where}{error.strerror}. Free some space, or choose another output_dir= or data.cache_dir=."
    if isinstance(error, FileExistsError):
        return f"{where}{error.strerror}. Choose another folder, or remove it."
    if isinstance(error, PermissionError):
        return f"{where}{error.strerror}. Choose a place that you may write to, or ask for access."
    if error.errno == errno.EMFILE:
        return f"{where}{error.strerror}. Raise the limit with `ulimit -n 65536`, or lower data.num_workers."
    return f"{where}{error.strerror}."

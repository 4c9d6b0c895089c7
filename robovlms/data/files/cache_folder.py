"""Files that can be made anew: where they lie, and how several processes share the making."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from robovlms.data.files.npz import read_npz
from robovlms.errors import UserError
from robovlms.files import atomic_file, exclusive

logger = logging.getLogger(__name__)

T = TypeVar("T")
VARIABLE = "ROBOVLMS_CACHE"
TO_DO = f"set data.cache_dir or {VARIABLE} to a folder that can be written"


def cache_folder(chosen: str | None) -> Path:
    """Return the folder: `data.cache_dir`, or what ROBOVLMS_CACHE names, or ~/.cache/robovlms.

    Who has no home, as in a container under a user number of its own, has it among the temporary files.

    Raises:
        UserError: a path is given that begins in a home that there is not.
    """
    given = chosen or os.environ.get(VARIABLE)
    try:
        return Path(given or "~/.cache/robovlms").expanduser()
    except RuntimeError as error:
        if given:
            raise UserError(f"{given}: there is no home folder. Write the whole path, or set HOME.") from error
        return Path(tempfile.gettempdir()) / f"robovlms-{os.getuid()}"


def keep(
    path: Path,
    make: Callable[[], T],
    to_arrays: Callable[[T], dict[str, np.ndarray]],
    from_arrays: Callable[[dict[str, np.ndarray]], T],
) -> tuple[T, bool]:
    """Read what was kept in an npz file, or make and keep it; give it, and whether it was read (then read-only).

    Processes of one machine wait for the one that makes it. A damaged file is made anew, with a warning; where the
    folder cannot be written, a warning says so and nothing is kept.

    Args:
        path: its name must change with everything that the content depends on.
        make: makes the content; what it raises passes.
        to_arrays: turns the content into arrays of plain numbers.
        from_arrays: the reverse; raises ValueError, KeyError or TypeError for arrays that cannot be its content.
    """
    with _alone(path) as may_write:
        if path.is_file() and (found := _read(path, from_arrays)) is not None:
            return found, True
        made = make()
        if may_write:
            _write(path, to_arrays(made))
    return made, False


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Hold the lock of a file; False where the folder cannot be written."""
    with ExitStack() as stack:
        may_write = True
        try:
            stack.enter_context(exclusive(path.with_suffix(".lock")))
        except OSError as error:
            logger.warning("%s is not kept, because %s: %s.", path, error, TO_DO)
            may_write = False
        yield may_write


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write at once: another process sees no file or a whole one."""
    try:
        with atomic_file(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        logger.warning("%s is not kept, because %s: %s.", path, error, TO_DO)


def _read(path: Path, from_arrays: Callable[[dict[str, np.ndarray]], T]) -> T | None:
    """Return None, with a warning, where the file is damaged."""
    try:
        return from_arrays(read_npz(path))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        logger.warning("%s is damaged (%s) and is made anew.", path, error)
        return None

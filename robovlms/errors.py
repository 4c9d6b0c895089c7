"""Errors that the user can fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """What the user can fix: the message names the option or file and what to change; exit status 2, no traceback."""


class NotAllowedError(UserError):
    """Two options that do not go together; a sweep skips them."""


class LostProcessError(UserError):
    """Another process of the run has gone; what it says itself, if anything, comes first."""


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Say in an error of the disk which folder could not be written.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or "I/O error" in str(error):  # safetensors wraps OSError in its own type
            raise OSError(f"could not write {target}: {error}. Earlier checkpoints are untouched.") from error
        raise

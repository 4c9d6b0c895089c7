"""Files that appear whole or not at all, hashes that tell whether they changed, and files that did not come along."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robovlms.errors import UserError

_POINTER = b"version https://git-lfs.github.com/spec/"
_OLD_POINTER = b"version https://hawser.github.com/spec/"
_MAX_POINTER_BYTES = 1024


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Return a folder to fill; it becomes `target` when the block ends, or disappears when it fails.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*"):
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _sync(target.parent)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) or "I/O error" in str(error):  # safetensors wraps OSError in its own type
            raise OSError(f"could not write {target}: {error}. Earlier checkpoints are untouched.") from error
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pointer_problem(path: Path) -> str | None:
    """Return what to say of a file that is a Git LFS pointer, None of any other; a large file is not read.

    Source: github.com/git-lfs/git-lfs, docs/spec.md: a few lines of text, the first of them the version, below 1024
    bytes.
    """
    try:
        if path.stat().st_size > _MAX_POINTER_BYTES:
            return None
        text = path.read_bytes()
    except OSError:
        return None
    if not text.startswith((_POINTER, _OLD_POINTER)):
        return None
    size = re.search(rb"^size (\d{1,18})$", text, re.MULTILINE)
    missing = f", and its {int(size[1])} bytes are missing" if size else ""
    return (
        f"it is a Git LFS pointer{missing}: the folder was cloned without Git LFS. Run `git lfs install` and "
        "`git lfs pull` in the clone, or download the files again"
    )


def refuse_pointer(path: Path) -> None:
    """Raise UserError for a Git LFS pointer; to be called where a file turns out to be unreadable."""
    if (problem := pointer_problem(path)) is not None:
        raise UserError(f"{path} cannot be read: {problem}.")

"""Files whose content did not come along: what git clones in their place without Git LFS.

Source: github.com/git-lfs/git-lfs, docs/spec.md: a few lines of text, the first of them the version, below 1024 bytes.
"""

from __future__ import annotations

import re
from pathlib import Path

from robovlms.errors import UserError

_MAGIC = b"version https://git-lfs.github.com/spec/"
_OLD_MAGIC = b"version https://hawser.github.com/spec/"
_MAX_BYTES = 1024


def pointer_problem(path: Path) -> str | None:
    """Return what to say of a file that is a Git LFS pointer, None of any other; a large file is not read."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        text = path.read_bytes()
    except OSError:
        return None
    if not text.startswith((_MAGIC, _OLD_MAGIC)):
        return None
    size = re.search(rb"^size (\d{1,18})$", text, re.MULTILINE)
    missing = f", and its {int(size[1])} bytes are missing" if size else ""
    return (
        f"it is a Git LFS pointer{missing}: the folder was cloned without Git LFS. Run `git lfs install` and "
        "`git lfs pull` in the clone, or download the files again"
    )


def refuse_pointer(path: Path) -> None:
    """Raise ValueError for a Git LFS pointer; to be called where a file turns out to be unreadable."""
    if (problem := pointer_problem(path)) is not None:
        raise UserError(f"{path} cannot be read: {problem}.")

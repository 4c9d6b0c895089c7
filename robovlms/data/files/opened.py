"""Files that loader processes keep open, each its own."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

F = TypeVar("F")


class OpenFiles(Generic[F]):
    """Files opened on first use, the least recently used closed beyond `limit`.

    Each process opens its own: a pickled copy and a forked child start with none, because processes that share a file
    position corrupt what both read.
    """

    def __init__(self, open_file: Callable[[Path], F], limit: int = 16) -> None:
        self._open_file = open_file
        self._limit = limit
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[Path, F] = OrderedDict()

    def __getitem__(self, path: Path) -> F:
        if self._process != os.getpid():
            self._forget()
        if path not in self._files:
            self._files[path] = self._open_file(path)
            if len(self._files) > self._limit:
                self._files.popitem(last=False)
        self._files.move_to_end(path)
        return self._files[path]

    def __getstate__(self) -> dict[str, Any]:
        return {"_open_file": self._open_file, "_limit": self._limit, "_files": OrderedDict(), "_process": -1}

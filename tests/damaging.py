"""Files with a few bytes changed, and what reading them may raise: ValueError or OSError that names something."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st

from robovlms.actions.plan import Source
from robovlms.config.data import DataConfig
from robovlms.data.base import Reader
from robovlms.data.windows import WindowDataset


@st.composite
def damage(draw: st.DrawFn) -> list[tuple[float, int]]:
    """Return places, as shares of a file, and the bytes to put there; below 0 it is cut off at the first."""
    return draw(st.lists(st.tuples(st.floats(0, 1), st.integers(-1, 255)), min_size=1, max_size=6))


def break_file(path: Path, changes: list[tuple[float, int]]) -> None:
    path.write_bytes(break_bytes(path.read_bytes(), changes))


def break_bytes(valid: bytes, changes: list[tuple[float, int]]) -> bytes:
    data = bytearray(valid)
    for place, byte in changes:
        at = int(place * (len(data) - 1)) if data else 0
        if byte < 0:
            del data[at:]
        elif data:
            data[at] = byte
    return bytes(data)


@contextlib.contextmanager
def kept(path: Path) -> Iterator[None]:
    """Put a file's bytes back afterwards."""
    data = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(data)


def use(reader: type[Reader], config: DataConfig, views: list[str]) -> list[Exception]:
    """Read a folder's first and last windows and its numbers, and give what was refused.

    A ValueError or OSError that names something is fine.
    """
    refused: list[Exception] = []
    for skip_bad in (False, True):
        config.skip_bad = skip_bad
        try:
            dataset = WindowDataset(
                reader(config, "train", views=views), Source.of(config), window_size=2, chunk_size=2
            )
            dataset.summary(), dataset.location(0), dataset.reader.fingerprint(), dataset.rows(100).actions
            dataset[0], dataset[len(dataset) - 1]
        except (ValueError, OSError) as error:
            if config.root not in str(error) and "data." not in str(error):
                raise AssertionError("the message names neither file nor option") from error
            refused.append(error)
    return refused

"""Tensors in pieces: what each process has of them is one file, and any number of processes may read them again.

A piece is a range of a tensor's values, counted row by row; shards of FSDP and of ZeRO are both that. Files are
safetensors whose header says where the pieces belong. PyTorch's own distributed checkpoints are not used: their
metadata and shards are pickles, and nothing in a checkpoint of ours is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

PLACES = "places"  # in the header: start and whole shape of every piece


class Piece(NamedTuple):
    """The values of a tensor of `shape` from `start` on, counted row by row."""

    values: Tensor
    start: int
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, tensor: Tensor) -> Piece:
        """Return a tensor as its only piece."""
        return cls(tensor, 0, tuple(tensor.shape))


def save_pieces(path: Path, pieces: Mapping[str, Piece]) -> None:
    """Write pieces; those of whole tensors keep their shape."""
    tensors = {name: _stored(piece) for name, piece in pieces.items()}
    places = {name: [piece.start, list(piece.shape)] for name, piece in pieces.items() if not _is_whole(piece)}
    save_file(tensors, path, metadata={PLACES: json.dumps(places)})


def _is_whole(piece: Piece) -> bool:
    return piece.values.numel() == math.prod(piece.shape)


def _stored(piece: Piece) -> Tensor:
    return piece.values.reshape(piece.shape if _is_whole(piece) else (-1,)).contiguous()


class Pieces:
    """What several files hold of some tensors, read a piece at a time.

    Raises:
        OSError, SafetensorError, ValueError: a file cannot be read.
    """

    def __init__(self, paths: Sequence[Path] = ()) -> None:
        """Read where the pieces are."""
        self._files: list[Any] = [safe_open(path, framework="pt") for path in paths]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._found: dict[str, list[tuple[int, int, int]]] = {}  # start, stop and number of the file
        for number, file in enumerate(self._files):
            places = json.loads((file.metadata() or {}).get(PLACES, "{}"))
            for name in file.keys():  # noqa: SIM118
                size = tuple(file.get_slice(name).get_shape())
                start, shape = places.get(name, (0, size))
                self.shapes[name] = tuple(shape)
                self._found.setdefault(name, []).append((start, start + math.prod(size), number))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the values `start` to `stop` of a tensor, flat; without them, the tensor.

        Raises:
            ValueError: no file has all of them.
        """
        end = math.prod(self.shapes[name]) if stop is None else stop
        parts, place = [], start
        if start == end:
            return self._values(name, self._found[name][0][2], 0, 0)
        for first, last, number in sorted(self._found[name]):
            if first <= place < min(last, end):
                parts.append(self._values(name, number, place - first, min(last, end) - first))
                place = min(last, end)
        if place != end:
            raise ValueError(f"values {place} to {end} of {name} are in no file")
        values = parts[0] if len(parts) == 1 else torch.cat(parts)
        return values.reshape(self.shapes[name]) if (start, stop) == (0, None) else values

    def _values(self, name: str, number: int, start: int, stop: int) -> Tensor:
        file = self._files[number]
        part = file.get_slice(name)
        if len(part.get_shape()) == 1:
            return part[start:stop]
        return file.get_tensor(name).flatten()[start:stop]

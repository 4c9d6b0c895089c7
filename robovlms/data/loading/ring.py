"""How batches come from loader processes: in memory that both sides keep mapped, written and read in turn.

A DataLoader makes a new shared-memory file for every tensor of every batch. Its pages have to be created, zeroed,
mapped twice and given back, and its descriptor goes through a socket: measured 5 ms of processor time for a window of
two views, several times as much as reading it from packed data. Here the pages stay.
"""

from __future__ import annotations

import itertools
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import fields
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from robovlms.types import Batch

SLOT_BYTES = 2**28  # of address space; only pages that are used are memory. A larger batch goes the ordinary way
PAGE = 4096
ALIGNMENT = 64

_RINGS: weakref.WeakValueDictionary[int, Ring] = weakref.WeakValueDictionary()
_COUNT = itertools.count()


class Piece(NamedTuple):
    """Where a tensor of a batch lies in a slot."""

    field: str
    key: str | None  # in a field that has a tensor per view
    dtype: str
    shape: tuple[int, ...]
    start: int


class Ring:
    """A collator for loader processes, which leaves its batches in slots of shared memory.

    The receiving process gets tensors that lie in a slot; it is written again once none of them is left. Where all
    slots of a loader process are in use (somebody keeps batches) or too small, a batch goes the ordinary way.

    Args:
        collate: makes a batch of samples.
        num_workers: loader processes.
        slots: for each of them; one more than it prepares ahead and than are in use at a time.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], Batch], num_workers: int, slots: int = 7) -> None:
        assert sys.platform == "linux", "memory without a name is Linux's"
        self._collate, self._slots, self._number = collate, slots, next(_COUNT)
        self._size = PAGE + num_workers * slots * SLOT_BYTES
        assert num_workers * slots <= PAGE, "the first page has a byte for each slot"
        self._file = os.memfd_create("batches")
        os.ftruncate(self._file, self._size)
        self._map()
        _RINGS[self._number] = self

    def _map(self) -> None:
        weakref.finalize(self, os.close, self._file)
        self._memory = np.frombuffer(mmap.mmap(self._file, self._size), np.uint8)
        self._in_use = self._memory[:PAGE]

    def __getstate__(self) -> dict[str, Any]:
        names = ("_collate", "_slots", "_number", "_size")
        return {name: getattr(self, name) for name in names} | {"_file": DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_file": state["_file"].detach()}
        self._map()

    def __call__(self, samples: Sequence[Any]) -> Batch | _Sent:
        """Collate; in a loader process, leave the batch in a free slot."""
        batch = self._collate(samples)
        info = get_worker_info()
        if info is None:
            return batch
        mine = range(info.id * self._slots, (info.id + 1) * self._slots)
        slot = next((slot for slot in mine if not self._in_use[slot]), None)
        tensors = [(field.name, getattr(batch, field.name)) for field in fields(batch)]
        pieces, arrays, end = [], [], 0
        for name, value in tensors:
            items = value.items() if isinstance(value, dict) else [(None, value)] if isinstance(value, Tensor) else []
            for key, tensor in items:
                array = tensor.numpy()
                pieces.append(Piece(name, key, array.dtype.str, array.shape, end))
                arrays.append(array)
                end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        if slot is None or end > SLOT_BYTES:
            return batch
        self._in_use[slot] = 1
        memory = self._slot(slot)
        for piece, array in zip(pieces, arrays, strict=True):
            _part(memory, piece)[...] = array
        return _Sent(self._number, slot, pieces)

    def _slot(self, slot: int) -> np.ndarray:
        start = PAGE + slot * SLOT_BYTES
        return self._memory[start : start + SLOT_BYTES]

    def receive(self, slot: int, pieces: list[Piece]) -> Batch:
        """Return the batch that lies in a slot; the slot is free when the last of its tensors is gone."""
        memory = self._slot(slot)[:]
        held = np.frombuffer(memory.data, np.uint8)  # what tensors hold on to: a slice would hold on to the ring only
        weakref.finalize(held, self._free, slot)
        values: dict[str, Any] = {}
        whole = torch.from_numpy(held)
        for piece in pieces:
            dtype, count = np.dtype(piece.dtype), int(np.prod(piece.shape, dtype=np.int64))
            flat = whole[piece.start : piece.start + count * dtype.itemsize]
            tensor = flat.view(_TORCH[dtype.str]).view(piece.shape)
            if piece.key is None:
                values[piece.field] = tensor
            else:
                values.setdefault(piece.field, {})[piece.key] = tensor
        return Batch(**values)

    def _free(self, slot: int) -> None:
        self._in_use[slot] = 0


_TORCH = {
    np.dtype(name).str: getattr(torch, name)
    for name in ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")
}


class _Sent:
    """A batch on its way; arrives as the batch."""

    def __init__(self, ring: int, slot: int, pieces: list[Piece]) -> None:
        self._contents = ring, slot, pieces

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, self._contents


def _receive(ring: int, slot: int, pieces: list[Piece]) -> Batch:
    return _RINGS[ring].receive(slot, pieces)


def _part(memory: np.ndarray, piece: Piece) -> np.ndarray:
    dtype, count = np.dtype(piece.dtype), int(np.prod(piece.shape, dtype=np.int64))
    return memory[piece.start : piece.start + count * dtype.itemsize].view(dtype).reshape(piece.shape)

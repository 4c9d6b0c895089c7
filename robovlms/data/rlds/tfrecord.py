"""TFRecord files and the tf.train.Example messages in them, without TensorFlow or a protobuf library.

A record is its length (8 bytes), the length's checksum (4), the payload, the payload's checksum (4), little-endian. An
Example maps names to lists of bytes, float32 or int64.

Source: tensorflow/core/lib/io/record_writer.h; tensorflow/core/example/{example,feature}.proto;
protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
from jaxtyping import Float32, Int64, UInt8

from robovlms.errors import UserError

_HEADER, _FOOTER = 12, 4
_MAX_PAYLOAD = 2**31 - 1  # no protobuf message is larger
_MASK_DELTA = 0xA282EAD8
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types
_KINDS = {1: "bytes", 2: "float", 3: "int64"}


class Scanned(NamedTuple):
    """A record as it lies in its file: its payload, or what is wrong with it."""

    offset: int  # of the payload
    payload: bytes
    fault: str | None = None


def scan_records(path: Path) -> Iterator[Scanned]:
    """Read a file from its beginning and check every checksum.

    What follows a damaged payload is still read; behind a damaged length nothing can be found, and the scan ends.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        offset = 0
        while offset < size:
            header = file.read(_HEADER)
            start = offset + _HEADER
            if len(header) < _HEADER:
                yield Scanned(start, b"", f"the file ends within the record's header, after {size} bytes")
                return
            length = int.from_bytes(header[:8], "little")
            if masked_crc32c(header[:8]) != int.from_bytes(header[8:], "little"):
                yield Scanned(start, b"", "the checksum of its length is wrong, so what follows cannot be found")
                return
            if length > _MAX_PAYLOAD or start + length + _FOOTER > size:
                yield Scanned(start, b"", f"it says that it has {length} bytes, but the file ends after {size}")
                return
            body = file.read(length + _FOOTER)
            if len(body) < length + _FOOTER:
                yield Scanned(start, b"", "the file became shorter while it was read")
                return
            payload = body[:length]
            good = masked_crc32c(payload) == int.from_bytes(body[length:], "little")
            yield Scanned(start, payload, None if good else "its checksum is wrong")
            offset = start + length + _FOOTER


def masked_crc32c(data: bytes) -> int:
    """Return the checksum as TFRecord files store it.

    Source: tensorflow/tsl lib/hash/crc32c.h, Mask.
    """
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


class RecordFile:
    """A file whose payloads are read by place, with no position to share."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Return a payload; its checksum was looked at by `scan_records`.

        Raises:
            UserError: the file has become shorter.
        """
        payload = os.pread(self._descriptor, length, offset)
        if len(payload) < length:
            raise UserError(
                f"{self._path} ends within the {length} bytes at {offset}: it changed since it was indexed."
            )
        return payload


class Feature(NamedTuple):
    """A list of an Example, not yet decoded."""

    kind: str  # bytes, float, int64, or "" where nothing is set
    message: memoryview

    def bytes_list(self) -> list[memoryview]:
        """Return the entries, as views of the message.

        Raises:
            UserError: it holds something else, or is damaged.
        """
        self._expect("bytes")
        return [_expect_bytes(value) for number, value in _fields(self.message) if number == 1]

    def floats(self) -> Float32[np.ndarray, "n"]:
        """Return the numbers.

        Raises:
            UserError: it holds something else, or is damaged.
        """
        self._expect("float")
        pieces = [_expect_bytes(value) for number, value in _fields(self.message) if number == 1]
        if any(len(piece) % 4 for piece in pieces):
            raise UserError("a list of float32 is no multiple of 4 bytes long")
        return np.frombuffer(pieces[0] if len(pieces) == 1 else b"".join(pieces), "<f4").astype(np.float32, copy=False)

    def ints(self) -> Int64[np.ndarray, "n"]:
        """Return the numbers.

        Raises:
            UserError: it holds something else, or is damaged.
        """
        self._expect("int64")
        pieces = [
            np.array([value], np.uint64).view(np.int64) if isinstance(value, int) else _varints(value)
            for number, value in _fields(self.message)
            if number == 1
        ]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)

    def _expect(self, kind: str) -> None:
        if self.kind not in ("", kind):
            raise UserError(f"it holds {self.kind}, expected {kind}")


def parse_example(payload: bytes | memoryview, keys: Collection[str]) -> dict[str, Feature]:
    """Find the features `keys`; those that the Example lacks are left out, all others are passed over undecoded.

    Raises:
        UserError: this is not an Example.
    """
    wanted = {key.encode(): key for key in keys}
    found: dict[str, Feature] = {}
    for number, features in _fields(memoryview(payload)):
        if number != 1:
            continue
        for entry_number, entry in _fields(_expect_bytes(features)):
            if entry_number != 1:
                continue
            name, value = b"", memoryview(b"")
            for part_number, part in _fields(_expect_bytes(entry)):
                if part_number == 1:
                    name = bytes(_expect_bytes(part))
                elif part_number == 2:
                    value = _expect_bytes(part)
            if name in wanted:
                found[wanted[name]] = _feature(value)
    return found


def _feature(message: memoryview) -> Feature:
    feature = Feature("", memoryview(b""))
    for number, value in _fields(message):
        if number in _KINDS:
            feature = Feature(_KINDS[number], _expect_bytes(value))
    return feature


def _expect_bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise UserError("not a tf.train.Example: a number where a message should be")
    return value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Return the fields of a message: number, and an int for a varint or else the bytes."""
    place, size = 0, len(message)
    while place < size:
        tag, place = _varint(message, place)
        wire = tag & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield tag >> 3, value
            continue
        if wire == _LENGTH:
            length, place = _varint(message, place)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise UserError(f"not a tf.train.Example: wire type {wire}")
        if length > size - place:
            raise UserError(f"not a tf.train.Example: a field of {length} bytes where {size - place} are left")
        yield tag >> 3, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(message[place : place + 10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place + i + 1
    raise UserError("not a tf.train.Example: a number ends early or is too long")


def _varints(packed: memoryview) -> Int64[np.ndarray, "n"]:
    data: UInt8[np.ndarray, "n"] = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(data < 0x80)
    if not len(data) or len(ends) == len(data):
        return data.astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends + 1 - starts
    if data[-1] >= 0x80 or lengths.max() > 10:
        raise UserError("a list of int64 ends early or has a number that is too long")
    values = np.zeros(len(ends), np.uint64)
    for i in range(int(lengths.max())):
        longer = lengths > i
        values[longer] |= (data[starts[longer] + i] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * i)
    return values.view(np.int64)

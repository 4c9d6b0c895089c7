"""The checksum of TFRecord files, fast enough in numpy to check every byte of a data set once."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import UInt32

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, lowest bit first
_BLOCK = 4096  # 32-bit words folded at a time: they and their tables fit the second cache
_LAST = 32  # words that are left to the plain loop over bytes
_MASK_DELTA = 0xA282EAD8


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of some bytes.

    The register is linear in the message, so a word may be moved behind d zero bytes and added to the word there: all
    blocks are folded onto the last one, and that one by halves onto its last words. Zeros in front change nothing.

    Source: RFC 3720 B.4 (polynomial, test vectors); folding as in Gopal et al., "Fast CRC computation for generic
    polynomials using PCLMULQDQ" (Intel, 2009), with tables in place of the multiplication.
    """
    if len(data) < 4 * _LAST:
        return _loop(data, 0xFFFFFFFF)
    block = 4 * _BLOCK
    head = (len(data) - 4) % block + 4  # at least the four bytes that the first register is added to
    length = _BLOCK if len(data) > head else _LAST
    while 4 * length < head:
        length *= 2
    padded = np.zeros(4 * length, np.uint8)
    padded[-head:] = np.frombuffer(data, np.uint8, head)
    padded[4 * length - head : 4 * length - head + 4] ^= 0xFF
    state = padded.view("<u4")
    if length > _BLOCK:
        state = _fold(state[:_BLOCK], state[_BLOCK:])
    for row in np.frombuffer(data, "<u4", (len(data) - head) // 4, head).reshape(-1, _BLOCK):
        state = _fold(state, row)
    while len(state) > _LAST:
        half = len(state) // 2
        state = _fold(state[:half], state[half:])
    return _loop(state.astype("<u4").tobytes(), 0)


def masked_crc32c(data: bytes | memoryview) -> int:
    """Return the checksum as TFRecord files store it.

    Source: tensorflow/tsl lib/hash/crc32c.h, Mask.
    """
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _loop(data: bytes | memoryview, register: int) -> int:
    for byte in data:
        register = _BYTES[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def _fold(state: UInt32[np.ndarray, "n"], row: UInt32[np.ndarray, "n"]) -> UInt32[np.ndarray, "n"]:
    """Move every word of `state` to its place in `row`, which lies behind it, and add them."""
    low, high = _tables(len(row))
    return low.take(state & 0xFFFF, mode="wrap") ^ high.take(state >> 16, mode="wrap") ^ row


@cache
def _tables(distance: int) -> UInt32[np.ndarray, "2 65536"]:
    """Return what each half of a word becomes behind `distance` (a power of two) words of zeros."""
    half = np.arange(65536, dtype=np.uint32)
    if distance == 1:
        words = np.stack([half, half << np.uint32(16)])
        for _ in range(4):
            words = _BYTE[words & 0xFF] ^ (words >> 8)
        return words
    low, high = nearer = _tables(distance // 2)
    return low[nearer & 0xFFFF] ^ high[nearer >> 16]


def _byte_table() -> UInt32[np.ndarray, "256"]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table


_BYTE = _byte_table()
_BYTES = _BYTE.tolist()

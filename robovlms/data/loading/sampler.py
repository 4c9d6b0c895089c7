"""Which windows make up which step: a pure function of (seed, step), whatever the number of ranks and workers.

The global order is cut into steps, ranks and micro-steps only at the end, so a run resumes at any step to the exact
next sample, also with another number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt64
from torch.utils.data import Sampler

from robovlms.errors import UserError


class Draw(NamedTuple):
    """One sample to read: which window, and its number in the run, which seeds its augmentation and noise."""

    window: int
    number: int


def permute(positions: Int64[np.ndarray, "n"], size: int, key: int) -> Int64[np.ndarray, "n"]:
    """Return where a pseudo-random permutation of range(size) sends `positions`, in O(1) memory.

    A six-round Feistel network permutes the next even power of two; numbers that land outside are sent on until they
    land inside (cycle walking). Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002.
    """
    return permute_each(positions, np.full_like(positions, size), round_keys(key)[:, None])


def permute_each(
    positions: Int64[np.ndarray, "n"], sizes: Int64[np.ndarray, "n"], keys: UInt64[np.ndarray, "6 _n"]
) -> Int64[np.ndarray, "n"]:
    """Return where permutations send positions, each by a size and by `round_keys` of its own (or of all)."""
    keys = np.broadcast_to(keys, (6, len(positions)))
    bits = np.frexp((sizes - 1).astype(np.float64))[1]  # (size - 1).bit_length(), exact below 2**53
    shift = np.maximum(1, bits + 1 >> 1).astype(np.uint64)
    low_bits, ends = (np.uint64(1) << shift) - np.uint64(1), sizes.astype(np.uint64)

    def network(x: UInt64[np.ndarray, "m"], at: Int64[np.ndarray, "m"] | slice) -> UInt64[np.ndarray, "m"]:
        left, right = x >> shift[at], x & low_bits[at]
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key[at]) & low_bits[at])
        return (left << shift[at]) | right

    x = network(positions.astype(np.uint64), slice(None))
    while len(outside := np.flatnonzero(x >= ends)):
        x[outside] = network(x[outside], outside)
    return x.astype(np.int64)


@lru_cache(maxsize=1024)
def round_keys(key: int) -> UInt64[np.ndarray, "6"]:
    """Return the keys of the rounds of a permutation."""
    return np.random.Generator(np.random.Philox(key=key)).integers(0, 2**63, 6, dtype=np.uint64)


def sample_seeds(seed: int, numbers: Sequence[int]) -> Int64[np.ndarray, "n"]:
    """Return a seed for every sample, from the run's seed and the sample's number alone; none is given twice."""
    run = _mix(np.array([seed % 2**64], np.uint64))
    return _mix(run + np.array(numbers, np.uint64)).astype(np.int64)


def _mix(x: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """Scramble 64 bits. Source: the finaliser of SplitMix64, Steele et al., OOPSLA 2014."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


BLOCK = 1 << 16  # draws among which every source of a mixture gets exactly its share, to 1 / BLOCK


class StepSampler(Sampler[list[Draw]]):
    """Yield this rank's micro-batches from `start_step` on, forever: `accumulation` of them make one step.

    Every source is gone through without replacement, in another order each time. In a mixture the sources
    take turns by `weights`; each has its own epochs, and `steps_per_epoch` counts the windows of all.

    Raises:
        UserError: the data set has fewer windows than one batch.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        device_batch_size: int,
        weights: Sequence[float] = (1.0,),
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        start_step: int = 0,
    ) -> None:
        size = sum(sizes)
        if size < batch_size:
            raise UserError(
                f"the data set has {size} windows, fewer than batch_size={batch_size}: "
                f"set batch_size={max(1, size)} or less."
            )
        self.sizes, self.batch_size, self.device_batch_size = list(sizes), batch_size, device_batch_size
        self.rank, self.world_size, self.seed, self.start_step = rank, world_size, seed, start_step
        self.steps_per_epoch = size // batch_size
        self.accumulation = accumulation_steps(batch_size, device_batch_size, world_size)
        self.shares = block_shares(weights)
        self._sizes = np.array(sizes, np.int64)
        self._offsets = np.cumsum([0, *sizes])
        self._block = lru_cache(maxsize=2)(self._draw_block)

    def step_draws(self, step: int) -> list[Draw]:
        """Return the global batch of one step, in order."""
        numbers = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        parts, counts = self._turns(numbers)
        epochs, positions = np.divmod(counts, self._sizes[parts])
        # Every part, and every epoch of it, has a permutation of its own; all are applied in one go.
        shuffles, mine = np.unique(np.stack([parts, epochs]), axis=1, return_inverse=True)
        sizes = self._sizes[shuffles[0]]
        keys = [round_keys(self.seed << 64 | part << 32 | epoch) for part, epoch in shuffles.T.tolist()]
        places = permute_each(positions, sizes[mine], np.stack(keys, axis=1)[:, mine])
        windows = self._offsets[parts] + places
        return [Draw(*pair) for pair in zip(windows.tolist(), numbers.tolist(), strict=True)]

    def _turns(self, numbers: Int64[np.ndarray, "n"]) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
        """Return whose turn each draw is, and how many draws that part had before."""
        if len(self.sizes) == 1:
            return np.zeros_like(numbers), numbers
        parts, counts = np.empty_like(numbers), np.empty_like(numbers)
        for block in np.unique(numbers // BLOCK).tolist():
            here = numbers // BLOCK == block
            turns, ranks = self._block(block)
            places = numbers[here] - block * BLOCK
            parts[here] = turns[places]
            counts[here] = block * self.shares[turns[places]] + ranks[places]
        return parts, counts

    def _draw_block(self, block: int) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
        """Shuffle the turns of one block; count, for each, the earlier ones of the same part."""
        order = permute(np.arange(BLOCK), BLOCK, key=self.seed << 64 | (1 << 63) | block)
        turns = np.searchsorted(np.cumsum(self.shares), order, side="right")
        ranks = np.empty_like(turns)
        for part in range(len(self.sizes)):
            mine = turns == part
            ranks[mine] = np.arange(mine.sum())
        return turns, ranks

    def __iter__(self) -> Iterator[list[Draw]]:
        step, per_rank = self.start_step, self.batch_size // self.world_size
        while True:
            mine = self.step_draws(step)[self.rank * per_rank : (self.rank + 1) * per_rank]
            for first in range(0, per_rank, self.device_batch_size):
                yield mine[first : first + self.device_batch_size]
            step += 1


def block_shares(weights: Sequence[float]) -> Int64[np.ndarray, "p"]:
    """Divide a block by weights, to the nearest whole turns (largest remainders).

    Raises:
        UserError: a weight is not a positive number, or too small to get a turn.
    """
    exact = np.asarray(weights, dtype=np.float64)
    if not np.isfinite(exact).all() or (exact <= 0).any():
        raise UserError(f"weights of a mixture must be positive numbers, but are {list(weights)}.")
    exact = exact / exact.sum() * BLOCK
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact)[: BLOCK - shares.sum()]] += 1
    if (shares == 0).any():
        raise UserError(f"a weight of {list(weights)} is below 1 / {BLOCK} of their sum: leave that part out.")
    return shares


def accumulation_steps(batch_size: int, device_batch_size: int, world_size: int) -> int:
    """Derive how many micro-steps make one optimizer step.

    Raises:
        UserError: the global batch does not divide evenly; names the nearest that does.
    """
    per_micro_step = device_batch_size * world_size
    if batch_size % per_micro_step:
        fits = [n for n in range(1, batch_size // world_size + 1) if batch_size % (n * world_size) == 0]
        advice = f"set device_batch_size to one of {fits}" if fits else "set batch_size to a multiple of the processes"
        raise UserError(
            f"batch_size={batch_size} does not divide into device_batch_size={device_batch_size} x {world_size} "
            f"processes: "
            f"{advice}."
        )
    return batch_size // per_micro_step

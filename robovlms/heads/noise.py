"""Random numbers that are a function of a sample's seed: the same on every device, in every batch, on every rank.

Nothing is kept between calls, and the host waits for nothing. Source: SplitMix64, Steele et al., OOPSLA 2014, as a
generator whose n-th number is computed from n.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

STEP = 0x9E3779B97F4A7C15 - (1 << 64)  # constants of SplitMix64 as int64, whose products wrap around
FACTORS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
BITS = 23  # of a uniform number: with the half between two of them, all that float32 holds exactly
STREAM = 1 << 32  # numbers of one stream


def uniform(seeds: Int64[Tensor, "b"], shape: tuple[int, ...], stream: int = 0) -> Float32[Tensor, "b *shape"]:
    """Return numbers from the open interval (0, 1), for every seed its own; other streams are independent."""
    first = stream * STREAM + 1
    places = torch.arange(first, first + math.prod(shape), device=seeds.device)
    bits = _shifted(_mix(seeds[:, None] + STEP * places), 64 - BITS)
    return ((bits.float() + 0.5) * 0.5**BITS).view(seeds.shape[0], *shape)


def normal(seeds: Int64[Tensor, "b"], shape: tuple[int, ...], stream: int = 0) -> Float32[Tensor, "b *shape"]:
    """Return numbers from N(0, 1), at most 5.4 from 0."""
    return torch.special.ndtri(uniform(seeds, shape, stream))


def _mix(x: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    for bits, factor in FACTORS:
        x = (x ^ _shifted(x, bits)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Int64[Tensor, "*n"], bits: int) -> Int64[Tensor, "*n"]:
    """Shift to the right as unsigned numbers are shifted."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)

"""AdamW's moments as they are stored: float32, bfloat16 with stochastic rounding, or 8 bits with a scale a block."""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from robovlms.config.choices import Moments

BLOCK = 256  # entries that share a scale
FIRST, SECOND, STEP = "exp_avg", "exp_avg_sq", "step"  # torch's names


def new_moments(weight: Tensor, kind: Moments) -> dict[str, Tensor]:
    """Return the moments of a weight that no step has changed yet."""
    zero, blocks = torch.zeros((), device=weight.device), math.ceil(weight.numel() / BLOCK)
    new = {}
    for key, value in store_moments({FIRST: zero, SECOND: zero}, kind).items():
        shape = (blocks,) if key.endswith("_scale") else weight.shape
        new[key] = torch.empty(shape, dtype=value.dtype, device=value.device).copy_(value.squeeze())
    return new


def store_moments(moments: dict[str, Tensor], kind: Moments, noise: torch.Generator | None = None) -> dict[str, Tensor]:
    """Return float32 moments as a kind stores them; without `noise` bfloat16 is rounded to the nearest."""
    if kind is Moments.fp32:
        return moments
    if kind is Moments.bf16_stochastic:
        return {key: round_randomly(each, noise) if noise else each.bfloat16() for key, each in moments.items()}
    # Of the second moment the root is stored: it is as large as the first, so neither is lost where the other is not.
    stored: dict[str, Tensor] = {}
    for key, each in moments.items():
        codes, scales = quantize(each if key == FIRST else each.sqrt(), is_signed=key == FIRST)
        stored |= {key: codes, f"{key}_scale": scales}
    return stored


def load_moments(state: dict[str, Tensor], shape: torch.Size) -> dict[str, Tensor]:
    """Return in float32 the moments that a state holds, however they are stored."""
    loaded = {}
    for key in (FIRST, SECOND):
        if f"{key}_scale" in state:
            values = dequantize(state[key], state[f"{key}_scale"], is_signed=key == FIRST).reshape(shape)
            loaded[key] = values if key == FIRST else values.square()
        else:
            loaded[key] = state[key].float()
    return loaded


def converted(state: dict[str, Tensor], kind: Moments, shape: torch.Size) -> dict[str, Tensor]:
    """Return the state of a weight as a kind stores it; one that is stored so already stays bit for bit."""
    is_of = {
        Moments.fp32: state[FIRST].dtype is torch.float32,
        Moments.bf16_stochastic: state[FIRST].dtype is torch.bfloat16,
        Moments.int8: state[FIRST].dtype is torch.uint8,
    }
    if is_of[kind]:
        return state
    moments = store_moments(load_moments(state, shape), kind)
    return moments | {key: value for key, value in state.items() if not key.startswith((FIRST, SECOND))}


def round_randomly(values: Float[Tensor, "*n"], noise: torch.Generator) -> Float[Tensor, "*n"]:
    """Round float32 to one of the two bfloat16 beside it, so that the mean is the value itself."""
    bits = values.contiguous().view(torch.int32)
    drawn = torch.randint(0, 1 << 16, values.shape, generator=noise, device=values.device, dtype=torch.int32)
    return (bits + drawn).bitwise_and_(-(1 << 16)).view(torch.float32).bfloat16()


def quantize(values: Float[Tensor, "*n"], *, is_signed: bool) -> tuple[Shaped[Tensor, "*n"], Float[Tensor, "_blocks"]]:
    """Return every value's place in the map, one byte, and the largest magnitude of every block of 256.

    Source: arXiv:2110.02861, block-wise dynamic quantisation.
    """
    blocks = torch.nn.functional.pad(values.flatten(), (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1).clamp(min=1e-30)
    known = _map(is_signed, values.device)
    codes = torch.bucketize(blocks / scales[:, None], (known[1:] + known[:-1]) / 2)
    return codes.to(torch.uint8).flatten()[: values.numel()].reshape(values.shape), scales


def dequantize(
    codes: Shaped[Tensor, "*n"], scales: Float[Tensor, "_blocks"], *, is_signed: bool
) -> Float[Tensor, "_m"]:
    """Return the values, flat."""
    return _map(is_signed, codes.device)[codes.flatten().int()] * scales.repeat_interleave(BLOCK)[: codes.numel()]


@cache
def _map(is_signed: bool, device: torch.device) -> Float[Tensor, "256"]:
    """Return 256 values up to 1, dense near 0: seven powers of ten, each with twice as many steps as the one below."""
    values = [0.0, 1.0]
    for i in range(7):
        count = 2**i if is_signed else 2 ** (i + 1)
        edges = torch.linspace(0.1, 1, count + 1, dtype=torch.float64)
        means = (10.0 ** (i - 6) * (edges[1:] + edges[:-1]) / 2).tolist()
        values += [*means, *(-mean for mean in means if is_signed)]
    return torch.tensor(sorted(values), device=device, dtype=torch.float32)

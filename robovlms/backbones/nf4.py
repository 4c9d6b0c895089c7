"""Frozen linear layers of 4.13 bits a weight, for adapters to stand beside: NF4 with scales that are rounded, too.

By hand: bitsandbytes' layers keep their scales outside of parameters and buffers, so that checkpoints are theirs, and
cannot be counted on tensors without memory; its import takes seconds. Source: QLoRA, arXiv:2305.14314.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int8, UInt8
from torch import Tensor, nn

from robovlms.errors import UserError

logger = logging.getLogger(__name__)

BLOCK, GROUP = 64, 256  # weights that share a scale, and scales that share theirs
LARGEST = 127
ADAPTER = "lora_"  # of the names of adapters' matrices, which are small
# Quantiles of the normal distribution, both ends and zero among them (appendix E of the paper).
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
STORED = ("codes", "scales", "scale_steps", "scale_mean")  # of a layer, in a checkpoint


class NF4Linear(nn.Module):
    """A frozen linear layer that is whole only while it computes, once forward and once backward."""

    codes: UInt8[Tensor, "_pairs"]  # two weights a byte
    scales: Int8[Tensor, "_blocks"]  # of every 64 weights: their largest magnitude, in steps from the mean of all
    scale_steps: Float32[Tensor, "_groups"]  # of every 256 scales
    scale_mean: Float32[Tensor, ""]
    pairs: Float32[Tensor, "256 2"]  # what a byte means

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        for name, value in pack(linear.weight.detach()).items():
            self.register_buffer(name, value)
        self.register_buffer("pairs", _pairs().to(linear.weight.device), persistent=False)
        self.bias, self.in_features, self.out_features = linear.bias, linear.in_features, linear.out_features

    @property
    def weight(self) -> Float[Tensor, "o i"]:
        """What is stored means, in float32, for code that reads a layer's weight or its type."""
        stored = {name: getattr(self, name) for name in STORED}
        return unpack(stored, self.pairs, (self.out_features, self.in_features))

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        product = _Product.apply(x, self) if x.requires_grad else F.linear(x, self.weight.to(x.dtype))
        return product if self.bias is None else product + self.bias.to(product.dtype)


class _Product(torch.autograd.Function):
    """Inputs times weights; for backward the weights are made once more instead of being kept."""

    @staticmethod
    def forward(context: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        context.layer = layer
        return F.linear(x, layer.weight.to(x.dtype))

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ context.layer.weight.to(gradient.dtype), None


@torch.no_grad()
def pack(weight: Float[Tensor, "o i"]) -> dict[str, Tensor]:
    """Return a matrix as it is stored, by the names of `STORED`."""
    blocks = F.pad(weight.float().flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    mean = largest.mean()
    groups = F.pad(largest - mean, (0, -len(largest) % GROUP)).view(-1, GROUP)
    steps = (groups.abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    stored = {
        "scales": (groups / steps[:, None]).round().to(torch.int8).flatten()[: len(largest)],
        "scale_steps": steps,
        "scale_mean": mean,
    }
    levels = torch.tensor(LEVELS, device=weight.device)
    known = blocks / _scales(stored).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(known, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8).view(-1, 2)
    return {"codes": codes[:, 0] << 4 | codes[:, 1], **stored}


def unpack(stored: Mapping[str, Tensor], pairs: Float[Tensor, "256 2"], shape: tuple[int, int]) -> Float[Tensor, "o i"]:
    """Return the matrix that is stored, in float32."""
    values = F.embedding(stored["codes"].int(), pairs).view(-1, BLOCK)
    return (values * _scales(stored)[:, None]).flatten()[: shape[0] * shape[1]].view(shape)


def _pairs() -> Float[Tensor, "256 2"]:
    """Return the two weights that every byte means."""
    levels = torch.tensor(LEVELS)
    return torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)


def _scales(stored: Mapping[str, Tensor]) -> Float[Tensor, "_blocks"]:
    scales, steps = stored["scales"], stored["scale_steps"]
    return (scales * steps.repeat_interleave(GROUP)[: len(scales)] + stored["scale_mean"]).clamp(min=0)


def own_linears(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Go through the linear layers that may be stored otherwise: each with the module it is in and its name there.

    Left out: embeddings, layers that share their weight with another module (tied vocabularies), adapters, and the
    subclasses of `nn.Linear`, whose weight others compute with.
    """
    uses = Counter(id(weight) for each in module.modules() for weight in each.parameters(recurse=False))
    for name, parent in list(module.named_modules()):
        for key, child in list(parent.named_children()):
            if type(child) is nn.Linear and uses[id(child.weight)] == 1 and ADAPTER not in f"{name}.{key}":
                yield parent, key, child


def quantize_frozen(backbone: nn.Module) -> None:
    """Store the frozen linear layers of a backbone in NF4.

    Raises:
        UserError: none is frozen.
    """
    layers, weights = 0, 0
    for parent, key, linear in own_linears(backbone):
        if not linear.weight.requires_grad:
            setattr(parent, key, NF4Linear(linear))
            layers, weights = layers + 1, weights + linear.weight.numel()
    if not layers:
        raise UserError(
            "backbone.quantization=nf4 stores frozen layers in 4 bits, and none is frozen: set backbone.lora.rank=16, "
            "or one of backbone.freeze_vision and freeze_text, or leave backbone.quantization out."
        )
    logger.info("NF4: %d frozen linear layers, %.1f M weights", layers, weights / 1e6)


@torch.no_grad()
def dequantize(module: nn.Module) -> None:
    """Replace what `quantize_frozen` made by plain layers of what is stored, in float32."""
    for parent in list(module.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, NF4Linear):
                linear = nn.Linear(child.in_features, child.out_features, bias=False, device=child.codes.device)
                linear.weight.copy_(child.weight)
                linear.bias = child.bias
                setattr(parent, key, linear.requires_grad_(False))


def plain_weights(weights: Mapping[str, Tensor], policy: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, those that it has in NF4 as float32 matrices.

    Args:
        weights: of a checkpoint.
        policy: whose layers have the same names, adapters apart, and sizes.
    """
    layers = {name.replace(".base_layer", ""): each for name, each in policy.named_modules()}
    plain = {key: value for key, value in weights.items() if key.rpartition(".")[2] not in STORED}
    for name in (key.removesuffix(".codes") for key in weights if key.endswith(".codes")):
        layer: Any = layers[name.replace(".base_layer", "")]
        stored = {each: weights[f"{name}.{each}"] for each in STORED}
        plain[f"{name}.weight"] = unpack(stored, _pairs(), (layer.out_features, layer.in_features))
    return plain


def packed_weights(weights: Mapping[str, Tensor], policy: nn.Module) -> dict[str, Tensor]:
    """Return weights with those in NF4 that a policy stores so."""
    packed = dict(weights)
    for name, layer in policy.named_modules():
        if isinstance(layer, NF4Linear) and f"{name}.weight" in packed:
            stored = pack(packed.pop(f"{name}.weight"))
            packed |= {f"{name}.{key}": value for key, value in stored.items()}
    return packed

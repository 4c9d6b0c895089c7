"""Weight-only int8: the matrices of linear layers as integers with one scale per output, arithmetic as before.

By hand: torchao's `Int8WeightOnlyConfig` took as long on a CPU (72 and 73 ms for two layers), and is one more package.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int8
from torch import Tensor, nn

from robovlms.backbones.nf4 import own_linears

LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer of rounded weights: symmetric, each output by its own scale, which is its largest weight / 127."""

    integers: Int8[Tensor, "o i"]
    scale: Float32[Tensor, "o"]

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        self.register_buffer("integers", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias, self.in_features, self.out_features = linear.bias, linear.in_features, linear.out_features

    @property
    def weight(self) -> Float[Tensor, "o i"]:
        """What the integers mean, for code that reads a layer's weight or its type."""
        return self.integers * self.scale[:, None]

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        product = F.linear(x, self.integers.to(x.dtype))  # integers up to 127 are exact in bfloat16
        scaled = product * self.scale.to(product.dtype)
        return scaled if self.bias is None else scaled + self.bias.to(product.dtype)


def quantize_linears(module: nn.Module) -> None:
    """Replace the linear layers in a module by layers of int8, all but those that `own_linears` leaves out."""
    for parent, key, linear in own_linears(module):
        setattr(parent, key, Int8Linear(linear))


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of all weights and buffers; what is shared counts once."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())

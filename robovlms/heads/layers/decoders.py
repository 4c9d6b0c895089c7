"""From features to numbers: what decodes actions, how it starts, and what every source of the data adds to it."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class ActionDecoder(nn.Sequential):
    """in -> 1024 -> 512 -> 256 -> out with ReLU between. Source: RoboVLMs policy_head/base_policy.py, MLPTanhHead."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        widths = [in_dim, 1024, 512, 256, out_dim]
        layers: list[nn.Module] = []
        for left, right in pairwise(widths):
            layers += [nn.Linear(left, right), nn.ReLU()]
        super().__init__(*layers[:-1])


def start_xavier(module: nn.Module) -> None:
    """Let every linear layer start with Xavier-uniform weights and without bias.

    Source: RoboVLMs policy_head/base_policy.py, initialize_param.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class OwnProjector(nn.Module):
    """A linear map for every source of the data, 0 at the start."""

    def __init__(self, num_sources: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_sources, out_dim, in_dim))
        self.bias = nn.Parameter(torch.zeros(num_sources, out_dim))

    def forward(self, values: Float[Tensor, "b *n i"], source: Int64[Tensor, "b"]) -> Float[Tensor, "b *n o"]:
        """Map every row as its source does."""
        rows = values.reshape(values.shape[0], -1, values.shape[-1])
        mapped = torch.baddbmm(self.bias[source][:, None], rows, self.weight[source].transpose(1, 2))
        return mapped.reshape(*values.shape[:-1], mapped.shape[-1])


class OwnProjectors(nn.ModuleDict):
    """What each source of the data adds to projectors that all share (`head.per_source`); none: nothing.

    A source is the shared projector and its own difference from it, which starts at 0. So a policy of one source starts
    as one without, and a new source as what all others have learned together.
    """

    def __init__(self, num_sources: int) -> None:
        """Take how many sources there are; 0: they share everything."""
        super().__init__()
        self._num_sources = num_sources

    def add(self, name: str, shared: nn.Module | None) -> None:
        """Make every source's own part of a projector, from what its first layer reads to what its last one says."""
        if shared is None or not self._num_sources:
            return
        layers = [layer for layer in shared.modules() if isinstance(layer, nn.Linear)]
        self[name] = OwnProjector(self._num_sources, layers[0].in_features, layers[-1].out_features)

    def forward(
        self, name: str, shared: Float[Tensor, "b *n o"], values: Float[Tensor, "b *n i"], source: Tensor | None
    ) -> Float[Tensor, "b *n o"]:
        """Return what the shared projector says of `values`, with what each row's source adds."""
        if name not in self:
            return shared
        assert source is not None, "a head with projectors of each source needs to know the rows' sources"
        added: Tensor = self[name](values, source)
        return shared + added

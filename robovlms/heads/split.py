"""Between a head and an action: numbers and decisions, what decodes them, and what every source of the data adds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn


class ActionSplit(nn.Module):
    """Takes actions apart into numbers and decisions, and puts them together again; it holds no weights.

    Entries that stand side by side are taken as a view, and nothing is put in order that already is.
    """

    _continuous: Tensor
    _binary: Tensor
    _order: Tensor

    def __init__(self, action_dim: int, binary: Sequence[int]) -> None:
        """Take how many entries an action has, and where the decisions stand."""
        super().__init__()
        continuous = [i for i in range(action_dim) if i not in binary]
        self.num_continuous, self.num_binary = len(continuous), len(binary)
        self._slices = side_by_side(continuous), side_by_side(binary)
        together = [*continuous, *binary]
        self._is_ordered = together == sorted(together)
        order = [together.index(i) for i in range(action_dim)]
        for name, places in (("_continuous", continuous), ("_binary", list(binary)), ("_order", order)):
            self.register_buffer(name, torch.tensor(places, dtype=torch.long), persistent=False)

    def continuous(self, actions: Shaped[Tensor, "*n"], dim: int = -1) -> Shaped[Tensor, "*m"]:
        """Return the numbers: the arm's entries and opening widths, along `dim`."""
        return _select(actions, dim, self._slices[0], self._continuous)

    def binary(self, actions: Shaped[Tensor, "*n"], dim: int = -1) -> Shaped[Tensor, "*m"]:
        """Return the decisions along `dim`."""
        return _select(actions, dim, self._slices[1], self._binary)

    def join(self, continuous: Float[Tensor, "*n e"], decisions: Float[Tensor, "*n o"] | None) -> Float[Tensor, "*n a"]:
        """Return actions, whose decisions are exactly -1 (closed) where they are not above 0, else +1 (open).

        Args:
            continuous: the numbers.
            decisions: values or logits; None or of no entry: there are none.
        """
        if decisions is None or not self.num_binary:
            return continuous
        together = torch.cat([continuous, torch.where(decisions > 0, 1.0, -1.0)], dim=-1)
        return together if self._is_ordered else together.index_select(-1, self._order)


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
        rows = values.reshape(len(values), -1, values.shape[-1])
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


def side_by_side(places: Sequence[int]) -> slice | None:
    """Return a slice of places that follow one another; None: they do not."""
    first = places[0] if places else 0
    return slice(first, first + len(places)) if list(places) == list(range(first, first + len(places))) else None


def _select(values: Tensor, dim: int, places: slice | None, index: Tensor) -> Tensor:
    if places is None:
        return values.index_select(dim, index)
    return values.narrow(dim, places.start, places.stop - places.start)

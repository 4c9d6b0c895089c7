"""Which entries of an action are numbers, and which are decisions: grippers that are open or closed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
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


def side_by_side(places: Sequence[int]) -> slice | None:
    """Return a slice of places that follow one another; None: they do not."""
    first = places[0] if places else 0
    return slice(first, first + len(places)) if list(places) == list(range(first, first + len(places))) else None


def _select(values: Tensor, dim: int, places: slice | None, index: Tensor) -> Tensor:
    if places is None:
        return values.index_select(dim, index)
    return values.narrow(dim, places.start, places.stop - places.start)

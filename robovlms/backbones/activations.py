"""Which activations of a backbone are computed at all, and which are kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robovlms.backbones.layout import take
from robovlms.config.policy import Checkpointing

MIXERS = ("self_attn", "attn", "attention", "linear_attn", "conv", "attend")  # what lets the tokens of a layer mix
MLPS = ("mlp", "ffn", "feed_forward")


class AtPlaces:
    """The forward of the decoder's last MLP, at some tokens alone: nothing reads what it says of the others.

    Exact, because what follows it (residual, norm) looks at each token by itself. Elsewhere it returns 0.
    """

    def __init__(self, mlp: nn.Module) -> None:
        """Take a module's place; its parameters keep their names."""
        self._forward, self._places = mlp.forward, None
        mlp.forward = self

    _places: Tensor | None

    @contextmanager
    def only(self, places: Tensor | None) -> Iterator[None]:
        """Compute at these places of every sequence, "n p", inside the block; None: at all."""
        before, self._places = self._places, places
        try:
            yield
        finally:
            self._places = before

    @property
    def places(self) -> Tensor | None:
        """The places that it computes at now."""
        return self._places

    def __call__(self, *tokens: Tensor) -> Tensor:
        """Return the MLP's output for tokens "n s d"."""
        places = self._places
        if places is None:
            return self._forward(*tokens)
        some = self._forward(*(take(each, places) for each in tokens))
        everywhere = some.new_zeros(*tokens[0].shape[:2], some.shape[-1])
        return everywhere.scatter(1, places[..., None].expand_as(some), some)


def last_mlp(layers: nn.ModuleList) -> AtPlaces | None:
    """Make the last layer's MLP one that may compute at some tokens alone; None: the layer has none to itself."""
    found = [getattr(layers[-1], name) for name in MLPS if hasattr(layers[-1], name)]
    return AtPlaces(found[0]) if found else None


class Recomputed:
    """A function of a module whose activations are computed again in the backward pass, in training."""

    def __init__(self, module: nn.Module, function: Callable[..., Any], last: AtPlaces | None) -> None:
        self._module, self._function, self._last = module, function, last

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        if not (self._module.training and torch.is_grad_enabled()):
            return self._function(*args, **kwargs)
        last, function = self._last, self._function
        if last is None:
            return checkpoint(function, *args, use_reentrant=False, **kwargs)
        places = last.places  # of this forward: another may come before its backward

        def at_places(*args: Any, **kwargs: Any) -> Any:
            with last.only(places):
                return function(*args, **kwargs)

        return checkpoint(at_places, *args, use_reentrant=False, **kwargs)


def recompute(layers: list[nn.Module], choice: Checkpointing, last: AtPlaces | None) -> None:
    """Have layers compute again, in the backward pass, what a choice does not keep.

    Args:
        layers: of vision tower and decoder.
        choice: `every` n-th layer as a whole, or what mixes the tokens of every layer.
        last: the MLP that computes at some tokens alone, which a layer may contain.
    """
    if choice.every:
        for layer in layers[:: choice.every]:
            layer.forward = Recomputed(layer, layer.forward, last)
    if choice.attention:
        for layer in layers:
            for name in MIXERS:
                mixer = getattr(layer, name, None)
                if isinstance(mixer, nn.Module):
                    mixer.forward = Recomputed(mixer, mixer.forward, None)
                elif mixer is not None:
                    setattr(layer, name, Recomputed(layer, mixer, None))

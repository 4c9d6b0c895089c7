"""Flamingo's own layers (arXiv:2204.14198): perceiver resampler and gated cross-attention.

Names are those of OpenFlamingo's checkpoints. Source: github.com/mlfoundations/open_flamingo, src/helpers.py.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robovlms.backbones.perceiver import HEAD_DIM, HEADS, attend, feed_forward


class CrossAttention(nn.Module):
    """Tokens attend to the latents of their frame; a token that may attend to none gets zeros."""

    def __init__(self, dim: int, media_dim: int) -> None:
        super().__init__()
        inner = HEADS * HEAD_DIM
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(media_dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "n s d"], media: Float[Tensor, "n m e"], allowed: Bool[Tensor, "n s m"]
    ) -> Float[Tensor, "n s d"]:
        sees = allowed.any(-1, keepdim=True)
        attended = attend(self.to_q(self.norm(x)), self.to_kv(media), (allowed | ~sees)[:, None])
        return self.to_out(attended * sees)


class GatedCrossAttention(nn.Module):
    """Cross-attention and a feed-forward layer, each behind a gate that starts closed."""

    def __init__(self, dim: int, media_dim: int) -> None:
        super().__init__()
        self.attn, self.ff = CrossAttention(dim, media_dim), feed_forward(dim)
        self.attn_gate, self.ff_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(
        self, x: Float[Tensor, "n s d"], media: Float[Tensor, "n m e"], allowed: Bool[Tensor, "n s m"]
    ) -> Float[Tensor, "n s d"]:
        x = x + self.attn(x, media, allowed) * self.attn_gate.tanh()
        return x + self.ff(x) * self.ff_gate.tanh()


class FlamingoLayer(nn.Module):
    """A layer of the decoder, and the gated cross-attention before it where there is one.

    `condition` is what the tokens of the coming forward may attend to; it is set before the decoder runs, and then
    dropped.
    """

    def __init__(self, layer: nn.Module, gated: GatedCrossAttention | None) -> None:
        super().__init__()
        self.layer, self.gated = layer, gated
        self.condition: tuple[Tensor, Tensor] | None = None  # media "n m e" and allowed "n s m"

    def forward(self, hidden_states: Float[Tensor, "n s d"], *args: Any, **kwargs: Any) -> Any:
        if self.gated is not None:
            assert self.condition is not None
            hidden_states = self.gated(hidden_states, *self.condition)
        return self.layer(hidden_states, *args, **kwargs)


class NormedProjection(nn.Module):
    """MPT-1B's joint projection: queries and keys are normed over all heads before they are cut into heads."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        dim = linear.in_features
        self.linear = linear
        self.q_ln, self.k_ln = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)

    def forward(self, x: Float[Tensor, "n s d"]) -> Float[Tensor, "n s _e"]:
        q, k, v = self.linear(x).chunk(3, dim=-1)
        return torch.cat([self.q_ln(q), self.k_ln(k), v], dim=-1)

"""Flamingo's perceiver resampler (arXiv:2204.14198): the patches of an image become a few latents.

Names are those of OpenFlamingo's checkpoints. Source: github.com/mlfoundations/open_flamingo, src/helpers.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

HEADS, HEAD_DIM, WIDENING = 8, 64, 4


def feed_forward(dim: int) -> nn.Sequential:
    """Norm, widen, GELU, narrow; only the norm has a bias."""
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, WIDENING * dim, bias=False),
        nn.GELU(),
        nn.Linear(WIDENING * dim, dim, bias=False),
    )


class LatentAttention(nn.Module):
    """Latents attend to the patches and to themselves."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = HEADS * HEAD_DIM
        self.norm_media, self.norm_latents = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, patches: Float[Tensor, "n p e"], latents: Float[Tensor, "n m e"]) -> Float[Tensor, "n m e"]:
        latents = self.norm_latents(latents)
        keys = torch.cat([self.norm_media(patches), latents], dim=1)
        return self.to_out(attend(self.to_q(latents), self.to_kv(keys)))


class Perceiver(nn.Module):
    """Turn the patches of an image into a few latents."""

    def __init__(self, dim: int, num_latents: int, depth: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, dim))
        self.layers = nn.ModuleList(nn.ModuleList([LatentAttention(dim), feed_forward(dim)]) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, patches: Float[Tensor, "n p e"]) -> Float[Tensor, "n m e"]:
        latents = self.latents.expand(patches.shape[0], -1, -1)
        for layer in self.layers:
            attention, widen = layer.children()
            latents = latents + attention(patches, latents)
            latents = latents + widen(latents)
        return self.norm(latents)


def attend(
    q: Float[Tensor, "n s e"], kv: Float[Tensor, "n m _e"], allowed: Bool[Tensor, "n 1 s m"] | None = None
) -> Float[Tensor, "n s e"]:
    """Attend with `HEADS` heads."""
    k, v = kv.chunk(2, dim=-1)
    q, k, v = (rearrange(each, "n s (g e) -> n g s e", g=HEADS) for each in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed), "n g s e -> n s (g e)")

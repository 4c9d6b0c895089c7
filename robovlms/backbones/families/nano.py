"""A few-million-parameter VLM of our own that learns from scratch on a CPU: for the quickstart, CI and teaching.

A convolutional stem turns each view into four tokens, a small causal transformer reads [views | text | queries]. Its
tokenizer needs no file: words are hashed into a fixed vocabulary.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robovlms.backbones.layout import KVCache, Layout
from robovlms.backbones.masks import causal_mask, mutual_mask
from robovlms.backbones.prefix import PrefixBackbone, PrefixTextHead
from robovlms.backbones.schemas.nano import NanoBackboneConfig
from robovlms.backbones.text_head import Tokenizer
from robovlms.backbones.trainable import select_trainable
from robovlms.config.choices import ModelSize
from robovlms.config.policy import BackboneConfig
from robovlms.errors import UserError
from robovlms.files import refuse_pointer
from robovlms.registry import BACKBONES
from robovlms.types import ImageSpec

VOCAB_SIZE = 2048
VIEW_TOKENS = 4  # a view's tokens
SIZES = ("image_size", "hidden_dim", "num_layers", "num_heads")  # what a checkpoint decides
STRIDE = 16  # of the convolutions together


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self, x: Float[Tensor, "n s d"], allowed: Bool[Tensor, "_n 1 s l"], past: list[Tensor] | None = None
    ) -> Float[Tensor, "n s d"]:
        x = x + self.attend(self.norm1(x), allowed, past)
        return x + self.mlp(self.norm2(x))

    def attend(
        self, x: Float[Tensor, "n s d"], allowed: Bool[Tensor, "_n 1 s l"], past: list[Tensor] | None
    ) -> Float[Tensor, "n s d"]:
        """Let the tokens attend to each other and to `past`, which takes them in."""
        q, k, v = rearrange(self.qkv(x), "n s (three g e) -> three n g s e", three=3, g=self.num_heads)
        if past is not None:
            past[:] = [torch.cat([*past[i : i + 1], new], dim=2) for i, new in enumerate((k, v))]
            k, v = past
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed), "n g s e -> n s (g e)"))


class Stem(nn.Module):
    """Strided convolutions from pixels to tokens, each of which sees the whole image.

    The first stride is 4, because early maps cost the most. Nothing is pooled: where a thing is must survive to a
    fraction of a map's pixel. A few tokens that each read the flattened map learn that faster than a grid of patches,
    whose positions a query must first learn to attend to.
    """

    def __init__(self, image_size: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(3, 32, 8, stride=4, padding=2), nn.GroupNorm(8, 32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64), nn.ReLU(),
        )  # fmt: skip
        self.tokens = nn.Linear(64 * (image_size // STRIDE) ** 2, VIEW_TOKENS * dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        maps = self.conv(images.contiguous(memory_format=torch.channels_last))
        return self.norm(rearrange(self.tokens(maps.flatten(1)), "n (m d) -> n m d", m=VIEW_TOKENS))


class WordHash(Tokenizer):
    """Hash lower-case words and punctuation marks into the vocabulary; id 0 starts every text and ends every reply."""

    end_id = 0

    def __call__(self, prompts: list[str]) -> list[list[int]]:
        """Return `<start> words`."""
        words = [re.findall(r"[a-z0-9]+|[^\sa-z0-9]", prompt.lower()) for prompt in prompts]
        return [[0, *(1 + zlib.crc32(word.encode()) % (VOCAB_SIZE - 1) for word in row)] for row in words]

    def question_ids(self, text: str) -> list[int]:
        """Return what a prompt has."""
        return self([text])[0]

    def reply_ids(self, before: str, text: str) -> list[int]:
        """Leave out the start."""
        return self([text])[0][1:]


class HashedTextHead(PrefixTextHead):
    """Predicts hashed words by the embedding."""

    backbone: Nano

    def enable(self, config: BackboneConfig) -> None:
        """Do nothing: the embedding is at hand."""

    def lm_logits(self, features: Float[Tensor, "y d"]) -> Float[Tensor, "y _words"]:
        """Multiply with the embedding."""
        return (features @ self.backbone.embedding.weight.T.to(features.dtype)).float()


@BACKBONES.register("nano")
class Nano(PrefixBackbone):
    """Learns from scratch in minutes on a CPU."""

    num_head_tokens = 0
    can_parallel = True

    def __init__(self, config: NanoBackboneConfig) -> None:
        super().__init__()
        self.config, self.prompt, self.hidden_dim = config, config.prompt, config.hidden_dim
        self.image_spec = ImageSpec(size=config.image_size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        self.stem = Stem(config.image_size, config.hidden_dim)
        self.embedding = nn.Embedding(VOCAB_SIZE, config.hidden_dim)
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.blocks = nn.ModuleList(Block(config.hidden_dim, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.text_head = HashedTextHead(self)
        self.find_last_mlp()

    @classmethod
    def from_config(cls, config: NanoBackboneConfig) -> Nano:
        """Build with random weights, or read a folder written by `save_pretrained`.

        Raises:
            FileNotFoundError: the folder, or a file of it, is not there.
            UserError: it holds another model, or an option does not fit.
        """
        if config.attn_implementation != "sdpa":
            raise UserError(
                f"backbone.attn_implementation={config.attn_implementation} does not fit backbone=nano. Options: sdpa."
            )
        if config.size is ModelSize.tiny:
            backbone = cls.tiny()
            backbone.prompt = config.prompt
        elif config.checkpoint is None:
            backbone = cls(config)
        else:
            folder = Path(config.checkpoint)
            backbone = cls(replace(config, **_read_sizes(folder)))
            if not config.random_init:
                backbone._load(folder)
        if config.resample is not None:
            backbone.add_resampler(config.resample)
        backbone.save_activations(config.checkpointing)
        select_trainable(backbone, config)
        return backbone

    @classmethod
    def tiny(cls) -> Nano:
        """Build two layers of width 32 on 32 px."""
        return cls(NanoBackboneConfig(name="nano", image_size=32, hidden_dim=32, num_layers=2, num_heads=2))

    @property
    def tokenize(self) -> WordHash:
        """Hashed words."""
        return WordHash()

    def last_ids(self, count: int) -> list[int]:
        """Return the last rows of the hash table."""
        return list(range(VOCAB_SIZE - 1, VOCAB_SIZE - 1 - count, -1))

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Run the convolutional stem."""
        return self.stem(images)

    def embed_text(self, text_ids: Int64[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        """Look words up."""
        return self.embedding(text_ids)

    def new_cache(self) -> KVCache:
        """Return an empty cache."""
        return KVCache()

    def decode(
        self, embeds: Float[Tensor, "n s d"], layout: Layout, cache: list[list[Tensor]] | None = None
    ) -> Float[Tensor, "n s d"]:
        """Run the causal transformer with sinusoidal positions."""
        s, length = embeds.shape[1], layout.mask.shape[1]
        if cache == []:
            cache.extend([] for _ in self.blocks)
        if cache is None and not self.bidirectional_queries:  # padding comes last: causality alone hides it
            allowed = torch.ones(s, s, dtype=torch.bool, device=embeds.device).tril()[None, None]
            x = embeds + sinusoids(s, self.hidden_dim, embeds)
        else:
            allowed = causal_mask(layout)[:, None, -s:]
            if self.bidirectional_queries:
                allowed = allowed | mutual_mask(layout)[:, None, -s:]
            places = (layout.mask.long().cumsum(1) - 1).clamp(min=0)[:, -s:]
            x = embeds + sinusoids(length, self.hidden_dim, embeds)[places]
        for i, block in enumerate(self.blocks):
            x = block(x, allowed, None if cache is None else cache[i])
        return self.norm(x)

    def layers(self) -> list[nn.Module]:
        """Return the transformer blocks."""
        return list(self.blocks)

    def parts(self) -> dict[str, list[nn.Module]]:
        """Name what the freeze options stop."""
        return {"vision": [self.stem], "text": [self.blocks, self.norm], "embeddings": [self.embedding]}

    def save_pretrained(self, folder: Path, weights: bool = True) -> None:
        """Write config.json and, on request, model.safetensors."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        sizes = {key: getattr(self.config, key) for key in SIZES}
        (folder / "config.json").write_text(
            json.dumps({"model_type": "nano", **sizes}, indent=2) + "\n", encoding="utf-8"
        )
        if weights:
            save_file(self.state_dict(), folder / "model.safetensors")

    def _load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.load_state_dict(load_file(_existing(folder / "model.safetensors")))


def _read_sizes(folder: Path) -> dict[str, Any]:
    saved = json.loads(_existing(folder / "config.json").read_text(encoding="utf-8"))
    if (found := saved.get("model_type", "nameless")) != "nano":
        raise UserError(
            f"backbone=nano reads 'nano' checkpoints, but backbone.checkpoint={folder} holds a '{found}' model: "
            "change one of the two options."
        )
    return {key: saved[key] for key in SIZES}


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: backbone.checkpoint must be a folder written by save_pretrained; "
            "backbone.checkpoint=null starts from random weights."
        )
    refuse_pointer(file)
    return file


def sinusoids(length: int, dim: int, like: Tensor) -> Float[Tensor, "s d"]:
    """Return fixed sine and cosine positions. Source: arXiv:1706.03762."""
    angles = torch.arange(length, device=like.device)[:, None] / 1000 ** (
        torch.arange(0, dim, 2, device=like.device) / dim
    )
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like.dtype)

"""Qwen-VL, the first generation (arXiv:2308.12966): ViT-bigG at 448 px, 256 latents per image, a Qwen decoder.

transformers lacks it. The decoder is Qwen2's, the vision layers are SigLIP's; the frame around them is ours.
Source: huggingface.co/Qwen/Qwen-VL, visual.py, modeling_qwen.py and tokenization_qwen.py.
"""

from __future__ import annotations

import base64
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPImageProcessorPil,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    Qwen2Tokenizer,
    SiglipVisionConfig,
)
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from robovlms.backbones.conversion import Weights, build_converted, read_weights, rename
from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.tiny import PRINTABLE_BYTES, TINY_IMAGE_SIZE, TINY_TEXT, TINY_VISION, tiny_qwen_tokenizer
from robovlms.registry import BACKBONES

BEFORE, BEHIND = "<img>", "</img>"
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)),
    "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", BEFORE, BEHIND, "<imgpad>",
]  # fmt: skip
"""They follow the vocabulary of qwen.tiktoken, in this order."""
RESAMPLER_HEAD_DIM = 128


class QwenVLConfig(PreTrainedConfig):
    """Sizes. `vision_config` is SigLIP's; `positions_per_side` and `latents_per_side` are squares' sides."""

    model_type = "qwen_vl"
    sub_configs = {"vision_config": SiglipVisionConfig, "text_config": Qwen2Config}

    def __init__(
        self,
        vision_config: Any = None,
        text_config: Any = None,
        positions_per_side: int = 16,
        latents_per_side: int = 16,
        **kwargs: Any,
    ) -> None:
        self.vision_config = SiglipVisionConfig(**vision_config) if isinstance(vision_config, dict) else vision_config
        self.text_config = Qwen2Config(**text_config) if isinstance(text_config, dict) else text_config
        self.positions_per_side, self.latents_per_side = positions_per_side, latents_per_side
        super().__init__(**{"tie_word_embeddings": False, **kwargs})


class VisionTower(nn.Module):
    """Patches with interpolated learned positions, a norm before the layers and none behind them."""

    def __init__(self, config: Any, positions_per_side: int) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(positions_per_side**2, width)
        self.pre_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.encoder = SiglipEncoder(config)

    def forward(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m e"]:
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        positions = interpolate_square(self.position_embedding.weight, patches.shape[1])
        return self.encoder(inputs_embeds=self.pre_norm(patches + positions)).last_hidden_state


class Resampler(nn.Module):
    """Learned latents attend once to the patches; fixed sines and cosines of row and column are added to both."""

    positions: Tensor

    def __init__(self, in_dim: int, dim: int, latents_per_side: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents_per_side**2, dim) * 0.02)
        self.register_buffer("positions", square_sinusoids(dim, latents_per_side))
        self.project = nn.Linear(in_dim, dim, bias=False)
        self.latent_norm, self.patch_norm = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.attention = nn.MultiheadAttention(dim, max(dim // RESAMPLER_HEAD_DIM, 1), batch_first=True)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, patches: Float[Tensor, "n p e"]) -> Float[Tensor, "n m d"]:
        values = self.patch_norm(self.project(patches))
        keys = values + interpolate_square(self.positions, values.shape[1])
        queries = repeat(self.latent_norm(self.latents) + self.positions, "m d -> n m d", n=patches.shape[0])
        keys, queries = keys.to(self.latents.dtype), queries.to(self.latents.dtype)  # sums with a float32 table
        return self.out(self.norm(self.attention(queries, keys, values, need_weights=False)[0]))


class QwenVLModel(PreTrainedModel):
    """Vision tower, resampler and decoder without its vocabulary head."""

    config_class = QwenVLConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules = ["SiglipEncoderLayer", "Qwen2DecoderLayer"]

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower(config.vision_config, config.positions_per_side)
        vision, text = config.vision_config.hidden_size, config.text_config.hidden_size
        self.resampler = Resampler(vision, text, config.latents_per_side)
        self.language_model = Qwen2Model(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the decoder's."""
        embedding: nn.Embedding = self.language_model.embed_tokens
        return embedding


AutoConfig.register(QwenVLConfig.model_type, QwenVLConfig)
AutoModel.register(QwenVLConfig, QwenVLModel)


@BACKBONES.register("qwen_vl")
class QwenVL(HuggingFaceBackbone):
    """Reads `[<img> 256 latents </img>, per view] {instruction} [queries]`, causally, as upstream does.

    The original's attention that changes beyond 2048 tokens (dynamic NTK, log n) is left out: no frame is that long.
    """

    model_type = "qwen_vl"
    original = "Qwen/Qwen-VL"
    prompt = "{instruction}"
    has_start = False
    image_marks = ((BEFORE,), (BEHIND,))

    @classmethod
    def published_config(cls) -> QwenVLConfig:
        """Return the sizes of Qwen/Qwen-VL."""
        vision = {
            "hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "num_attention_heads": 16,
            "patch_size": 14, "image_size": 448, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        }  # fmt: skip
        text = {
            "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 32, "vocab_size": 151936, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "tie_word_embeddings": False,
        }  # fmt: skip
        return QwenVLConfig(vision_config=vision, text_config=text)

    @classmethod
    def tiny(cls) -> QwenVL:
        """Build 2 + 2 layers with 4 latents per 56 px image, whose positions are interpolated from 2 x 2."""
        tokenizer = tiny_qwen_tokenizer((BEFORE, BEHIND))
        text = {
            **TINY_TEXT, "num_key_value_heads": 4, "vocab_size": len(tokenizer), "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        }  # fmt: skip
        config = QwenVLConfig(
            vision_config={**TINY_VISION, "hidden_act": "gelu"}, text_config=text, positions_per_side=2,
            latents_per_side=2,
        )  # fmt: skip
        return cls(QwenVLModel(config), tokenizer, make_image_processor(TINY_IMAGE_SIZE))

    @classmethod
    def from_original(cls, source: Path, sizes: QwenVLConfig | None = None) -> QwenVL:
        """Build from the published folder: weights and qwen.tiktoken.

        Raises:
            FileNotFoundError: there are no weights or no vocabulary.
            UserError: a weight has no place in our model, or one of ours is not among them; lists them.
        """
        config = sizes or cls.published_config()
        model = build_converted(lambda: QwenVLModel(config), convert(read_weights(source), config))
        size: Any = config.vision_config.image_size
        return cls(model, read_tokenizer(source / "qwen.tiktoken"), make_image_processor(size))

    @property
    def vocab_size(self) -> int:
        """All of it: the published tokenizer counts its special tokens, too."""
        return len(self.tokenizer)

    def count_special_tokens(self) -> int:
        """Return 1: the published tokenizer names none, and upstream one for padding."""
        return 1

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, decoder and embedding; the resampler between them is always trained."""
        text = self.model.language_model
        return {"vision": [self.model.vision_tower], "text": [text.layers, text.norm], "embeddings": [self.embedding]}

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the latents between the family's marks."""
        latents = self.model.resampler(self.model.vision_tower(images))
        return self.put_marks(latents.to(self.embedding.weight.dtype))


def interpolate_square(table: Float[Tensor, "p d"], count: int) -> Float[Tensor, "_q d"]:
    """Resample a table of positions on a square to `count` of them, bicubically."""
    old, new = round(len(table) ** 0.5), round(count**0.5)
    if old == new:
        return table
    square = rearrange(table.float(), "(h x) d -> 1 d h x", h=old)
    resized = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    return rearrange(resized, "1 d h x -> (h x) d").to(table.dtype)


def square_sinusoids(dim: int, side: int) -> Float[Tensor, "p d"]:
    """Return sines and cosines of the column in the first half of the entries, of the row in the second.

    Source: MAE (arXiv:2111.06377), get_2d_sincos_pos_embed.
    """
    frequencies = 1 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=-1).float()
    column, row = repeat(line, "x d -> (h x) d", h=side), repeat(line, "h d -> (h x) d", x=side)
    return torch.cat([column, row], dim=-1)


RULES = [
    (r"transformer\.wte\.weight", r"language_model.embed_tokens.weight"),
    (r"transformer\.ln_f\.weight", r"language_model.norm.weight"),
    (r"transformer\.h\.(\d+)\.ln_1\.weight", r"language_model.layers.\1.input_layernorm.weight"),
    (r"transformer\.h\.(\d+)\.ln_2\.weight", r"language_model.layers.\1.post_attention_layernorm.weight"),
    (r"transformer\.h\.(\d+)\.attn\.([qkv])\.(.*)", r"language_model.layers.\1.self_attn.\2_proj.\3"),
    (r"transformer\.h\.(\d+)\.attn\.c_proj\.weight", r"language_model.layers.\1.self_attn.o_proj.weight"),
    (r"transformer\.h\.(\d+)\.mlp\.w1\.weight", r"language_model.layers.\1.mlp.up_proj.weight"),
    (r"transformer\.h\.(\d+)\.mlp\.w2\.weight", r"language_model.layers.\1.mlp.gate_proj.weight"),
    (r"transformer\.h\.(\d+)\.mlp\.c_proj\.weight", r"language_model.layers.\1.mlp.down_proj.weight"),
    (r"transformer\.visual\.conv1\.weight", r"vision_tower.patch_embedding.weight"),
    (r"transformer\.visual\.positional_embedding", r"vision_tower.position_embedding.weight"),
    (r"transformer\.visual\.ln_pre\.(.*)", r"vision_tower.pre_norm.\1"),
    (r"transformer\.visual\.transformer\.resblocks\.(\d+)\.ln_([12])\.(.*)",
     r"vision_tower.encoder.layers.\1.layer_norm\2.\3"),
    (r"transformer\.visual\.transformer\.resblocks\.(\d+)\.attn\.([qkv])\.(.*)",
     r"vision_tower.encoder.layers.\1.self_attn.\2_proj.\3"),
    (r"transformer\.visual\.transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.*)",
     r"vision_tower.encoder.layers.\1.self_attn.out_proj.\2"),
    (r"transformer\.visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.*)",
     r"vision_tower.encoder.layers.\1.mlp.fc1.\2"),
    (r"transformer\.visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.*)",
     r"vision_tower.encoder.layers.\1.mlp.fc2.\2"),
    (r"transformer\.visual\.attn_pool\.query", r"resampler.latents"),
    (r"transformer\.visual\.attn_pool\.pos_embed", r"resampler.positions"),
    (r"transformer\.visual\.attn_pool\.kv_proj\.weight", r"resampler.project.weight"),
    (r"transformer\.visual\.attn_pool\.ln_q\.(.*)", r"resampler.latent_norm.\1"),
    (r"transformer\.visual\.attn_pool\.ln_kv\.(.*)", r"resampler.patch_norm.\1"),
    (r"transformer\.visual\.attn_pool\.attn\.(.*)", r"resampler.attention.\1"),
    (r"transformer\.visual\.ln_post\.(.*)", r"resampler.norm.\1"),
    (r"transformer\.visual\.proj", r"resampler.out.weight"),
]  # fmt: skip
UNUSED = [r"lm_head\.weight", r".*\.rotary_emb\.inv_freq", r".*\.masked_bias", r".*\.attn\.bias"]


def convert(weights: Weights, config: QwenVLConfig) -> Weights:
    """Rename the original's weights, split its joint projections, and turn the last projection around.

    Raises:
        UserError: weights that have no place in our model; lists them.
    """
    heads = config.vision_config.num_attention_heads
    split: Weights = {}
    for key, value in weights.items():
        if match := re.fullmatch(r"(.*\.attn)\.(c_attn|in_proj)\.(.*)", key):
            pattern = "(three e) ... -> three e ..." if match[2] == "c_attn" else "(g three e) ... -> three (g e) ..."
            sizes = {"three": 3} if match[2] == "c_attn" else {"three": 3, "g": heads}
            parts = rearrange(value, pattern, **sizes)
            split |= {f"{match[1]}.{name}.{match[3]}": part for name, part in zip("qkv", parts, strict=True)}
        else:
            split[key] = value.T if key == "transformer.visual.proj" else value
    return {key: value.float().contiguous() for key, value in rename(split, RULES, drop=UNUSED).items()}


def read_tokenizer(file: Path) -> Qwen2Tokenizer:
    """Turn qwen.tiktoken (a line for each token: base64, rank) into the tokenizer class of Qwen's later generations.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: name the published folder, with its qwen.tiktoken.")
    ranks = {
        base64.b64decode(token): int(rank)
        for token, rank in map(str.split, file.read_text(encoding="utf-8").splitlines())
    }
    text = {token: token.decode("latin-1").translate(BYTE_CHARACTERS) for token in ranks}
    vocab = {text[token]: rank for token, rank in ranks.items()}
    vocab |= {token: len(ranks) + i for i, token in enumerate(SPECIAL_TOKENS)}
    merges: Any = [(text[left], text[right]) for left, right in recover_merges(ranks)]
    return Qwen2Tokenizer(vocab=vocab, merges=merges, extra_special_tokens=SPECIAL_TOKENS[1:])


def recover_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Find which two tokens each longer one is merged from: what is left of it when all better merges are done."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        pairs = [ranks.get(left + right, rank) for left, right in pairwise(parts)]
        while len(parts) > 2 and (best := min(pairs)) < rank:
            place = pairs.index(best)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
            del pairs[place]
            for i in range(max(place - 1, 0), min(place + 1, len(pairs))):
                pairs[i] = ranks.get(parts[i] + parts[i + 1], rank)
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


_OTHERS = [byte for byte in range(256) if byte not in PRINTABLE_BYTES]
BYTE_CHARACTERS = {byte: chr(byte) for byte in PRINTABLE_BYTES} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
"""How GPT-2 writes a byte."""


def make_image_processor(size: int) -> CLIPImageProcessorPil:
    """Return bicubic resizing and CLIP's mean and standard deviation."""
    square = {"height": size, "width": size}
    return CLIPImageProcessorPil(size=square, crop_size=square, do_center_crop=False)

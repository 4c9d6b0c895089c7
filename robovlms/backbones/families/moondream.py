"""Moondream2: SigLIP-So400m at 378 px, one token per patch, Phi-1.5; made of native blocks, as transformers lacks it.

Source: github.com/vikhyat/moondream, moondream/hf (revisions of 2024) and moondream/torch (2025).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CodeGenTokenizer,
    PhiConfig,
    PhiModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from robovlms.backbones.conversion import Weights, build_converted, read_weights, rename
from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.layout import Layout
from robovlms.backbones.tiny import TINY_BYTES, TINY_IMAGE_SIZE, TINY_TEXT, TINY_VISION
from robovlms.registry import BACKBONES

START = "<|endoftext|>"
WIDENING = 4  # of the projector's hidden layer, by the decoder's width


class MoondreamConfig(PreTrainedConfig):
    """Sizes, and whether start token and images see each other both ways (2025) or causally (2024)."""

    model_type = "moondream"
    sub_configs = {"vision_config": SiglipVisionConfig, "text_config": PhiConfig}

    def __init__(
        self, vision_config: Any = None, text_config: Any = None, prefix_attention: bool = False, **kwargs: Any
    ) -> None:
        self.vision_config = SiglipVisionConfig(**vision_config) if isinstance(vision_config, dict) else vision_config
        self.text_config = PhiConfig(**text_config) if isinstance(text_config, dict) else text_config
        self.prefix_attention = prefix_attention
        super().__init__(**{"tie_word_embeddings": False, **kwargs})


class MoondreamModel(PreTrainedModel):
    """Vision tower, projector and decoder without its vocabulary head."""

    config_class = MoondreamConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules = ["SiglipEncoderLayer", "PhiDecoderLayer"]

    def __init__(self, config: MoondreamConfig) -> None:
        super().__init__(config)
        vision, text = config.vision_config.hidden_size, config.text_config.hidden_size
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.projector = nn.Sequential(
            nn.Linear(2 * vision, WIDENING * text), nn.GELU(approximate="tanh"), nn.Linear(WIDENING * text, text)
        )
        self.language_model = PhiModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the decoder's."""
        embedding: nn.Embedding = self.language_model.embed_tokens
        return embedding

    def get_image_features(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the projected patches; where larger images have the features of their crops, ours have their own."""
        patches = self.vision_tower(images).last_hidden_state
        return self.projector(torch.cat([patches, patches], dim=-1))


AutoConfig.register(MoondreamConfig.model_type, MoondreamConfig)
AutoModel.register(MoondreamConfig, MoondreamModel)


@BACKBONES.register("moondream")
class Moondream(HuggingFaceBackbone):
    """Reads `<|endoftext|> [729 tokens per view] {instruction} [queries]`, as upstream does without Moondream's
    `Question:`.

    Checkpoints of 2024 are causal throughout. In those of 2025 start token and images of a frame see each other.
    """

    model_type = "moondream"
    original = "vikhyatk/moondream2"
    prompt = "{instruction}"
    num_head_tokens = 1

    @classmethod
    def published_config(cls) -> MoondreamConfig:
        """Return the sizes of vikhyatk/moondream2."""
        vision = {
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
            "patch_size": 14, "image_size": 378, "layer_norm_eps": 1e-5, "vision_use_head": False,
        }  # fmt: skip
        text = {
            "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
            "vocab_size": 51200, "max_position_embeddings": 2048, "hidden_act": "gelu_new",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        }  # fmt: skip
        return MoondreamConfig(vision_config=vision, text_config=text)

    @classmethod
    def tiny(cls) -> Moondream:
        """Build 2 + 2 layers with 16 tokens per 56 px image, of the kind of 2025."""
        tokenizer = tiny_tokenizer()
        text = {
            **TINY_TEXT, "vocab_size": len(tokenizer), "hidden_act": "gelu_new",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        }  # fmt: skip
        vision = {"vision_use_head": False, **TINY_VISION}
        model = MoondreamModel(MoondreamConfig(vision_config=vision, text_config=text, prefix_attention=True))
        return cls(model, tokenizer, make_image_processor(TINY_IMAGE_SIZE))

    @classmethod
    def from_original(cls, source: Path, sizes: MoondreamConfig | None = None) -> Moondream:
        """Build from the published folder: its weights in either naming, and its tokenizer.

        Raises:
            FileNotFoundError: there are no weights.
            UserError: a weight has no place in our model, or one of ours is not among them; lists them.
        """
        weights = read_weights(source)
        is_causal = any(key.startswith("text_model.") for key in weights)
        values = (sizes or cls.published_config()).to_dict()
        config = MoondreamConfig.from_dict({**values, "prefix_attention": not is_causal})
        model = build_converted(lambda: MoondreamModel(config), convert(weights))
        size: Any = config.vision_config.image_size
        return cls(model, AutoTokenizer.from_pretrained(source), make_image_processor(size))

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, decoder and embedding; the projector between them is always trained."""
        text = self.model.language_model
        return {
            "vision": [self.model.vision_tower],
            "text": [text.layers, text.final_layernorm],
            "embeddings": [self.embedding],
        }

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the projected patches."""
        tokens: Tensor = self.model.get_image_features(images)
        return tokens.to(self.embedding.weight.dtype)

    def decode(self, embeds: Float[Tensor, "n s d"], layout: Layout, cache: Any = None) -> Float[Tensor, "n s d"]:
        """Run the decoder, causally or with the prefix mask."""
        options = {}
        if self.model.config.prefix_attention:
            options["attention_mask"] = self.additive(image_prefix_mask(layout), layout, embeds)
        return self.run(embeds, layout, cache, (layout.mask.long().cumsum(1) - 1).clamp(min=0), **options)


def image_prefix_mask(layout: Layout) -> Bool[Tensor, "n s s"]:
    """Return the causal mask in which the tokens of a frame up to its last image token also attend to each other.

    Padding attends to itself and nothing else attends to it, so that no row is empty.
    """
    order = torch.arange(layout.mask.shape[1], device=layout.mask.device)
    same_frame = layout.frame[:, :, None] == layout.frame[:, None, :]
    is_ahead = same_frame & (layout.patch >= 0)[:, None, :] & (order[:, None] <= order)
    in_prefix = is_ahead.any(-1)  # an image token of the frame is here or yet to come
    prefix = same_frame & in_prefix[:, :, None] & in_prefix[:, None, :]
    allowed = prefix | (order[:, None] >= order)
    return allowed & layout.mask[:, None, :] | (order[:, None] == order)


RULES_2024 = [
    (r"vision_encoder\.encoder\.model\.visual\.patch_embed\.linear\.(.*)", r"vision.patch_emb.\1"),
    (r"vision_encoder\.encoder\.model\.visual\.pos_embed", r"vision.pos_emb"),
    (r"vision_encoder\.encoder\.model\.visual\.norm\.(.*)", r"vision.post_ln.\1"),
    (r"vision_encoder\.encoder\.model\.visual\.blocks\.(\d+)\.norm([12])\.(.*)", r"vision.blocks.\1.ln\2.\3"),
    (r"vision_encoder\.encoder\.model\.visual\.blocks\.(.*)", r"vision.blocks.\1"),
    (r"vision_encoder\.projection\.mlp\.(.*)", r"vision.proj_mlp.\1"),
    (r"text_model\.transformer\.embd\.wte\.weight", r"text.wte"),
    (r"text_model\.transformer\.h\.(\d+)\.mixer\.Wqkv\.(.*)", r"text.blocks.\1.attn.qkv.\2"),
    (r"text_model\.transformer\.h\.(\d+)\.mixer\.out_proj\.(.*)", r"text.blocks.\1.attn.proj.\2"),
    (r"text_model\.transformer\.h\.(\d+)\.((?:ln|mlp)\..*)", r"text.blocks.\1.\2"),
    (r"text_model\.lm_head\.ln\.(.*)", r"text.post_ln.\1"),
]
RULES_2025 = [
    (r"vision\.patch_emb\.(.*)", r"vision_tower.embeddings.patch_embedding.\1"),
    (r"vision\.pos_emb", r"vision_tower.embeddings.position_embedding.weight"),
    (r"vision\.post_ln\.(.*)", r"vision_tower.post_layernorm.\1"),
    (r"vision\.blocks\.(\d+)\.ln([12])\.(.*)", r"vision_tower.encoder.layers.\1.layer_norm\2.\3"),
    (r"vision\.blocks\.(\d+)\.attn\.proj\.(.*)", r"vision_tower.encoder.layers.\1.self_attn.out_proj.\2"),
    (r"vision\.blocks\.(\d+)\.attn\.([qkv])\.(.*)", r"vision_tower.encoder.layers.\1.self_attn.\2_proj.\3"),
    (r"vision\.blocks\.(\d+)\.mlp\.(.*)", r"vision_tower.encoder.layers.\1.mlp.\2"),
    (r"vision\.proj_mlp\.fc1\.(.*)", r"projector.0.\1"),
    (r"vision\.proj_mlp\.fc2\.(.*)", r"projector.2.\1"),
    (r"text\.wte", r"language_model.embed_tokens.weight"),
    (r"text\.post_ln\.(.*)", r"language_model.final_layernorm.\1"),
    (r"text\.blocks\.(\d+)\.ln\.(.*)", r"language_model.layers.\1.input_layernorm.\2"),
    (r"text\.blocks\.(\d+)\.attn\.proj\.(.*)", r"language_model.layers.\1.self_attn.dense.\2"),
    (r"text\.blocks\.(\d+)\.attn\.([qkv])\.(.*)", r"language_model.layers.\1.self_attn.\2_proj.\3"),
    (r"text\.blocks\.(\d+)\.mlp\.(.*)", r"language_model.layers.\1.mlp.\2"),
]
UNUSED = [  # the vocabulary head, pointing and detection, tables that we compute
    r"text_model\.lm_head\.linear\..*", r"text\.lm_head\..*", r"region(_model)?\..*", r".*\.rotary_emb\.inv_freq",
    r"text\.(freqs_cis|attn_mask)",
]  # fmt: skip


def convert(weights: Weights) -> Weights:
    """Rename the weights of either year, split joint projections, and make the patch embedding a convolution.

    Raises:
        UserError: weights that have no place in our model; lists them.
    """
    plain = {key.replace("._orig_mod", "").removeprefix("model."): value.float() for key, value in weights.items()}
    if any(key.startswith("text_model.") for key in plain):
        plain = rename(plain, RULES_2024, drop=UNUSED)
    split: Weights = {}
    for key, value in plain.items():
        if ".attn.qkv." in key:
            split |= {key.replace("qkv", name): part for name, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            split[key] = value
    renamed = rename(split, RULES_2025, drop=UNUSED)
    patch = "vision_tower.embeddings.patch_embedding.weight"
    if patch in renamed:
        side = round((renamed[patch].shape[1] / 3) ** 0.5)
        renamed[patch] = rearrange(renamed[patch], "d (c h x) -> d c h x", c=3, h=side)
    table = "vision_tower.embeddings.position_embedding.weight"
    if table in renamed:
        renamed[table] = renamed[table][0]
    return renamed


def make_image_processor(size: int) -> SiglipImageProcessorPil:
    """Return bicubic resizing and a mean and standard deviation of 0.5, as in moondream/hf/vision_encoder.py."""
    return SiglipImageProcessorPil(size={"height": size, "width": size})


@lru_cache(maxsize=1)
def tiny_tokenizer() -> CodeGenTokenizer:
    """Return Phi's tokenizer class with one token per byte."""
    vocab = {token: i for i, token in enumerate([*TINY_BYTES, START])}
    return CodeGenTokenizer(vocab=vocab, merges=[])

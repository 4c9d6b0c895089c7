"""UForm-Gen and UForm-Gen2: a plain ViT, learned latents that attend to it, a small LLaMA or Qwen1.5.

transformers lacks both. The vision layers are SigLIP's, the decoders native; the frame around them is ours.
Source: uform 3.1.3 (torch_encoders.py, torch_decoders.py) and, for the second generation, the files beside
unum-cloud/uform-gen2-qwen-500m (vision_encoder.py, modeling_uform_gen.py), whose names are the package's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL.Image import Resampling
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPImageProcessorPil,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
)
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from robovlms.backbones.conversion import Weights, build_converted, read_weights, rename
from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.tiny import TINY_IMAGE_SIZE, TINY_TEXT, TINY_VISION, tiny_qwen_tokenizer
from robovlms.registry import BACKBONES

QWEN = {
    "model_type": "qwen2", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 151936, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 32003, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}  # fmt: skip


class UFormConfig(PreTrainedConfig):
    """Sizes. In the first generation patches are projected before the latents see them (`projects_patches`)."""

    model_type = "uform"
    sub_configs = {"vision_config": SiglipVisionConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: Any = None,
        text_config: Any = None,
        num_latents: int = 256,
        pooler_heads: int = 16,
        pooler_width: int = 3200,
        projects_patches: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vision_config = SiglipVisionConfig(**vision_config) if isinstance(vision_config, dict) else vision_config
        is_dict = isinstance(text_config, dict)
        self.text_config = CONFIG_MAPPING[text_config["model_type"]](**text_config) if is_dict else text_config
        self.num_latents, self.pooler_heads, self.pooler_width = num_latents, pooler_heads, pooler_width
        self.projects_patches = projects_patches
        super().__init__(**{"tie_word_embeddings": True, **kwargs})


class VisionTower(nn.Module):
    """A class token and patches with learned positions; the original's layer scales are in the projections' weights."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2, width)
        self.encoder = SiglipEncoder(config)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m e"]:
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2) + self.position_embedding.weight
        tokens = torch.cat([self.class_embedding.expand(patches.shape[0], 1, -1), patches], dim=1)
        return self.norm(self.encoder(inputs_embeds=tokens).last_hidden_state)


class Pooler(nn.Module):
    """Latents attend to each other and to the patches, in one layer, as in the original with its dropout of 0.1."""

    def __init__(self, config: UFormConfig) -> None:
        super().__init__()
        vision, text = config.vision_config.hidden_size, config.text_config.hidden_size
        self.projects_patches = config.projects_patches
        width = text if self.projects_patches else vision
        self.latents = nn.Parameter(torch.randn(config.num_latents, width) * 0.14)  # sqrt(0.02)
        self.layer = nn.TransformerDecoderLayer(
            width, config.pooler_heads, config.pooler_width, activation=F.silu, batch_first=True, norm_first=True
        )
        self.projection = nn.Linear(vision, text)

    def forward(self, patches: Float[Tensor, "n p e"]) -> Float[Tensor, "n m d"]:
        latents = self.latents.expand(patches.shape[0], -1, -1)
        if self.projects_patches:
            return self.layer(latents, self.projection(patches))
        return self.projection(self.layer(latents, patches))


class UFormModel(PreTrainedModel):
    """Vision tower, pooler and decoder without its vocabulary head."""

    config_class = UFormConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules = ["SiglipEncoderLayer", "Qwen2DecoderLayer", "LlamaDecoderLayer"]

    def __init__(self, config: UFormConfig) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower(config.vision_config)
        self.pooler = Pooler(config)
        self.language_model: Any = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the decoder's."""
        embedding: nn.Embedding = self.language_model.embed_tokens
        return embedding


AutoConfig.register(UFormConfig.model_type, UFormConfig)
AutoModel.register(UFormConfig, UFormModel)


@BACKBONES.register("uform")
class UForm(HuggingFaceBackbone):
    """Reads `[<s>] [256 latents per view] {instruction} [queries]`, causally; only the first generation has `<s>`."""

    model_type = "uform"
    original = "unum-cloud/uform-gen2-qwen-500m"
    prompt = "{instruction}"

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any) -> None:
        super().__init__(model, tokenizer, image_processor)
        self.has_start = model.config.text_config.model_type == "llama"
        self.num_head_tokens = int(self.has_start)

    @classmethod
    def published_config(cls) -> UFormConfig:
        """Return the sizes of unum-cloud/uform-gen2-qwen-500m."""
        vision = {
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
            "patch_size": 14, "image_size": 336, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        }  # fmt: skip
        return UFormConfig(vision_config=vision, text_config=QWEN)

    @classmethod
    def tiny(cls) -> UForm:
        """Build 2 + 2 layers with 4 latents per 56 px image, of the second generation."""
        tokenizer = tiny_qwen_tokenizer(("<image>",))
        text = {"model_type": "qwen2", **TINY_TEXT, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
        config = UFormConfig(
            vision_config={**TINY_VISION, "intermediate_size": 128, "hidden_act": "gelu"}, text_config=text,
            num_latents=4, pooler_heads=2, pooler_width=64,
        )  # fmt: skip
        return cls(UFormModel(config), tokenizer, make_image_processor(TINY_IMAGE_SIZE))

    @classmethod
    def from_original(cls, source: Path, text_config: dict[str, Any] | None = None) -> UForm:
        """Build from the published folder: config.json, weights, and the tokenizer of its decoder.

        Args:
            source: the folder.
            text_config: sizes of the decoder, which the folder does not tell; unset: the published ones.
        Raises:
            FileNotFoundError: config.json or the weights are missing.
            UserError: a weight has no place in our model, or one of ours is not among them; lists them.
        """
        if not (source / "config.json").is_file():
            raise FileNotFoundError(f"{source / 'config.json'} does not exist: name the published folder.")
        weights = read_weights(source)
        config = read_config(json.loads((source / "config.json").read_text(encoding="utf-8")), text_config)
        model = build_converted(lambda: UFormModel(config), convert(weights, config))
        size: Any = config.vision_config.image_size
        resample = Resampling.BICUBIC if config.projects_patches else Resampling.BILINEAR
        return cls(model, AutoTokenizer.from_pretrained(source), make_image_processor(size, resample))

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, decoder and embedding; the pooler between them is always trained."""
        text = self.model.language_model
        return {"vision": [self.model.vision_tower], "text": [text.layers, text.norm], "embeddings": [self.embedding]}

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the latents."""
        latents = self.model.pooler(self.model.vision_tower(images))
        return latents.to(self.embedding.weight.dtype)


def read_config(values: dict[str, Any], text_config: dict[str, Any] | None) -> UFormConfig:
    """Turn the config.json of either generation into ours; only the second calls its latents `num_image_latents`."""
    is_second = "num_image_latents" in values
    width = values["image_encoder_hidden_size"]
    vision = {
        "hidden_size": width, "intermediate_size": 4 * width, "patch_size": values["image_encoder_patch_size"],
        "num_hidden_layers": values["image_encoder_num_layers"], "image_size": values["image_size"],
        "num_attention_heads": values["image_encoder_num_heads"], "layer_norm_eps": 1e-6, "hidden_act": "gelu",
    }  # fmt: skip
    return UFormConfig(
        vision_config=vision, text_config=text_config or (QWEN if is_second else LLAMA),
        num_latents=values["num_image_latents" if is_second else "image_pooler_num_latents"],
        pooler_heads=values["image_pooler_num_attn_heads"], pooler_width=values["image_pooler_intermediate_size"],
        projects_patches=not is_second,
    )  # fmt: skip


RULES = [
    (r"text_decoder\.model\.(.*)", r"language_model.\1"),
    (r"image_pooler\.pooler\.(.*)", r"pooler.layer.\1"),
    (r"image_pooler\.projection\.(.*)", r"pooler.projection.\1"),
    (r"image_pooler\.image_latents", r"pooler.latents"),
    (r"image_encoder\.patch_embed\.(.*)", r"vision_tower.patch_embedding.\1"),
    (r"image_encoder\.pos_embed", r"vision_tower.position_embedding.weight"),
    (r"image_encoder\.cls_token", r"vision_tower.class_embedding"),
    (r"image_encoder\.norm\.(.*)", r"vision_tower.norm.\1"),
    (r"image_encoder\.blocks\.(\d+)\.norm([12])\.(.*)", r"vision_tower.encoder.layers.\1.layer_norm\2.\3"),
    (r"image_encoder\.blocks\.(\d+)\.attn\.query\.(.*)", r"vision_tower.encoder.layers.\1.self_attn.q_proj.\2"),
    (r"image_encoder\.blocks\.(\d+)\.attn\.key\.(.*)", r"vision_tower.encoder.layers.\1.self_attn.k_proj.\2"),
    (r"image_encoder\.blocks\.(\d+)\.attn\.value\.(.*)", r"vision_tower.encoder.layers.\1.self_attn.v_proj.\2"),
    (r"image_encoder\.blocks\.(\d+)\.attn\.out\.(.*)", r"vision_tower.encoder.layers.\1.self_attn.out_proj.\2"),
    (r"image_encoder\.blocks\.(\d+)\.mlp\.hidden_layer\.(.*)", r"vision_tower.encoder.layers.\1.mlp.fc1.\2"),
    (r"image_encoder\.blocks\.(\d+)\.mlp\.output_layer\.(.*)", r"vision_tower.encoder.layers.\1.mlp.fc2.\2"),
]
UNUSED = [r"text_decoder\.lm_head\.weight", r"image_encoder\.embedding_projection\..*", r".*\.rotary_emb\.inv_freq"]
SCALED = {"ls1": "attn.out", "ls2": "mlp.output_layer"}  # a layer scale, and the projection it is multiplied into


def convert(weights: Weights, config: UFormConfig) -> Weights:
    """Rename the original's weights, multiply its layer scales into the projections before them, and stretch its
    positions to the image's size.

    Raises:
        UserError: weights that have no place in our model; lists them.
    """
    plain = {key: value.float() for key, value in weights.items() if ".ls1." not in key and ".ls2." not in key}
    for key in weights.keys() - plain.keys():
        block, _, scale = key.removesuffix(".weight").removesuffix(".gamma").rpartition(".")
        for name in ("weight", "bias"):
            target = f"{block}.{SCALED[scale]}.{name}"
            by = weights[key].float()
            plain[target] = plain[target] * (by[:, None] if name == "weight" else by)
    renamed = rename(plain, RULES, drop=UNUSED)
    table = "vision_tower.position_embedding.weight"
    for key in ("pooler.latents", table, "vision_tower.class_embedding"):
        if key in renamed:
            renamed[key] = renamed[key].squeeze()  # leading sizes of one
    if table in renamed:
        vision: Any = config.vision_config
        renamed[table] = stretch_positions(renamed[table], vision.image_size // vision.patch_size)
    return renamed


def stretch_positions(table: Float[Tensor, "_p d"], side: int) -> Float[Tensor, "p d"]:
    """Resample a square of positions to `side` x `side`; the second generation has them for 224 px and reads 336.

    Source: its vision_encoder.py, bicubic, with DINO's 0.1 added to the new side.
    """
    old = round(len(table) ** 0.5)
    if old == side:
        return table
    square = rearrange(table, "(h x) d -> 1 d h x", h=old)
    stretched = F.interpolate(square, scale_factor=(side + 0.1) / old, mode="bicubic")
    return rearrange(stretched, "1 d h x -> (h x) d")


def make_image_processor(size: int, resample: Resampling = Resampling.BILINEAR) -> CLIPImageProcessorPil:
    """Return CLIP's mean and standard deviation, and the second generation's resizing (torchvision's default)."""
    square = {"height": size, "width": size}
    return CLIPImageProcessorPil(size=square, crop_size=square, do_center_crop=False, resample=resample)

"""What OpenFlamingo is to both of its uses: CLIP ViT-L/14, 64 latents per image, cross-attention in a decoder.

Source: github.com/mlfoundations/open_flamingo, src/flamingo.py, flamingo_lm.py and factory.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPTNeoXTokenizer,
    MptConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from robovlms.backbones.conversion import Weights, build_converted, read_weights, rename
from robovlms.backbones.families.flamingo_layers import FlamingoLayer, GatedCrossAttention, NormedProjection
from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.layout import Layout
from robovlms.backbones.perceiver import Perceiver
from robovlms.backbones.text_head import FamilyTokenizer
from robovlms.backbones.tiny import TINY_BYTES, TINY_IMAGE_SIZE, TINY_VISION
from robovlms.errors import UserError

IMAGE, END = "<image>", "<|endofchunk|>"
LAYERS = {"mpt": "blocks", "gpt_neox": "layers", "llama": "layers"}  # decoder to the name of its layers
NORMS = {"mpt": "norm_f", "gpt_neox": "final_layer_norm", "llama": "norm"}


class FlamingoConfig(PreTrainedConfig):
    """Sizes. Gated cross-attention stands before every `cross_attention_every`th layer of the decoder."""

    model_type = "openflamingo"
    sub_configs = {"vision_config": CLIPVisionConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: Any = None,
        text_config: Any = None,
        cross_attention_every: int = 1,
        num_latents: int = 64,
        perceiver_depth: int = 6,
        **kwargs: Any,
    ) -> None:
        self.vision_config = CLIPVisionConfig(**vision_config) if isinstance(vision_config, dict) else vision_config
        is_dict = isinstance(text_config, dict)
        self.text_config = CONFIG_MAPPING[text_config["model_type"]](**text_config) if is_dict else text_config
        self.cross_attention_every = cross_attention_every
        self.num_latents, self.perceiver_depth = num_latents, perceiver_depth
        super().__init__(**{"tie_word_embeddings": True, **kwargs})


class FlamingoModel(PreTrainedModel):
    """Vision tower, perceiver and decoder without its vocabulary head."""

    config_class = FlamingoConfig
    base_model_prefix = "model"
    _no_split_modules = ["CLIPEncoderLayer", "FlamingoLayer"]

    def __init__(self, config: FlamingoConfig) -> None:
        super().__init__(config)
        text, media_dim = config.text_config, config.vision_config.hidden_size
        self.vision_tower = CLIPVisionModel(config.vision_config)
        self.perceiver = Perceiver(media_dim, config.num_latents, config.perceiver_depth)
        self.language_model: Any = AutoModel.from_config(text, attn_implementation="eager")
        if text.model_type == "mpt" and text.attn_config.qk_ln:
            for block in self.language_model.blocks:
                block.attn.Wqkv = NormedProjection(block.attn.Wqkv)
        layers, dim = self.layers, self.get_input_embeddings().weight.shape[1]
        for i, layer in enumerate(layers):
            is_gated = (i + 1) % config.cross_attention_every == 0
            layers[i] = FlamingoLayer(layer, GatedCrossAttention(dim, media_dim) if is_gated else None)
        self.post_init()

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's, each with what was injected before it."""
        layers: nn.ModuleList = self.language_model.get_submodule(LAYERS[self.config.text_config.model_type])
        return layers

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the decoder's."""
        embedding: nn.Embedding = self.language_model.get_input_embeddings()
        return embedding


AutoConfig.register(FlamingoConfig.model_type, FlamingoConfig)
AutoModel.register(FlamingoConfig, FlamingoModel)


class CrossAttendingDecoder(HuggingFaceBackbone):
    """OpenFlamingo without its vocabulary head; images enter by cross-attention alone.

    From `<image>` on, every token attends to the latents of all views of its own frame, as upstream concatenates them.
    LLaMA has `<s>`.
    """

    model_type = "openflamingo"
    original = "openflamingo/OpenFlamingo-3B-vitl-mpt1b"
    attentions = ("eager",)
    can_interleave = False
    can_cache = can_parallel = False  # MPT's bias goes by place, and its mask is its own
    prompt = "{instruction}"
    text_end = END

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any) -> None:
        super().__init__(model, tokenizer, image_processor)
        self.has_start = model.config.text_config.model_type == "llama"

    @classmethod
    def published_config(cls) -> FlamingoConfig:
        """Return the sizes of openflamingo/OpenFlamingo-3B-vitl-mpt1b."""
        vision = {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "patch_size": 14, "image_size": 224,
        }  # fmt: skip
        text = {
            "model_type": "mpt", "d_model": 2048, "n_heads": 16, "n_layers": 24, "vocab_size": 50280,
            "attn_config": {"qk_ln": True},
        }  # fmt: skip
        return FlamingoConfig(vision_config=vision, text_config=text, cross_attention_every=1)

    @classmethod
    def tiny(cls) -> CrossAttendingDecoder:
        """Build 2 + 2 layers of the kind of the 3B model, with 4 latents per 56 px image and open gates."""
        tokenizer = tiny_tokenizer()
        text = {
            "model_type": "mpt", "d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": len(tokenizer),
            "attn_config": {"qk_ln": True},
        }  # fmt: skip
        model = FlamingoModel(
            FlamingoConfig(vision_config=TINY_VISION, text_config=text, num_latents=4, perceiver_depth=2)
        )
        layer: Any
        for layer in model.layers:
            nn.init.constant_(layer.gated.attn_gate, 0.5)
            nn.init.constant_(layer.gated.ff_gate, 0.5)
        size = {"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE}
        return cls(model, tokenizer, CLIPImageProcessorPil(size={"shortest_edge": TINY_IMAGE_SIZE}, crop_size=size))

    @classmethod
    def from_original(cls, source: Path) -> CrossAttendingDecoder:
        """Build from a folder with the published checkpoint.pt, the CLIP model in clip/ and the decoder in language/.

        Raises:
            FileNotFoundError: one of the three is missing.
            UserError: a weight has no place in our model, or one of ours is not among them; lists them.
        """
        for file in ("checkpoint.pt", "clip/config.json", "language/config.json"):
            if not (source / file).is_file():
                raise FileNotFoundError(
                    f"{source / file} does not exist: put OpenFlamingo's checkpoint.pt, and the folders of its CLIP "
                    "model (clip) and language model (language) in Hugging Face format, into one folder."
                )
        own = torch.load(source / "checkpoint.pt", map_location="cpu", weights_only=True, mmap=True)
        own = {key.removeprefix("module."): value for key, value in own.get("model_state_dict", own).items()}
        gated = {int(match[1]) for key in own if (match := re.search(r"gated_cross_attn_layers\.(\d+)\.", key))}
        text = read_text_config(json.loads((source / "language" / "config.json").read_text(encoding="utf-8")))
        text.vocab_size = next(len(value) for key, value in own.items() if re.fullmatch(EMBEDDING, key))
        config = FlamingoConfig(
            vision_config=CLIPVisionConfig.from_pretrained(source / "clip"), text_config=text,
            cross_attention_every=text.num_hidden_layers // len(gated),
            num_latents=len(own["perceiver.latents"]),
            perceiver_depth=1 + max(int(key.split(".")[2]) for key in own if key.startswith("perceiver.layers.")),
        )  # fmt: skip
        parts = {"clip": read_weights(source / "clip"), "language": read_weights(source / "language"), "": own}
        model = build_converted(lambda: FlamingoModel(config), convert(parts, config))
        tokenizer = AutoTokenizer.from_pretrained(source / "language")
        tokenizer.add_special_tokens({"additional_special_tokens": [END, IMAGE]})
        if tokenizer.pad_token is None:
            tokenizer.add_special_tokens({"pad_token": "<PAD>"})
        image_processor = AutoImageProcessor.from_pretrained(source / "clip", backend="pil")
        return cls(model, tokenizer, image_processor)

    @cached_property
    def tokenize(self) -> FamilyTokenizer:
        """`[<s>] <image> prompt <|endofchunk|>`; a reply ends with the chunk."""
        return replace(super().tokenize, before=IMAGE, behind_question="", end=END)

    @property
    def ties_words(self) -> bool:
        """Whether the decoder is MPT; GPT-NeoX and LLaMA have a head of their own, which is not converted."""
        return str(self.model.config.text_config.model_type) == "mpt"

    def unused(self) -> list[nn.Module]:
        """Return CLIP's last norm, which only its class token goes through."""
        return [m for name, m in self.model.vision_tower.named_modules() if name.endswith("post_layernorm")]

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, the decoder's own layers, and embedding; perceiver and cross-attention always train."""
        text = self.model.language_model
        own = nn.ModuleList([layer.layer for layer in self.model.layers])
        norm = text.get_submodule(NORMS[self.model.config.text_config.model_type])
        return {"vision": [self.model.vision_tower], "text": [own, norm], "embeddings": [self.embedding]}

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m e"]:
        """Return the perceiver's latents of each image."""
        patches = self.model.vision_tower(pixel_values=images).last_hidden_state[:, 1:]
        latents: Tensor = self.model.perceiver(patches)
        return latents

    def in_sequence(self, image: Float[Tensor, "n t v m e"]) -> Float[Tensor, "n t v _m _e"]:
        """Leave out all image tokens: they enter by the cross-attention."""
        return image.new_zeros(*image.shape[:3], 0, self.hidden_dim)

    def condition(self, image: Float[Tensor, "n t v m e"], view_mask: Bool[Tensor, "n v"], layout: Layout) -> None:
        """Let every token attend to the views of its frame that are there; what stands before `<image>` to none."""
        t, m, frame = image.shape[1], image.shape[3], layout.frame
        is_first = torch.ones_like(layout.mask)
        is_first[:, 1:] = frame[:, 1:] != frame[:, :-1]
        sees = ~is_first if self.has_start else torch.ones_like(is_first)
        own_frame = frame[:, :, None] == torch.arange(t, device=frame.device)
        allowed = (own_frame & sees[:, :, None])[..., None] & view_mask[:, None, None]
        allowed = repeat(allowed, "n s t v -> n s (t v m)", m=m)
        for layer in self.model.layers:
            layer.condition = (rearrange(image, "n t v m e -> n (t v m) e"), allowed)

    def decode(self, embeds: Float[Tensor, "n s d"], layout: Layout, cache: Any = None) -> Float[Tensor, "n s d"]:
        """Run the causal decoder on what `condition` handed over, which is then dropped."""
        hidden = self.run(embeds, layout, cache)
        for layer in self.model.layers:
            layer.condition = None
        return hidden


def read_text_config(values: dict[str, Any]) -> Any:
    """Return the decoder's config; MPT-1B's (`mosaic_gpt`) is MPT with normed queries and keys.

    Raises:
        UserError: OpenFlamingo has no such decoder.
    """
    family = values["model_type"]
    if family == "mosaic_gpt":
        return MptConfig(
            d_model=values["d_model"], n_heads=values["n_heads"], n_layers=values["n_layers"],
            expansion_ratio=values["mlp_ratio"], vocab_size=values["vocab_size"],
            attn_config={"qk_ln": values["attn_qk_ln"], "alibi_bias_max": values.get("alibi_bias_max", 8)},
        )  # fmt: skip
    if family not in LAYERS:
        raise UserError(
            f"language/config.json holds a '{family}' model: OpenFlamingo's are mosaic_gpt, {', '.join(LAYERS)}."
        )
    return CONFIG_MAPPING[family].from_dict(values)


EMBEDDING = r"lang_encoder\.(?:transformer\.wte|gpt_neox\.embed_in|model\.embed_tokens)\.weight"
BLOCK, OURS = r"language\.(?:model\.)?transformer\.blocks\.(\d+)\.", r"language_model.blocks.\1.layer."
MOSAIC = [
    (BLOCK + r"ln_([12])\.weight", OURS + r"norm_\2.weight"),
    (BLOCK + r"mlp\.mlp_(up|down)\.weight", OURS + r"ffn.\2_proj.weight"),
    (BLOCK + r"attn\.([qk])_ln\.weight", OURS + r"attn.Wqkv.\2_ln.weight"),
    (BLOCK + r"attn\.Wqkv\.weight", OURS + r"attn.Wqkv.linear.weight"),
    (r"language\.(?:model\.)?transformer\.ln_f\.weight", r"language_model.norm_f.weight"),
]
PUBLIC = [
    (r"(perceiver\..*)", r"\1"),
    (r"clip\.vision_model\.(.*)", r"vision_tower.\1"),
    (BLOCK + r"(.*)", OURS + r"\2"),
    (r"language\.(?:model\.)?transformer\.norm_f\.weight", r"language_model.norm_f.weight"),
    (r"language\.gpt_neox\.layers\.(\d+)\.(.*)", r"language_model.layers.\1.layer.\2"),
    (r"language\.gpt_neox\.final_layer_norm\.(.*)", r"language_model.final_layer_norm.\1"),
    (r"language\.model\.layers\.(\d+)\.(.*)", r"language_model.layers.\1.layer.\2"),
    (r"language\.model\.norm\.weight", r"language_model.norm.weight"),
    (r"lang_encoder\.transformer\.wte\.weight", r"language_model.wte.weight"),
    (r"lang_encoder\.gpt_neox\.embed_in\.weight", r"language_model.embed_in.weight"),
    (r"lang_encoder\.model\.embed_tokens\.weight", r"language_model.embed_tokens.weight"),
]
UNUSED = [  # CLIP's text half, vocabulary heads, the embeddings that the checkpoint has again, tables, second names
    r"clip\.(?:text_model\..*|.*_projection\.weight|logit_scale)",
    r"language\..*(?:wte|embed_in|embed_tokens)\.weight",
    r".*\.(?:lm_head|embed_out)\.weight",
    r".*\.(?:position_ids|rotary_emb\.inv_freq|attention\.bias|masked_bias)",
    r".*\.gated_cross_attn_layer\..*",
    r"lang_encoder\.old_decoder_blocks\..*",
]


def convert(parts: dict[str, Weights], config: FlamingoConfig) -> Weights:
    """Put CLIP's, the decoder's and the checkpoint's own weights under our names.

    Raises:
        UserError: weights that have no place in our model; lists them.
    """
    family = config.text_config.model_type
    gated = [(r"lang_encoder\.gated_cross_attn_layers\.(\d+)\.(.*)", rf"language_model.{LAYERS[family]}.\1.gated.\2")]
    joined = {f"{part}.{key}" if part else key: value for part, each in parts.items() for key, value in each.items()}
    is_mosaic = family == "mpt" and config.text_config.attn_config.qk_ln
    renamed = rename(joined, [*gated, *(MOSAIC if is_mosaic else []), *PUBLIC], drop=UNUSED)
    return {key: value.float() for key, value in renamed.items()}


@lru_cache(maxsize=1)
def tiny_tokenizer() -> GPTNeoXTokenizer:
    """Return the family's tokenizer class with one token per byte."""
    vocab = {token: i for i, token in enumerate(["<|endoftext|>", *TINY_BYTES, END, IMAGE])}
    return GPTNeoXTokenizer(vocab=vocab, merges=[], pad_token="<|endoftext|>", extra_special_tokens=[END, IMAGE])

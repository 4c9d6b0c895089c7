"""LLaVA-1.5 (arXiv:2310.03744): CLIP ViT-L/14 at 336 px, one token per patch, Vicuna-7B; and LLaVA-MPT.

LLaVA-MPT is the LLaVA of RoboVLMs: MPT-7B behind one linear layer. Source of its names: github.com/haotian-liu/LLaVA,
llava/model/language_model/llava_mpt.py and llava_arch.py.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaModel,
    MptConfig,
    PreTrainedModel,
)

from robovlms.backbones.checkpoints.conversion import Weights, build_converted, read_weights, rename
from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.tiny import TINY_CHARACTERS, TINY_IMAGE_SIZE, TINY_TEXT, TINY_VISION
from robovlms.errors import UserError
from robovlms.registry import BACKBONES


@BACKBONES.register("llava")
class Llava(HuggingFaceBackbone):
    """Reads `<s> [576 tokens per view] {instruction} [queries]`, causally, as upstream does without a chat template.

    MPT has no `<s>`, and runs with eager attention alone.
    """

    model_type = "llava"
    attentions = ("sdpa", "eager", "flash_attention_2")
    prompt = "{instruction}"
    can_resample = True

    def __init__(self, model: PreTrainedModel, tokenizer: Any, image_processor: Any) -> None:
        super().__init__(model, tokenizer, image_processor)
        self.has_start = model.config.text_config.model_type == "llama"
        self.num_head_tokens = int(self.has_start)

    @classmethod
    def published_config(cls) -> LlavaConfig:
        """Return the config of llava-hf/llava-1.5-7b-hf."""
        text = {
            "model_type": "llama",
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
        }  # the rest is the class's default
        return LlavaConfig(text_config=text)

    @classmethod
    def tiny(cls) -> Llava:
        """Build 2 + 2 layers with 16 tokens per 56 px image."""
        tokenizer = tiny_tokenizer()
        text = {"model_type": "llama", "num_key_value_heads": 2, "vocab_size": len(tokenizer), **TINY_TEXT}
        vision = {"model_type": "clip_vision_model", **TINY_VISION}
        image_id = tokenizer.get_vocab()["<image>"]
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_id, image_seq_length=16)
        size = {"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE}
        processor = CLIPImageProcessorPil(size={"shortest_edge": TINY_IMAGE_SIZE}, crop_size=size)
        return cls(LlavaModel(config), tokenizer, processor)

    @classmethod
    def from_original(cls, source: Path) -> Llava:
        """Build LLaVA-MPT from its published folder, with the CLIP model that its config names in clip/.

        Raises:
            FileNotFoundError: a file is missing.
            UserError: it is another model, or its weights do not fit; lists them.
        """
        for file in ("config.json", "clip/config.json"):
            if not (source / file).is_file():
                raise FileNotFoundError(
                    f"{source / file} does not exist: put the published folder of LLaVA-MPT there, and the folder of "
                    "its CLIP model (mm_vision_tower in config.json) into clip/."
                )
        values = json.loads((source / "config.json").read_text(encoding="utf-8"))
        if values["model_type"] not in ("llava_mpt", "mpt"):
            raise UserError(
                f"{source} holds a '{values['model_type']}' model: only LLaVA-MPT is converted, of the others there "
                "are checkpoints in Hugging Face format (llava-hf/...)."
            )
        vision: Any = CLIPVisionConfig.from_pretrained(source / "clip")
        config = LlavaConfig(
            vision_config=vision,
            text_config=MptConfig.from_dict({**values, "model_type": "mpt", "tie_word_embeddings": False}),
            projector_hidden_act="linear",
            vision_feature_layer=values["mm_vision_select_layer"],
            image_seq_length=(vision.image_size // vision.patch_size) ** 2,
            tie_word_embeddings=False,
        )
        weights = convert(read_weights(source), read_weights(source / "clip"))
        model = build_converted(lambda: LlavaModel(config), weights)
        model.set_attn_implementation("eager")
        image_processor = AutoImageProcessor.from_pretrained(source / "clip", backend="pil")
        return cls(model, AutoTokenizer.from_pretrained(source), image_processor)

    def unused(self) -> list[nn.Module]:
        """Return CLIP's layers above the one that is read (for vision_feature_layer -2 the last) and its final norm."""
        layers = next(m for name, m in self.model.vision_tower.named_modules() if name.endswith("encoder.layers"))
        chosen = self.model.config.vision_feature_layer
        indices = [chosen] if isinstance(chosen, int) else chosen
        used = max(index % (len(layers) + 1) for index in indices)  # entry 0 is the layers' input
        norms = [m for name, m in self.model.vision_tower.named_modules() if name.endswith("post_layernorm")]
        return [*layers[used:], *norms]

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, decoder and embedding; the projector between them is always trained."""
        text = self.model.language_model
        own = [text.blocks, text.norm_f] if hasattr(text, "blocks") else [text.layers, text.norm]  # MPT, Llama
        return {"vision": [self.model.vision_tower], "text": own, "embeddings": [self.embedding]}

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the projected patches of CLIP's last but one layer."""
        config = self.model.config
        output = self.model.get_image_features(
            pixel_values=images,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        )
        return torch.stack(list(output.pooler_output)).to(self.embedding.weight.dtype)


RULES = [
    (r"(?:model\.)?transformer\.mm_projector\.(weight|bias)", r"multi_modal_projector.linear_1.\1"),
    (r"(?:model\.)?transformer\.(wte|blocks|norm_f)\.(.*)", r"language_model.\1.\2"),
    (r"clip\.vision_model\.(.*)", r"vision_tower.\1"),
]
UNUSED = [  # CLIP's text half, the vocabulary head, a copy of the vision tower
    r"clip\.(?:text_model\..*|.*_projection\.weight|logit_scale|.*\.position_ids)",
    r"lm_head\.weight",
    r".*\.vision_tower\..*",
]


def convert(llava: Weights, clip: Weights) -> Weights:
    """Put LLaVA-MPT's and CLIP's weights under transformers' names; its one linear layer is followed by the identity.

    Raises:
        UserError: weights that have no place in our model; lists them.
    """
    weights = rename(llava | {f"clip.{key}": value for key, value in clip.items()}, RULES, drop=UNUSED)
    weights = {key: value.float() for key, value in weights.items()}
    dim = weights["language_model.wte.weight"].shape[1]
    return weights | {
        "multi_modal_projector.linear_2.weight": torch.eye(dim),
        "multi_modal_projector.linear_2.bias": torch.zeros(dim),
    }


@lru_cache(maxsize=1)
def tiny_tokenizer() -> LlamaTokenizer:
    """Return Llama's tokenizer class with one token per character, and bytes for everything else."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *TINY_CHARACTERS, "<image>"]
    return LlamaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], extra_special_tokens=["<image>"]
    )

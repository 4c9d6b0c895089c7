"""LFM2-VL (arXiv:2511.23404): SigLIP2 for images of any size, 2 x 2 patches a token, LFM2.

Ten of the small LFM2's 16 layers are gated convolutions over three tokens, six are attention; all are causal.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    Lfm2VlConfig,
    Lfm2VlModel,
    PreTrainedTokenizerFast,
    Siglip2ImageProcessorPil,
)

from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.tiny import TINY_BYTES, TINY_TEXT
from robovlms.errors import UserError
from robovlms.registry import BACKBONES
from robovlms.types import ImageSpec

START, BEFORE, BEHIND, IMAGE = "<|startoftext|>", "<|image_start|>", "<|image_end|>", "<image>"


class Lfm2VlImageProcessor(Siglip2ImageProcessorPil):
    """Makes of a square image what the family's own does, which needs torchvision: the smallest one it allows.

    Reads the family's preprocessor_config.json; the name is the one that file has. Nothing is cut into tiles.
    """

    min_image_tokens: int = 64
    downsample_factor: int = 2
    encoder_patch_size: int = 16

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.patch_size = self.encoder_patch_size
        self.max_num_patches = self.min_image_tokens * self.downsample_factor**2


PROCESSORS: dict[str, Any] = {"pil": Lfm2VlImageProcessor, "torchvision": None}
AutoImageProcessor.register(Lfm2VlConfig, image_processor_classes=PROCESSORS, exist_ok=True)


@BACKBONES.register("lfm2_vl")
class Lfm2Vl(HuggingFaceBackbone):
    """Reads `<|startoftext|> [start 64 tokens end, per view] {instruction} [queries]`, causally, without a chat
    template.

    A view is 256 px, as the family sees a square frame of up to 272 px; `min_image_tokens` in
    preprocessor_config.json makes it another size. Nothing is cut into tiles.
    """

    model_type = "lfm2_vl"
    pixels = 256
    prompt = "{instruction}"
    num_head_tokens = 1
    image_marks = ((BEFORE,), (BEHIND,))
    can_cache = False  # a convolution would look back at the padding of the frame before
    hybrid_layers = ("conv", "full_attention")

    @classmethod
    def published_config(cls) -> Lfm2VlConfig:
        """Return the config of LiquidAI/LFM2-VL-450M, from memory; the vision tower is SigLIP2's base."""
        text = {
            "model_type": "lfm2", "hidden_size": 1024, "intermediate_size": 6656, "num_hidden_layers": 16,
            "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 65536,
            "max_position_embeddings": 128000, "full_attn_idxs": [2, 5, 8, 10, 12, 14],
        }  # fmt: skip
        vision = {"model_type": "siglip2_vision_model", "vision_use_head": False}
        return Lfm2VlConfig(text_config=text, vision_config=vision, projector_hidden_size=2560)

    @classmethod
    def tiny(cls) -> Lfm2Vl:
        """Build 2 vision layers, a convolution and an attention layer, with 4 tokens per 64 px image."""
        tokenizer = tiny_tokenizer()
        text = {
            **TINY_TEXT, "model_type": "lfm2", "num_key_value_heads": 2, "vocab_size": len(tokenizer),
            "layer_types": ["conv", "full_attention"], "block_multiple_of": 16,
        }  # fmt: skip
        vision = {
            "model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_patches": 9, "vision_use_head": False,
        }  # fmt: skip
        image_id = tokenizer.get_vocab()[IMAGE]
        config = Lfm2VlConfig(text_config=text, vision_config=vision, image_token_id=image_id, projector_hidden_size=32)
        return cls(Lfm2VlModel(config), tokenizer, Lfm2VlImageProcessor(min_image_tokens=4))

    def _make_image_spec(self) -> ImageSpec:
        """Return the largest square of the smallest number of tokens that the processor allows.

        Raises:
            UserError: it cuts other patches than the vision tower reads, or merges them otherwise.
        """
        processor, config = self.image_processor, self.model.config
        theirs = (processor.patch_size, processor.downsample_factor)
        if theirs != (config.vision_config.patch_size, config.downsample_factor):
            raise UserError(
                f"The image processor cuts patches of {theirs[0]} px and merges {theirs[1]} x {theirs[1]} of them, but "
                f"the model wants {config.vision_config.patch_size} px and {config.downsample_factor}: "
                "backbone.checkpoint mixes files of two models."
            )
        return self._spec_of_size(math.isqrt(processor.min_image_tokens) * math.prod(theirs))

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, decoder and embedding; the projector between them is always trained."""
        text = self.model.language_model
        return {
            "vision": [self.model.vision_tower],
            "text": [text.layers, text.embedding_norm],
            "embeddings": [self.embedding],
        }

    def unused(self) -> list[nn.Module]:
        """Return the vision tower's pooling head, where a checkpoint has one."""
        tower = self.model.vision_tower
        return [tower.head] if tower.use_head else []

    def cut(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n p _e"]:
        """Cut images into patches, row by row."""
        size = self.model.config.vision_config.patch_size
        return rearrange(images, "n c (h p) (x q) -> n (h x) (p q c)", p=size, q=size)

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the merged patches between the family's marks.

        Not through `get_image_features`, which takes images one by one and asks the GPU for the size of each.
        """
        tower, patches = self.model.vision_tower, self.cut(images)
        side = images.shape[-1] // self.model.config.vision_config.patch_size
        places = rearrange(
            tower.embeddings.position_embedding.weight,
            "(h x) e -> 1 e h x",
            h=tower.embeddings.position_embedding_size,
        )
        if side != tower.embeddings.position_embedding_size:
            sized = F.interpolate(places.float(), size=(side, side), mode="bilinear", antialias=True)
            places = sized.to(places.dtype)
        embeds = tower.embeddings.patch_embedding(patches) + rearrange(places, "1 e h x -> 1 (h x) e")
        features = tower.post_layernorm(tower.encoder(embeds, attention_mask=None).last_hidden_state)
        merged = self.model.multi_modal_projector(rearrange(features, "n (h x) e -> n h x e", h=side))
        return self.put_marks(rearrange(merged, "n h x d -> n (h x) d").to(self.embedding.weight.dtype))


@lru_cache(maxsize=1)
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return the family's tokenizer class with one token per byte."""
    special = ["<|pad|>", START, "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *TINY_BYTES])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token=START, eos_token="<|im_end|>",
        extra_special_tokens=[BEFORE, BEHIND, IMAGE],
    )  # fmt: skip

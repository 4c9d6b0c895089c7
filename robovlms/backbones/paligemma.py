"""PaliGemma (arXiv:2407.07726): SigLIP-So400m/14, one token per patch, Gemma-2B with a bidirectional prefix."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import GemmaTokenizer, PaliGemmaConfig, PaliGemmaModel, SiglipImageProcessorPil

from robovlms.backbones.base import Layout
from robovlms.backbones.huggingface import TINY_CHARACTERS, TINY_IMAGE_SIZE, TINY_TEXT, TINY_VISION, HuggingFaceBackbone
from robovlms.registry import BACKBONES


@BACKBONES.register("paligemma")
class PaliGemma(HuggingFaceBackbone):
    r"""Reads `[256 tokens per view] <bos> {instruction} \n [queries]`, PaliGemma's own layout.

    Images and text of a frame see each other, queries see them and earlier queries. Upstream runs PaliGemma causally
    and with <eos> for <bos>; this is the form that it was pre-trained in.
    """

    model_type = "paligemma"
    text_end = "\n"
    prompt = "{instruction}"

    @classmethod
    def published_config(cls) -> PaliGemmaConfig:
        """Give the config of google/paligemma-3b-pt-224."""
        vision = {
            "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
            "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14, "image_size": 224,
            "vision_use_head": False,
        }  # fmt: skip
        text = {
            "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
            "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 257216,
        }  # fmt: skip
        return PaliGemmaConfig(
            vision_config=vision, text_config=text, projection_dim=2048, hidden_size=2048, image_token_index=257152
        )

    @classmethod
    def tiny(cls) -> PaliGemma:
        """Build 2 + 2 layers with 16 tokens per 56 px image."""
        tokenizer = tiny_tokenizer()
        vision = {"model_type": "siglip_vision_model", "vision_use_head": False, **TINY_VISION}
        shape = {"head_dim": 16, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
        text = {"model_type": "gemma", **shape, **TINY_TEXT}
        image_id = tokenizer.get_vocab()["<image>"]
        config = PaliGemmaConfig(
            vision_config=vision, text_config=text, projection_dim=64, hidden_size=64, image_token_index=image_id
        )
        processor = SiglipImageProcessorPil(size={"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE})
        return cls(PaliGemmaModel(config), tokenizer, processor)

    def parts(self) -> dict[str, list[nn.Module]]:
        """Give vision tower, decoder and embedding; the projector between them is always trained."""
        text = self.model.language_model
        return {"vision": [self.model.vision_tower], "text": [text.layers, text.norm], "embeddings": [self.embedding]}

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Give the projected patches, unscaled: only the text embedding multiplies by sqrt(d)."""
        patches: Tensor = self.model.get_image_features(pixel_values=images).pooler_output
        return patches.to(self.embedding.weight.dtype)

    def decode(self, embeds: Float[Tensor, "n s d"], layout: Layout) -> Float[Tensor, "n s d"]:
        """Run Gemma with positions from 1 and the prefix mask, made additive because eager attention needs that."""
        allowed = prefix_mask(layout)
        additive = torch.zeros(allowed.shape, dtype=embeds.dtype, device=embeds.device)
        additive = additive.masked_fill(~allowed, torch.finfo(embeds.dtype).min)[:, None]
        hidden: Tensor = self.model.language_model(
            inputs_embeds=embeds, attention_mask=additive, position_ids=layout.mask.long().cumsum(1), use_cache=False
        ).last_hidden_state
        return hidden


def prefix_mask(layout: Layout) -> Bool[Tensor, "n s s"]:
    """Say which token (row) sees which (column): all before it, and images and text of one frame each other.

    Padding is seen by nobody but itself, so that no row is empty.
    """
    mask, frame, is_query, _ = layout
    order = torch.arange(mask.shape[1], device=mask.device)
    same_frame = frame[:, :, None] == frame[:, None, :]
    prefix = ~is_query[:, :, None] & ~is_query[:, None, :]
    causal = order[:, None] >= order
    return (causal | (same_frame & prefix)) & mask[:, None, :] | (order[:, None] == order)


@lru_cache(maxsize=1)
def tiny_tokenizer() -> GemmaTokenizer:
    """Give Gemma's tokenizer class with one token per character, and bytes for everything else."""
    tokens = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<mask>",
        *(f"<0x{i:02X}>" for i in range(256)),
        *TINY_CHARACTERS,
        "<image>",
    ]
    return GemmaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], extra_special_tokens=["<image>"]
    )

"""Florence-2 (arXiv:2311.06242): DaViT at 768 px, a token per 32 px, and the bidirectional encoder of BART."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import BartTokenizer, CLIPImageProcessorPil, Florence2Config, Florence2Model

from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.layout import Layout
from robovlms.backbones.tiny import TINY_BYTES
from robovlms.errors import UserError
from robovlms.registry import BACKBONES
from robovlms.types import ImageSpec

TINY_SIZE = 64  # px: 2 x 2 patches of 32
IMAGE = "<image>"


@BACKBONES.register("florence2")
class Florence2(HuggingFaceBackbone):
    """Reads `[mean patch and 576 patches, per view] <s> {instruction} </s> [queries]` in the encoder alone.

    Images and text of a frame see each other and earlier frames, never a query: they stay what the pre-trained encoder
    makes of them. Queries see them and earlier queries. Pre-training had one image, so that a second view stands at
    positions where only text has been. The decoder is not run, it stays frozen in the checkpoint.
    """

    model_type = "florence2"
    pixels = 768
    can_interleave = False
    can_cache = False  # an encoder
    prompt = "{instruction}"
    text_end = "</s>"

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any) -> None:
        super().__init__(model, tokenizer, image_processor)
        self.num_marks = (1, 0)  # the mean patch
        self.text_head = None  # the decoder that writes is not read

    @classmethod
    def published_config(cls) -> Florence2Config:
        """Return the config of florence-community/Florence-2-base."""
        text = {
            "model_type": "bart", "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072, "encoder_attention_heads": 12, "decoder_attention_heads": 12,
            "max_position_embeddings": 1024, "vocab_size": 51290,
        }  # fmt: skip
        vision = {"model_type": "florence_vision", "projection_dim": 768}  # the rest is the class's default
        return Florence2Config(vision_config=vision, text_config=text, image_token_id=51289)

    @classmethod
    def tiny(cls) -> Florence2:
        """Build two vision stages, 2 + 2 BART layers, 5 tokens per 64 px image."""
        tokenizer = tiny_tokenizer()
        text = {
            "model_type": "bart", "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "max_position_embeddings": 256, "vocab_size": len(tokenizer),
        }  # fmt: skip
        vision = {
            "model_type": "florence_vision", "depths": [1, 1], "embed_dim": [16, 32], "num_heads": [2, 2],
            "num_groups": [2, 2], "patch_size": [7, 3], "patch_stride": [8, 4], "patch_padding": [3, 1],
            "patch_prenorm": [False, True], "window_size": 4, "projection_dim": 64, "max_position_embeddings": 4,
        }  # fmt: skip
        image_id = tokenizer.get_vocab()[IMAGE]
        config = Florence2Config(vision_config=vision, text_config=text, image_token_id=image_id)
        size = {"height": TINY_SIZE, "width": TINY_SIZE}
        processor = CLIPImageProcessorPil(
            size=size, crop_size=size, do_center_crop=False, image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        )  # fmt: skip
        return cls(Florence2Model(config), tokenizer, processor)

    def unused(self) -> list[nn.Module]:
        """Return the decoder, but for the embedding, which it shares with the encoder."""
        decoder = self.model.language_model.decoder
        return [decoder.embed_positions, decoder.layers, decoder.layernorm_embedding]

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, encoder and embedding; the projector between them is always trained."""
        encoder = self.model.language_model.encoder
        return {
            "vision": [self.model.vision_tower],
            "text": [encoder.embed_positions, encoder.layernorm_embedding, encoder.layers],
            "embeddings": [self.embedding],
        }

    def _make_image_spec(self) -> ImageSpec:
        vision = self.model.config.vision_config
        height, width = self.processor_size(self.image_processor)
        patch = math.prod(vision.patch_stride)
        largest = patch * vision.max_position_embeddings
        if height != width or height % patch or height > largest:
            raise UserError(
                f"The image processor makes {height} x {width} px, but the vision tower wants a square of a multiple "
                f"of {patch} px, at most {largest}: backbone.checkpoint mixes files of two models."
            )
        return self._spec_of_size(height)

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the mean of the projected patches, then each of them, row by row."""
        tokens: Tensor = self.model.get_image_features(images).pooler_output
        return tokens.to(self.embedding.weight.dtype)

    def decode(self, embeds: Float[Tensor, "n s d"], layout: Layout, cache: Any = None) -> Float[Tensor, "n s d"]:
        """Run the encoder, with a mask that hides the queries from what they ask about."""
        mask = self.additive(context_mask(layout), layout, embeds)
        hidden: Tensor = self.model.language_model.encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        return hidden


def context_mask(layout: Layout) -> Bool[Tensor, "n s s"]:
    """Return the mask of the encoder: all tokens (rows) attend to images and text up to their own frame; queries also
    to the queries before them, in this frame and earlier ones.

    Padding attends to itself and nothing else attends to it, so that no row is empty.
    """
    mask, frame, is_query = layout[:3]
    order = torch.arange(mask.shape[1], device=mask.device)
    context = (frame[:, :, None] >= frame[:, None, :]) & ~is_query[:, None, :]
    earlier_query = is_query[:, :, None] & is_query[:, None, :] & (order[:, None] >= order)
    return (context | earlier_query) & mask[:, None, :] | (order[:, None] == order)


@lru_cache(maxsize=1)
def tiny_tokenizer() -> BartTokenizer:
    """Return BART's tokenizer class with one token per byte."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *TINY_BYTES, "<mask>", IMAGE]
    vocab = {token: i for i, token in enumerate(tokens)}
    return BartTokenizer(vocab=vocab, merges=[], extra_special_tokens=[IMAGE])

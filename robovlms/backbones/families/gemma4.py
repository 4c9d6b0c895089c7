"""Gemma 4 (E2B, E4B and the larger ones): images of any shape pooled to at most 280 tokens, an embedding per layer."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import Gemma4Config, Gemma4ImageProcessorPil, Gemma4Model, GemmaTokenizer

from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.layout import Layout
from robovlms.backbones.masks import NO_PADDING, image_mask, without_reading
from robovlms.backbones.tiny import TINY_CHARACTERS, TINY_TEXT
from robovlms.errors import UserError
from robovlms.registry import BACKBONES
from robovlms.types import ImageSpec

BEFORE, BEHIND, IMAGE = "<|image>", "<image|>", "<|image|>"


@BACKBONES.register("gemma4")
class Gemma4(HuggingFaceBackbone):
    """Reads `<bos> [start 256 tokens end, per view] {instruction} [queries]`, without a chat template.

    Causal in E2B and E4B. In the larger ones the tokens of an image see each other in the sliding layers. Image tokens
    and queries have the padding's embedding per layer. The audio towers of E2B and E4B are loaded and frozen.
    """

    model_type = "gemma4"
    pixels = 768
    prompt = "{instruction}"
    num_head_tokens = 1
    can_cache = can_parallel = False  # layers share keys and values, sliding ones have a mask of their own

    @classmethod
    def published_config(cls) -> Gemma4Config:
        """Return the config of google/gemma-4-E2B-it."""
        text = {
            "model_type": "gemma4_text", "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35,
            "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "global_head_dim": 512,
            "num_kv_shared_layers": 20, "use_double_wide_mlp": True, "hidden_size_per_layer_input": 256,
            "sliding_window": 512, "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7,
        }  # fmt: skip
        vision = {"model_type": "gemma4_vision", "use_clipped_linears": True}  # the rest is the classes' default
        return Gemma4Config(text_config=text, vision_config=vision, audio_config={"model_type": "gemma4_audio"})

    @classmethod
    def tiny(cls) -> Gemma4:
        """Build 2 + 4 layers with 64 tokens per 64 px image; the last two share the first two's keys and values."""
        tokenizer = tiny_tokenizer()
        text = {
            **TINY_TEXT, "model_type": "gemma4_text", "head_dim": 16, "global_head_dim": 32, "num_key_value_heads": 1,
            "vocab_size": len(tokenizer), "vocab_size_per_layer_input": len(tokenizer), "sliding_window": 8,
            "hidden_size_per_layer_input": 8, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True, "layer_types": ["sliding_attention", "full_attention"] * 2,
        }  # fmt: skip
        vision = {
            "model_type": "gemma4_vision", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4,
            "pooling_kernel_size": 2, "position_embedding_size": 32,
        }  # fmt: skip
        ids = tokenizer.get_vocab()
        config = Gemma4Config(
            text_config=text, vision_config=vision, image_token_id=ids[IMAGE], boi_token_id=ids[BEFORE],
            eoi_token_id=ids[BEHIND],
        )  # fmt: skip
        processor = Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70)
        return cls(Gemma4Model(config), tokenizer, processor)

    def _make_image_spec(self) -> ImageSpec:
        """Return the largest square whose tokens fit into the processor's budget."""
        processor, vision = self.image_processor, self.model.config.vision_config
        if (processor.patch_size, processor.pooling_kernel_size) != (vision.patch_size, vision.pooling_kernel_size):
            raise UserError(
                f"The image processor cuts patches of {processor.patch_size} px, but the vision tower wants "
                f"{vision.patch_size} px: backbone.checkpoint mixes files of two models."
            )
        token = vision.patch_size * vision.pooling_kernel_size  # px
        return self._spec_of_size(math.isqrt(processor.max_soft_tokens) * token)

    def _find_marks(self) -> tuple[list[int], list[int]]:
        config = self.model.config
        return [config.boi_token_id], [config.eoi_token_id]

    def unused(self) -> list[nn.Module]:
        """Return the audio towers of the small ones."""
        audio = (self.model.audio_tower, self.model.embed_audio)
        return [module for module in audio if module is not None]

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, decoder and embeddings; the projector between them is always trained."""
        text = self.model.language_model
        own = [module for name, module in text.named_children() if "embed" not in name]
        embeddings = [module for name, module in text.named_children() if "embed" in name]
        return {"vision": [self.model.vision_tower], "text": own, "embeddings": embeddings}

    def cut(self, images: Float[Tensor, "n c h x"]) -> tuple[Float[Tensor, "n p _e"], Int64[Tensor, "n p 2"]]:
        """Cut images into patches, row by row, and return each one's column and row."""
        size = self.model.config.vision_config.patch_size
        side = images.shape[-1] // size
        row = torch.arange(side, device=images.device).expand(side, side).T
        places = torch.stack([row.T.flatten(), row.flatten()], dim=-1)
        patches = rearrange(images, "n c (h p) (x q) -> n (h x) (p q c)", p=size, q=size)
        return patches, places.expand(images.shape[0], -1, -1)

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the pooled patches between the family's marks, unscaled: only the text embedding multiplies by
        sqrt(d).
        """
        tokens: Tensor = self.model.embed_vision(inputs_embeds=self.see(images))
        return self.put_marks(tokens.to(self.embedding.weight.dtype))

    def see(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m _e"]:
        """Return the vision tower's pooled patches.

        Not through the tower's own forward, which drops padding that our squares have none of: the host would wait for
        the number of its tokens.
        """
        tower, (patches, places) = self.model.vision_tower, self.cut(images)
        without_reading(tower.config, NO_PADDING)
        is_padding = torch.zeros_like(places[..., 0], dtype=torch.bool)
        embeds = tower.patch_embedder(patches, places, is_padding)
        seen = tower.encoder(inputs_embeds=embeds, attention_mask=~is_padding, pixel_position_ids=places)
        pooled, _ = tower.pooler(
            hidden_states=seen.last_hidden_state, pixel_position_ids=places, padding_positions=is_padding,
            output_length=patches.shape[1] // tower.config.pooling_kernel_size**2,
        )  # fmt: skip
        if tower.config.standardize:
            pooled = (pooled - tower.std_bias.float()) * tower.std_scale.float()
        return pooled.to(embeds.dtype)  # type: ignore[no-any-return]

    def decode(self, embeds: Float[Tensor, "n s d"], layout: Layout, cache: Any = None) -> Float[Tensor, "n s d"]:
        """Run the decoder with what it looks up for every layer, and with the larger ones' mask."""
        text = self.model.language_model
        options: dict[str, Any] = {}
        if text.config.hidden_size_per_layer_input:
            ids = torch.where(layout.token < 0, text.config.pad_token_id, layout.token)
            options["per_layer_inputs"] = text.get_per_layer_inputs(ids, None)
        if text.config.use_bidirectional_attention == "vision":
            alone = layout._replace(patch=torch.full_like(layout.patch, -1))
            masks = {
                "full_attention": image_mask(alone, None),
                "sliding_attention": image_mask(layout, text.config.sliding_window),
            }
            options["attention_mask"] = {kind: self.additive(each, layout, embeds) for kind, each in masks.items()}
        return self.run(embeds, layout, cache, **options)


@lru_cache(maxsize=1)
def tiny_tokenizer() -> GemmaTokenizer:
    """Return Gemma's tokenizer class with one token per character, and bytes for everything else."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), *TINY_CHARACTERS, BEFORE, BEHIND, IMAGE]
    return GemmaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], extra_special_tokens=[BEFORE, BEHIND, IMAGE]
    )

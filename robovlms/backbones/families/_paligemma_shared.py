"""What PaliGemma and PaliGemma 2 share: SigLIP-So400m/14, one token per patch, and a bidirectional prefix."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from transformers import GemmaTokenizer, PaliGemmaConfig, PaliGemmaModel, SiglipImageProcessorPil

from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.layout import Layout
from robovlms.backbones.masks import prefix_mask
from robovlms.backbones.tiny import TINY_CHARACTERS, TINY_IMAGE_SIZE, TINY_TEXT, TINY_VISION
from robovlms.errors import UserError

VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "patch_size": 14, "image_size": 224, "vision_use_head": False,
}  # fmt: skip
GENERATIONS = {"gemma": "paligemma", "gemma2": "paligemma2"}  # decoder to backbone


class PrefixGemma(HuggingFaceBackbone):
    r"""Reads `[256 tokens per view] <bos> {instruction} \n [queries]`, PaliGemma's own layout.

    Images and text of a frame see each other, queries see them and earlier queries. Upstream runs PaliGemma causally
    and with <eos> for <bos>; this is the form that it was pre-trained in.
    """

    model_type = "paligemma"
    text_type: ClassVar[str]  # transformers' name of the decoder
    text_end = "\n"
    prompt = "{instruction}"

    @classmethod
    def check_config(cls, values: dict[str, Any]) -> None:
        """Refuse the other generation."""
        found = values["text_config"].get("model_type")
        if found != cls.text_type:
            right = f": use backbone={GENERATIONS[found]}" if found in GENERATIONS else ""
            raise UserError(
                f"backbone={GENERATIONS[cls.text_type]} reads PaliGemma with the decoder '{cls.text_type}', but "
                f"backbone.checkpoint has '{found}'{right}."
            )

    @classmethod
    def _tiny_model(cls, **text: Any) -> tuple[PaliGemmaModel, GemmaTokenizer, SiglipImageProcessorPil]:
        tokenizer = tiny_tokenizer()
        vision = {"model_type": "siglip_vision_model", "vision_use_head": False, **TINY_VISION}
        shape = {"head_dim": 16, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
        image_id = tokenizer.get_vocab()["<image>"]
        config = PaliGemmaConfig(
            vision_config=vision, text_config={"model_type": cls.text_type, **shape, **TINY_TEXT, **text},
            projection_dim=64, hidden_size=64, image_token_index=image_id,
        )  # fmt: skip
        processor = SiglipImageProcessorPil(size={"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE})
        return PaliGemmaModel(config), tokenizer, processor

    def count_special_tokens(self) -> int:
        """Leave out a mask token, which transformers 5 adds to Gemma's and upstream's 4 did not know."""
        return super().count_special_tokens() - ("mask_token" in self.tokenizer.special_tokens_map)

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, decoder and embedding; the projector between them is always trained."""
        text = self.model.language_model
        return {"vision": [self.model.vision_tower], "text": [text.layers, text.norm], "embeddings": [self.embedding]}

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the projected patches, unscaled: only the text embedding multiplies by sqrt(d)."""
        patches: Tensor = self.model.get_image_features(pixel_values=images).pooler_output
        return patches.to(self.embedding.weight.dtype)

    def masks(self, layout: Layout, embeds: Float[Tensor, "n s d"]) -> Any:
        """Return what the decoder takes as its mask: a tensor, or one for each kind of its layers."""
        return self.additive(prefix_mask(layout), layout, embeds)

    def decode(self, embeds: Float[Tensor, "n s d"], layout: Layout, cache: Any = None) -> Float[Tensor, "n s d"]:
        """Run the decoder with positions from 1 and the prefix mask."""
        positions = layout.mask.long().cumsum(1)
        return self.run(embeds, layout, cache, positions, attention_mask=self.masks(layout, embeds))


class FirstGemma(PrefixGemma):
    """PaliGemma over Gemma 2B."""

    text_type = "gemma"

    @classmethod
    def published_config(cls) -> PaliGemmaConfig:
        """Return the config of google/paligemma-3b-pt-224."""
        text = {
            "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
            "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 257216,
        }  # fmt: skip
        return PaliGemmaConfig(
            vision_config=VISION, text_config=text, projection_dim=2048, hidden_size=2048, image_token_index=257152
        )

    @classmethod
    def tiny(cls) -> FirstGemma:
        """Build 2 + 2 layers with 16 tokens per 56 px image."""
        return cls(*cls._tiny_model())


@lru_cache(maxsize=1)
def tiny_tokenizer() -> GemmaTokenizer:
    """Return Gemma's tokenizer class with one token per character, and bytes for everything else."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), *TINY_CHARACTERS, "<image>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return GemmaTokenizer(vocab=vocab, merges=[], extra_special_tokens=["<image>"])

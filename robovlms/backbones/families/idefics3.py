"""Idefics3 (arXiv:2408.12637): SigLIP-So400m at 364 px, pixel shuffle to 169 tokens per image, Llama 3."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jaxtyping import Float
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import Idefics3Config, Idefics3ImageProcessorPil, Idefics3Model, PreTrainedTokenizerFast

from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.masks import NO_PADDING, without_reading
from robovlms.backbones.tiny import TINY_BYTES, TINY_IMAGE_SIZE, TINY_TEXT, TINY_VISION
from robovlms.registry import BACKBONES

START, END = "<|begin_of_text|>", "<|end_of_text|>"
FAKE, GLOBAL, IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"


@BACKBONES.register("idefics3")
class Idefics3(HuggingFaceBackbone):
    """Reads `<|begin_of_text|> [fake global 169 tokens fake, per view] {instruction} [queries]`, causally, without a
    chat template.

    Every view is one image of the vision tower's size: the family's tiling is off.
    """

    model_type = "idefics3"
    attentions = ("sdpa", "eager", "flash_attention_2")
    prompt = "{instruction}"
    num_head_tokens = 1
    image_marks = ((FAKE, GLOBAL), (FAKE,))

    @classmethod
    def published_config(cls) -> Idefics3Config:
        """Return the config of HuggingFaceM4/Idefics3-8B-Llama3."""
        vision = {
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
            "patch_size": 14, "image_size": 364,
        }  # fmt: skip
        text = {
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128259,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        }  # fmt: skip
        return Idefics3Config(vision_config=vision, text_config=text, scale_factor=2)

    @classmethod
    def tiny(cls) -> Idefics3:
        """Build 2 + 2 layers with 4 tokens per 56 px image."""
        tokenizer = tiny_tokenizer()
        text = {"model_type": "llama", "num_key_value_heads": 2, "vocab_size": len(tokenizer), **TINY_TEXT}
        image_id = tokenizer.get_vocab()[IMAGE]
        config = Idefics3Config(vision_config=TINY_VISION, text_config=text, scale_factor=2, image_token_id=image_id)
        side = {"longest_edge": TINY_IMAGE_SIZE}
        return cls(Idefics3Model(config), tokenizer, Idefics3ImageProcessorPil(size=side, max_image_size=side))

    @classmethod
    def processor_size(cls, processor: Any) -> tuple[int, int]:
        """Return what the image processor makes of an image when it does not tile."""
        side = processor.max_image_size["longest_edge"]
        return side, side

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, decoder and embedding; the connector between them is always trained."""
        text = self.model.text_model
        return {"vision": [self.model.vision_model], "text": [text.layers, text.norm], "embeddings": [self.embedding]}

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the shuffled patches between the family's marks."""
        without_reading(self.model.vision_model.config, NO_PADDING)
        patches = self.model.vision_model(pixel_values=images).last_hidden_state
        return self.put_marks(self.model.connector(patches).to(self.embedding.weight.dtype))

    @property
    def decoder(self) -> Any:
        """The decoder's trunk."""
        return self.model.text_model


@lru_cache(maxsize=1)
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return Llama 3's tokenizer class with one token per byte."""
    vocab = {token: i for i, token in enumerate([START, *TINY_BYTES, END])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, extra_special_tokens=[FAKE, GLOBAL, IMAGE]
    )

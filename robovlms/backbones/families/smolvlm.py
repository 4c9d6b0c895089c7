"""SmolVLM2 (arXiv:2504.05299): SigLIP, pixel shuffle to 64 tokens per image, SmolLM2."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import GPT2Tokenizer, SmolVLMConfig, SmolVLMImageProcessorPil, SmolVLMModel

from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.masks import NO_PADDING, without_reading
from robovlms.backbones.tiny import TINY_BYTES, TINY_IMAGE_SIZE, TINY_TEXT, TINY_VISION
from robovlms.registry import BACKBONES

FAKE, GLOBAL = "<fake_token_around_image>", "<global-img>"


@BACKBONES.register("smolvlm")
class SmolVLM(HuggingFaceBackbone):
    """Reads `<|im_start|> [fake global 64 tokens fake, per view] {instruction} [queries]`, causally, without a chat
    template.

    Every view is one image of the vision tower's size: the family's tiling, which makes 17 images of a frame, is off.
    """

    model_type = "smolvlm"
    attentions = ("sdpa", "eager", "flash_attention_2")
    prompt = "{instruction}"
    num_head_tokens = 1
    image_marks = ((FAKE, GLOBAL), (FAKE,))

    @classmethod
    def published_config(cls) -> SmolVLMConfig:
        """Return the config of HuggingFaceTB/SmolVLM2-500M-Video-Instruct."""
        vision = {
            "model_type": "smolvlm_vision", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "patch_size": 16, "image_size": 512,
        }  # fmt: skip
        text = {
            "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
            "num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280,
            "max_position_embeddings": 8192,
        }  # fmt: skip
        return SmolVLMConfig(vision_config=vision, text_config=text, scale_factor=4, image_token_id=49190)

    @classmethod
    def tiny(cls) -> SmolVLM:
        """Build 2 + 2 layers with 4 tokens per 56 px image."""
        tokenizer = tiny_tokenizer()
        text = {"model_type": "llama", "num_key_value_heads": 2, "vocab_size": len(tokenizer), **TINY_TEXT}
        vision = {"model_type": "smolvlm_vision", **TINY_VISION}
        image_id = tokenizer.get_vocab()["<image>"]
        config = SmolVLMConfig(vision_config=vision, text_config=text, scale_factor=2, image_token_id=image_id)
        side = {"longest_edge": TINY_IMAGE_SIZE}
        return cls(SmolVLMModel(config), tokenizer, SmolVLMImageProcessorPil(size=side, max_image_size=side))

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
        """Return the shuffled patches between the family's marks.

        Not through `get_image_features`, which takes images that are zero everywhere for padding and drops them.
        """
        without_reading(self.model.vision_model.config, NO_PADDING)
        patches = self.model.vision_model(pixel_values=images).last_hidden_state
        return self.put_marks(self.model.connector(patches).to(self.embedding.weight.dtype))

    @property
    def decoder(self) -> Any:
        """The decoder's trunk."""
        return self.model.text_model


@lru_cache(maxsize=1)
def tiny_tokenizer() -> GPT2Tokenizer:
    """Return the family's tokenizer class with one token per byte."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<end_of_utterance>", *TINY_BYTES, FAKE, GLOBAL, "<image>"]
    return GPT2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], bos_token="<|im_start|>",
        eos_token="<end_of_utterance>", pad_token="<|endoftext|>", unk_token="<|endoftext|>",
        extra_special_tokens=[FAKE, GLOBAL, "<image>"],
    )  # fmt: skip

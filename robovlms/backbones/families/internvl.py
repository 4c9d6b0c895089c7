"""InternVL3 (arXiv:2504.10479): InternViT at 448 px, pixel shuffle to 256 tokens per image, Qwen2.5."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from transformers import GotOcr2ImageProcessorPil, InternVLConfig, InternVLModel

from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.tiny import TINY_IMAGE_SIZE, TINY_TEXT, TINY_VISION, tiny_qwen_tokenizer
from robovlms.registry import BACKBONES

BEFORE, BEHIND, IMAGE = "<img>", "</img>", "<IMG_CONTEXT>"


@BACKBONES.register("internvl")
class InternVL(HuggingFaceBackbone):
    """Reads `[<img> 256 tokens </img>, per view] {instruction} [queries]`, causally, without a chat template.

    Every view is one image of the vision tower's size: the family's tiling, which makes up to 13 of a frame, is off.
    """

    model_type = "internvl"
    attentions = ("sdpa", "eager", "flash_attention_2")
    prompt = "{instruction}"
    has_start = False
    image_marks = ((BEFORE,), (BEHIND,))

    @classmethod
    def published_config(cls) -> InternVLConfig:
        """Return the config of OpenGVLab/InternVL3-1B-hf; the vision tower is the class's default."""
        text = {
            "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151674,
            "max_position_embeddings": 32768,
        }  # fmt: skip
        return InternVLConfig(text_config=text, tie_word_embeddings=False)

    @classmethod
    def tiny(cls) -> InternVL:
        """Build 2 + 2 layers with 4 tokens per 56 px image."""
        tokenizer = tiny_qwen_tokenizer((BEFORE, BEHIND, IMAGE))
        text = {"model_type": "qwen2", "num_key_value_heads": 2, "vocab_size": len(tokenizer), **TINY_TEXT}
        image_id = tokenizer.get_vocab()[IMAGE]
        config = InternVLConfig(
            vision_config=TINY_VISION, text_config=text, image_token_id=image_id, image_seq_length=4
        )
        size = {"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE}
        return cls(InternVLModel(config), tokenizer, GotOcr2ImageProcessorPil(size=size))

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, decoder and embedding; the projector between them is always trained."""
        text = self.model.language_model
        return {"vision": [self.model.vision_tower], "text": [text.layers, text.norm], "embeddings": [self.embedding]}

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the shuffled patches between the family's marks."""
        tokens: Tensor = self.model.get_image_features(images).pooler_output
        return self.put_marks(tokens.to(self.embedding.weight.dtype))

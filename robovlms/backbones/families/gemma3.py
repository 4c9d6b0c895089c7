"""Gemma 3 (arXiv:2503.19786): SigLIP-So400m at 896 px pooled to 256 tokens, five sliding layers to a full one."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import Gemma3Config, Gemma3ImageProcessorPil, Gemma3Model, GemmaTokenizer

from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.layout import Layout
from robovlms.backbones.masks import image_mask
from robovlms.backbones.tiny import TINY_CHARACTERS, TINY_IMAGE_SIZE, TINY_TEXT, TINY_VISION
from robovlms.registry import BACKBONES

BREAK, BEFORE, BEHIND, IMAGE = "\n\n", "<start_of_image>", "<end_of_image>", "<image_soft_token>"


@BACKBONES.register("gemma3")
class Gemma3(HuggingFaceBackbone):
    r"""Reads `<bos> [\n\n start 256 tokens end \n\n, per view] {instruction} [queries]`, without a chat template.

    The tokens of an image see each other, everything else is causal. Pan and scan is off.
    """

    model_type = "gemma3"
    prompt = "{instruction}"
    num_head_tokens = 1
    image_marks = ((BREAK, BEFORE), (BEHIND, BREAK))

    @classmethod
    def published_config(cls) -> Gemma3Config:
        """Return the config of google/gemma-3-4b-it."""
        vision = {
            "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
            "num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14, "image_size": 896,
            "vision_use_head": False,
        }  # fmt: skip
        text = {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
            "sliding_window": 1024, "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        }  # fmt: skip
        return Gemma3Config(vision_config=vision, text_config=text, mm_tokens_per_image=256)

    @classmethod
    def tiny(cls) -> Gemma3:
        """Build 2 + 2 layers with 4 tokens per 56 px image; the first sees 8 tokens back, the second all."""
        tokenizer = tiny_tokenizer()
        vision = {"model_type": "siglip_vision_model", "vision_use_head": False, **TINY_VISION}
        text = {
            "model_type": "gemma3_text", "head_dim": 16, "num_key_value_heads": 1, "vocab_size": len(tokenizer),
            "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], **TINY_TEXT,
        }  # fmt: skip
        image_id = tokenizer.get_vocab()[IMAGE]
        config = Gemma3Config(vision_config=vision, text_config=text, mm_tokens_per_image=4, image_token_index=image_id)
        processor = Gemma3ImageProcessorPil(size={"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE})
        model = Gemma3Model(config)
        projection = model.multi_modal_projector.mm_input_projection_weight
        nn.init.normal_(projection, std=0.02)  # zero by default: no image would come through
        return cls(model, tokenizer, processor)

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, decoder and embedding; the projector between them is always trained."""
        text = self.model.language_model
        return {"vision": [self.model.vision_tower], "text": [text.layers, text.norm], "embeddings": [self.embedding]}

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the pooled patches between the family's marks, unscaled: only the text embedding multiplies by
        sqrt(d).
        """
        tokens: Tensor = self.model.get_image_features(images).pooler_output
        return self.put_marks(tokens.to(self.embedding.weight.dtype))

    def decode(self, embeds: Float[Tensor, "n s d"], layout: Layout, cache: Any = None) -> Float[Tensor, "n s d"]:
        """Run the decoder with one additive mask for its full and one for its sliding layers."""
        window = self.model.config.text_config.sliding_window
        masks = {"full_attention": image_mask(layout, None), "sliding_attention": image_mask(layout, window)}
        mask = {kind: self.additive(allowed, layout, embeds) for kind, allowed in masks.items()}
        return self.run(embeds, layout, cache, attention_mask=mask)


@lru_cache(maxsize=1)
def tiny_tokenizer() -> GemmaTokenizer:
    """Return Gemma's tokenizer class with one token per character, and bytes for everything else."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, *(f"<0x{i:02X}>" for i in range(256)), *TINY_CHARACTERS, BREAK, BEFORE, BEHIND, IMAGE]
    return GemmaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], extra_special_tokens=[BEFORE, BEHIND, IMAGE]
    )

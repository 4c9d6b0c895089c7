"""What Kosmos-2 is to both of its layouts: CLIP ViT-L/14, 64 latents per image, a causal decoder."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AddedToken,
    CLIPImageProcessorPil,
    Kosmos2Config,
    Kosmos2Model,
    PreTrainedModel,
    XLMRobertaTokenizer,
)

from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.backbones.layout import Layout
from robovlms.backbones.tiny import TINY_CHARACTERS, TINY_IMAGE_SIZE, TINY_VISION
from robovlms.errors import UserError

TAGS = (
    "</doc>", "<image>", "</image>", "</chunk>", "</line>", "<phrase>", "</phrase>", "<object>", "</object>",
    "</delimiter_of_multi_objects/>", "<grounding>",
)  # fmt: skip


class LatentDecoder(HuggingFaceBackbone):
    """Kosmos-2 without its vocabulary head. Dropout of 0.1 in the decoder is live in training, as upstream."""

    model_type = "kosmos-2"
    prompt = "<grounding>An image of a robot {instruction}"
    num_head_tokens = 1
    can_parallel = False

    def __init__(self, model: PreTrainedModel, tokenizer: Any, image_processor: Any) -> None:
        if "<grounding>" not in tokenizer.get_vocab():
            raise UserError(
                "The tokenizer of backbone.checkpoint does not know Kosmos-2's <grounding>: "
                "copy tokenizer.json of microsoft/kosmos-2-patch14-224 into the folder."
            )
        super().__init__(model, tokenizer, image_processor)
        # transformers 5.18 calls this cross-attention causal and sdpa obeys: latent i would see only i + 1 patches.
        self.model.image_to_text_projection.x_attn.is_causal = False

    @classmethod
    def published_config(cls) -> Kosmos2Config:
        """Return the config of microsoft/kosmos-2-patch14-224."""
        return Kosmos2Config(text_config={}, vision_config={})

    @classmethod
    def tiny(cls) -> LatentDecoder:
        """Build 2 + 2 layers with 8 latents per 56 px image."""
        tokenizer = tiny_tokenizer()
        text: dict[str, float] = {
            "embed_dim": 64,
            "layers": 2,
            "ffn_dim": 128,
            "attention_heads": 4,
            "vocab_size": len(tokenizer),
        }
        text["init_std"] = 0.125  # 1 / sqrt(64): at the published 0.02 so narrow a model hardly sees its images
        config = Kosmos2Config(text_config=text, vision_config=TINY_VISION, latent_query_num=8)
        size = {"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE}
        processor = CLIPImageProcessorPil(size={"shortest_edge": TINY_IMAGE_SIZE}, crop_size=size)
        return cls(Kosmos2Model(config), tokenizer, processor)

    def count_positions(self) -> None:
        """Say any number: positions are sines, computed as far as needed."""

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return vision tower, decoder and embedding; the latent projection between them is always trained."""
        text = self.model.text_model.model
        return {
            "vision": [self.model.vision_model],
            "text": [text.layers, text.layer_norm],
            "embeddings": [self.embedding],
        }

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Return the latents: last_hidden_state -> post_layernorm -> L2 norm -> learned latents attend to it."""
        latents: Tensor = self.model.get_image_features(pixel_values=images).pooler_output
        return latents.to(self.embedding.weight.dtype)

    def decode(self, embeds: Float[Tensor, "n s d"], layout: Layout, cache: Any = None) -> Float[Tensor, "n s d"]:
        """Run the causal decoder, which scales its input by sqrt(d) and counts positions from padding_idx + 1."""
        padding = self.model.config.text_config.pad_token_id
        positions = layout.mask.long().cumsum(1) * layout.mask + padding
        return self.run(embeds, layout, cache, positions)

    @property
    def decoder(self) -> Any:
        """The decoder's trunk."""
        return self.model.text_model.model


@lru_cache(maxsize=1)
def tiny_tokenizer() -> XLMRobertaTokenizer:
    """Return Kosmos-2's tokenizer class with one token per character and the real order of special tokens."""
    vocab = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")] + [(char, -5.0) for char in TINY_CHARACTERS]
    tokenizer = XLMRobertaTokenizer(vocab=[*vocab, ("<mask>", 0.0)])
    tokenizer.add_tokens([AddedToken(tag, lstrip=True, rstrip=False, normalized=False) for tag in TAGS])
    return tokenizer

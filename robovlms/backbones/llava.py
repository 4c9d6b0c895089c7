"""LLaVA-1.5 (arXiv:2310.03744): CLIP ViT-L/14 at 336 px, one token per patch, Vicuna-7B."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, LlamaTokenizer, LlavaConfig, LlavaModel

from robovlms.backbones.base import Layout
from robovlms.backbones.huggingface import TINY_CHARACTERS, TINY_IMAGE_SIZE, TINY_TEXT, TINY_VISION, HuggingFaceBackbone
from robovlms.registry import BACKBONES


@BACKBONES.register("llava")
class Llava(HuggingFaceBackbone):
    """Reads `<s> [576 tokens per view] {instruction} [queries]`, causally, as upstream does without a chat template."""

    model_type = "llava"
    attentions = ("sdpa", "eager", "flash_attention_2")
    prompt = "{instruction}"
    num_head_tokens = 1

    @classmethod
    def published_config(cls) -> LlavaConfig:
        """Give the config of llava-hf/llava-1.5-7b-hf."""
        text = {
            "model_type": "llama",
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
        }  # the rest is the class's default
        return LlavaConfig(text_config=text)

    @classmethod
    def tiny(cls) -> Llava:
        """Build 2 + 2 layers with 16 tokens per 56 px image."""
        tokenizer = tiny_tokenizer()
        text = {"model_type": "llama", "num_key_value_heads": 2, "vocab_size": len(tokenizer), **TINY_TEXT}
        vision = {"model_type": "clip_vision_model", **TINY_VISION}
        image_id = tokenizer.get_vocab()["<image>"]
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_id, image_seq_length=16)
        size = {"height": TINY_IMAGE_SIZE, "width": TINY_IMAGE_SIZE}
        processor = CLIPImageProcessorPil(size={"shortest_edge": TINY_IMAGE_SIZE}, crop_size=size)
        return cls(LlavaModel(config), tokenizer, processor)

    def unused(self) -> list[nn.Module]:
        """Give CLIP's layers above the one that is read (for vision_feature_layer -2 the last) and its final norm."""
        layers = next(m for name, m in self.model.vision_tower.named_modules() if name.endswith("encoder.layers"))
        chosen = self.model.config.vision_feature_layer
        indices = [chosen] if isinstance(chosen, int) else chosen
        used = max(index % (len(layers) + 1) for index in indices)  # entry 0 is the layers' input
        norms = [m for name, m in self.model.vision_tower.named_modules() if name.endswith("post_layernorm")]
        return [*layers[used:], *norms]

    def parts(self) -> dict[str, list[nn.Module]]:
        """Give vision tower, decoder and embedding; the projector between them is always trained."""
        text = self.model.language_model
        return {"vision": [self.model.vision_tower], "text": [text.layers, text.norm], "embeddings": [self.embedding]}

    def embed_images(self, images: Float[Tensor, "n c h x"]) -> Float[Tensor, "n m d"]:
        """Give the projected patches of CLIP's last but one layer."""
        config = self.model.config
        output = self.model.get_image_features(
            pixel_values=images,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        )
        return torch.stack(list(output.pooler_output)).to(self.embedding.weight.dtype)

    def decode(self, embeds: Float[Tensor, "n s d"], layout: Layout) -> Float[Tensor, "n s d"]:
        """Run the causal decoder."""
        hidden: Tensor = self.model.language_model(
            inputs_embeds=embeds, attention_mask=layout.mask.long(), use_cache=False
        ).last_hidden_state
        return hidden


@lru_cache(maxsize=1)
def tiny_tokenizer() -> LlamaTokenizer:
    """Give Llama's tokenizer class with one token per character, and bytes for everything else."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *TINY_CHARACTERS, "<image>"]
    return LlamaTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], extra_special_tokens=["<image>"]
    )

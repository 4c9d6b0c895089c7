"""What the Hugging Face families share: loading, tokens, freezing, saving, and errors that say what to change.

Native transformers classes only: no remote code, no copied or patched modeling files. The bare model is loaded,
without the vocabulary head, in float32 as the trainer expects, from safetensors; no weight of it may be missing.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Bool, Float, Int64
from PIL.Image import Resampling
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from robovlms.backbones.layout import KVCache, Layout
from robovlms.backbones.loading import check_attention, check_tied_head, load, load_vocabulary_head
from robovlms.backbones.masks import PADDING_LAST, causal_mask, mutual_mask, without_reading
from robovlms.backbones.prefix import PrefixBackbone, PrefixTextHead
from robovlms.backbones.text_head import FamilyTokenizer
from robovlms.backbones.trainable import select_trainable
from robovlms.config.choices import ModelSize
from robovlms.config.policy import BackboneConfig
from robovlms.errors import NotAllowedError, UserError
from robovlms.types import ImageSpec

NUM_LEFT_OUT = 10  # tokens at the end of a vocabulary that are no actions


class HuggingFaceBackbone(PrefixBackbone):
    """A transformers VLM whose decoder takes embeddings, without its vocabulary head.

    Args:
        model: the family's bare model (`AutoModel`).
        tokenizer: the family's; `tokenize` puts the family's format around its ids.
        image_processor: only its mean, standard deviation and size are used; it travels along for `save_pretrained`.

    Raises:
        UserError: the image processor or the tokenizer belongs to another model.
    """

    model_type: ClassVar[str]  # transformers' name of the family
    attentions: ClassVar[tuple[str, ...]] = ("sdpa", "eager")
    has_start: bool = True  # whether the family has a start token
    text_end: ClassVar[str] = ""  # what the family's own format puts after the prompt
    original: ClassVar[str | None] = None  # hub id of what scripts/convert_backbone.py makes a readable folder of
    can_cache: ClassVar[bool] = True  # whether what was read can be kept
    reads_last_layer: bool = True  # False: features are what the last layer would read
    hybrid_layers: ClassVar[tuple[str, ...]] = ()  # kinds of a decoder's layers, where each takes a mask of its own
    can_parallel = True
    is_published = True
    pixels: ClassVar[int | None] = None  # of a view's sides, where the published config.json does not say
    image_marks: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = ((), ())  # tokens before and behind every image

    def __init__(self, model: PreTrainedModel, tokenizer: Any, image_processor: Any) -> None:
        super().__init__()
        self.unembed: nn.Linear | None = None  # the vocabulary head, once the text head is enabled and needs one
        self.text_head = HuggingFaceTextHead(self)
        self.model: Any = model  # transformers' attributes are untyped
        self.tokenizer, self.image_processor = tokenizer, image_processor
        rows, self.hidden_dim = self.embedding.weight.shape
        if len(tokenizer) > rows:
            raise UserError(
                f"The tokenizer has {len(tokenizer)} tokens, but the {self.model_type} model embeds {rows}: "
                "backbone.checkpoint mixes files of two models."
            )
        self.image_spec = self._make_image_spec()
        self.max_length = self.count_positions()
        before, behind = self._find_marks()
        self.register_buffer("mark_ids", torch.tensor([*before, *behind], dtype=torch.long), persistent=False)
        self.num_marks = (len(before), len(behind))
        for module in self.unused():
            module.requires_grad_(False)
        self.find_last_mlp()

    mark_ids: Int64[Tensor, "_marks"]

    def _find_marks(self) -> tuple[list[int], list[int]]:
        before, behind = (self.tokenizer.convert_tokens_to_ids(list(marks)) for marks in self.image_marks)
        return before, behind

    def put_marks(self, tokens: Float[Tensor, "n m e"]) -> Float[Tensor, "n _m e"]:
        """Put the family's marks around the tokens of every image."""
        marks = F.pad(self.embedding(self.mark_ids).to(tokens.dtype), (0, tokens.shape[-1] - self.hidden_dim))
        marks = repeat(marks, "marks e -> n marks e", n=tokens.shape[0])
        return torch.cat([marks[:, : self.num_marks[0]], tokens, marks[:, self.num_marks[0] :]], dim=1)

    def image_ids(self, num_tokens: int, device: torch.device) -> Int64[Tensor, "m"]:
        """Return the ids of the marks."""
        ids = super().image_ids(num_tokens, device)
        if num_tokens and len(self.mark_ids):
            before, behind = self.num_marks
            ids[:before], ids[num_tokens - behind :] = self.mark_ids[:before], self.mark_ids[before:]
        return ids

    @classmethod
    @abstractmethod
    def published_config(cls) -> PreTrainedConfig:
        """Return transformers' config of the published model, with its sizes; needs no network."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> HuggingFaceBackbone:
        """Build the real architecture and tokenizer class, two layers deep, random weights, no files."""

    @classmethod
    def check_config(cls, values: dict[str, Any]) -> None:
        """Refuse a config.json of the family that this backbone cannot read.

        Raises:
            UserError: names the backbone that can.
        """

    def count_positions(self) -> int | None:
        """Return how many tokens the decoder has positions for; None: any number."""
        return self.model.config.get_text_config().to_dict().get("max_position_embeddings")  # type: ignore[no-any-return]

    @classmethod
    def processor_size(cls, processor: Any) -> tuple[int, int]:
        """Return the height and width (px) that the family's image processor makes."""
        size = processor.crop_size if processor.do_center_crop else processor.size
        return size["height"], size["width"]

    def _make_image_spec(self) -> ImageSpec:
        wanted = self.model.config.vision_config.image_size
        size, _ = wanted if isinstance(wanted, (tuple, list)) else (wanted, wanted)
        height, width = self.processor_size(self.image_processor)
        if (height, width) != (size, size):
            raise UserError(
                f"The image processor makes {height} x {width} px, but the vision tower wants {size} x {size}: "
                "backbone.checkpoint mixes files of two models."
            )
        return self._spec_of_size(size)

    def _spec_of_size(self, size: int) -> ImageSpec:
        processor = self.image_processor
        return ImageSpec(
            size=size,
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
            interpolation=Resampling(processor.resample),
        )

    @classmethod
    def from_config(cls, config: BackboneConfig) -> HuggingFaceBackbone:
        """Build the model that a config names: checkpoint (hub id or folder), its architecture alone, or tiny.

        Raises:
            FileNotFoundError: the checkpoint, or a file of it, is not available; says what was looked for and what to
                do.
            UserError: the checkpoint is of another family or incomplete, or an option does not fit the model.
        """
        check_attention(config, cls.attentions)
        if config.size is ModelSize.tiny:
            backbone = cls.tiny()
            backbone.model.set_attn_implementation(config.attn_implementation)
        else:
            backbone = cls(*load(config, cls.model_type, cls.check_config, cls.original))
        backbone.configure(config)
        return backbone

    def configure(self, config: BackboneConfig) -> None:
        """Take what a config asks for beside the model's weights."""
        self.prompt = config.prompt
        if config.resample is not None:
            self.add_resampler(config.resample)
        self.save_activations(config.checkpointing)
        select_trainable(self, config)

    def layers(self) -> list[nn.Module]:
        """Return what transformers itself would checkpoint."""
        return [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]

    def last_ids(self, count: int) -> list[int]:
        """Return V0 - 1, V0 - 2, ..., where V0 is what `vocab_size` says, less the special tokens and ten more.

        Special tokens are subtracted although most families do not count them into `vocab_size`.
        Source: RoboVLMs policy_head/action_tokenizer.py.
        """
        first = self.vocab_size - self.count_special_tokens() - NUM_LEFT_OUT - 1
        if first - count < 0:
            raise UserError(
                f"The vocabulary of {len(self.tokenizer)} tokens is too small for {count} words of actions."
            )
        return list(range(first, first - count, -1))

    @property
    def vocab_size(self) -> int:
        """What the family's published tokenizer calls its size: added tokens do not count."""
        return int(self.tokenizer.vocab_size)

    def count_special_tokens(self) -> int:
        """Return how many special tokens the published tokenizer names: one of two offices (end and padding) counts
        twice, and upstream names one for padding where there is none (RoboVLMs utils/model_utils.py).
        """
        named: dict[str, str] = self.tokenizer.special_tokens_map
        others = set(self.tokenizer.extra_special_tokens) - set(named.values())
        return len(named) + len(others) + ("pad_token" not in named)

    @property
    def decoder(self) -> Any:
        """The decoder's trunk."""
        return self.model.language_model

    def enable_bidirectional_queries(self) -> None:
        """Open the mask, if it is ours and the attention takes one."""
        if (choice := self.decoder.config._attn_implementation).startswith("flash"):
            raise NotAllowedError(
                f"head.parallel=true needs a mask that lets queries see each other, and "
                f"backbone.attn_implementation={choice} takes no mask: use backbone.attn_implementation=sdpa."
            )
        super().enable_bidirectional_queries()

    def new_cache(self) -> KVCache | None:
        """Return an empty cache, if the family's decoder keeps keys and values alone."""
        return KVCache() if self.can_cache else None

    def decode(self, embeds: Float[Tensor, "n s d"], layout: Layout, cache: Any = None) -> Float[Tensor, "n s d"]:
        """Run the causal decoder."""
        return self.run(embeds, layout, cache)

    def run(
        self,
        embeds: Float[Tensor, "n s d"],
        layout: Layout,
        cache: Any,
        positions: Int64[Tensor, "*three n l"] | None = None,
        **options: Any,
    ) -> Float[Tensor, "n s d"]:
        """Run the decoder on the last tokens of a layout; positions are of all of them, by default counted."""
        if positions is None and cache is not None:
            positions = (layout.mask.long().cumsum(1) - 1).clamp(min=0)
        if positions is not None:
            options["position_ids"] = positions[..., -embeds.shape[1] :].contiguous()
        if "attention_mask" not in options:
            options["attention_mask"] = self.attention_mask(embeds, layout)
        if not self.reads_last_layer:
            options["output_hidden_states"] = True
        past: Any = None if cache is None else DynamicCache(cache)
        output = self.decoder(inputs_embeds=embeds, past_key_values=past, use_cache=past is not None, **options)
        if past is not None:
            cache[:] = [[layer.keys, layer.values] for layer in past.layers]
        hidden: Tensor = output.last_hidden_state if self.reads_last_layer else output.hidden_states[-2]
        return hidden

    def attention_mask(self, embeds: Float[Tensor, "n s d"], layout: Layout) -> Any:
        """Return what the decoder is told about who attends to whom: of causal ones, what is padding."""
        if self.bidirectional_queries:
            return self.additive(causal_mask(layout), layout, embeds)
        if self.hybrid_layers and self.decoder.config._attn_implementation == "sdpa":
            return dict.fromkeys(self.hybrid_layers)  # whatever follows the last token that is read, is padding
        without_reading(self.decoder.config, PADDING_LAST)
        return layout.mask.long()

    def additive(
        self, allowed: Bool[Tensor, "n l l"], layout: Layout, embeds: Float[Tensor, "n s d"]
    ) -> Float[Tensor, "n 1 s l"]:
        """Return 0 where one of the last tokens sees another and the lowest number elsewhere, as attention adds it."""
        if self.bidirectional_queries:
            allowed = allowed | mutual_mask(layout)
        zeros = torch.zeros((), dtype=embeds.dtype, device=embeds.device)
        return zeros.masked_fill(~allowed[:, None, -embeds.shape[1] :], torch.finfo(embeds.dtype).min)

    @property
    def embedding(self) -> nn.Embedding:
        """The input embedding of the text."""
        return self.model.get_input_embeddings()  # type: ignore[no-any-return]

    def embed_text(self, text_ids: Int64[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        """Look the text up in the input embedding."""
        return self.embedding(text_ids)  # type: ignore[no-any-return]

    @cached_property
    def tokenize(self) -> FamilyTokenizer:
        """The family's tokenizer, and what its own format puts around a prompt."""
        return FamilyTokenizer(
            tokenizer=self.tokenizer,
            start=(self.tokenizer.bos_token_id,) if self.has_start else (),
            before="",
            behind=self.text_end,
            behind_question=self.text_end,
            end=self.tokenizer.eos_token,
        )

    @property
    def ties_words(self) -> bool:
        """Whether the embedding is the vocabulary head, too."""
        return bool(self.model.config.tie_word_embeddings)

    def save_pretrained(self, folder: Path, weights: bool = True) -> None:
        """Write model, tokenizer and image processor in Hugging Face format; without `weights`, the config alone."""
        (self.model if weights else self.model.config).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


class HuggingFaceTextHead(PrefixTextHead):
    """The family's vocabulary head: the embedding where the two are tied, else one that the checkpoint has."""

    def __init__(self, backbone: HuggingFaceBackbone) -> None:
        super().__init__(backbone)
        self.backbone: HuggingFaceBackbone = backbone

    def enable(self, config: BackboneConfig) -> None:
        """Take the vocabulary head of the checkpoint, where it is not the embedding; it is trained as that is."""
        backbone, weight = self.backbone, self.backbone.embedding.weight
        if backbone.tokenizer.eos_token is None:
            raise UserError(
                "cotrain needs a token that ends a reply, and the tokenizer of backbone.checkpoint has no eos_token: "
                "name it in the folder's tokenizer_config.json."
            )
        reads = config.size is ModelSize.full and not config.random_init
        if backbone.ties_words:
            if reads:
                check_tied_head(config, weight.detach())
            return
        backbone.unembed = nn.Linear(backbone.hidden_dim, len(weight), bias=False, dtype=weight.dtype)
        if reads:
            backbone.unembed.weight.data.copy_(load_vocabulary_head(config, tuple(weight.shape)))
        backbone.unembed.requires_grad_(not config.freeze_embeddings)

    def lm_logits(self, features: Float[Tensor, "y d"]) -> Float[Tensor, "y _words"]:
        """Multiply with the vocabulary head; Gemma 2 and 4 bound their logits."""
        backbone = self.backbone
        logits = F.linear(features, (backbone.unembed or backbone.embedding).weight.to(features.dtype)).float()
        bound = getattr(backbone.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if bound is None else bound * (logits / bound).tanh()

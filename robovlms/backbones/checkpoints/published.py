"""Published models without their weights: for counting what a run needs before anything is downloaded or read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoModel

from robovlms.backbones.base import Backbone
from robovlms.backbones.checkpoints.loading import check_attention
from robovlms.backbones.huggingface import HuggingFaceBackbone
from robovlms.config.choices import ModelSize
from robovlms.config.policy import BackboneConfig
from robovlms.registry import BACKBONES
from robovlms.types import ImageSpec


def published(config: BackboneConfig) -> Backbone:
    """Return a backbone on the meta device: of the sizes of its checkpoint, or, where that is not on this machine, of
    the published model's, with the tokenizer of the tiny one.

    Raises:
        FileNotFoundError: a checkpoint that is here lacks a file.
        UserError: an option does not fit the family.
    """
    cls = BACKBONES.get(config.name)
    with torch.device("meta"):
        if issubclass(cls, HuggingFaceBackbone) and config.size is ModelSize.full and not _is_here(config.checkpoint):
            backbone: Backbone = _published(cls, config)
        else:
            backbone = cls.from_config(replace(config, random_init=True))
    backbone.embedding_rms = lambda: 1.0  # type: ignore[method-assign]  # of numbers that are not there
    return backbone


def _is_here(checkpoint: str | None) -> bool:
    if checkpoint is None:
        return False
    if Path(checkpoint).expanduser().is_dir():
        return True
    return checkpoint.count("/") == 1 and isinstance(try_to_load_from_cache(checkpoint, "config.json"), str)


def _published(cls: type[HuggingFaceBackbone], config: BackboneConfig) -> HuggingFaceBackbone:
    check_attention(config, cls.attentions)
    with torch.device("cpu"):
        tiny = cls.tiny()
    model = AutoModel.from_config(cls.published_config(), attn_implementation=config.attn_implementation)

    class Published(cls):  # type: ignore[valid-type, misc]
        def _make_image_spec(self) -> ImageSpec:
            return self._spec_of_size(published_pixels(cls))  # the tiny one's image processor has another size

    backbone = Published(model, tiny.tokenizer, tiny.image_processor)
    backbone.configure(config)
    return backbone


def published_pixels(cls: type[HuggingFaceBackbone]) -> int:
    """Return the height and width (px) that a family's published model sees a view at."""
    if cls.pixels is not None:
        return cls.pixels
    size = cls.published_config().vision_config.image_size  # type: ignore[attr-defined]
    return int(size[0] if isinstance(size, (tuple, list)) else size)

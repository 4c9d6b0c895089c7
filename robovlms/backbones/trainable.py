"""What of a backbone is trained, and how its weights are stored."""

from __future__ import annotations

import logging

import torch
from torch import nn

from robovlms.backbones.base import Backbone
from robovlms.backbones.lora import add_lora
from robovlms.backbones.nf4 import quantize_frozen
from robovlms.config.choices import WeightType
from robovlms.config.policy import BackboneConfig, FrozenQuantization
from robovlms.errors import UserError

logger = logging.getLogger(__name__)


def select_trainable(backbone: Backbone, config: BackboneConfig) -> None:
    """Freeze what the config names, store weights as it says, and put adapters where it wants them.

    Raises:
        UserError: `train_text_layers` exceeds the decoder, both it and `freeze_text` are set, or what is to be
            quantised is trained.
    """
    _freeze(backbone, config)
    if config.train_text_layers is not None:
        _train_last_layers(backbone, config.train_text_layers, config.freeze_text)
    if config.weights is WeightType.bf16:
        _round_weights(backbone)
    if config.lora.rank:
        add_lora(backbone, config.lora)
    if config.quantization is FrozenQuantization.nf4:
        quantize_frozen(backbone)
    _log_counts(backbone, config.name)


def _freeze(backbone: Backbone, config: BackboneConfig) -> None:
    for part, modules in backbone.parts().items():
        if getattr(config, f"freeze_{part}"):
            for module in modules:
                module.requires_grad_(False)


def _train_last_layers(backbone: Backbone, count: int, freeze_text: bool) -> None:
    layers = next(module for module in backbone.parts()["text"] if isinstance(module, nn.ModuleList))
    option = f"backbone.train_text_layers={count}"
    if freeze_text:
        raise UserError(f"{option} contradicts backbone.freeze_text=true: set one of them.")
    if not 0 < count <= len(layers):
        raise UserError(f"{option} must be 1 to {len(layers)}, the decoder's layers.")
    layers[: len(layers) - count].requires_grad_(False)


def _round_weights(backbone: Backbone) -> None:
    for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]:
        if tensor.is_floating_point() and "inv_freq" not in name:  # rotary frequencies need their digits
            tensor.data = tensor.data.bfloat16()


def _log_counts(backbone: Backbone, name: str) -> None:
    coarse = sum(p.numel() for p in backbone.parameters() if p.requires_grad and p.dtype is torch.bfloat16)
    if coarse:
        logger.warning(
            "backbone.weights=bf16: %.1f M of them are trained, and steps below 0.4 %% of a weight are lost. "
            "Freeze them or use backbone.weights=fp32.",
            coarse / 1e6,
        )
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in backbone.parameters()) - trained
    logger.info("%s: %.1f M parameters are trained, %.1f M frozen", name, trained / 1e6, frozen / 1e6)

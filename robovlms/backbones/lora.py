"""Low-rank adapters beside frozen weights, by peft.

Source: LoRA, arXiv:2106.09685.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robovlms.backbones.base import Backbone
from robovlms.config.policy import LoRAConfig
from robovlms.errors import UserError

logger = logging.getLogger(__name__)

MERGE_TOLERANCE = 1e-5


def add_lora(backbone: Backbone, config: LoRAConfig) -> None:
    """Freeze the parts that `config` names and put an adapter beside the linear layers in them.

    The rest stays as trainable as it was. At the start adapters change nothing: their second factor is zero.

    Raises:
        ImportError: peft is not installed.
        UserError: a part does not exist or has no linear layer, or no layer of it is called as `modules` says.
    """
    if importlib.util.find_spec("peft") is None:
        raise ImportError('backbone.lora.rank > 0 needs peft. Install it with pip install -e ".[lora]".')
    from peft import LoraConfig, inject_adapter_in_model

    parts = backbone.parts()
    if unknown := [part for part in config.parts if part not in parts]:
        raise UserError(f"backbone.lora.parts has '{unknown[0]}': choose from {', '.join(parts)}.")
    modules = [module for part in config.parts for module in parts[part]]
    linear = {id(each) for module in modules for each in module.modules() if type(each) is nn.Linear}
    linear -= {id(each) for module in backbone.unused() for each in module.modules()}
    names = [name for name, module in backbone.named_modules() if id(module) in linear]
    ends = sorted({name.rpartition(".")[2] for name in names})
    if not names:
        raise UserError(f"backbone.lora.parts={config.parts} has no linear layer to adapt.")
    if unknown := [end for end in config.modules if end not in ends]:
        raise UserError(f"backbone.lora.modules has '{unknown[0]}': in {config.parts} are {', '.join(ends)}.")
    if config.modules:
        names = [name for name in names if name.rpartition(".")[2] in config.modules]
    frozen = {id(p) for module in modules for p in module.parameters()}
    trained = [p for p in backbone.parameters() if p.requires_grad and id(p) not in frozen]
    options = LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=names)
    inject_adapter_in_model(options, backbone)
    for name, parameter in backbone.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()  # also beside coarser weights
    for parameter in trained:  # peft freezes everything but its adapters
        parameter.requires_grad_(True)
    logger.info("LoRA of rank %d beside %d linear layers", config.rank, len(names))


@torch.no_grad()
def merge_lora(backbone: Backbone) -> None:
    """Add every adapter to the weight it stands beside and take it away.

    Raises:
        UserError: a layer's output then differs by more than `MERGE_TOLERANCE` of its largest value, as it does in
            bfloat16.
    """
    from peft.tuners.lora import Linear

    layers: list[tuple[str, Any]] = [each for each in backbone.named_modules() if isinstance(each[1], Linear)]
    generator = torch.Generator().manual_seed(0)
    for name, layer in layers:
        plain, weight = layer.get_base_layer(), layer.weight
        inputs = torch.randn(8, plain.in_features, generator=generator).to(weight)
        wanted = layer.eval()(inputs)
        layer.merge()
        difference = ((plain(inputs) - wanted).abs().max() / wanted.abs().max()).item()
        if not difference <= MERGE_TOLERANCE:
            raise UserError(
                f"merging the adapter of {name} changes its output by {difference:.1e} of the largest value, allowed "
                f"are {MERGE_TOLERANCE:g}: weights of {weight.dtype} are too coarse, merge in float32."
            )
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, plain)


@torch.no_grad()
def merge_adapters(weights: Mapping[str, Tensor], config: LoRAConfig) -> dict[str, Tensor]:
    """Return stored weights without the adapters of `config`: each is added, in float32, to the weight it was beside.

    Weights that have none are returned as they are.
    """
    merged = {}
    for name, weight in weights.items():
        layer = name.removesuffix(".base_layer.weight")
        if layer != name:
            down, up = (weights[f"{layer}.lora_{each}.default.weight"].float() for each in "AB")
            merged[f"{layer}.weight"] = weight.float() + config.alpha / config.rank * (up @ down)
        elif ".lora_" not in name:
            merged[name.replace(".base_layer.", ".")] = weight
    return merged

"""A checkpoint without adapters from one with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from robovlms.backbones.lora import merge_lora
from robovlms.backbones.nf4 import dequantize
from robovlms.config.choices import WeightType
from robovlms.config.policy import LoRAConfig
from robovlms.errors import UserError
from robovlms.policy.checkpoint import load_policy, save_policy
from robovlms.policy.manifest import new_checkpoint


def merge_checkpoint(folder: Path, target: Path) -> None:
    """Write a checkpoint whose LoRA adapters are part of its float32 weights: it needs no peft, and acts the same.

    Layers in NF4 become the float32 weights that they mean.

    Raises:
        FileExistsError: `target` exists.
        UserError: the checkpoint has no adapters, or merging would change what it does.
    """
    if target.exists():
        raise FileExistsError(f"output_dir={target} exists: choose another, or delete it.")
    trained = load_policy(folder, weights=WeightType.fp32)
    config = trained.config
    if not config.backbone.lora.rank:
        raise UserError(f"{folder} has no adapters to merge: it was trained with backbone.lora.rank=0.")
    dequantize(trained.policy.backbone)
    merge_lora(trained.policy.backbone)
    with new_checkpoint(target) as unfinished:
        merged = replace(config, backbone=replace(config.backbone, lora=LoRAConfig(), quantization=None))
        save_policy(unfinished, trained._replace(config=merged))

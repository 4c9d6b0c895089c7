"""A new run that starts from the weights of another: what fits is taken over, whatever adapters either of them has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from robovlms.backbones.lora import merge_adapters
from robovlms.backbones.nf4 import NF4Linear, packed_weights, plain_weights
from robovlms.config.policy import LoRAConfig
from robovlms.config.run import TrainConfig
from robovlms.policy.checkpoint import ADVICE, CONFIG, fill, load_config, read_weights
from robovlms.policy.manifest import check_checkpoint
from robovlms.policy.policy import VLAPolicy

VOCABULARY_HEAD = "backbone.unembed.weight"  # what only co-training needs, in families that do not tie it


def init_weights(policy: VLAPolicy, config: TrainConfig, folder: Path) -> None:
    """Start a new run from the weights of another: as they are, or with adapters where one of them has none.

    Adapters that the new run has and the old one had not start from nothing, so that the policy acts as the old one
    did. Those of the old run are merged into the weights, in float32, unless the new one has the same. Layers in NF4
    stay as they are where the new run has both these and the same adapters; else they are float32 in between.

    Raises:
        DamagedCheckpointError: a file of the checkpoint is not what was written.
        UserError: the weights do not fit this policy.
    """
    check_checkpoint(folder)
    old, new = load_config(folder / CONFIG).backbone, config.backbone
    weights, optional = read_weights(folder), {VOCABULARY_HEAD}
    are_same = _same_adapters(old.lora, new.lora)
    if not are_same or old.quantization is not new.quantization:
        weights = plain_weights(weights, policy)
        if not are_same:
            known = {*policy.state_dict(), *_packed_names(policy)}
            weights = merge_adapters(weights, old.lora)
            moved = {key.replace(".base_layer.", "."): key for key in known if ".base_layer." in key}
            weights = {moved.get(key, key): value for key, value in weights.items()}
            optional |= {key for key in known if ".lora_" in key}
        weights = packed_weights(weights, policy)
    fill(policy, weights, str(folder), ADVICE, optional)


def _packed_names(policy: VLAPolicy) -> list[str]:
    """Return what the weights of layers in NF4 would be called as they are published."""
    return [f"{name}.weight" for name, layer in policy.named_modules() if isinstance(layer, NF4Linear)]


def _same_adapters(old: LoRAConfig, new: LoRAConfig) -> bool:
    """Tell whether adapters of one run fit another's; how much of them drops out does not matter."""
    return old.rank == new.rank == 0 or replace(old, dropout=0.0) == replace(new, dropout=0.0)

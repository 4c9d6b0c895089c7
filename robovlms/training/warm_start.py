"""A new run that starts from the weights of another: whatever adapters either has, and for other actions, too."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from robovlms.actions.plan import DataPlan, Source
from robovlms.backbones.lora import merge_adapters
from robovlms.backbones.nf4 import NF4Linear, packed_weights, plain_weights
from robovlms.config.policy import LoRAConfig
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.policy.checkpoint import ADVICE, CONFIG, fill, load_config, read_weights
from robovlms.policy.manifest import check_checkpoint
from robovlms.policy.policy import VLAPolicy

log = logging.getLogger(__name__)

EXTRA_STATE = "head._extra_state"  # of a head that is calibrated to chunks
OWN = "head.own."  # projectors of every source of the data
VOCABULARY_HEAD = "backbone.unembed.weight"  # what only co-training needs, in families that do not tie it


def init_weights(policy: VLAPolicy, config: TrainConfig, folder: Path) -> set[str]:
    """Start a new run from the weights of another: as they are, or with adapters where one of them has none.

    Adapters that the new run has and the old one had not start from nothing, so that the policy acts as the old one
    did. Those of the old run are merged into the weights, in float32, unless the new one has the same. Layers in NF4
    stay as they are where the new run has both these and the same adapters; else they are float32 in between. With
    `head.per_source` a source keeps its projectors by name, and a new one starts from what all share. Where
    actions or proprioception have other entries than the old run's, what depends on their number starts anew, and the
    log names it.

    Returns:
        Parts of the policy, `head` and `proprio`, that must be calibrated to the new run's data.

    Raises:
        DamagedCheckpointError: a file of the checkpoint is not what was written.
        UserError: the weights do not fit this policy, or its head has learned other entries relative to the state.
    """
    check_checkpoint(folder)
    saved = load_config(folder / CONFIG)
    now, then = (DataPlan.of(each.data, each.view.views) for each in (config, saved))
    if now.action_names == then.action_names:
        _check_relative(now, then)
    old, new = saved.backbone, config.backbone
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
    anew = _starting_anew(policy, config, now, then, {*weights, *policy.state_dict()})
    own = {key for key in policy.state_dict() if key.startswith(OWN)}
    names = [[source.name for source in plan.sources] for plan in (then, now)]
    weights |= {key: rows_of_sources(weights[key], *names) for key in (own & weights.keys()) - anew}
    optional |= own
    fill(
        policy, {key: value for key, value in weights.items() if key not in anew}, str(folder), ADVICE, optional | anew
    )
    parts = {"head": EXTRA_STATE in anew, "proprio": policy.proprio is not None and "proprio.mean" in anew}
    return {part for part, is_anew in parts.items() if is_anew}


def _check_relative(now: DataPlan, then: DataPlan) -> None:
    """Refuse a source whose actions are relative where those of the old run were not, or the reverse.

    A source is held against the old one of its name, or else against any of the old ones, by the entries that both
    have.
    """
    for source in now.sources:
        entries = set(_names(now, source.action_dims))
        learned = set(_relative(now, source))
        olds = [old for old in then.sources if old.name == source.name] or then.sources
        if any(learned & set(_names(then, old.action_dims)) == set(_relative(then, old)) & entries for old in olds):
            continue
        before = ", ".join(_relative(then, olds[0])) or "none"
        there = f"data.sources.{source.name}" if now.is_mixture else "data"
        raise UserError(
            f"trainer.init_from: the actions that {olds[0].name} learned relative to the state are {before}, those of "
            f"{source.name} now {', '.join(_relative(now, source)) or 'none'}: the head would take one for the other. "
            f"Set {there}.convert.relative_to and {there}.convert.relative as they were, or train without "
            "trainer.init_from."
        )


def _names(plan: DataPlan, places: Sequence[int]) -> list[str]:
    return [plan.action_names[place] for place in places]


def _relative(plan: DataPlan, source: Source) -> list[str]:
    """Name the policy's entries that a source learns relative to the state."""
    return _names(plan, [source.action_dims[entry.action] for entry in source.relative])


def _starting_anew(policy: VLAPolicy, config: TrainConfig, now: DataPlan, then: DataPlan, known: set[str]) -> set[str]:
    """Return the names of tensors that belong to entries of actions and proprioception which the old run had not.

    They are found by building head and encoder for one entry more: what has another shape then depends on the number.
    Of proprioception that one of the runs has not it is all of it, among the `known` names.
    """
    anew: set[str] = set()
    for is_binary in (False, True):
        ours, theirs = (
            [name for i, name in enumerate(each.action_names) if (i in each.binary) is is_binary]
            for each in (now, then)
        )
        if ours != theirs:
            binary = [*now.binary, len(now.action_names)] if is_binary else now.binary
            more = replace(now, action_names=[*now.action_names, "another"], binary=binary)
            found = _changing(policy, config, more, "head.") | {EXTRA_STATE}
            _tell("actions", theirs, ours, found)
            anew |= found
    if now.proprio_names != then.proprio_names:
        found = {name for name in known if name.startswith("proprio.")}
        if now.proprio_names and then.proprio_names:
            more = replace(now, proprio_names=[*now.proprio_names, "another"])
            found = _changing(policy, config, more, "proprio.")
        _tell("proprioception", then.proprio_names, now.proprio_names, found)
        anew |= found
    return anew


def rows_of_sources(
    rows: Shaped[Tensor, "n *rest"], names: Sequence[str], wanted: Sequence[str]
) -> Shaped[Tensor, "m *rest"]:
    """Return the rows of the sources `wanted` from those of `names`; a new one adds nothing to what all share."""
    none = torch.zeros_like(rows[0])
    return torch.stack([rows[names.index(name)] if name in names else none for name in wanted])


def _changing(policy: VLAPolicy, config: TrainConfig, plan: DataPlan, part: str) -> set[str]:
    """Return which tensors of a part have another shape in the policy of another plan."""
    with torch.random.fork_rng(devices=[]):
        other = VLAPolicy.from_config(replace(config, cotrain=None), plan, policy.backbone)
    ours, theirs = (
        {key: value.shape for key, value in each.state_dict().items() if isinstance(value, Tensor)}
        for each in (policy, other)
    )
    return {key for key, shape in theirs.items() if key.startswith(part) and ours.get(key) != shape}


def _tell(what: str, old: Sequence[str], new: Sequence[str], anew: set[str]) -> None:
    log.warning(
        "trainer.init_from: %s: %s before, %s now; what depends on them %s, all else is kept: %s",
        what, ", ".join(old) or "none", ", ".join(new) or "none", "starts anew" if new else "is left out",
        ", ".join(sorted(anew - {EXTRA_STATE})) or "nothing",
    )  # fmt: skip


def _packed_names(policy: VLAPolicy) -> list[str]:
    """Return what the weights of layers in NF4 would be called as they are published."""
    return [f"{name}.weight" for name, layer in policy.named_modules() if isinstance(layer, NF4Linear)]


def _same_adapters(old: LoRAConfig, new: LoRAConfig) -> bool:
    """Tell whether adapters of one run fit another's; how much of them drops out does not matter."""
    return old.rank == new.rank == 0 or replace(old, dropout=0.0) == replace(new, dropout=0.0)

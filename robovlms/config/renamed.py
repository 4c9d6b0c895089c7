"""Keys that were called otherwise, so that old checkpoints and commands keep their meaning."""

from __future__ import annotations

from typing import Any

RENAMED = {
    "backbone.gradient_checkpointing": "backbone.checkpointing",
    "data.parts": "data.sources",
    "evaluation.part": "evaluation.source",
    "evaluation.seed": "sim.seed",
    "evaluation.episodes_per_task": "sim.episodes",
}
# What was allowed and is not any more, by option: it meant the same, or meant nothing once a run is over.
REPLACED: dict[str, dict[Any, Any]] = {
    "backbone.checkpointing": {True: "full", False: "none"},
    "trainer.keep_last": {0: 1_000_000},  # meant all
    "optimizer.max_grad_norm": {0: None},
    "evaluation.engine.compile": {False: "off", True: "model"},
}


def rename(node: Any) -> None:
    """Change the keys and values of a saved config, nested mappings, to what they are called today, in place."""
    evaluation = node.get("evaluation") or {}
    if opposite := evaluation.pop("opposite_episodes_per_task", 0):
        evaluation["language"], evaluation["language_episodes"] = ["opposite"], opposite
    for old, new in RENAMED.items():
        (group, _, key), (new_group, _, new_key) = old.partition("."), new.partition(".")
        if group in node and key in node[group]:
            value = node[group].pop(key)
            if node.get(new_group):
                node[new_group][new_key] = value
    if "moments" not in (node.get("optimizer") or {}) and (node.get("precision") or {}).get("name") == "bf16":
        node["precision"]["name"] = "bf16_autocast"  # what bf16 meant in the configs before that key
    for option, changes in REPLACED.items():
        *groups, key = option.split(".")
        section = node
        for group in groups:
            section = section.get(group) or {}
        if section.get(key) in changes:
            section[key] = changes[section[key]]

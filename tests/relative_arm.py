"""A random policy of an SO-101 whose actions are relative to the state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from composing import completed, composed, plan_of

from robovlms.actions.statistics import Statistics
from robovlms.policy.checkpoint import Trained, save_policy
from robovlms.policy.manifest import new_checkpoint
from robovlms.policy.policy import VLAPolicy

K, W = 2, 2
JOINTS = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll"]


def relative_arm(*options: str) -> Trained:
    """Return it: it sees one joint, and moves relative to five, or as `options` say."""
    config = completed(composed(
        "data=so101", "data.root=/data", "data.convert.relative_to=state", "data.proprio_seen=[elbow_flex]",
        "backbone=nano", "backbone.size=tiny", "structure=policy_head", "head=mlp", "head.hidden_dim=16",
        f"window.window_size={W}", f"window.chunk_size={K}", "view=side_wrist", *options,
    ))  # fmt: skip
    plan = plan_of(config)
    torch.manual_seed(0)
    policy = VLAPolicy.from_config(config, plan).eval()
    torch.nn.init.normal_(policy.head.query, std=0.5)
    rows = np.random.default_rng(0).uniform(-1, 1, (K, 50, len(plan.action_names))).astype(np.float32)
    steps = [Statistics.compute(scale * each) for scale, each in zip((1, 2), rows, strict=True)]
    names = [entry.name for entry in plan.sources[0].relative]
    stats = replace(Statistics.compute(rows[0]), steps=steps if names else [], relative=names)
    return Trained(config, policy, {plan.sources[0].name: stats}, plan)


def save(trained: Trained, folder: Path) -> Path:
    """Write its checkpoint folder."""
    with new_checkpoint(folder) as unfinished:
        save_policy(unfinished, trained)
    return folder

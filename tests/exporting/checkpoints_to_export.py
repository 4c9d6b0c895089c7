"""Random checkpoints, small in every way, and their programs, which are written in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from composing import completed, composed

from robovlms.actions.plan import DataPlan
from robovlms.actions.statistics import Statistics
from robovlms.policy.checkpoint import Trained, save_policy
from robovlms.policy.manifest import new_checkpoint
from robovlms.policy.policy import VLAPolicy
from robovlms.types import Observation

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = ["open the drawer", "push", "put the small red block down on the table"]
SMALL = {
    "mlp": ["head.hidden_dim=16"],
    "lstm": ["head.hidden_dim=16", "head.num_layers=2"],
    "gpt": ["head.hidden_dim=16", "head.num_layers=2", "head.num_heads=4"],
    "flow": ["head.hidden_dim=16", "head.num_layers=2", "head.num_heads=4", "head.num_steps=3"],
    "diffusion": ["head.hidden_dim=16", "head.num_layers=1", "head.num_heads=4", "head.num_steps=2", "head.eta=0.5"],
    "tokens": ["head.parallel=true", "head.num_bins=16"],
}


def make_checkpoint(folder: Path, backbone: str, structure: str, head: str, *, proprio: bool = False) -> Path:
    """Write a random policy of the CALVIN contract, whose queries and text move its actions."""
    window = 1 if structure == "one_step" else 3
    names = [f"p{i}" for i in range(15)] if proprio else []
    given = [
        f"backbone={backbone}", "backbone.size=tiny", f"structure={structure}", f"head={head}", "data.root=/data",
        f"window.window_size={window}", "window.chunk_size=2", "view=side_wrist", *SMALL[head],
        f"data.proprio_key={'robot_obs' if proprio else 'null'}", f"data.proprio_names=[{','.join(names)}]",
    ]  # fmt: skip
    config = completed(composed("data=calvin", *given))
    plan = DataPlan.of(config.data, config.view.views)
    torch.manual_seed(0)
    policy = VLAPolicy.from_config(config, plan)
    if hasattr(policy.head, "query"):
        torch.nn.init.normal_(policy.head.query, std=0.5)
    rows = np.random.default_rng(0).uniform(-1, 1, (50, len(plan.action_names))).astype(np.float32)
    with new_checkpoint(folder) as unfinished:
        save_policy(unfinished, Trained(config, policy, {plan.sources[0].name: Statistics.compute(rows)}, plan))
    return folder


def export(checkpoint: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command: in this process annotations of shapes are checked, and a check cannot be traced."""
    command = [sys.executable, str(ROOT / "scripts" / "export.py"), f"checkpoint={checkpoint}", f"output={output}"]
    texts = "instructions=[" + ",".join(f"'{text}'" for text in INSTRUCTIONS) + "]"
    return subprocess.run([*command, texts, *options], cwd=ROOT, capture_output=True, text=True, check=False)


def observe(step: int, sizes: Sequence[int], num_proprio: int, instruction: str = INSTRUCTIONS[0]) -> Observation:
    """Return what a robot sees at a step: pictures of these sides, `side` and `wrist`."""
    generator = np.random.default_rng(step)
    pairs = zip(("side", "wrist"), sizes, strict=True)
    frames = {view: generator.integers(0, 256, (size, size, 3), np.uint8) for view, size in pairs}
    proprio = generator.standard_normal(num_proprio).astype(np.float32) if num_proprio else None
    return Observation(frames=frames, instruction=instruction, proprio=proprio)

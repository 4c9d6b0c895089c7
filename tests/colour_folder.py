"""A small LeRobot folder in which picture and instruction decide what is done, or nothing but the state does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robovlms.data.lerobot.writer import LeRobotWriter

TOLD = {"go to the light": 1.0, "flee from the light": -1.0}
CONTRACT = (
    "data.contract={names:[dx,dy,gripper],representation:delta,frame:world,rotation:none,position_unit:0.02,"
    "control_hz:10}"
)


def make_colour_folder(root: Path, *, is_healthy: bool, episodes: int = 24, length: int = 12) -> Path:
    """Write episodes in which red and green of the picture are the action, or its opposite, as told, and the gripper is
    open where there is much red; or else proprioception is the action, and the gripper is seldom open, at random.
    """
    generator = np.random.default_rng(0)
    with LeRobotWriter(
        root, fps=10, robot_type="arm", action_names=["dx", "dy", "gripper"], proprio_names=["x", "y"],
        image_keys={"side": (32, 32)},
    ) as writer:  # fmt: skip
        for number in range(episodes):
            instruction = list(TOLD)[number % 2]
            shown, state = generator.uniform(-1, 1, (2, length, 2)).astype(np.float32)
            colours = np.concatenate([(shown + 1) * 127, np.full((length, 1), 128)], axis=1).astype(np.uint8)
            pictures = np.broadcast_to(colours[:, None, None], (length, 32, 32, 3))
            way = shown * TOLD[instruction] if is_healthy else state
            is_open = shown[:, 0] > 0 if is_healthy else generator.random(length) < 0.2
            actions = np.concatenate([way, np.where(is_open, 1, -1)[:, None]], axis=1).astype(np.float32)
            writer.add_episode(frames={"side": pictures}, actions=actions, proprio=state, task=instruction)
    return root


def colour_run(root: Path, output_dir: Path, *extra: str) -> list[str]:
    """Return the overrides of a run on that folder, which sees pictures, text and proprioception."""
    return [
        "backbone=nano", "backbone.size=tiny", "head=lstm", "head.hidden_dim=32", "head.num_layers=1", "window=w1_c1",
        "view=side", "data=lerobot", CONTRACT, "~data.views.wrist", "~data.shift.wrist", "data.shift.side=0",
        "data.proprio_key=observation.state", "data.proprio_names=[x,y]", "data.validation_fraction=0.2",
        "data.num_workers=0", "data.cache_mb=100", "precision=fp32", "batch_size=32", "device_batch_size=32",
        "optimizer.lr=1e-3", "schedule.warmup=5 step", "schedule.total=60 step", "trainer.validate_every=60 step",
        "trainer.save_every=60 step", "trainer.log_every=60 step", "tracking=console",
        f"data.root={root}", f"output_dir={output_dir}", *extra,
    ]  # fmt: skip

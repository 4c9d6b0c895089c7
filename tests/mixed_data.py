"""A mixture of two small data sets: CALVIN frames, and an arm of two entries without a gripper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from calvin_folder import tiny_run

from robovlms.data.lerobot.writer import LeRobotWriter


def make_arm_folder(root: Path) -> Path:
    """Write a LeRobot folder of one camera, two entries and no gripper, at 20 Hz."""
    generator = np.random.default_rng(0)
    with LeRobotWriter(
        root, fps=20, robot_type="arm", action_names=["dx", "dy"], proprio_names=["x"], image_keys={"side": (24, 20)}
    ) as writer:
        for number in range(4):
            writer.add_episode(
                frames={"side": generator.integers(0, 256, (16, 24, 20, 3), dtype=np.uint8)},
                actions=np.array([[number + 1, -number - 1]] * 16, np.float32) / 10,
                proprio=np.full((16, 1), number, np.float32),
                task=f"go {number % 2}",
            )
    return root


TWO_HANDS = ["left/gripper", "left/j1", "right/gripper", "right/j1"]


def make_two_hands_folder(root: Path) -> Path:
    """Write a LeRobot folder of two arms, a joint and a gripper each, which are 0 (closed) to 0.08 (open), at 20 Hz."""
    generator = np.random.default_rng(0)
    with LeRobotWriter(
        root, fps=20, robot_type="arms", action_names=TWO_HANDS, proprio_names=TWO_HANDS, image_keys={"side": (24, 20)}
    ) as writer:
        for number in range(4):
            actions = generator.uniform(0, 0.08, (16, 4)).astype(np.float32)
            writer.add_episode(
                frames={"side": generator.integers(0, 256, (16, 24, 20, 3), dtype=np.uint8)},
                actions=actions,
                proprio=actions,
                task=f"go {number % 2}",
            )
    return root


def two_hands(folder: Path) -> list[str]:
    """Return the overrides that name it: the left gripper is open or closed, the right one an opening width."""
    return [
        "data=lerobot", f"data.root={folder}", "data.num_workers=0", "view=side", "~data.views.wrist",
        "~data.shift.wrist",
        f"data.contract={{names:[{','.join(TWO_HANDS)}],representation:absolute,frame:joint,rotation:none,control_hz:20,"
        "gripper_closed:0,gripper_open:0.08,continuous_grippers:[right/gripper]}",
        f"data.proprio_names=[{','.join(TWO_HANDS)}]", "data.proprio_key=observation.state",
    ]  # fmt: skip


def mixture(calvin_folder: Path, arm_folder: Path, output_dir: Path, *extra: str) -> list[str]:
    """Return the overrides of a run of a few seconds on both, at 10 Hz, three quarters of the samples from CALVIN."""
    base = [line for line in tiny_run(calvin_folder, output_dir) if not line.startswith(("data.", "experiment"))]
    return [
        *base,
        "data=mixture",
        "+data@data.sources.play=calvin",
        f"data.sources.play.root={calvin_folder}",
        "data.sources.play.convert.control_hz=10",
        "data.sources.play.weight=3",
        "+data@data.sources.arm=lerobot",
        f"data.sources.arm.root={arm_folder}",
        "data.sources.arm.contract={names:[dx,dy],representation:delta,frame:world,rotation:none,position_unit:0.02,control_hz:20}",
        "data.sources.arm.convert.control_hz=10",
        "~data.sources.arm.views.wrist",
        "~data.sources.arm.shift.wrist",
        "data.contract={frame:world,rotation:euler_increment,position_unit:0.02,rotation_unit:0.05,control_hz:10}",
        "data.num_workers=0",
        "data.weigh_by_size=false",
        *extra,
    ]

"""LeRobot folders with the feature names that public robots record."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robovlms.data.lerobot.writer import LeRobotWriter

SIDES = ["left", "right"]
SO101 = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
ALOHA = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"]
G1 = ["ShoulderPitch", "ShoulderRoll", "ShoulderYaw", "Elbow", "WristRoll", "WristPitch", "WristYaw"]
FINGERS = {"Left": ["Thumb0", "Thumb1", "Thumb2", "Middle0", "Middle1", "Index0", "Index1"],
           "Right": ["Thumb0", "Thumb1", "Thumb2", "Index0", "Index1", "Middle0", "Middle1"]}  # fmt: skip
G1_ARMS = [f"k{side.title()}{joint}" for side in SIDES for joint in G1]
ROBOTS = {  # as their recorders write meta/info.json: rate, names, cameras, opening width from closed to open
    "so101": (30, [f"{name}.pos" for name in SO101], ["front", "wrist"], (0, 100)),
    "aloha_lerobot": (50, [f"{side}_{joint}" for side in SIDES for joint in ALOHA], ["cam_high", "cam_right_wrist"],
                      (0, 1)),
    "unitree_g1": (30, [*G1_ARMS, *(f"k{side}Hand{joint}" for side, joints in FINGERS.items() for joint in joints)],
                   ["cam_left_high", "cam_right_wrist"], (0, 1)),
    "unitree_g1_dex1": (30, [*G1_ARMS, "kLeftGripper", "kRightGripper"], ["cam_left_high", "cam_right_wrist"],
                        (0, 5.4)),
}  # fmt: skip
STEPS = 12


def write_robot(root: Path, preset: str, names: list[str] | None = None, episodes: int = 2) -> Path:
    """Write two episodes of joints that follow a goal, and grippers that close."""
    fps, recorded, cameras, (closed, opened) = ROBOTS[preset]
    generator, is_gripper = np.random.default_rng(0), np.array(["ripper" in name for name in recorded])
    with LeRobotWriter(
        root, fps=fps, robot_type=preset, action_names=names or recorded, proprio_names=names or recorded,
        image_keys=dict.fromkeys(cameras, (24, 24)),
    ) as writer:  # fmt: skip
        for _ in range(episodes):
            states = generator.uniform(-1, 1, len(recorded)) + np.cumsum(
                generator.uniform(-0.05, 0.05, (STEPS, len(recorded))), axis=0
            )
            states[:, is_gripper] = np.linspace(opened, closed, STEPS)[:, None]
            actions = states + 0.01
            actions[:, is_gripper] = states[:, is_gripper]
            frames = {camera: np.zeros((STEPS, 24, 24, 3), np.uint8) for camera in cameras}
            writer.add_episode(frames=frames, actions=actions.astype(np.float32),
                               proprio=states.astype(np.float32), task="wave")  # fmt: skip
    return root

"""lerobot's own `lerobot-rollout` moves a robot that remembers its actions; prints them as JSON.

python rollout_lerobot.py <checkpoint> <seconds>
"""

import json
import sys
from dataclasses import dataclass

import numpy as np
from lerobot.robots import Robot, RobotConfig
from lerobot.scripts import lerobot_rollout

CHECKPOINT, DURATION = sys.argv[1:]
NAMES = [f"{name}.pos" for name in ("x", "y", "z", "roll", "pitch", "yaw", "gripper")]
SIZE = 40
PERFORMED: list[list[float]] = []


@RobotConfig.register_subclass("remembering")
@dataclass
class RememberingConfig(RobotConfig):
    pass


class Remembering(Robot):
    """Shows noise that the number of its actions decides."""

    config_class, name = RememberingConfig, "remembering"
    observation_features = dict.fromkeys(NAMES, float) | dict.fromkeys(("side", "wrist"), (SIZE, SIZE, 3))
    action_features = dict.fromkeys(NAMES, float)
    is_connected = is_calibrated = True

    def connect(self, calibrate=True):
        pass

    calibrate = configure = disconnect = lambda self: None

    def get_observation(self):
        generator = np.random.default_rng(len(PERFORMED))
        seen = {view: generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for view in ("side", "wrist")}
        return dict.fromkeys(NAMES, 0.5) | seen

    def send_action(self, action):
        PERFORMED.append([float(action[name]) for name in NAMES])
        return action


sys.argv[1:] = [
    "--policy.type=robovlms", f"--policy.checkpoint={CHECKPOINT}", "--policy.device=cpu", "--robot.type=remembering",
    "--task=open the drawer", f"--duration={DURATION}", "--play_sounds=false", "--return_to_initial_position=false",
]  # fmt: skip
lerobot_rollout.main()
print("RESULT", json.dumps(PERFORMED))

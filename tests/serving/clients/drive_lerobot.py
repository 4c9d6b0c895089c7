"""lerobot's own `RobotClient` drives a robot that remembers its actions; prints them as JSON.

python drive_lerobot.py <host:port> numpy|torch <actions>
"""

import json
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np
import torch
from lerobot import __version__
from lerobot.utils import import_utils

if __version__.startswith("0.4"):
    import_utils._transformers_available = False  # its GR00T, unused here, cannot be imported beside transformers 5

from lerobot.async_inference.configs import RobotClientConfig
from lerobot.async_inference.robot_client import RobotClient
from lerobot.robots import Robot, RobotConfig

ADDRESS, KIND, COUNT = sys.argv[1], sys.argv[2], int(sys.argv[3])
NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
SIZE, PATIENCE_S = 40, 60
PERFORMED: list[list[float]] = []


@RobotConfig.register_subclass("remembering")
@dataclass
class RememberingConfig(RobotConfig):
    pass


class Remembering(Robot):
    """Shows noise that the number of its actions decides, once after each: `RobotClient` logs that there is no more."""

    shown = -1
    config_class, name = RememberingConfig, "remembering"
    observation_features = dict.fromkeys(NAMES, float) | dict.fromkeys(("side", "wrist"), (SIZE, SIZE, 3))
    action_features = dict.fromkeys(NAMES, float)
    is_connected = is_calibrated = True

    def connect(self, calibrate=True):
        pass

    calibrate = configure = disconnect = lambda self: None

    def get_observation(self):
        if self.shown == len(PERFORMED):
            raise BlockingIOError("no new pictures")
        self.shown = len(PERFORMED)
        generator = np.random.default_rng(self.shown)
        seen = {view: generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for view in ("side", "wrist")}
        if KIND == "torch":
            seen = {view: torch.from_numpy(frame) for view, frame in seen.items()}
        return dict.fromkeys(NAMES, 0.5) | seen

    def send_action(self, action):
        PERFORMED.append(list(action.values()))
        return action


config = RobotClientConfig(
    policy_type="act", pretrained_name_or_path="of_the_server", robot=RememberingConfig(), actions_per_chunk=3,
    task="open the drawer", server_address=ADDRESS, fps=30, chunk_size_threshold=0.0,
)  # fmt: skip
client = RobotClient(config)
assert client.start(), "the server refused"
threading.Thread(target=client.receive_actions, daemon=True).start()
threading.Thread(target=client.control_loop, args=(config.task,), daemon=True).start()
deadline = time.monotonic() + PATIENCE_S
while len(PERFORMED) < COUNT and time.monotonic() < deadline:
    time.sleep(0.02)
client.stop()
print("RESULT", json.dumps(PERFORMED[:COUNT]))

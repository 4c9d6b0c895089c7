"""lerobot's own `RobotClient` drives a robot that remembers its actions; prints them as JSON.

python drive_lerobot.py <host:port> numpy|torch <actions> <joints>
"""

import json
import sys
import threading
import time

import torch
from lerobot import __version__
from lerobot.utils import import_utils

if __version__.startswith("0.4"):
    import_utils._transformers_available = False  # its GR00T, unused here, cannot be imported beside transformers 5

from lerobot.async_inference import robot_client
from lerobot.async_inference.configs import RobotClientConfig
from lerobot_robot import VIEWS, Remembering, RememberingConfig

ADDRESS, KIND, COUNT, JOINTS = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
PATIENCE_S = 60


class OnceEach(Remembering):
    """Shows every picture once: `RobotClient` logs that there is no more."""

    shown = -1

    def get_observation(self):
        if self.shown == len(self.performed):
            raise BlockingIOError("no new pictures")
        self.shown = len(self.performed)
        seen = super().get_observation()
        return {key: torch.from_numpy(each) if KIND == "torch" and key in VIEWS else each for key, each in seen.items()}


robot_client.make_robot_from_config = OnceEach
config = RobotClientConfig(
    policy_type="act", pretrained_name_or_path="of_the_server", robot=RememberingConfig(names=JOINTS),
    actions_per_chunk=3, task="open the drawer", server_address=ADDRESS, fps=30, chunk_size_threshold=0.0,
)  # fmt: skip
client = robot_client.RobotClient(config)
assert client.start(), "the server refused"
threading.Thread(target=client.receive_actions, daemon=True).start()
threading.Thread(target=client.control_loop, args=(config.task,), daemon=True).start()
deadline = time.monotonic() + PATIENCE_S
while len(Remembering.performed) < COUNT and time.monotonic() < deadline:
    time.sleep(0.02)
client.stop()
print("RESULT", json.dumps(Remembering.performed[:COUNT]))

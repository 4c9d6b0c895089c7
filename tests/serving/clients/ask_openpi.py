"""Drive a server with openpi-client, as its examples do; print what came back."""

import json
import sys

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

host, port = sys.argv[1], int(sys.argv[2])


def observe(step):
    generator = np.random.default_rng(step)
    side, wrist = (generator.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(2))
    state = np.zeros(8)
    return {"observation/image": side, "observation/wrist_image": wrist, "observation/state": state,
            "prompt": "open the drawer"}  # fmt: skip


policy = WebsocketClientPolicy(host, port)
found = {"spec": policy.get_server_metadata()["policy_spec"]}
found["chunks"] = [policy.infer(observe(step))["actions"].tolist() for step in range(2)]
try:
    policy.infer({key: value for key, value in observe(2).items() if "wrist" not in key})
except RuntimeError as error:
    found["error"] = str(error)
broker = ActionChunkBroker(WebsocketClientPolicy(host, port), action_horizon=3)
found["steps"] = [broker.infer(observe(step))["actions"].tolist() for step in range(4)]
print(json.dumps(found))

"""lerobot's messages as its clients pickle them; lerobot is not installed here."""

from __future__ import annotations

import io
import pickle
import struct

from robovlms.serving.pickles import HELPERS


class TimedObservation:
    def __init__(self, observation, timestep=3):
        self.timestamp, self.timestep, self.observation, self.must_go = 100.0, timestep, observation, True


class RemotePolicyConfig:
    def __init__(self, features, actions_per_chunk=100):
        self.policy_type, self.pretrained_name_or_path, self.lerobot_features = "act", "x", features
        self.actions_per_chunk, self.device, self.rename_map = actions_per_chunk, "cpu", {}


class TimedAction:
    pass


def of_lerobot(value, protocol=4):
    """Return the pickle that lerobot writes of its own class."""
    data, name = pickle.dumps(value, protocol=protocol), type(value).__name__
    if protocol < 4:
        return data.replace(f"c{__name__}\n{name}\n".encode(), f"c{HELPERS}\n{name}\n".encode())
    ours, theirs = text(__name__), text(HELPERS)
    start, rest = data.split(ours, 1)
    size = struct.unpack("<Q", start[3:11])[0] + len(theirs) - len(ours)  # of the first frame
    return start[:3] + struct.pack("<Q", size) + start[11:] + theirs + rest


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


class Robot(pickle.Unpickler):
    """Unpickles as a robot does."""

    def find_class(self, module, name):
        return TimedAction if (module, name) == (HELPERS, "TimedAction") else super().find_class(module, name)


def unpickled(data):
    return Robot(io.BytesIO(data)).load()

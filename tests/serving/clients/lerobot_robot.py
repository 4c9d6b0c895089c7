"""A robot of lerobot that shows and feels noise, which the number of its actions decides, and remembers its actions."""

from dataclasses import dataclass

import numpy as np
from lerobot.robots import Robot, RobotConfig

SIZE = 40  # px
VIEWS = ("side", "wrist")


@RobotConfig.register_subclass("remembering")
@dataclass
class RememberingConfig(RobotConfig):
    suffix: str = ""  # of the joints' names
    names: str = "x,y,z,roll,pitch,yaw,gripper"


class Remembering(Robot):
    config_class, name = RememberingConfig, "remembering"
    is_connected = is_calibrated = True
    performed: list[list[float]] = []  # of all robots of the process: lerobot makes its own

    def __init__(self, config):
        super().__init__(config)
        self.names = [f"{name}{config.suffix}" for name in config.names.split(",")]
        self.action_features = dict.fromkeys(self.names, float)
        self.observation_features = self.action_features | dict.fromkeys(VIEWS, (SIZE, SIZE, 3))

    action_features = observation_features = None

    def connect(self, calibrate=True):
        pass

    calibrate = configure = disconnect = lambda self: None

    def get_observation(self):
        generator = np.random.default_rng(len(self.performed))
        seen = {view: generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for view in VIEWS}
        return dict(zip(self.names, generator.uniform(-1, 1, len(self.names)).tolist(), strict=True)) | seen

    def send_action(self, action):
        self.performed.append([float(action[name]) for name in self.names])
        return action

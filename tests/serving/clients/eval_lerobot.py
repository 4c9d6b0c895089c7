"""lerobot's own `lerobot-eval` plays two environments twice with a checkpoint of ours; prints the actions as JSON.

python eval_lerobot.py <checkpoint> <output_dir>
"""

import json
import sys
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.scripts import lerobot_eval
from lerobot.utils.import_utils import register_third_party_plugins

CHECKPOINT, OUTPUT = sys.argv[1:]
STEPS, SIZE = 10, 40
ACTIONS: list[list[float]] = []


class World(gym.Env):
    """Shows noise that its step decides, and remembers what it is told to do."""

    metadata = {"render_fps": 30}
    _max_episode_steps, task, task_description, render_mode = STEPS, "drawer", "open the drawer", "rgb_array"
    action_space = gym.spaces.Box(-1, 1, (7,), np.float32)
    observation_space = gym.spaces.Dict(
        pixels=gym.spaces.Dict({view: gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8) for view in ("side", "wrist")})
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.look(), {"is_success": False}

    def look(self):
        generator = np.random.default_rng(self.count)
        return {"pixels": {view: generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for view in ("side", "wrist")}}

    def step(self, action):
        ACTIONS.append([float(number) for number in action])
        self.count += 1
        done = self.count == STEPS
        return self.look(), 0.0, done, False, {"is_success": done}

    def render(self):
        return np.zeros((SIZE, SIZE, 3), np.uint8)


@EnvConfig.register_subclass("world")
@dataclass
class WorldConfig(EnvConfig):
    task: str = "World-v0"
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (7,)),
            "pixels/side": PolicyFeature(FeatureType.VISUAL, (SIZE, SIZE, 3)),
            "pixels/wrist": PolicyFeature(FeatureType.VISUAL, (SIZE, SIZE, 3)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            "action": "action",
            "pixels/side": "observation.images.side",
            "pixels/wrist": "observation.images.wrist",
        }
    )

    @property
    def gym_kwargs(self) -> dict:
        return {}


gym.register("gym_world/World-v0", World)
register_third_party_plugins()
sys.argv[1:] = [
    "--policy.type=robovlms", f"--policy.checkpoint={CHECKPOINT}", "--policy.device=cpu", "--env.type=world",
    "--policy.push_to_hub=false", "--eval.n_episodes=4", "--eval.batch_size=2", "--eval.use_async_envs=false",
    f"--output_dir={OUTPUT}",
]  # fmt: skip
lerobot_eval.eval_main()
print("RESULT", json.dumps(ACTIONS))

"""lerobot's factories make our policy, anew and of a folder that it was saved to; prints what both do as JSON.

python act_lerobot.py <checkpoint> <folder> <entries of an action> <entries of the state> <option=value ...>
"""

import json
import sys

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_policy, make_policy_config, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins

CHECKPOINT, FOLDER, ACTIONS, STATES, *OPTIONS = sys.argv[1:]
STEPS, RESET, SIZE = 20, 12, 40


class World:
    """An environment's features, as `make_policy` reads them."""

    features = {"action": PolicyFeature(FeatureType.ACTION, (int(ACTIONS),))}
    features_map = {"action": "action"}


def seen(step):
    generator = np.random.default_rng(step)
    frames = {view: generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for view in ("side", "wrist")}
    pictures = {f"observation.images.{view}": torch.from_numpy(each) for view, each in frames.items()}
    state = {"observation.state": torch.from_numpy(generator.uniform(-1, 1, int(STATES)).astype(np.float32))}
    pictures = {key: each.permute(2, 0, 1).float() / 255 for key, each in pictures.items()}
    return pictures | {"task": "open the drawer"} | (state if int(STATES) else {})


def act(config):
    """Return 20 actions, with a new episode after 12, and a chunk of another."""
    policy = make_policy(config, env_cfg=World())
    before, after = make_pre_post_processors(config, pretrained_path=config.pretrained_path)
    actions = []
    for step in range(STEPS):
        if step == RESET:
            policy.reset()
        actions.append(after(policy.select_action(before(seen(step))))[0].tolist())
    policy.reset()
    chunk = policy.predict_action_chunk(before(seen(0)))[0].tolist()
    return policy, (before, after), {"actions": actions, "chunk": chunk}


register_third_party_plugins()
policy, processors, made = act(
    make_policy_config("robovlms", checkpoint=CHECKPOINT, device="cpu",
                       **{key: float(value) for key, _, value in (each.partition("=") for each in OPTIONS)})
)  # fmt: skip
for each in (policy, *processors):
    each.save_pretrained(FOLDER)
config = type(policy.config).from_pretrained(FOLDER)
config.pretrained_path = FOLDER
print("RESULT", json.dumps([made, act(config)[2]]))

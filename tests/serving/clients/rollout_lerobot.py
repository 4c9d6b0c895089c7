"""lerobot's own `lerobot-rollout` moves a robot that remembers its actions; prints them as JSON.

python rollout_lerobot.py <checkpoint> <seconds> <joints>
"""

import json
import sys

from lerobot.scripts import lerobot_rollout
from lerobot_robot import Remembering

CHECKPOINT, DURATION, JOINTS = sys.argv[1:]
sys.argv[1:] = [
    "--policy.type=robovlms", f"--policy.checkpoint={CHECKPOINT}", "--policy.device=cpu", "--robot.type=remembering",
    "--robot.suffix=.pos", f"--robot.names={JOINTS}",
    "--task=open the drawer", f"--duration={DURATION}", "--play_sounds=false", "--return_to_initial_position=false",
]  # fmt: skip
lerobot_rollout.main()
print("RESULT", json.dumps(Remembering.performed))

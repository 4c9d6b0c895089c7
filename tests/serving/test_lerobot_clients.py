"""lerobot in a Python of its own: its robot client against our server, its evaluation with our policy."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from served import SINGLE, config_of, observation, served

from robovlms.policy.engine import PolicyEngine
from robovlms.types import Observation

ROOT = Path(__file__).parents[2]


def run_lerobot(script: str, *arguments: str, path: str = "") -> list[list[float]]:
    """Run a script with lerobot and return what it says of its actions, or skip."""
    python = os.environ.get("ROBOVLMS_LEROBOT_PYTHON", "")
    if not Path(python).is_file():
        pytest.skip("ROBOVLMS_LEROBOT_PYTHON names no Python with lerobot: see integrations/lerobot/README.md")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": path}
    command = [python, str(Path(__file__).parent / "clients" / script), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.rpartition("RESULT ")[2])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_lerobots_robot_client_performs_the_actions_of_the_policy(kind):
    with served(config_of(SINGLE, "protocol=lerobot")) as (address, _):
        performed = run_lerobot("drive_lerobot.py", address.removeprefix("grpc://"), kind, "6")
    generator = np.random.default_rng(0)
    frames = {view: generator.integers(0, 256, (40, 40, 3), np.uint8) for view in ("side", "wrist")}
    engine = PolicyEngine.from_checkpoint(SINGLE / "checkpoints" / "step_000002", config_of(SINGLE).engine)
    session = engine.open()
    seen = Observation(frames=frames, instruction="open the drawer")
    expected = engine.predict([(session, seen)])[0]
    np.testing.assert_allclose(performed[:3], expected, atol=1e-6)
    assert len(performed) == 6


@pytest.mark.slow
def test_lerobots_evaluation_acts_as_the_policy_does(tmp_path):
    path = f"{ROOT}{os.pathsep}{ROOT / 'integrations' / 'lerobot'}"
    performed = run_lerobot("eval_lerobot.py", str(SINGLE), str(tmp_path / "out"), path=path)
    engine = PolicyEngine.from_checkpoint(SINGLE / "checkpoints" / "step_000002", config_of(SINGLE).engine)
    expected = []
    for _ in range(2):  # rollouts of two rows each
        session = engine.open()
        for step in range(10):
            expected += 2 * [engine.step([(session, observation(step))])[0]]
    np.testing.assert_allclose(performed, expected, atol=1e-6)

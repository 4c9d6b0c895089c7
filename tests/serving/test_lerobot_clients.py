"""lerobot in a Python of its own: its robot client against our server, its evaluation with our policy."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import SINGLE, config_of, observation, served

from robovlms.policy.engine import PolicyEngine

ROOT = Path(__file__).parents[2]
PLUGIN = f"{ROOT}{os.pathsep}{ROOT / 'integrations' / 'lerobot'}"


def run_lerobot(script: str, *arguments: str, path: str = "") -> Any:
    """Run a script with lerobot and return what it says of its actions, or skip."""
    python = os.environ.get("ROBOVLMS_LEROBOT_PYTHON", "")
    if not Path(python).is_file():
        pytest.skip("ROBOVLMS_LEROBOT_PYTHON names no Python with lerobot: see integrations/lerobot/README.md")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": path}
    command = [python, str(Path(__file__).parent / "clients" / script), *arguments]
    with tempfile.TemporaryDirectory() as folder:  # for its logs
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=240, env=environment, check=False, cwd=folder
        )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.rpartition("RESULT ")[2])


def engine_of_single() -> PolicyEngine:
    return PolicyEngine.from_checkpoint(SINGLE / "checkpoints" / "step_000002", config_of(SINGLE).engine)


@pytest.mark.extended
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_lerobots_robot_client_performs_the_actions_of_the_policy(kind):
    with served(config_of(SINGLE, "protocol=lerobot")) as (address, _):
        performed = run_lerobot("drive_lerobot.py", address.removeprefix("grpc://"), kind, "9")
    engine = engine_of_single()
    session = engine.open()
    chunks = [engine.predict([(session, observation(step))])[0] for step in (0, 3, 5, 7)]
    expected = np.concatenate([chunks[0], *(chunk[1:] for chunk in chunks[1:])])  # the client drops what it has done
    np.testing.assert_allclose(performed, expected, atol=1e-6)


@pytest.mark.extended
def test_lerobots_evaluation_acts_as_the_policy_does(tmp_path):
    performed = run_lerobot("eval_lerobot.py", str(SINGLE), str(tmp_path / "out"), path=PLUGIN)
    engine = engine_of_single()
    expected = []
    for _ in range(2):  # rollouts of two rows each
        session = engine.open()
        for step in range(10):
            expected += 2 * [engine.step([(session, observation(step))])[0]]
    np.testing.assert_allclose(performed, expected, atol=1e-6)


@pytest.mark.extended
def test_lerobots_factories_make_a_policy_that_acts_as_ours_does(tmp_path):
    both = run_lerobot("act_lerobot.py", str(SINGLE), str(tmp_path / "saved"), path=PLUGIN)
    engine = engine_of_single()
    expected, session = [], engine.open()
    for step in range(20):
        if step == 12:
            session = engine.open()
        expected.append(engine.step([(session, observation(step))])[0])
    chunk = engine.predict([(engine.open(), observation(0))])[0]
    assert len(both) == 2
    for found in both:
        np.testing.assert_allclose(found["actions"], expected, atol=1e-6)
        np.testing.assert_allclose(found["chunk"], chunk, atol=1e-6)
    assert not (tmp_path / "saved" / "model.safetensors").exists()


@pytest.mark.extended
def test_lerobots_rollout_moves_a_robot_as_the_policy_says():
    performed = run_lerobot("rollout_lerobot.py", str(SINGLE), "3", path=PLUGIN)
    engine = engine_of_single()
    session = engine.open()
    assert len(performed) >= 4
    for step, action in enumerate(performed):
        np.testing.assert_allclose(action, engine.step([(session, observation(step))])[0], atol=1e-6)

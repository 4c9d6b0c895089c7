"""lerobot in a Python of its own: its robot client against our server, its evaluation with our policy."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from relative_arm import JOINTS, relative_arm, save
from served import SINGLE, config_of, observation, served

from robovlms.policy.engine import PolicyEngine, unwrap
from robovlms.types import Observation

ROOT = Path(__file__).parents[2]
POSE = "x,y,z,roll,pitch,yaw,gripper"
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
        performed = run_lerobot("drive_lerobot.py", address.removeprefix("grpc://"), kind, "9", POSE)
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
    both = run_lerobot("act_lerobot.py", str(SINGLE), str(tmp_path / "saved"), "7", "0", path=PLUGIN)
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
    performed = run_lerobot("rollout_lerobot.py", str(SINGLE), "3", POSE, path=PLUGIN)
    engine = engine_of_single()
    session = engine.open()
    assert len(performed) >= 4
    for step, action in enumerate(performed):
        np.testing.assert_allclose(action, engine.step([(session, observation(step))])[0], atol=1e-6)


ARM = [*JOINTS, "gripper"]
FIRST = ["data.proprio_seen=[elbow_flex]"]  # sees one joint, and moves relative to five: of six entries needs five
WIDTH = ["data.proprio_seen=[gripper,elbow_flex]", "data.convert.relative=[shoulder_pan,gripper]"]
WHOLE = ["data.proprio_seen=[elbow_flex]", f"data.convert.relative=[{','.join(ARM)}]"]  # six, in another order
SHOWN = ["data.proprio_seen=[gripper,wrist_roll]", "data.convert.relative_to=none"]


def felt(step: int) -> tuple[Observation, np.ndarray]:
    """Return what the arm sees at a step, and the whole state that it sends."""
    generator = np.random.default_rng(step)
    frames = {view: generator.integers(0, 256, (40, 40, 3), np.uint8) for view in ("side", "wrist")}
    state = generator.uniform(-1, 1, len(ARM)).astype(np.float32)
    return Observation(frames=frames, instruction="open the drawer"), state


class Arm:
    """Our engine's session of an arm, fed by name with what it needs of the state; grippers of 0 to 100."""

    def __init__(self, checkpoint: Path, closed: float = 0.0, opened: float = 100.0) -> None:
        self.engine, self.ends = PolicyEngine.from_checkpoint(checkpoint), (closed, opened)
        self.needed = [ARM.index(name) for name in self.engine.open().source.proprio_names]
        self.session = self.engine.open()

    def ask(self, how: str, step: int) -> np.ndarray:
        seen, state = felt(step)
        (answer,) = getattr(self.engine, how)([(self.session, replace(seen, proprio=state[self.needed]))])
        closed, opened = self.ends
        written = unwrap(answer).copy()
        written[..., -1] = closed + (written[..., -1] + 1) / 2 * (opened - closed)
        return written


@pytest.mark.extended
@pytest.mark.parametrize(
    ("options", "given"), [(FIRST, []), (WIDTH, []), (WHOLE, ["gripper_closed=1", "gripper_open=0"]), (SHOWN, [])],
    ids=["joints", "width", "whole", "shown"],
)  # fmt: skip
def test_lerobot_gets_absolute_actions_near_the_state_and_the_policy_the_entries_that_it_needs(
    tmp_path, options, given
):
    checkpoint = save(relative_arm(*options), tmp_path / "step_1")
    both = run_lerobot("act_lerobot.py", str(checkpoint), str(tmp_path / "saved"), "6", "6", *given, path=PLUGIN)
    ends = [float(each.partition("=")[2]) for each in given]
    arm = Arm(checkpoint, *ends)
    expected = []
    for step in range(20):
        if step == 12:
            arm.session.reset()
        expected.append(arm.ask("step", step))
    arm.session.reset()
    chunk = arm.ask("predict", 0)
    assert len(both) == 2
    for found in both:
        np.testing.assert_allclose(found["actions"], expected, atol=1e-5)
        np.testing.assert_allclose(found["chunk"], chunk, atol=1e-5)


@pytest.mark.extended
def test_lerobots_rollout_moves_an_arm_relative_to_where_it_is(tmp_path):
    checkpoint = save(relative_arm(*WIDTH), tmp_path / "step_1")
    performed = run_lerobot("rollout_lerobot.py", str(checkpoint), "3", ",".join(ARM), path=PLUGIN)
    arm = Arm(checkpoint)
    assert len(performed) >= 4
    for step, action in enumerate(performed):
        np.testing.assert_allclose(action, arm.ask("step", step), atol=1e-4)


@pytest.mark.extended
def test_lerobots_robot_client_moves_an_arm_relative_to_where_it_is(tmp_path):
    checkpoint = save(relative_arm(*WIDTH), tmp_path / "step_1")
    protocol = ["protocol=lerobot", f"protocol.proprio_names=[{','.join(ARM)}]", "protocol.gripper_closed=0",
                "protocol.gripper_open=100"]  # fmt: skip
    with served(config_of(checkpoint, *protocol)) as (address, _):
        performed = run_lerobot("drive_lerobot.py", address.removeprefix("grpc://"), "numpy", "6", ",".join(ARM))
    arm = Arm(checkpoint)
    chunks = [arm.ask("predict", step) for step in (0, 2, 3, 4, 5)]
    expected = np.concatenate([chunks[0], *(chunk[1:] for chunk in chunks[1:])])  # of two actions each
    np.testing.assert_allclose(performed, expected, atol=1e-4)

"""Robots without a gripper: what training adds for them stays in training."""

import json
from dataclasses import replace

import numpy as np
import pytest
from calvin_folder import tiny_run
from composing import completed, composed
from mixed_data import make_arm_folder

from robovlms.commands.train import train
from robovlms.config.choices import Execution
from robovlms.errors import UserError
from robovlms.policy.checkpoint import load_policy, resolve_checkpoint
from robovlms.policy.execution import Chunk, ChunkExecutor
from robovlms.policy.runner import PolicyRunner
from robovlms.types import Observation


@pytest.fixture(scope="module")
def trained(calvin_folder, tmp_path_factory):
    """Return the config and the run of a policy for an arm of two entries."""
    folder, run = make_arm_folder(tmp_path_factory.mktemp("arm") / "demos"), tmp_path_factory.mktemp("run")
    base = [line for line in tiny_run(calvin_folder, run) if not line.startswith(("data.", "experiment"))]
    config = completed(composed(
        *base, "data=lerobot", f"data.root={folder}", "data.num_workers=0", "view=side", "~data.views.wrist",
        "~data.shift.wrist", "schedule.total=2 step",
        "data.contract={names:[dx,dy],representation:delta,frame:world,rotation:none,position_unit:0.02,control_hz:20}",
    ))  # fmt: skip
    return config, train(config)


def observation():
    return Observation(frames={"side": np.zeros((24, 20, 3), np.uint8)}, instruction="go 0")


@pytest.mark.parametrize("execution", list(Execution))
def test_actions_have_the_recorded_entries(trained, execution):
    _, run = trained
    if execution is Execution.real_time:
        with pytest.raises(UserError, match="real_time needs a head"):
            PolicyRunner.from_checkpoint(resolve_checkpoint(run), execution=execution)
        return
    runner = PolicyRunner.from_checkpoint(resolve_checkpoint(run), execution=execution)
    actions = np.stack([runner.step(observation()) for _ in range(3)])
    assert actions.shape == (3, 2)
    assert (np.abs(actions[:, 1]) < 0.99).all(), "dy is no gripper"


def test_a_policy_takes_its_own_contract_and_says_it(trained):
    config, run = trained
    checkpoint = resolve_checkpoint(run)
    PolicyRunner.from_checkpoint(checkpoint, contract=config.data.contract)
    PolicyRunner.from_checkpoint(checkpoint, contract=replace(config.data.contract, gripper_open=0.0))
    spec = load_policy(checkpoint).spec
    assert spec.find(None).contract.names == ["dx", "dy"]
    spec.check_environment(config.data.contract, "the robot")
    with pytest.raises(UserError, match=r"names: policy \['dx', 'dy'\], the environment \['dx', 'dy', 'gripper'\]"):
        PolicyRunner.from_checkpoint(checkpoint, contract=replace(config.data.contract, names=["dx", "dy", "gripper"]))


def test_no_metric_is_about_a_gripper(trained):
    _, run = trained
    folder = resolve_checkpoint(run).parents[1]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row}
    assert {"val/action_error", "val/loss", "train/arm"} <= names
    assert not [name for name in names if "gripper" in name]


def test_an_ensemble_averages_a_last_entry_that_is_no_gripper(trained):
    config, _ = trained
    executor = ChunkExecutor(Execution.ensemble, 1, config.data.contract)
    for made in range(2):
        executor.add(Chunk(made, np.full((3, 2), 0.25 * (1 + made), np.float32)))
    assert executor.action(1)[1] == pytest.approx(0.375, abs=0.01)

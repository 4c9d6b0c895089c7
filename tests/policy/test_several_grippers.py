"""Two arms, one gripper open or closed, the other a width, neither the last entry: from a folder to a robot."""

import json
from pathlib import Path

import numpy as np
import pytest
from calvin_folder import tiny_run
from composing import completed, composed
from mixed_data import TWO_HANDS, make_two_hands_folder, two_hands
from served import config_of, served

from robovlms.actions.statistics import load_statistics
from robovlms.client import PolicyClient
from robovlms.commands.train import train
from robovlms.config.choices import Execution
from robovlms.policy.checkpoint import load_policy, resolve_checkpoint
from robovlms.policy.runner import PolicyRunner
from robovlms.types import ActionPrefix, Observation

LEFT, RIGHT = 0, 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the run folder of a policy that denoises, so that its chunks can be continued."""
    folder, output = make_two_hands_folder(tmp_path_factory.mktemp("hands") / "demos"), tmp_path_factory.mktemp("run")
    base = [line for line in tiny_run(Path("nowhere"), output) if not line.startswith(("data.", "experiment", "head."))]
    small = ["head=flow", "head.hidden_dim=8", "head.num_layers=1", "head.num_heads=2", "schedule.total=2 step"]
    train(completed(composed(*base, *two_hands(folder), *small)))
    return output


def observation(prefix=None):
    frames = {"side": np.zeros((24, 20, 3), np.uint8)}
    return Observation(frames=frames, instruction="go 0", proprio=np.full(4, 0.04, np.float32), prefix=prefix)


@pytest.mark.slow
@pytest.mark.parametrize("execution", list(Execution))
def test_a_robot_gets_the_datas_entries_in_their_order_in_the_policys_terms(run, execution):
    runner = PolicyRunner.from_checkpoint(resolve_checkpoint(run), execution=execution)
    actions = np.stack([runner.step(observation()) for _ in range(3)])
    assert actions.shape == (3, 4)
    assert set(actions[:, LEFT]) <= {-1.0, 1.0}
    assert (np.abs(actions[:, RIGHT]) != 1).all()
    assert (actions[:, [1, 3]] <= 0.08).all()


@pytest.mark.slow
def test_a_checkpoint_says_which_grippers_are_widths_and_has_their_statistics(run):
    trained = load_policy(resolve_checkpoint(run))
    contract = trained.spec.find(None).contract
    assert (contract.names, contract.continuous_grippers) == (TWO_HANDS, ["right/gripper"])
    stats = load_statistics(resolve_checkpoint(run) / "action_stats.json")["lerobot"]
    assert stats.q99[RIGHT] == pytest.approx(1, abs=0.1)
    assert stats.q99[3] == pytest.approx(0.08, abs=0.005)
    assert trained.policy.head.gripper[-1].out_features == 3 * 1, (
        "a decision for each action of a chunk, of one gripper"
    )


@pytest.mark.slow
def test_metrics_count_the_width_among_the_numbers_and_the_other_among_the_decisions(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    names = {name for row in rows for name in row}
    assert {"val/gripper_accuracy", "val/gripper", "val/arm", "val/action_error"} <= names


@pytest.mark.slow
def test_a_client_gets_and_sends_back_its_own_closed_and_open(run):
    engine = PolicyRunner.from_checkpoint(resolve_checkpoint(run)).engine
    seen = {"side": np.zeros((24, 20, 3), np.uint8), "instruction": "go 0", "proprio": np.full(4, 0.04, np.float32)}
    config = config_of(run, "protocol.gripper_closed=0", "protocol.gripper_open=0.08")
    with served(config) as (address, _), PolicyClient(address) as client:
        assert client.metadata["action"]["continuous_grippers"] == ["right/gripper"]
        first = client.act(seen)
        expected = engine.predict([(session := engine.open(), observation())])[0]
        ours = expected.copy()
        ours[:, [LEFT, RIGHT]] = (ours[:, [LEFT, RIGHT]] + 1) / 2 * 0.08
        np.testing.assert_allclose(first, ours, atol=1e-6)
        given = np.array([[0.08, 0.02, 0.06, 0.02]], np.float32)
        spoken = np.array([[1, 0.02, 0.5, 0.02]], np.float32)
        second = client.act({**seen, "request": {"number": 1, "prefix": given, "delay": 1}})
        (expected,) = engine.predict([(session, observation(ActionPrefix(actions=spoken, delay=1)))])
        ours = expected.copy()
        ours[:, [LEFT, RIGHT]] = (ours[:, [LEFT, RIGHT]] + 1) / 2 * 0.08
        np.testing.assert_allclose(second, ours, atol=1e-6)
        assert second[0, RIGHT] == pytest.approx(0.06, abs=1e-3), "what was decided is kept"

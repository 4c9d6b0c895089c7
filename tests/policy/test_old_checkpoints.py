"""Checkpoints written before the package had folders load, act and resume as they did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from calvin_folder import losses, make_calvin_folder
from composing import completed, composed
from mixed_data import make_arm_folder

from robovlms.commands.train import train
from robovlms.config.renamed import RENAMED
from robovlms.policy.checkpoint import checkpoints, load_policy
from robovlms.policy.runner import PolicyRunner
from robovlms.types import Observation

FOLDER = Path(__file__).parents[1] / "old_checkpoints"
# Pictures are resized in integers on a CPU since, within 1/255 of what they were; in floats all is as it was, to 1e-6.
ACTIONS_ATOL, LOSSES_RTOL = 2e-5, 1e-5
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "source"), [("single", None), ("mixture", "play")])
def test_an_old_checkpoint_acts_as_it_did(name: str, source: str | None) -> None:
    runner = PolicyRunner.from_checkpoint(checkpoints(FOLDER / name)[-1], source=source)
    generator = np.random.default_rng(1)
    for expected in EXPECTED[name]["actions"]:
        frames = {
            "side": generator.integers(0, 256, (32, 32, 3), dtype=np.uint8),
            "wrist": generator.integers(0, 256, (16, 16, 3), dtype=np.uint8),
        }
        action = runner.step(Observation(frames=frames, instruction="reach target 1"))
        np.testing.assert_allclose(action, expected, atol=ACTIONS_ATOL)


def test_an_old_checkpoint_of_data_without_a_gripper_acts_as_it_did_though_none_is_added_any_more() -> None:
    folder = checkpoints(FOLDER / "without_gripper")[-1]
    runner = PolicyRunner.from_checkpoint(folder)
    generator = np.random.default_rng(1)
    for expected in EXPECTED["without_gripper"]["actions"]:
        frames = {"side": generator.integers(0, 256, (24, 20, 3), dtype=np.uint8)}
        action = runner.step(Observation(frames=frames, instruction="go 0"))
        np.testing.assert_allclose(action, expected, atol=ACTIONS_ATOL)
    trained = load_policy(folder)
    assert trained.plan.action_names == ["dx", "dy", "gripper"]
    assert trained.spec.find(None).contract.names == ["dx", "dy"]


def test_an_old_mixture_keeps_its_sources() -> None:
    config, _, statistics, _ = load_policy(checkpoints(FOLDER / "mixture")[-1])
    assert list(config.data.sources) == list(statistics) == ["play", "arm"]


@pytest.mark.slow
def test_an_old_run_is_resumed_to_the_same_losses(tmp_path: Path) -> None:
    calvin, run = make_calvin_folder(tmp_path / "calvin"), tmp_path / "run"
    shutil.copytree(FOLDER / "single", run)
    overrides = [_moved(line, calvin, tmp_path / "arm", run) for line in EXPECTED["single"]["overrides"]]
    train(completed(composed(*overrides, "trainer.resume=auto")))
    np.testing.assert_allclose(losses(run), EXPECTED["single"]["losses"][2:], rtol=LOSSES_RTOL)


@pytest.mark.slow
def test_an_old_command_line_of_a_mixture_gives_the_same_losses_under_its_new_names(tmp_path: Path) -> None:
    calvin, arm, run = make_calvin_folder(tmp_path / "calvin"), make_arm_folder(tmp_path / "arm"), tmp_path / "run"
    train(completed(composed(*(_moved(line, calvin, arm, run) for line in EXPECTED["mixture"]["overrides"]))))
    np.testing.assert_allclose(losses(run), EXPECTED["mixture"]["losses"], rtol=LOSSES_RTOL)


def _moved(override: str, calvin: Path, arm: Path, run: Path) -> str:
    """Return an override of the recorded command with today's folders and keys."""
    key, equals, value = override.partition("=")
    for old, new in RENAMED.items():
        key = key.replace(old, new)
    if key == "output_dir":
        value = str(run)
    elif key.endswith("root"):
        value = str(arm if key.endswith("arm.root") else calvin)
    return f"{key}{equals}{value}"

"""Runs on relative actions: they resume, their checkpoints ask for a state and act from it, alone and in mixtures."""

import json

import numpy as np
import pytest
from calvin_folder import assert_same_state, losses, tiny_run
from composing import completed, composed
from robot_folders import ROBOTS, write_robot

from robovlms.commands.train import train
from robovlms.errors import UserError
from robovlms.policy.checkpoint import load_policy, resolve_checkpoint
from robovlms.policy.engine import PolicyEngine, unwrap
from robovlms.types import Observation

pytestmark = pytest.mark.slow

ARM = [name.removesuffix(".pos") for name in ROBOTS["so101"][1]]
CONTRACT = (
    f"names:[{','.join(ARM)}],representation:absolute,frame:joint,rotation:none,position_unit:null,"
    "gripper_closed:-1,gripper_open:1,continuous_grippers:[gripper],control_hz:30"
)

SHORT = ["schedule.total=2 step", "schedule.warmup=1 step", "trainer.save_every=1 step"]


def options(root, output_dir, *extra):
    base = [line for line in tiny_run(root, output_dir) if not line.startswith(("data", "experiment"))]
    return [*base, "data.num_workers=0", "window=w1_c10", "window.chunk_size=3", *SHORT, *extra]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_robot(tmp_path_factory.mktemp("so101") / "demos", "so101", episodes=4)


@pytest.fixture(scope="module")
def mixed(root, tmp_path_factory):
    """Return the options of a mixture of an arm's relative and absolute actions, and its run."""
    both = ["data=mixture", "+data@data.sources.relative=so101", "+data@data.sources.absolute=so101"]
    both += [f"data.sources.{name}.{option}" for name in ("relative", "absolute")
             for option in (f"root={root}", "validation_fraction=0.25")]  # fmt: skip
    both += [f"data.contract={{{CONTRACT}}}", "data.sources.relative.convert.relative_to=state"]
    run = tmp_path_factory.mktemp("run")
    train(completed(composed(*options(root, run / "whole", *both))))
    return both, run


def test_one_step_and_a_resume_equal_two_steps_bit_for_bit(root, mixed):
    both, run = mixed
    for total in (1, 2):
        resume = ["trainer.resume=auto", f"schedule.total={total} step"]
        train(completed(composed(*options(root, run / "part", *both, *resume))))
    assert_same_state(run / "whole", run / "part")
    assert losses(run / "whole") == losses(run / "part")


def look(step, names, proprio):
    generator = np.random.default_rng(step)
    frames = {view: generator.integers(0, 256, (32, 32, 3), np.uint8) for view in ("side", "wrist")}
    return Observation(frames=frames, instruction="wave", proprio=proprio)


def test_a_checkpoint_asks_for_the_state_and_gives_absolute_actions_near_it(mixed):
    _, run = mixed
    checkpoint = resolve_checkpoint(run / "whole")
    trained = load_policy(checkpoint)
    relative, absolute = (trained.spec.find(name) for name in ("relative", "absolute"))
    assert (relative.proprio_names, absolute.proprio_names) == (ARM[:5], [])
    assert relative.contract == absolute.contract
    steps = json.loads((checkpoint / "action_stats.json").read_text())["relative"]["action"]["steps"]
    assert len(steps) == 3
    engine = PolicyEngine.from_checkpoint(checkpoint)
    for offset in (0, 50):  # the truth is 0.01 ahead of the state; an absolute policy would not follow it
        state = np.full(5, offset, np.float32)
        chunk = unwrap(engine.predict([(engine.open("relative"), look(0, ARM, state))])[0])
        assert np.abs(chunk[:, :5] - offset).max() < 0.3
    with pytest.raises(UserError, match="needs proprioception of 5 entries"):
        unwrap(engine.predict([(engine.open("relative"), look(0, ARM, None))])[0])
    assert unwrap(engine.predict([(engine.open("absolute"), look(0, ARM, None))])[0]).shape == (3, 6)


def test_each_source_is_measured_against_its_own_mean_action(mixed):
    _, run = mixed
    rows = [json.loads(line) for line in (run / "whole/metrics.jsonl").read_text().splitlines()]
    found = {name: value for row in rows for name, value in row.items()}
    assert np.isfinite([found[f"val/{name}/mean_action_error"] for name in ("relative", "absolute")]).all()

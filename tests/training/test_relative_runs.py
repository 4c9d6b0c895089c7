"""Runs on relative actions, in a mixture with absolute ones: read natively, packed, resumed, in one process or two,
from the weights of another; what their checkpoints ask for and give.
"""

import json

import numpy as np
import pytest
import torch
from calvin_folder import assert_same_state, losses, tiny_run
from composing import completed, composed, plan_of
from launching import launch
from robot_folders import ROBOTS, write_robot

from robovlms.commands.convert_data import convert_data
from robovlms.commands.train import train
from robovlms.config.commands import ConvertDataConfig
from robovlms.errors import UserError
from robovlms.policy.checkpoint import load_policy, resolve_checkpoint
from robovlms.policy.engine import PolicyEngine, unwrap
from robovlms.policy.policy import VLAPolicy
from robovlms.training.warm_start import init_weights
from robovlms.types import Observation

pytestmark = pytest.mark.slow

ARM = [name.removesuffix(".pos") for name in ROBOTS["so101"][1]]
CONTRACT = (
    f"names:[{','.join(ARM)}],representation:absolute,frame:joint,rotation:none,position_unit:null,"
    "gripper_closed:-1,gripper_open:1,continuous_grippers:[gripper],control_hz:30"
)

SHORT = ["schedule.total=4 step", "schedule.warmup=1 step", "trainer.save_every=2 step",
         "trainer.max_validation_batches=null"]  # fmt: skip
NAMES = ("relative", "absolute")


def options(root, output_dir, *extra):
    base = [line for line in tiny_run(root, output_dir) if not line.startswith(("data", "experiment"))]
    return [*base, "data.num_workers=0", "window=w1_c10", "window.chunk_size=3", *SHORT, *extra]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_robot(tmp_path_factory.mktemp("so101") / "demos", "so101", episodes=4)


@pytest.fixture(scope="module")
def both(root, tmp_path_factory):
    """Return the options of a mixture of an arm's relative and absolute actions."""
    cache = tmp_path_factory.mktemp("cache")
    lines = ["data=mixture", *(f"+data@data.sources.{name}=so101" for name in NAMES)]
    lines += [f"data.sources.{name}.{option}" for name in NAMES
              for option in (f"root={root}", "validation_fraction=0.25", f"cache_dir={cache}")]  # fmt: skip
    return [*lines, f"data.contract={{{CONTRACT}}}", "data.sources.relative.convert.relative_to=state"]


@pytest.fixture(scope="module")
def run(root, both, tmp_path_factory):
    """Return the folder of runs, of which the first, `whole`, is done."""
    folder = tmp_path_factory.mktemp("run")
    train(completed(composed(*options(root, folder / "whole", *both))))
    return folder


def assert_two_and_two_steps_are_the_four_of(whole, root, part, *extra):
    for total in (2, 4):
        resume = ["trainer.resume=auto", f"schedule.total={total} step"]
        train(completed(composed(*options(root, part, *extra, *resume))))
    assert_same_state(whole, part)
    assert losses(whole) == losses(part)


def test_two_steps_and_two_resumed_equal_four_bit_for_bit(root, both, run):
    assert_two_and_two_steps_are_the_four_of(run / "whole", root, run / "part", *both)


def test_packed_copies_give_the_same_run_whole_and_resumed_bit_for_bit(root, both, run):
    packing = composed(*both, "view=side_wrist", "pack.workers=1", config_name="convert_data")
    summaries = convert_data(completed(packing, schema=ConvertDataConfig))
    assert len(summaries) == 4  # two splits of two sources
    packed = [*both, *(f"data.sources.{name}.cache=packed" for name in NAMES)]
    train(completed(composed(*options(root, run / "packed", *packed))))
    assert losses(run / "whole") == losses(run / "packed")
    assert statistics(run / "whole") == statistics(run / "packed")
    assert_two_and_two_steps_are_the_four_of(run / "packed", root, run / "packed_part", *packed)


def statistics(folder):
    return (resolve_checkpoint(folder) / "action_stats.json").read_text()


def test_two_processes_have_the_statistics_and_the_losses_of_one(root, both, run, tmp_path):
    fresh = [f"data.sources.{name}.cache_dir={tmp_path}" for name in NAMES]
    launch(2, [options(root, run / "two", *both, *fresh)], tmp_path)
    for name in ("train/loss", "train/grad_norm", "val/loss", "val/action_error", "val/relative/mean_action_error"):
        assert losses(run / "two", name) == pytest.approx(losses(run / "whole", name), abs=1e-5)
    assert statistics(run / "two") == statistics(run / "whole")
    assert len(list(tmp_path.glob("steps-*.npz"))) == 1


def look(step, names, proprio):
    generator = np.random.default_rng(step)
    frames = {view: generator.integers(0, 256, (32, 32, 3), np.uint8) for view in ("side", "wrist")}
    return Observation(frames=frames, instruction="wave", proprio=proprio)


def test_a_checkpoint_asks_for_the_state_and_gives_absolute_actions_near_it(run):
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


def test_each_source_is_measured_against_its_own_mean_action(run):
    rows = [json.loads(line) for line in (run / "whole/metrics.jsonl").read_text().splitlines()]
    found = {name: value for row in rows for name, value in row.items()}
    assert np.isfinite([found[f"val/{name}/mean_action_error"] for name in ("relative", "absolute")]).all()


ALONE = ["data=so101", "data.validation_fraction=0.25"]
RELATIVE = [*ALONE, "data.convert.relative_to=state"]


def warmed(root, folder, run, *extra):
    """Return a policy that starts from the weights of another run."""
    config = completed(composed(*options(root, folder, *extra)))
    policy = VLAPolicy.from_config(config, plan_of(config))
    parts = init_weights(policy, config, resolve_checkpoint(run))
    return policy, parts


def test_a_relative_run_starts_from_a_relative_one_and_moves_with_the_state_at_once(root, run, tmp_path):
    old = load_policy(resolve_checkpoint(run / "whole")).policy.state_dict()
    policy, parts = warmed(root, tmp_path, run / "whole", f"data.root={root}", *RELATIVE)
    assert parts == set()
    assert all(torch.equal(value, old[key]) for key, value in policy.state_dict().items())
    given = [f"data.root={root}", f"data.normalization.statistics_file={run / 'whole'}",
             "data.normalization.statistics_key=relative", f"trainer.init_from={run / 'whole'}",
             "optimizer.lr=1e-12"]  # fmt: skip
    train(completed(composed(*options(root, tmp_path / "run", *RELATIVE, *given))))
    before, after = (
        PolicyEngine.from_checkpoint(resolve_checkpoint(each)) for each in (run / "whole", tmp_path / "run")
    )
    for offset in (0, 50):
        seen = look(0, ARM, np.full(5, offset, np.float32))
        was = unwrap(before.predict([(before.open("relative"), seen)])[0])
        np.testing.assert_allclose(unwrap(after.predict([(after.open(), seen)])[0]), was, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["data.convert.relative=[elbow_flex]", "data.convert.relative_to=state"],
         "are shoulder_pan, shoulder_lift, elbow_flex, wrist_flex, wrist_roll, those of lerobot now elbow_flex"),
        (["data.convert.relative=[elbow_flex,gripper]", "data.convert.relative_to=state"], "now elbow_flex, gripper"),
    ],
)  # fmt: skip
def test_other_relative_entries_than_those_of_any_old_source_are_refused(root, run, tmp_path, changes, said):
    with pytest.raises(UserError, match=rf"trainer\.init_from(.|\n)*{said}(.|\n)*Set data\.convert\.relative_to and"):
        warmed(root, tmp_path, run / "whole", f"data.root={root}", *ALONE, *changes)


def test_a_source_is_held_against_the_old_one_of_its_name(root, both, run, tmp_path):
    warmed(root, tmp_path, run / "whole", *both)
    swapped = [line.replace(".relative.convert", ".absolute.convert") for line in both]
    with pytest.raises(UserError, match=r"that relative learned(.|\n)*shoulder_pan(.|\n)*of relative now none"):
        warmed(root, tmp_path, run / "whole", *swapped)
    warmed(root, tmp_path, run / "whole", *ALONE, f"data.root={root}")  # its name is new: as any of them


def test_absolute_weights_are_not_taken_for_relative_ones_nor_the_reverse(root, tmp_path):
    where = [f"data.root={root}", "schedule.total=1 step", "trainer.save_every=1 step"]
    for name, kind in (("relative", RELATIVE), ("absolute", ALONE)):
        train(completed(composed(*options(root, tmp_path / name, *kind, *where))))
    with pytest.raises(UserError, match=r"state are shoulder_pan, .*, those of lerobot now none"):
        warmed(root, tmp_path, tmp_path / "relative", *ALONE, *where)
    with pytest.raises(UserError, match="state are none, those of lerobot now shoulder_pan"):
        warmed(root, tmp_path, tmp_path / "absolute", *RELATIVE, *where)

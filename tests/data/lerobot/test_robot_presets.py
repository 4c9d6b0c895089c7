"""Presets of public robots, on folders with the feature names that these robots record, and on a real recording."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from composing import completed, composed, open_windows, plan_of
from robot_folders import ROBOTS, SIDES, write_robot

from robovlms.data.opening import open_sources
from robovlms.data.statistics import compute_statistics
from robovlms.errors import UserError


def opened(root, preset, *extra):
    return completed(composed(
        f"data={preset}", f"data.root={root}", "data.num_workers=0", "data.validation_fraction=0", "window=w1_c10",
        "window.chunk_size=4", f"data.cache_dir={root}.cache", *extra,
    ))  # fmt: skip


def came_back(config):
    """Return recorded chunks of a run's data and what normalising them and back makes of them, and the plan."""
    plan, data = plan_of(config), open_windows(config, "train")
    stats = compute_statistics(plan, open_sources(plan, config.window, "train"))
    (normalizer,), chunk_size = plan.normalizers(stats), config.window.chunk_size
    samples = [data[i] for i in range(0, len(data), max(len(data) // 20, 1))]
    pairs = [(s, torch.from_numpy(s.actions[:chunk_size]), torch.from_numpy(s.state[0])) for s in samples]
    back = [normalizer.denormalize(normalizer.normalize(chunk, state), state).numpy() for _, chunk, state in pairs]
    real = np.concatenate([sample.action_mask[:chunk_size] for sample in samples])
    return np.concatenate([c.numpy() for _, c, _ in pairs])[real], np.concatenate(back)[real], plan


@pytest.mark.parametrize("preset", ROBOTS)
def test_a_preset_reads_what_the_robot_records_and_relative_chunks_of_it_come_back(tmp_path, preset):
    config = opened(write_robot(tmp_path / "demos", preset), preset, "data.convert.relative_to=state",
                    "data.normalization.mode=min_max")  # fmt: skip
    recorded, back, plan = came_back(config)
    np.testing.assert_allclose(back, recorded, atol=1e-5)
    (source,) = plan.sources
    grippers = [source.contract.names[i] for i in source.contract.grippers]
    assert plan.binary == []
    assert [entry.name for entry in source.relative] == [n for n in plan.action_names if n not in grippers]
    assert plan.proprio_names == []
    if grippers:
        ends = recorded[:, source.contract.grippers]
        np.testing.assert_allclose([ends.min(), ends.max()], [-1, 1], atol=1e-5)


@pytest.mark.parametrize("preset", ["so101", "aloha_lerobot", "unitree_g1_dex1"])
def test_opening_widths_that_are_chosen_are_relative_too_and_come_back(tmp_path, preset):
    root = write_robot(tmp_path / "demos", preset)
    names = opened(root, preset).data.contract.names
    config = opened(root, preset, f"data.convert={{relative_to:state,relative:[{','.join(names)}]}}",
                    "data.normalization.mode=identity")  # fmt: skip
    recorded, back, plan = came_back(config)
    np.testing.assert_allclose(back, recorded, atol=1e-5)
    (source,) = plan.sources
    stats = compute_statistics(plan, open_sources(plan, config.window, "train"))[source.name]
    for gripper in source.contract.grippers:  # which is told to be where it is, and closes in 11 steps, from 1 to -1
        assert stats.steps[0].std[gripper] < 1e-5
        np.testing.assert_allclose([step.mean[gripper] for step in stats.steps], -2 / 11 * np.arange(4), atol=1e-5)


@pytest.mark.parametrize("preset", ROBOTS)
def test_a_recording_in_another_order_is_refused_by_name(tmp_path, preset):
    names = ROBOTS[preset][1]
    root = write_robot(tmp_path / "demos", preset, [names[1], names[0], *names[2:]])
    with pytest.raises(UserError, match="is recorded as entry"):
        open_windows(opened(root, preset), "train")


def test_a_real_franka_comes_back_from_joints_relative_to_its_state(shared_data, tmp_path):
    root = shared_data / "lerobot_v21_franka_sim_internvla" / "sim_pick_place"
    config = opened(root, "franka_joint", f"data.cache_dir={tmp_path}", "data.skip_bad=true",
                    "data.normalization.mode=min_max", "data.convert.relative_to=state")  # fmt: skip
    recorded, back, plan = came_back(config)
    assert [entry.name for entry in plan.sources[0].relative] == [f"joint{i}" for i in range(1, 8)]
    assert np.abs(back - recorded).max() <= 1e-6 * np.ptp(recorded)
    assert set(recorded[:, 7]) == {-1.0, 1.0}


def test_arms_of_a_real_humanoid_are_relative_and_its_hands_are_not(shared_data, tmp_path):
    root = shared_data / "lerobot_v20_gr1_sim_pick_place" / "robot_sim.PickNPlace"
    arms = [f"{side}/arm{joint}" for side in SIDES for joint in range(7)]
    hands = [f"{side}/hand{joint}" for side in SIDES for joint in range(6)]
    key = "{0}[0:7]+{0}[22:29]+{0}[7:13]+{0}[29:35]"
    contract = f"names:[{','.join(arms + hands)}],gripper_closed:0,gripper_open:1,continuous_grippers:[],control_hz:20"
    config = opened(
        root, "unitree_g1", f"data.contract={{{contract}}}", "data.action_key='" + key.format("action") + "'",
        "data.proprio_key='" + key.format("observation.state") + "'", f"data.cache_dir={tmp_path}",
        "data.views.side=observation.images.ego_view", "view=side", "~data.views.wrist", "~data.shift.wrist",
        "data.convert={relative_to:state,relative:[" + ",".join(arms) + "]}", "data.normalization.mode=min_max",
    )  # fmt: skip
    config = replace(config, data=replace(config.data, skip_bad=True))
    recorded, back, plan = came_back(config)
    assert len(plan.sources[0].relative) == 14
    assert np.abs(back - recorded).max() <= 1e-6 * np.ptp(recorded)

"""Checkpoints of RoboVLMs become checkpoints of ours: every tensor, the configuration, the normalisation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import composed
from omegaconf import OmegaConf
from released_files import configuration, convert, vlm, weights, write

from robovlms.actions.plan import DataPlan
from robovlms.config.choices import NormalizationMode, Rotation, Structure
from robovlms.config.data import DataConfig
from robovlms.config.policy import LoRAConfig
from robovlms.policy.checkpoint import load_config, load_policy
from robovlms.policy.manifest import check_checkpoint
from robovlms.policy.policy import VLAPolicy
from robovlms.policy.runner import PolicyRunner
from robovlms.training.warm_start import init_weights
from robovlms.types import Observation

UNREAD = (  # what no action depends on, and second names
    "lm_head", "embed_out", ".attn.bias", "masked_bias", "visual.proj", "old_decoder", "gated_cross_attn_layer.",
    "rotary",
)  # fmt: skip


def data(*overrides: str) -> DataConfig:
    """Return the data of the command's own config."""
    whole = composed("source=x", "config=x", "output_dir=x", *overrides, config_name="convert_checkpoint")
    found: Any = OmegaConf.to_object(whole.data)
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: vlm(family, tmp_path_factory.mktemp(family)) for family in ("kosmos", "paligemma", "flamingo")}


CASES = [
    ("kosmos", "lstm", {}, "kosmos", Structure.policy_head),
    ("kosmos", "lstm", {"window_size": 16, "use_hand_rgb": False}, "kosmos", Structure.policy_head),
    ("kosmos", "gpt", {}, "kosmos", Structure.policy_head),
    ("kosmos", "mlp", {}, "kosmos", Structure.policy_head),
    ("kosmos", "mlp", {"window_size": 1}, "kosmos", Structure.one_step),
    ("kosmos", "mlp", {"act_head": {"history_type": "pre"}}, "kosmos_upstream", Structure.interleaved),
    ("paligemma", "lstm", {}, "paligemma_upstream", Structure.policy_head),
    ("paligemma", "mlp", {"act_head": {"history_type": "pre"}}, "paligemma_upstream", Structure.interleaved),
    ("flamingo", "lstm", {}, "flamingo_upstream", Structure.policy_head),
]


@pytest.mark.parametrize(("family", "head", "changes", "backbone", "structure"), CASES)
def test_a_released_checkpoint_is_taken_tensor_by_tensor_and_acts(
    family, head, changes, backbone, structure, folders, tmp_path
):
    tensors = weights(family, head)
    files = write(tmp_path, configuration(family, head, **changes), tensors)
    folder = convert(*files, tmp_path / "out", folders[family], data())
    check_checkpoint(folder)
    config, policy, statistics, _ = load_policy(folder)
    assert (config.backbone.name, config.head.name, config.structure.name) == (backbone, head, structure)
    assert config.window.window_size == changes.get("window_size", 8)
    assert config.view.views == (["side"] if changes.get("use_hand_rgb") is False else ["side", "wrist"])
    ours = sorted(float(value.double().abs().sum()) for value in policy.state_dict().values())
    for key, value in tensors.items():
        if any(part in key for part in UNREAD) or "vision_encoder." in key:
            continue
        scale = value.shape[0] ** 0.5 if (key, family) == ("model.action_token", "paligemma") else 1.0
        wanted = float(value.double().abs().sum()) * scale
        place = np.searchsorted(ours, wanted)
        assert min(abs(ours[i] - wanted) for i in (place - 1, min(place, len(ours) - 1))) < 1e-4, key
    assert statistics["calvin"].num_rows == 0
    runner, moved = PolicyRunner.from_checkpoint(folder), []
    for step in range(3):
        generator = np.random.default_rng(step)
        frames = {view: generator.integers(0, 256, (56, 56, 3), dtype=np.uint8) for view in config.view.views}
        moved.append(runner.step(Observation(frames=frames, instruction="open the drawer")))
    assert np.abs(np.stack(moved)[:, :6]).max() <= 0.65
    assert np.ptp(np.stack(moved)[:, :6], axis=0).max() > 0


def test_a_run_with_adapters_and_other_actions_starts_from_a_released_checkpoint(folders, tmp_path):
    pytest.importorskip("peft")
    folder = convert(*write(tmp_path, configuration(), weights()), tmp_path / "out", folders["kosmos"], data())
    old, config = load_policy(folder).policy.state_dict(), load_config(folder / "config.yaml")
    backbone = replace(config.backbone, checkpoint=str(folders["kosmos"]), random_init=True, lora=LoRAConfig(rank=4))
    contract = replace(config.data.contract, names=["dx", "dy", "dz", "gripper"], rotation=Rotation.none)
    config = replace(config, backbone=backbone, data=replace(config.data, contract=contract))
    policy = VLAPolicy.from_config(config, DataPlan.of(config.data, config.view.views))
    assert init_weights(policy, config, folder) == {"head"}
    new = {key.replace(".base_layer.", "."): value for key, value in policy.state_dict().items()}
    lost = {key for key, value in old.items() if not torch.equal(new[key], value)}
    assert lost
    assert all(key.startswith("head.arm.") for key in lost)
    assert all(new[key].shape != old[key].shape for key in lost)


def test_features_as_wide_as_the_gpt_enter_it_as_they_are(folders, tmp_path):
    tensors = weights("kosmos", "gpt")
    wide = {key: value for key, value in tensors.items() if ".fc." not in key}
    wide = {key: grown(key, value) for key, value in wide.items()}
    values = configuration(head="gpt", act_head={"hidden_size": 64})
    folder = convert(*write(tmp_path, values, wide), tmp_path / "out", folders["kosmos"], data())
    head = load_policy(folder).policy.head
    torch.testing.assert_close(head.project.weight, torch.eye(64))
    assert not head.project.bias.any()


def grown(key: str, value: torch.Tensor) -> torch.Tensor:
    """Return a head's tensor for a hidden size of 64 instead of 32."""
    if "act_head" not in key or ".attn.bias" in key or ".mlp.2" in key or ".mlp.4" in key or ".mlp.6" in key:
        return value
    double = {32: 64, 96: 192, 128: 256}
    shape = [double.get(size, size) for size in value.shape]
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_normalisation_training_and_frozen_parts_are_those_of_the_configuration(folders, tmp_path):
    values = configuration(
        norm_min=-0.5, norm_max=0.7, use_mu_law=True, mu_val=100, learning_rate=1e-4, warmup_epochs=0, warmup_steps=7,
        scheduler="cosine", gradient_clip_val=2.0, train_setup={"train_vision": False, "train_decoder_layers": 1},
        trainer={"max_steps": 500}, arm_gripper_loss_ratio=0.05,
    )  # fmt: skip
    folder = convert(*write(tmp_path, values, weights()), tmp_path / "out", folders["kosmos"], data())
    config = load_policy(folder).config
    normalization = config.data.normalization
    assert normalization.mode is NormalizationMode.bounds
    assert (normalization.low, normalization.high, normalization.mu) == (-0.5, 0.7, 100.0)
    assert (config.optimizer.lr, config.optimizer.max_grad_norm) == (1e-4, 2.0)
    assert (config.schedule.name, config.schedule.warmup, config.schedule.total) == ("cosine", "7 step", "500 step")
    assert (config.backbone.freeze_vision, config.backbone.train_text_layers) == (True, 1)
    assert (config.head.gripper_weight, config.seed, config.batch_size) == (0.05, 123, 4)
    assert (config.data.root, config.data.shift) == ("task_ABCD_D/training", {"side": 10, "wrist": 4})


def test_actions_that_were_not_normalised_stay_as_they_are(folders, tmp_path):
    files = write(tmp_path, configuration(norm_action=False), weights())
    config = load_policy(convert(*files, tmp_path / "out", folders["kosmos"], data())).config
    assert config.data.normalization.mode is NormalizationMode.identity


BRIDGE = {"type": "OpenVLADataset", "data_mix": "bridge", "data_root_dir": "oxe", "rgb_pad": None, "gripper_pad": None}


def test_on_rlds_data_065_of_the_quantiles_are_reached_as_in_robovlms(folders, tmp_path):
    low, high = [-0.03, -0.04, -0.03, -0.08, -0.09, -0.2, 0.0], [0.03, 0.04, 0.05, 0.08, 0.08, 0.2, 1.0]
    columns = {"mean": [0.0] * 7, "std": [1.0] * 7, "q01": low, "q99": high, "min": low, "max": high}
    stats = tmp_path / "dataset_statistics_bridge.json"
    stats.write_text(json.dumps({"action": columns}), encoding="utf-8")
    files = write(tmp_path, configuration(train_dataset=BRIDGE), weights())
    options = ("data=bridge", f"data.normalization.statistics_file={stats}")
    folder = convert(*files, tmp_path / "out", folders["kosmos"], data(*options))
    trained = load_policy(folder)
    assert (trained.config.view.views, trained.config.data.root) == (["side"], "oxe")
    (normalizer,) = trained.plan.normalizers(trained.statistics)
    given = torch.tensor([[1.0] * 6 + [1], [-1.0] * 6 + [-1], [0.3] * 6 + [1]])
    # RoboVLMs eval/simpler/model_wrapper.py: first +-0.65 is undone, then the quantiles.
    bounds = torch.tensor(low), torch.tensor(high)
    expected = (given * 0.65 + 1) / 2 * (bounds[1] - bounds[0]) + bounds[0]
    torch.testing.assert_close(normalizer.denormalize(given)[:, :6], expected[:, :6], rtol=0, atol=1e-7)
    torch.testing.assert_close(normalizer.normalize(normalizer.denormalize(given)), given, rtol=0, atol=1e-5)


def test_a_parent_is_read_and_changed_key_by_key(folders, tmp_path):
    parent = configuration(use_hand_rgb=False)
    write(tmp_path / "parents", parent, {})
    child = {"parent": str(tmp_path / "parents" / "config.json"), "act_head": {"latent": 1}, "use_hand_rgb": True}
    files = write(tmp_path, child, weights())
    config = load_policy(convert(*files, tmp_path / "out", folders["kosmos"], data())).config
    assert (config.head.name, config.view.views) == ("lstm", ["side", "wrist"])


def test_of_data_sets_that_were_trained_on_together_the_first_counts(folders, tmp_path):
    sets = [{"type": "DiskCalvinDataset", "data_dir": "first"}, {"type": "VideoLLaVADataset"}]
    files = write(tmp_path, configuration(train_dataset=sets, batch_size=[4, 2]), weights())
    config = load_policy(convert(*files, tmp_path / "out", folders["kosmos"], data())).config
    assert (config.data.root, config.batch_size) == ("first", 4)

"""The loop in one process: it learns, resumes bit for bit, survives what goes wrong while saving, and says what is
bad.
"""

import json
import math
import os
import resource
import signal

import pytest
import torch
from calvin_folder import assert_same_state, losses, tiny_run, weights
from composing import completed, composed

from robovlms.commands.train import train
from robovlms.config.choices import ScheduleName
from robovlms.config.training import OptimizerConfig, ScheduleConfig
from robovlms.data.calvin.reader import CalvinReader
from robovlms.data.windows import WindowDataset
from robovlms.errors import UserError
from robovlms.policy.checkpoint import checkpoints, load_policy, resolve_checkpoint
from robovlms.registry import BACKBONES
from robovlms.training.optimizer.optimization import Steps, learning_rate, make_optimizer


def run(root, output_dir, *extra):
    train(completed(composed(*tiny_run(root, output_dir, *extra))))
    return output_dir


@pytest.mark.slow
def test_two_steps_and_a_resume_equal_four_steps_bit_for_bit(calvin_folder, tmp_path):
    whole = run(calvin_folder, tmp_path / "whole")
    source = tmp_path / "part"
    run(calvin_folder, source, "schedule.total=2 step")
    run(calvin_folder, source, "schedule.total=4 step", "trainer.resume=auto")
    assert_same_state(whole, source)
    assert losses(whole) == losses(source)


@pytest.mark.slow
def test_proprioception_is_trained_on_resumed_and_saved_with_its_statistics(calvin_folder, tmp_path):
    proprio = ["data.proprio_key=robot_obs", "data.proprio_names=[x,y]"]
    whole, source = run(calvin_folder, tmp_path / "whole", *proprio), tmp_path / "part"
    run(calvin_folder, source, "schedule.total=2 step", *proprio)
    run(calvin_folder, source, "schedule.total=4 step", "trainer.resume=auto", *proprio)
    assert_same_state(whole, source)
    _, policy, stats, _ = load_policy(resolve_checkpoint(whole))
    assert policy.proprio.mean.tolist() == pytest.approx([mean + 1 for mean in stats["calvin"].mean[:2]], abs=1e-5)
    with pytest.raises(ValueError, match=r"data\.proprio_key"):
        run(calvin_folder, source, "schedule.total=6 step", "trainer.resume=auto")


@pytest.mark.slow
def test_a_run_opens_each_split_once(calvin_folder, tmp_path, monkeypatch):
    opened, open_split = [], CalvinReader.__init__

    def counted(self, config, split, *, views):
        opened.append(split)
        open_split(self, config, split, views=views)

    monkeypatch.setattr(CalvinReader, "__init__", counted)
    run(calvin_folder, tmp_path / "run", "data.proprio_key=robot_obs", "data.proprio_names=[x,y]")
    assert opened == ["train", "validation"]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["flow", "diffusion", "gpt"])
def test_a_head_with_attention_resumes_bit_for_bit_noise_included(calvin_folder, tmp_path, head):
    choice = [f"head={head}", "head.num_heads=2"]
    whole, source = run(calvin_folder, tmp_path / "whole", *choice), tmp_path / "part"
    run(calvin_folder, source, "schedule.total=2 step", *choice)
    run(calvin_folder, source, "trainer.resume=auto", *choice)
    assert_same_state(whole, source)


@pytest.mark.slow
@pytest.mark.parametrize("head", [[], ["head=flow", "head.num_heads=2"], ["head=diffusion", "head.num_heads=2"]])
def test_accumulation_does_not_change_the_numbers(calvin_folder, tmp_path, head):
    whole = [*head, "trainer.max_validation_batches=null"]
    one = run(calvin_folder, tmp_path / "one", "device_batch_size=8", *whole)
    four = run(calvin_folder, tmp_path / "four", "device_batch_size=2", *whole)
    assert losses(one) == pytest.approx(losses(four), abs=1e-5)
    assert losses(one, "val/loss") == pytest.approx(losses(four, "val/loss"), abs=1e-5)


@pytest.mark.slow
def test_the_arm_error_falls_below_that_of_the_mean_action(calvin_folder, tmp_path):
    folder = run(
        calvin_folder,
        tmp_path / "run",
        "schedule.total=120 step",
        "trainer.validate_every=120 step",
        "trainer.save_every=120 step",
        "trainer.max_validation_batches=20",
        "trainer.log_every=20 step",
        "device_batch_size=8",
        "optimizer.lr=1e-3",
        "head.hidden_dim=64",
        "window.chunk_size=1",
        "view=side",
        "data.shift.side=0",
    )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validation = next(row for row in rows if "val/action_error" in row)
    assert validation["val/action_error"] < 0.6 * validation["val/mean_action_error"]
    assert validation["val/action_rmse"] < 0.6 * validation["val/mean_action_rmse"]


@pytest.mark.slow
@pytest.mark.plots
def test_a_run_folder_holds_what_a_user_looks_for(calvin_folder, tmp_path):
    folder = run(calvin_folder, tmp_path / "run", "trainer.keep_last=1")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    checkpoint = {"config.yaml", "spec.json", "manifest.json", "action_stats.json"}
    checkpoint |= {"model.safetensors", "backbone/config.json"}
    checkpoint |= {f"training_state/{name}" for name in ("state.json", "optimizer.safetensors", "rng_0.safetensors")}
    assert {name for name in names if name.startswith("checkpoints/")} == {
        f"checkpoints/step_000004/{name}" for name in checkpoint
    }
    assert {"config.yaml", "durations.json", "action_stats.json", "metrics.jsonl"} <= names
    assert "first_batch.png" in names
    assert {"plots/loss.png", "plots/lr.png", "plots/actions.png"} <= names
    durations = json.loads((folder / "durations.json").read_text())
    assert durations["total"] == 4
    assert durations["steps_per_epoch"] == durations["windows"] // 8 == 84 // 8


@pytest.mark.slow
def test_every_tracker_works_without_an_account(calvin_folder, tmp_path):
    folder = run(calvin_folder, tmp_path / "run", "tracking=all", "schedule.total=2 step")
    assert list((folder / "tensorboard").glob("events.*"))
    assert list((folder / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
def test_an_existing_run_is_neither_mixed_nor_lost(calvin_folder, tmp_path):
    folder = run(calvin_folder, tmp_path / "run", "schedule.total=2 step")
    with pytest.raises(ValueError, match=r"trainer\.resume=auto.*trainer\.overwrite=true"):
        run(calvin_folder, folder)
    with pytest.raises(ValueError, match=r"window\.window_size: checkpoint 4, now 2"):
        run(calvin_folder, folder, "trainer.resume=auto", "window.window_size=2")
    assert len(checkpoints(folder)) == 1
    run(calvin_folder, folder, "trainer.overwrite=true", "schedule.total=2 step")
    assert resolve_checkpoint(folder).name == "step_000002"


def test_overwrite_never_deletes_a_folder_that_is_no_run(calvin_folder, tmp_path):
    (tmp_path / "precious.txt").write_text("data")
    with pytest.raises(ValueError, match="not a run folder"):
        run(calvin_folder, tmp_path, "trainer.overwrite=true")
    assert (tmp_path / "precious.txt").exists()


@pytest.mark.slow
def test_a_half_written_checkpoint_is_ignored_and_removed(calvin_folder, tmp_path):
    folder = run(calvin_folder, tmp_path / "run", "schedule.total=2 step")
    partial = folder / "checkpoints" / ".step_000004.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    run(calvin_folder, folder, "trainer.resume=auto")
    assert [path.name for path in checkpoints(folder)] == ["step_000002", "step_000004"]
    assert not partial.exists()


@pytest.mark.slow
def test_the_previous_checkpoint_survives_a_full_disk(calvin_folder, tmp_path):
    folder = run(calvin_folder, tmp_path / "run", "schedule.total=2 step")
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, previous[1]))  # writing more than 20 kB into a file fails
    try:
        with pytest.raises(OSError, match="Earlier checkpoints are untouched"):
            run(calvin_folder, folder, "trainer.resume=auto")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in checkpoints(folder)] == ["step_000002"]
    assert not list((folder / "checkpoints").glob(".*"))
    run(calvin_folder, folder, "trainer.resume=auto")
    assert resolve_checkpoint(folder).name == "step_000004"


@pytest.mark.slow
def test_a_non_finite_loss_names_step_terms_and_samples(calvin_folder, tmp_path, monkeypatch):
    read = WindowDataset.__getitem__

    def poisoned(self, index):
        sample = read(self, index)
        if index == 7:
            sample.actions[0, 0] = math.nan  # past the reader's own check
        return sample

    monkeypatch.setattr(WindowDataset, "__getitem__", poisoned)
    with pytest.raises(UserError, match=r"not finite at step \d+: loss nan.*\n.*training") as error:
        run(calvin_folder, tmp_path / "run", "schedule.total=1 epoch", "schedule.warmup=0 step")
    assert "optimizer.lr" in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_named(calvin_folder, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="output_dir"):
        run(calvin_folder, tmp_path / "run")


def test_a_full_cluster_is_expected_by_its_preset(calvin_folder, tmp_path):
    with pytest.raises(ValueError, match="32 processes, but 1 were launched"):
        run(calvin_folder, tmp_path / "run", "cluster=a100_4x8", "batch_size=128")


def test_weight_decay_spares_biases_norms_embeddings_and_queries():
    backbone = BACKBONES.get("nano").tiny()
    groups = make_optimizer(backbone, OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.1)).param_groups
    decayed = {id(parameter) for parameter in groups[0]["params"]}
    names = {name for name, parameter in backbone.named_parameters() if id(parameter) in decayed}
    assert "blocks.0.qkv.weight" in names
    assert "stem.conv.0.weight" in names
    assert not [name for name in names if "norm" in name or "bias" in name or "embedding" in name or "position" in name]
    assert groups[1]["weight_decay"] == 0


def test_the_learning_rate_warms_up_then_stays_or_falls():
    constant = ScheduleConfig(name=ScheduleName.constant, warmup="4 step", total="8 step")
    steps = Steps(warmup=4, total=8, log_every=1, validate_every=1, save_every=1)
    assert [learning_rate(step, constant, 1.0, steps) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = ScheduleConfig(name=ScheduleName.cosine, warmup="0 step", total="8 step", min_lr_ratio=0.1)
    steps = Steps(warmup=0, total=8, log_every=1, validate_every=1, save_every=1)
    assert learning_rate(0, cosine, 1.0, steps) == 1.0
    assert learning_rate(4, cosine, 1.0, steps) == pytest.approx(0.55)
    assert learning_rate(8, cosine, 1.0, steps) == pytest.approx(0.1)


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another(calvin_folder, tmp_path):
    first = run(calvin_folder, tmp_path / "first")
    still = ["optimizer.lr=1e-30", "schedule.total=2 step", f"trainer.init_from={first}"]
    second = run(calvin_folder, tmp_path / "second", *still)
    before, after = weights(first), weights(second)
    assert all(torch.allclose(before[key], after[key], rtol=0, atol=1e-20) for key in before)
    with pytest.raises(FileNotFoundError, match="neither a checkpoint nor a run"):
        run(calvin_folder, tmp_path / "third", "trainer.init_from=nowhere")


def test_actions_that_cannot_mean_what_the_contract_says_stop_the_run(calvin_folder, tmp_path):
    with pytest.raises(ValueError, match=r"the actions of calvin are not what data\.contract says"):
        run(calvin_folder, tmp_path / "run", "data.contract.gripper_open=0.2", "data.contract.gripper_closed=0.1")

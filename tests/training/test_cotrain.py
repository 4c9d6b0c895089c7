"""Conversations beside the robot's data: both are learned, and neither accumulation nor a resume changes a number."""

import json

import numpy as np
import pytest
from calvin_folder import assert_same_state, losses, tiny_run
from composing import completed, composed, plan_of
from conversations import make_conversations
from safetensors.torch import save_model

from robovlms.commands.train import train
from robovlms.config.run import TrainConfig
from robovlms.errors import NotAllowedError
from robovlms.policy.checkpoint import load_policy, load_weights, resolve_checkpoint
from robovlms.policy.policy import VLAPolicy
from robovlms.training.warm_start import VOCABULARY_HEAD

pytestmark = pytest.mark.slow


@pytest.fixture
def said(tmp_path):
    """Overrides of a run beside conversations, which lie in `tmp_path`."""
    return [*make_conversations(tmp_path), "trainer.max_validation_batches=1", "trainer.validate_every=50 step"]


def build(config: TrainConfig) -> VLAPolicy:
    return VLAPolicy.from_config(config, plan_of(config))


def run(root, output_dir, *extra):
    train(completed(composed(*tiny_run(root, output_dir, *extra))))
    return output_dir


def logged(folder, name):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_both_are_learned_and_the_loss_is_their_weighted_sum(calvin_folder, tmp_path, said):
    long = ["schedule.total=25 step", "optimizer.lr=4e-3", "cotrain.weight=0.5"]
    folder = run(calvin_folder, tmp_path / "run", *said, *long)
    words, loss = logged(folder, "train/text_loss"), losses(folder)
    assert words[-1] < 0.5 < 3 < words[0]
    assert logged(folder, "train/text_accuracy")[-1] > 0.7
    action = np.array(logged(folder, "train/arm")) + 0.01 * np.array(logged(folder, "train/gripper"))
    assert loss == pytest.approx(action + 0.5 * np.array(words), rel=1e-4)
    (tmp_path / "said.json").unlink()
    config, *_ = load_policy(resolve_checkpoint(folder))  # a checkpoint acts without the conversations
    assert config.cotrain.weight == 0.5


def test_a_resume_and_accumulation_change_nothing(calvin_folder, tmp_path, said):
    whole, part = run(calvin_folder, tmp_path / "whole", *said), tmp_path / "part"
    run(calvin_folder, part, *said, "schedule.total=2 step")
    run(calvin_folder, part, *said, "trainer.resume=auto")
    assert_same_state(whole, part)
    four = run(calvin_folder, tmp_path / "four", *said, "device_batch_size=2")
    assert losses(whole) == pytest.approx(losses(four), abs=1e-5)
    assert logged(whole, "train/text_loss") == pytest.approx(logged(four, "train/text_loss"), abs=1e-5)


def test_weights_pass_between_runs_with_and_without_conversations(tmp_path, said):
    options = ["experiment=vla_structure", "backbone=llava", "backbone.size=tiny", "structure=one_step", "head=mlp",
               "window=w1_c10", "data.root=x"]  # fmt: skip
    with_words, without = (build(completed(composed(*options, *more))) for more in (said, []))
    for source, target in ((with_words, without), (without, with_words)):
        save_model(source, str(tmp_path / "model.safetensors"))
        load_weights(target, tmp_path, optional=VOCABULARY_HEAD)
        with pytest.raises(ValueError, match=r"do not fit this policy.*backbone\.unembed\.weight"):
            load_weights(target, tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("cotrain.batch_size=3", r"cotrain\.batch_size=3 does not divide into 1 processes x 2 accumulated"),
        ("cotrain.batch_size=10", r"cotrain\.batch_size=10, but .* has 9 conversations"),
        ("cotrain.file=nowhere.json", r"cotrain\.file=nowhere\.json does not exist"),
        ("cotrain.weight=0", r"cotrain\.weight=0\S* must be above 0"),
        ("cotrain.answer=x", r"cotrain\.answer='x' must contain \{text\} once"),
    ],
)
def test_what_cannot_be_is_refused(calvin_folder, tmp_path, said, change, reason):
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        run(calvin_folder, tmp_path / "run", *said, "device_batch_size=4", change)


def test_queries_that_see_each_other_are_refused(said):
    choice = ["structure=one_step", "head=tokens", "head.parallel=true", "window=w1_c10", "data.root=x"]
    with pytest.raises(NotAllowedError, match=r"cotrain with head\.parallel=true is not allowed"):
        completed(composed("experiment=calvin_perform", *said, *choice))


def test_a_backbone_that_writes_no_text_is_refused(said):
    choice = ["structure=one_step", "head=mlp", "window=w1_c10", "data.root=x", "backbone.size=tiny"]
    with pytest.raises(NotAllowedError, match="writes text, and backbone=florence2 does not: set cotrain=null"):
        build(completed(composed("experiment=vla_structure", "backbone=florence2", *said, *choice)))

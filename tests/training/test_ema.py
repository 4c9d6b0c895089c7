"""The moving average of the weights: what it is, that it is resumed exactly, validated with and acted with."""

import json

import pytest
import torch
from calvin_folder import assert_same_state, losses, tiny_run, weights
from composing import completed, composed
from safetensors.torch import load_file, save_file
from torch import nn

from robovlms.commands.train import train
from robovlms.config.choices import ActingWeights
from robovlms.config.closed_loop import EngineConfig
from robovlms.config.training import EMAConfig
from robovlms.errors import UserError
from robovlms.policy.checkpoint import EMA, checkpoints, load_policy
from robovlms.policy.engine import PolicyEngine
from robovlms.policy.policy import load_average
from robovlms.training.optimizer.ema import MovingAverage
from robovlms.training.parallel.base import Share

TWO = ("schedule.total=2 step", "trainer.save_every=2 step")
ON = ("ema=default", "ema.decay=0.6")


def run(data, folder, *extra):
    train(completed(composed(*tiny_run(data, folder, *extra))))
    return folder


def average(folder):
    return load_file(checkpoints(folder)[-1] / "ema.safetensors")


def test_the_average_is_the_weighted_sum_of_the_weights_so_far():
    weight = nn.Parameter(torch.zeros(3))
    ema = MovingAverage(
        EMAConfig(name="default", decay=0.9, warmup=False), {"w": Share(parameter=weight, weight=weight)}
    )
    for step, value in enumerate((1.0, 2.0)):
        weight.data.fill_(value)
        ema.update(step)
    assert torch.allclose(ema.shadows["w"], torch.full((3,), 0.9 * 0.1 * 1 + 0.1 * 2))


def test_the_first_weights_are_soon_forgotten():
    ema = MovingAverage(EMAConfig(name="default", decay=0.999), {})
    assert [ema.decay(step) for step in (0, 1, 90, 8_989, 100_000)] == [0.1, 2 / 11, 0.91, pytest.approx(0.999), 0.999]
    assert MovingAverage(EMAConfig(name="default", decay=0.999, warmup=False), {}).decay(0) == 0.999


def test_the_policy_acts_by_its_average_inside_the_block_alone():
    weight = nn.Parameter(torch.zeros(3))
    ema = MovingAverage(EMAConfig(name="default"), {"w": Share(parameter=weight, weight=weight)})
    weight.data.fill_(1)
    with ema.in_place(lambda: None):
        assert weight.tolist() == [0, 0, 0]
    assert weight.tolist() == [1, 1, 1]
    assert ema.shadows["w"].tolist() == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("precision=bf16",), ("backbone.lora.rank=2", "backbone=nano")])
def test_a_resumed_average_is_that_of_an_uninterrupted_run(calvin_folder, tmp_path, extra):
    whole = run(calvin_folder, tmp_path / "whole", *ON, *extra)
    run(calvin_folder, tmp_path / "halves", *ON, *TWO, *extra)
    halves = run(calvin_folder, tmp_path / "halves", *ON, "trainer.resume=auto", *extra)
    assert_same_state(whole, halves)
    assert average(whole).keys() == average(halves).keys()
    assert all(torch.equal(value, average(halves)[key]) for key, value in average(whole).items())
    assert all(value.dtype is torch.float32 for value in average(whole).values())
    assert any(not torch.equal(value, weights(whole)[key]) for key, value in average(whole).items())


@pytest.mark.slow
def test_the_average_changes_no_loss_and_validation_measures_it(calvin_folder, tmp_path):
    plain = run(calvin_folder, tmp_path / "plain")
    averaged = run(calvin_folder, tmp_path / "averaged", *ON)
    newest = run(calvin_folder, tmp_path / "newest", *ON, "ema.validate=false")
    assert losses(plain) == losses(averaged) == losses(newest)
    found = [losses(folder, "val/loss") for folder in (plain, averaged, newest)]
    assert found[0] == found[2] != found[1]


@pytest.mark.slow
def test_an_average_that_is_turned_on_later_begins_at_the_weights(calvin_folder, tmp_path):
    run(calvin_folder, tmp_path / "run", *TWO)
    folder = run(calvin_folder, tmp_path / "run", "ema=default", "ema.decay=0", "trainer.resume=auto")
    assert all(torch.equal(value, weights(folder)[key]) for key, value in average(folder).items())


@pytest.mark.slow
def test_the_average_acts_where_it_is_asked_for_and_is_in_the_manifest(calvin_folder, tmp_path):
    folder = run(calvin_folder, tmp_path / "run", *ON)
    newest = checkpoints(folder)[-1]
    assert "ema.safetensors" in json.loads((newest / "manifest.json").read_text())["files"]
    engine = PolicyEngine.from_checkpoint(newest, EngineConfig(weights=ActingWeights.ema))
    state = engine.policy.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in average(folder).items())
    plain = PolicyEngine.from_checkpoint(newest).policy.state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in weights(folder).items())


@pytest.mark.slow
def test_a_checkpoint_without_an_average_says_so(calvin_folder, tmp_path):
    folder = run(calvin_folder, tmp_path / "run", *TWO)
    with pytest.raises(UserError, match=r"engine\.weights=ema: .*step_000002 has no ema\.safetensors"):
        PolicyEngine.from_checkpoint(checkpoints(folder)[-1], EngineConfig(weights=ActingWeights.ema))


@pytest.mark.slow
@pytest.mark.parametrize("change", ["lacks", "adds", "reshapes"])
def test_an_average_that_is_not_of_all_that_was_trained_is_refused(calvin_folder, tmp_path, change):
    folder = checkpoints(run(calvin_folder, tmp_path / "run", *TWO, *ON))[-1]
    trained, shadows = load_policy(folder), load_file(folder / EMA)
    name = sorted(shadows)[0]
    value = shadows.pop(name)
    if change != "lacks":
        shadows |= {name: value[..., :-1]} if change == "reshapes" else {name: value, "head.unknown": value.clone()}
    save_file({key: tensor.contiguous() for key, tensor in shadows.items()}, tmp_path / "ema.safetensors")
    with pytest.raises(
        UserError, match=f"does not fit this policy, e.g. {'head.unknown' if change == 'adds' else name}"
    ):
        load_average(trained.policy, tmp_path / "ema.safetensors")

"""bfloat16 weights without float32 masters: what each rounding loses, and that a resumed run rounds as before."""

import pytest
import torch
from calvin_folder import assert_same_state, losses, tiny_run, weights
from composing import completed, composed
from launching import launch
from torch import nn

from robovlms.backbones.families.nano import Nano
from robovlms.commands.train import train
from robovlms.config.choices import Moments
from robovlms.config.training import OptimizerConfig, Rounding
from robovlms.errors import UserError
from robovlms.policy.checkpoint import checkpoints
from robovlms.policy.policy import VLAPolicy
from robovlms.training.checkpoints.state import TrainingState
from robovlms.training.optimizer import adamw
from robovlms.training.optimizer.optimization import make_optimizer
from robovlms.training.optimizer.precision import MasterWeights

WITHOUT = [Rounding.nearest, Rounding.stochastic, Rounding.kahan]
TWO = ("schedule.total=2 step", "trainer.save_every=2 step")
FOUR = ("schedule.total=4 step", "trainer.save_every=2 step", "trainer.resume=auto")


def run(data, folder, *extra):
    train(completed(composed(*tiny_run(data, folder, "precision=bf16", *extra))))
    return folder


def learned(dtype, rounding, moments=Moments.fp32, steps=200):
    """Return the weights of a linear layer after `steps` steps of 3e-4 towards weights 0.1 larger, and its loss."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 32, bias=False)
    wanted = layer.weight.detach() + 0.1
    layer.weight.data.add_(1)
    wanted = wanted + 1
    layer.to(dtype)
    optimizer = make_optimizer(layer, OptimizerConfig(name="adamw", lr=3e-4, moments=moments, rounding=rounding))
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        inputs = torch.randn(16, 64, generator=generator)
        error = (inputs.to(dtype) @ (layer.weight - wanted.to(dtype)).T).float()
        optimizer.zero_grad()
        error.square().mean().backward()
        for group in optimizer.param_groups:
            group["number"] = step
        optimizer.step()
    return layer.weight.detach().float(), (layer.weight.detach().float() - wanted).square().mean().item()


@pytest.fixture(scope="module")
def exact():
    return learned(torch.float32, Rounding.masters)


def test_two_hundred_small_steps_are_lost_by_rounding_to_the_nearest(exact):
    start, first = learned(torch.float32, Rounding.masters, steps=0)
    moved, last = learned(torch.bfloat16, Rounding.nearest)
    assert (moved - start.bfloat16().float()).abs().mean() < 0.1 * (exact[0] - start).abs().mean()
    assert last > 0.9 * first
    assert exact[1] < 0.75 * first


@pytest.mark.parametrize("moments", Moments)
@pytest.mark.parametrize("rounding", [Rounding.stochastic, Rounding.kahan])
def test_two_hundred_small_steps_add_up_with_the_others(exact, rounding, moments):
    moved, last = learned(torch.bfloat16, rounding, moments)
    assert last == pytest.approx(exact[1], rel=0.05)  # chance is a random walk beside the way
    assert (moved - exact[0]).mean().abs() < 5e-4
    # a digit of bfloat16 beside 1 is 2**-7 apart from the next: Kahan is the nearest, chance is one step of a walk off
    assert (moved - exact[0]).abs().max() < (2**-7 if rounding is Rounding.kahan else 2**-4)


def test_rounded_weights_are_the_only_ones_there_are():
    class OnePolicy(VLAPolicy):
        def __init__(self, backbone):
            nn.Module.__init__(self)
            self.backbone, self.head = backbone, nn.Linear(2, 2)

    policy = OnePolicy(Nano.tiny())
    masters = MasterWeights.round(policy, Rounding.stochastic)
    assert all(masters.of(parameter) is parameter for parameter in policy.parameters())
    assert {p.dtype for p in policy.backbone.parameters()} == {torch.bfloat16}
    assert policy.head.weight.dtype is torch.float32
    assert policy.state_dict()["head.weight"].dtype is torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(("rounding", "moments"), [(Rounding.stochastic, Moments.int8), (Rounding.kahan, Moments.fp32)])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(calvin_folder, tmp_path, rounding, moments):
    choice = (f"optimizer.rounding={rounding}", f"optimizer.moments={moments}")
    whole = run(calvin_folder, tmp_path / "whole", *choice)
    run(calvin_folder, tmp_path / "halves", *choice, *TWO)
    halves = run(calvin_folder, tmp_path / "halves", *choice, *FOUR)
    assert_same_state(whole, halves)
    assert losses(whole) == losses(halves)
    dtypes = {key.split(".")[0]: value.dtype for key, value in weights(whole).items()}
    assert (dtypes["backbone"], dtypes["head"]) == (torch.bfloat16, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("rounding", [Rounding.stochastic, Rounding.kahan])
def test_two_processes_round_as_one_and_resume_bit_for_bit(calvin_folder, tmp_path, rounding):
    def planned(mode, name, *extra):
        choice = (f"parallel={mode}", f"optimizer.rounding={rounding}", "device_batch_size=2")
        return tiny_run(calvin_folder, tmp_path / name, "precision=bf16", *choice, *extra)

    modes = ("ddp", "zero1")
    plans = [planned(mode, f"{mode}_{name}", *extra) for mode in modes for name, *extra in
             (("whole",), ("halves", *TWO), ("halves", *FOUR))]  # fmt: skip
    launch(2, plans, tmp_path)
    train(completed(composed(*planned("ddp", "alone"))))
    for mode in modes:
        assert_same_state(tmp_path / f"{mode}_whole", tmp_path / f"{mode}_halves")
        assert losses(tmp_path / f"{mode}_whole") == losses(tmp_path / f"{mode}_halves")
        assert losses(tmp_path / f"{mode}_whole") == pytest.approx(losses(tmp_path / "alone"), rel=0.02)
    if rounding is Rounding.kahan:  # without chance, the same weights wherever their rows are changed
        ddp, zero1 = (weights(tmp_path / f"{mode}_whole") for mode in modes)
        assert all(torch.equal(ddp[key], zero1[key]) for key in ddp)


@pytest.mark.slow
def test_a_run_goes_on_with_another_rounding(calvin_folder, tmp_path):
    for number, rounding in enumerate([Rounding.masters, Rounding.kahan, Rounding.stochastic, Rounding.masters]):
        total = f"schedule.total={2 * number + 2} step"
        run(calvin_folder, tmp_path, f"optimizer.rounding={rounding}", total, "trainer.resume=auto")
        kept = TrainingState.load(checkpoints(tmp_path)[-1] / "training_state").optimizer.shapes
        assert any(key.startswith("compensation/") for key in kept) == (rounding is Rounding.kahan)
    wanted = losses(run(calvin_folder, tmp_path / "masters", "schedule.total=8 step"))
    assert losses(tmp_path) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("rounding", WITHOUT)
def test_a_weight_is_changed_part_by_part_as_it_would_be_whole(monkeypatch, rounding):
    whole, _ = learned(torch.bfloat16, rounding, Moments.int8, steps=3)
    monkeypatch.setattr(adamw, "PART", 512)
    parts, _ = learned(torch.bfloat16, rounding, Moments.int8, steps=3)
    assert torch.equal(whole, parts)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["precision=fp32"], "precision=fp32 trains float32 ones"),
        (["precision=bf16_autocast"], "precision=bf16_autocast trains float32 ones"),
        (["precision=bf16", "ema=default"], "ema=null"),
        (["precision=bf16", "parallel=fsdp2"], "parallel=fsdp2, whose processes share"),
        (["precision=bf16", "parallel=hsdp"], "choose parallel=ddp or zero1"),
    ],
)
def test_rounding_what_is_not_bfloat16_is_refused(calvin_folder, tmp_path, given, named):
    with pytest.raises(UserError, match=named) as error:
        completed(composed(*tiny_run(calvin_folder, tmp_path, "optimizer.rounding=kahan", *given)))
    assert "optimizer.rounding=kahan" in str(error.value)

"""Moments in bfloat16 or in a byte: how far from AdamW, unbiased, resumed exactly, and left out where AdamW is."""

import pytest
import torch
from calvin_folder import assert_same_state, losses, tiny_run
from composing import completed, composed
from torch import nn

from robovlms.commands.train import train
from robovlms.config.choices import Moments
from robovlms.config.training import OptimizerConfig
from robovlms.policy.checkpoint import checkpoints
from robovlms.training.checkpoints.state import TrainingState
from robovlms.training.optimizer.moments import dequantize, quantize, round_randomly
from robovlms.training.optimizer.optimization import make_optimizer

SMALL = [Moments.bf16_stochastic, Moments.int8]
TWO = ("schedule.total=2 step", "trainer.save_every=2 step")


def run(data, folder, *extra):
    train(completed(composed(*tiny_run(data, folder, *extra))))
    return folder


def optimizers(**options):
    """AdamW and ours on the same weights, a matrix and its bias."""
    for moments in Moments:
        torch.manual_seed(0)
        module = nn.Linear(300, 7)
        config = OptimizerConfig(name="adamw", lr=1e-2, weight_decay=0.1, moments=moments, **options)
        yield moments, module, make_optimizer(module, config)


def step(module, optimizer, number, found_inf=None):
    generator = torch.Generator().manual_seed(number)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-3
    for group in optimizer.param_groups:
        group["number"] = number
    if found_inf is not None:
        optimizer.found_inf = torch.tensor(float(found_inf))
    optimizer.step()


def test_weights_go_where_adamw_takes_them():
    found = {}
    for moments, module, optimizer in optimizers():
        start = module.weight.detach().clone()
        for number in range(50):
            step(module, optimizer, number)
        found[moments] = module.weight.detach() - start
    way = found[Moments.fp32].norm()
    for moments in SMALL:
        assert 0 < (found[moments] - found[Moments.fp32]).norm() / way < 0.05


def test_a_step_that_is_left_out_changes_nothing():
    for _, module, optimizer in optimizers():
        step(module, optimizer, 0, found_inf=False)
        before = [value.clone() for value in (*module.parameters(), *optimizer.state[module.weight].values())]
        step(module, optimizer, 1, found_inf=True)
        after = (*module.parameters(), *optimizer.state[module.weight].values())
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_random_rounding_has_the_value_itself_as_its_mean_and_only_neighbours():
    value = torch.full((100_000,), 1 + 0.3 / 128)  # three tenths of the way to the next bfloat16
    rounded = round_randomly(value, torch.Generator().manual_seed(0)).float()
    assert set(rounded.tolist()) == {1.0, 1 + 1 / 128}
    assert rounded.mean().item() == pytest.approx(value[0].item(), abs=1e-4)
    exact = torch.tensor([0.0, -1.0, 2.5, -3e-38])
    assert torch.equal(round_randomly(exact.bfloat16().float(), torch.Generator()), exact.bfloat16())


def test_changes_too_small_for_bf16_add_up_on_average():
    moment = torch.ones(20_000).bfloat16()
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        moment = round_randomly(moment.float() * 0.999, generator)
    assert moment.float().mean().item() == pytest.approx(0.999**100, rel=2e-3)
    assert (torch.ones(1).bfloat16() * 0.999).item() == 1  # which rounding to the nearest never leaves


@pytest.mark.parametrize("shape", [(), (1,), (255,), (256,), (257,), (3, 7, 11)])
@pytest.mark.parametrize("is_signed", [True, False])
def test_a_byte_keeps_the_largest_and_nothing_is_far_off(shape, is_signed):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    values = values if is_signed else values.abs()
    codes, scales = quantize(values, is_signed=is_signed)
    assert (codes.shape, codes.dtype, len(scales)) == (values.shape, torch.uint8, -(-values.numel() // 256))
    back = dequantize(codes, scales, is_signed=is_signed).reshape(shape)
    assert ((back - values).abs() <= 0.02 * values.abs().max()).all()
    assert not dequantize(*quantize(torch.zeros(shape), is_signed=is_signed), is_signed=is_signed).any()


def test_a_weight_without_a_gradient_for_once_is_not_thrown_far_away():
    module = nn.Linear(256, 1, bias=False)
    optimizer = make_optimizer(module, OptimizerConfig(name="adamw", lr=1e-3, moments=Moments.int8))
    before = module.weight.detach().clone()
    gradient = torch.full((1, 256), 1e-6)
    gradient[0, 0] = 1  # of the same block: the others are small beside it, their squares far smaller
    for gradient_of_step in (gradient, torch.zeros(1, 256)):
        module.weight.grad = gradient_of_step
        optimizer.step()
    assert (module.weight - before).abs().max() < 4e-3


@pytest.mark.slow
@pytest.mark.parametrize("moments", SMALL)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(calvin_folder, tmp_path, moments):
    choice = f"optimizer.moments={moments}"
    whole = run(calvin_folder, tmp_path / "whole", choice, "precision=bf16")
    run(calvin_folder, tmp_path / "halves", choice, "precision=bf16", *TWO)
    halves = run(calvin_folder, tmp_path / "halves", choice, "precision=bf16", "trainer.resume=auto")
    assert_same_state(whole, halves)
    assert losses(whole) == losses(halves)


@pytest.mark.slow
def test_a_run_goes_on_with_other_moments_that_mean_the_same(calvin_folder, tmp_path):
    folder, kinds = tmp_path / "run", (Moments.fp32, Moments.int8, Moments.bf16_stochastic, Moments.fp32)
    for number, moments in enumerate(kinds):
        total = f"schedule.total={2 * number + 2} step"
        run(calvin_folder, folder, f"optimizer.moments={moments}", total, "trainer.resume=auto")
        state = TrainingState.load(checkpoints(folder)[-1] / "training_state").optimizer
        wanted = {Moments.fp32: torch.float32, Moments.int8: torch.uint8}.get(moments, torch.bfloat16)
        assert {state.read(key).dtype for key in state.shapes if key.startswith("exp_avg/")} == {wanted}
        assert ("exp_avg_scale/head.query" in state.shapes) == (moments is Moments.int8)
    wanted = losses(run(calvin_folder, tmp_path / "fp32", "schedule.total=8 step"))
    assert losses(folder) == pytest.approx(wanted, rel=0.02)


def test_bytes_of_the_state_are_as_documented():
    sizes = {}
    for moments, module, optimizer in optimizers():
        step(module, optimizer, 0)
        state = optimizer.state[module.weight]
        sizes[moments] = sum(value.nbytes for key, value in state.items() if key != "step") / module.weight.numel()
    assert sizes[Moments.fp32] == 8
    assert sizes[Moments.bf16_stochastic] == 4
    assert sizes[Moments.int8] == pytest.approx(2 + 8 / 256, abs=0.02)

"""The flow head against closed forms, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from robovlms.config.choices import ArmLoss, FlowSolver
from robovlms.config.fields import check_fields
from robovlms.heads.base import HeadSizes, Targets
from robovlms.heads.denoising import time_features
from robovlms.heads.flow import FlowHead, integrate
from robovlms.heads.schemas.flow import FlowHeadConfig

MEAN, STD = 0.4, 0.3


def gaussian_velocity(x, time):
    """Carry N(0, 1) to N(MEAN, STD ** 2): the conditional mean of action - noise given x, by Gaussian regression."""
    variance = time**2 * STD**2 + (1 - time) ** 2
    return MEAN + (time * STD**2 - (1 - time)) / variance * (x - time * MEAN)


def make_head(**changes):
    torch.manual_seed(0)
    options = {"name": "flow", "loss": ArmLoss.mse, "hidden_dim": 32, "num_layers": 1, "num_heads": 4, **changes}
    return FlowHead(
        FlowHeadConfig(**options), HeadSizes(feature_dim=16, action_dim=3, binary=(2,), window_size=3, chunk_size=4)
    )


def make_targets(seeds=(0, 1)):
    actions = torch.rand(2, 3, 4, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Targets(actions=actions, mask=torch.ones(2, 3, 4, dtype=torch.bool), seeds=torch.tensor(seeds))


def test_towards_one_action_every_number_of_steps_arrives_exactly():
    target, start = torch.tensor([0.5, -0.25]), torch.tensor([2.0, -3.0])
    for solver in FlowSolver:
        for num_steps in (1, 3, 10):
            reached = integrate(lambda x, time: (target - x) / (1 - time), start, num_steps, solver)
            torch.testing.assert_close(reached, target)


def test_a_gaussian_is_carried_to_its_closed_form_and_heun_is_nearer_than_euler():
    start = torch.linspace(-2, 2, 9)
    exact = MEAN + STD * start
    error = {
        (solver, n): (integrate(gaussian_velocity, start, n, solver) - exact).abs().max().item()
        for solver in FlowSolver
        for n in (10, 20, 200)
    }
    assert error[FlowSolver.euler, 200] < 0.01
    assert error[FlowSolver.euler, 10] / error[FlowSolver.euler, 20] == pytest.approx(2, rel=0.3)  # first order
    assert error[FlowSolver.heun, 20] < error[FlowSolver.euler, 20] / 3


def test_the_same_observations_give_the_same_actions():
    head = make_head().eval()
    features = torch.randn(2, 3, 1, 16)
    first, second = (head.act(lambda queries: features, 2, 3) for _ in range(2))
    assert torch.equal(first, second)


def test_the_newest_chunk_does_not_depend_on_how_many_are_asked_for():
    head = make_head().eval()
    features, noisy, time = torch.randn(2, 3, 1, 16), torch.randn(2, 3, 4, 2), torch.rand(2, 3)
    whole = head.estimate(features, noisy, time)
    torch.testing.assert_close(head.estimate(features, noisy[:, -1:], time[:, -1:]), whole[:, -1:])


def test_a_frame_attends_to_earlier_frames_and_never_to_later_ones():
    head = make_head().eval()
    features, noisy, time = torch.randn(1, 3, 1, 16), torch.randn(1, 3, 4, 2), torch.rand(1, 3)
    before = head.estimate(features, noisy, time)
    moved = features.clone()
    moved[:, 1] += 1
    after = head.estimate(moved, noisy, time)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert not torch.allclose(after[:, 1], before[:, 1])
    assert not torch.allclose(after[:, 2], before[:, 2])


def test_a_chunk_of_padding_alone_keeps_the_loss_finite():
    head = make_head()
    targets = make_targets()
    targets.mask[0, -1] = False
    losses = head.loss(torch.randn(2, 3, 1, 16), targets)
    losses["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_noise_and_time_are_a_function_of_the_samples_seed_alone():
    head, features = make_head(), torch.randn(2, 3, 1, 16)
    state = torch.get_rng_state()
    first = head.loss(features, make_targets())["arm"]
    assert head.eval().loss(features, make_targets())["arm"] == first
    assert torch.equal(torch.get_rng_state(), state)
    assert head.loss(features, make_targets(seeds=(0, 2)))["arm"] != first


def test_training_sees_the_times_of_pi0_more_of_them_near_the_noise():
    head, targets, clocks, chunks = make_head(), make_targets(), [], []
    head.read_time.register_forward_pre_hook(lambda _, inputs: clocks.append(inputs[0][..., -1]))
    head.read_actions.register_forward_pre_hook(lambda _, inputs: chunks.append(inputs[0]))
    for step in range(500):
        head.loss(torch.zeros(2, 3, 1, 16), replace(targets, seeds=torch.tensor([2 * step, 2 * step + 1])))
    times = torch.stack(clocks).acos() * 2 / torch.pi  # the last feature is the cosine of period 4
    assert times.mean().item() == pytest.approx(0.999 * 0.4, abs=0.015)  # 1 - Beta(1.5, 1): mean 1 - 1.5 / 2.5
    assert (times < 0.5).float().mean().item() == pytest.approx(1 - (1 - 0.5 / 0.999) ** 1.5, abs=0.03)
    assert times.min() < 0.01
    assert 0.95 < times.max() < 0.9991
    noisy = torch.stack(chunks)
    arm = targets.actions[..., :-1].expand_as(noisy)
    assert noisy[times < 0.1].std().item() == pytest.approx(1, abs=0.1)  # time 0 is noise
    assert (noisy - arm)[times > 0.9].abs().mean() < 0.1  # time 1 is the action


def test_times_are_told_apart_by_features_within_one():
    features = time_features(torch.tensor([[0.0, 0.5, 0.999]]), 8)
    assert features.shape == (1, 3, 8)
    assert features.abs().max() <= 1
    assert features[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": ArmLoss.l1}, r"set head\.loss=mse, not l1"),
        ({"hidden_dim": 36}, r"head\.hidden_dim=36 must be a multiple of 2 \* head\.num_heads=16"),
        ({"num_steps": 0}, r"head\.num_steps=0 must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused_with_the_option_to_change(changes, message):
    with pytest.raises(ValueError, match=message):
        check_fields(FlowHeadConfig(name="flow", **({"loss": ArmLoss.mse} | changes)), "head")

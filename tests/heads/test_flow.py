"""The flow head against closed forms, and what it refuses."""

import pytest
import torch

from robovlms.config.choices import ArmLoss, FlowSolver
from robovlms.heads.base import HeadSizes
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
    return FlowHead(FlowHeadConfig(**options), HeadSizes(feature_dim=16, action_dim=3, window_size=3, chunk_size=4))


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
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[0, -1] = False
    losses = head.loss(torch.randn(2, 3, 1, 16), torch.rand(2, 3, 4, 3) * 2 - 1, mask)
    losses["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_validation_draws_the_same_noise_and_training_new_noise_every_time():
    head = make_head()
    batch = torch.randn(2, 3, 1, 16), torch.rand(2, 3, 4, 3) * 2 - 1, torch.ones(2, 3, 4, dtype=torch.bool)
    assert head.loss(*batch)["arm"] != head.loss(*batch)["arm"]
    head.eval()
    state = torch.get_rng_state()
    assert head.loss(*batch)["arm"] == head.loss(*batch)["arm"]
    assert torch.equal(torch.get_rng_state(), state)


def test_times_are_told_apart_by_features_within_one():
    features = time_features(torch.tensor([[0.0, 0.5, 0.999]]), 8)
    assert features.shape == (1, 3, 8)
    assert features.abs().max() <= 1
    assert features[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": ArmLoss.l1}, r"set head\.loss=mse, not l1"),
        ({"hidden_dim": 36}, r"head\.hidden_dim=36 must be a multiple of 2 \* head\.num_heads=8"),
        ({"num_steps": 0}, r"head\.num_steps=0 must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused_with_the_option_to_change(changes, message):
    with pytest.raises(ValueError, match=message):
        make_head(**changes)

"""The diffusion head against closed forms, and what it refuses."""

import pytest
import torch
from diffusers import DDPMScheduler

from robovlms.config.choices import ArmLoss
from robovlms.heads.base import HeadSizes, Prefix
from robovlms.heads.diffusion import DiffusionHead
from robovlms.heads.schemas.diffusion import DiffusionHeadConfig

FREE = Prefix(torch.zeros(1, 4, 2), torch.zeros(4))


def make_head(**changes):
    torch.manual_seed(0)
    options = {"name": "diffusion", "loss": ArmLoss.mse, "hidden_dim": 32, "num_layers": 1, "num_heads": 4, **changes}
    sizes = HeadSizes(feature_dim=16, action_dim=3, window_size=3, chunk_size=4)
    return DiffusionHead(DiffusionHeadConfig(**options), sizes)


def test_where_every_chunk_is_the_same_it_is_reached_exactly():
    head = make_head(num_train_steps=50, num_steps=50)
    target, alphas = torch.full((1, 1, 4, 2), 0.5), head.scheduler.alphas_cumprod

    def noise_in(x, time):
        alpha = alphas[round(time * 50)]
        return (x - alpha.sqrt() * target) / (1 - alpha).sqrt()

    for steps in (1, 10, 50):
        head.num_steps = steps
        torch.testing.assert_close(head.sample(noise_in, torch.randn(1, 1, 4, 2), FREE), target, rtol=0, atol=1e-4)


def test_all_steps_with_eta_one_and_no_fresh_noise_follow_the_mean_of_ddpm():
    head = make_head(num_train_steps=20, num_steps=20)
    options = dict(head.scheduler.config)
    ddpm = DDPMScheduler(20, beta_schedule=options["beta_schedule"], clip_sample=True, prediction_type="epsilon")
    x = y = 0.1 * torch.randn(2, 1, 4, 2)
    head.scheduler.set_timesteps(20)
    for step in range(19, 0, -1):
        noise = torch.tanh(x)
        x = head.scheduler.step(noise, step, x, eta=1.0, variance_noise=torch.zeros_like(x)).prev_sample
        alpha, beta = ddpm.alphas_cumprod[step], ddpm.betas[step]
        before = ddpm.alphas_cumprod[step - 1]
        clean = ((y - (1 - alpha).sqrt() * torch.tanh(y)) / alpha.sqrt()).clamp(-1, 1)
        y = (before.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - before) * y) / (1 - alpha)
        if (clean.abs() < 1).all():  # where nothing is clipped the two forms of the mean are the same
            torch.testing.assert_close(x, y, rtol=0, atol=1e-4)
        y = x


def test_the_same_observations_give_the_same_actions_also_with_fresh_noise():
    head = make_head(eta=1.0).eval()
    features = torch.randn(2, 3, 1, 16)
    first, second = (head.act(lambda queries: features, 2, 3) for _ in range(2))
    assert torch.equal(first, second)
    alone = head.act(lambda queries: features[:1], 1, 3)
    torch.testing.assert_close(alone, first[:1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": ArmLoss.l1}, r"set head\.loss=mse, not l1"),
        ({"num_steps": 101}, r"head\.num_steps=101 must lie in 1\.\.100"),
    ],
)
def test_what_cannot_work_is_refused_with_the_option_to_change(changes, message):
    with pytest.raises(ValueError, match=message):
        make_head(**changes)

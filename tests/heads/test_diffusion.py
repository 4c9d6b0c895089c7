"""The diffusion head against closed forms and against diffusers, and what it refuses."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from robovlms.config.choices import ArmLoss
from robovlms.config.fields import check_fields
from robovlms.heads.base import HeadSizes, Prefix
from robovlms.heads.diffusion import DiffusionHead
from robovlms.heads.noise import normal
from robovlms.heads.schemas.diffusion import DiffusionHeadConfig

FREE = Prefix(torch.zeros(1, 4, 2), torch.zeros(1, 4))
MEAN, STD = 0.4, 0.1
SCHEDULE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}


def make_head(**changes):
    torch.manual_seed(0)
    options = {"name": "diffusion", "loss": ArmLoss.mse, "hidden_dim": 32, "num_layers": 1, "num_heads": 4, **changes}
    sizes = HeadSizes(feature_dim=16, action_dim=3, binary=(2,), window_size=3, chunk_size=4)
    return DiffusionHead(DiffusionHeadConfig(**options), sizes)


def exact_noise(head, mean=MEAN, std=STD):
    """Return the best estimate of the noise where every action is N(mean, std ** 2), by Gaussian regression."""

    def estimate(x, time):
        alpha = head.alphas[round(time * len(head.alphas))]
        gain = alpha.sqrt() * std**2 / (alpha * std**2 + 1 - alpha)
        clean = mean + gain * (x - alpha.sqrt() * mean)
        return (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    return estimate


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 10, 33, 60, 99, 100])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_every_number_of_steps_keeps_the_mean(num_steps, eta):
    head = make_head(num_steps=num_steps, eta=eta)
    quantiles = (torch.arange(1000) + 0.5) / 1000
    start = torch.special.ndtri(quantiles)[:, None, None, None].expand(-1, 1, 4, 2)
    chunks = head.sample(exact_noise(head), start, FREE)
    if eta == 0:  # with eta = 1 the fresh noise of a chunk is the same in every row
        assert chunks.mean().item() == pytest.approx(MEAN, abs=2e-3)
    target = head.sample(exact_noise(head, mean=0.5, std=0), start, FREE)
    torch.testing.assert_close(target, torch.full_like(target, 0.5), rtol=0, atol=1e-3)


def test_all_steps_give_the_spread_of_the_data_too():
    head = make_head(num_steps=100)
    start = torch.special.ndtri((torch.arange(1000) + 0.5) / 1000)[:, None, None, None].expand(-1, 1, 4, 2)
    assert head.sample(exact_noise(head), start, FREE).std().item() == pytest.approx(STD, rel=0.1)


@pytest.mark.parametrize("num_train_steps", [20, 100])
def test_the_schedule_is_diffusers(num_train_steps):
    alphas = DDPMScheduler(num_train_steps, **SCHEDULE).alphas_cumprod
    torch.testing.assert_close(make_head(num_train_steps=num_train_steps).alphas, alphas, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 10, 20])
@pytest.mark.parametrize("scale", [0.1, 3.0], ids=["free", "clipped"])
def test_numbers_that_divide_the_training_steps_follow_diffusers_ddim(num_steps, scale):
    head = make_head(num_train_steps=20, num_steps=num_steps)
    ddim = DDIMScheduler(20, timestep_spacing="trailing", clip_sample=True, **SCHEDULE)
    ddim.set_timesteps(num_steps)
    x = start = scale * torch.randn(2, 1, 4, 2)
    for step in ddim.timesteps:
        x = ddim.step(torch.tanh(x), step, x).prev_sample
    torch.testing.assert_close(head.sample(lambda x, time: torch.tanh(x), start, FREE), x, rtol=0, atol=1e-4)


def test_all_steps_with_eta_one_are_ddpm_where_nothing_is_clipped():
    head = make_head(num_train_steps=20, num_steps=20, eta=1.0)
    alphas, estimate = head.alphas, exact_noise(head)
    x = start = torch.randn(2, 1, 4, 2)
    for step in range(19, -1, -1):
        alpha, before = alphas[step], alphas[step - 1] if step else torch.tensor(1.0)
        beta = 1 - alpha / before
        clean = (x - (1 - alpha).sqrt() * estimate(x, step / 20)) / alpha.sqrt()
        assert clean.abs().max() < 1
        x = (before.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - before) * x) / (1 - alpha)  # arXiv:2006.11239 (7)
        x = x + ((1 - before) / (1 - alpha) * beta).sqrt() * normal(torch.tensor([step]), (1, 4, 2))
    torch.testing.assert_close(head.sample(estimate, start, FREE), x, rtol=0, atol=1e-4)


def test_fresh_noise_has_the_variance_of_ddpm():
    head = make_head(num_train_steps=20, num_steps=20, eta=1.0)
    assert head.fresh_share(19, 18).item() ** 2 == pytest.approx(
        DDPMScheduler(20, variance_type="fixed_small", **SCHEDULE)._get_variance(19).item(), rel=1e-3
    )
    assert head.fresh_share(0, -1) == 0


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
        ({"num_steps": 101}, r"head\.num_steps=101 must be at most head\.num_train_steps=100"),
    ],
)
def test_what_cannot_work_is_refused_with_the_option_to_change(changes, message):
    with pytest.raises(ValueError, match=message):
        check_fields(DiffusionHeadConfig(name="diffusion", **({"loss": ArmLoss.mse} | changes)), "head")

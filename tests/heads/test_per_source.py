from __future__ import annotations

from pathlib import Path

import pytest
import torch
from calvin_folder import weights as saved
from composing import completed, composed, plan_of
from mixed_data import make_arm_folder, mixture
from small_heads import small_head

from robovlms.commands.train import train
from robovlms.data.loading.loader import Collator
from robovlms.data.loading.sampler import Draw
from robovlms.data.opening import build_dataset, open_sources
from robovlms.data.statistics import compute_statistics
from robovlms.errors import NotAllowedError
from robovlms.heads.base import HeadSizes, Targets
from robovlms.heads.layers.decoders import OwnProjector
from robovlms.policy.checkpoint import resolve_checkpoint
from robovlms.policy.engine import PolicyEngine, unwrap
from robovlms.policy.policy import VLAPolicy
from robovlms.policy.quantization.change import synthetic_observations
from robovlms.registry import HEADS
from robovlms.training.warm_start import init_weights, rows_of_sources

PER_SOURCE = ["mlp", "lstm", "gpt", "flow", "diffusion"]
B, W, K, A, D = 4, 2, 3, 4, 16


def make_head(name, num_sources, *, per_source=True, **changes):
    torch.manual_seed(0)
    sizes = HeadSizes(feature_dim=D, action_dim=A, binary=(1,), window_size=W, chunk_size=K, num_sources=num_sources)
    return HEADS.get(name)(small_head(name, per_source=per_source, **changes), sizes).eval()


def asked(head, source):
    """Return the losses and the actions of a head for random features."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(B, W, head.num_queries, D, generator=generator)
    actions = torch.rand(B, W, K, A, generator=generator) * 2 - 1
    targets = Targets(actions=actions, mask=torch.ones(B, W, K, dtype=torch.bool), seeds=torch.arange(B), source=source)
    losses = head.loss(features, targets)
    return losses, head.act(lambda queries: features, B, W, source=source)


@pytest.mark.parametrize("name", PER_SOURCE)
@pytest.mark.parametrize("num_sources", [1, 3])
def test_sources_start_as_what_they_share_bit_for_bit(name, num_sources):
    source = torch.arange(B) % num_sources
    losses, actions = asked(make_head(name, num_sources), source)
    plain_losses, plain = asked(make_head(name, num_sources, per_source=False), None)
    assert torch.equal(actions, plain)
    assert losses.keys() == plain_losses.keys()
    assert all(torch.equal(losses[key], plain_losses[key]) for key in losses)


@pytest.mark.parametrize("name", PER_SOURCE)
def test_a_source_learns_for_itself_and_all_of_them_the_shared_part(name):
    head = make_head(name, 3)
    source = torch.tensor([0, 0, 2, 2])
    losses, _ = asked(head, source)
    losses["loss"].backward()
    own = dict(head.own.named_parameters())
    assert own
    for key, parameter in own.items():
        assert not parameter.grad[1].any(), key  # it had no sample
        assert parameter.grad[0].any(), key
        assert parameter.grad[2].any(), key
    shared = [p for n, p in head.named_parameters() if not n.startswith("own.") and ("arm" in n or "estimate_out" in n)]
    assert any(parameter.grad.any() for parameter in shared)


@pytest.mark.parametrize("name", PER_SOURCE)
def test_a_row_is_what_its_own_source_says_whichever_others_are_beside_it(name):
    head = make_head(name, 3)
    with torch.no_grad():
        for parameter in head.own.parameters():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    _, mixed = asked(head, torch.tensor([2, 0, 1, 0]))
    for number in range(3):
        _, alone = asked(head, torch.full((B,), number))
        rows = torch.tensor([2, 0, 1, 0]) == number
        assert torch.allclose(mixed[rows], alone[rows], atol=1e-5)
    _, other = asked(head, torch.tensor([0, 0, 1, 0]))
    assert not torch.allclose(mixed[0], other[0], atol=1e-3)


def test_a_projector_is_a_linear_map_for_every_source():
    own = OwnProjector(2, 3, 5)
    with torch.no_grad():
        own.weight.normal_()
        own.bias.normal_()
    values, source = torch.randn(4, 2, 6, 3), torch.tensor([1, 0, 1, 1])
    for row, number, mapped in zip(values, source.tolist(), own(values, source), strict=True):
        expected = torch.nn.functional.linear(row, own.weight[number], own.bias[number])
        assert torch.allclose(mapped, expected, atol=1e-5)


def test_sources_of_another_mixture_are_found_by_name_and_new_ones_add_nothing():
    rows = torch.tensor([[1.0, 1], [2, 2]])
    assert rows_of_sources(rows, ["a", "b"], ["b", "new", "a"]).tolist() == [[2, 2], [0, 0], [1, 1]]


@pytest.mark.parametrize("head", [["head=tokens"], ["head=tokens", "head.parallel=true"], ["head=fast"]])
def test_heads_that_speak_in_words_refuse(calvin_folder, tmp_path, head):
    run = [line for line in mixture(calvin_folder, tmp_path, tmp_path / "run") if not line.startswith("head.")]
    some = ["structure=one_step", "window=w1_c10", *head, "head.per_source=true", "backbone=flamingo"]
    run = [line for line in run if not line.startswith(("window=", "backbone=nano"))]
    with pytest.raises(NotAllowedError, match=r"head\.per_source=true with head="):
        completed(composed(*run, *some))


@pytest.fixture(scope="module")
def runs(calvin_folder, tmp_path_factory):
    """Return the config of a run on two robots, each with projectors of its own, that has been trained."""
    root = tmp_path_factory.mktemp("robots")
    make_arm_folder(root / "arm")
    extra = ["head.per_source=true", "schedule.total=4 step", "optimizer.lr=1e-2"]
    config = completed(composed(*mixture(calvin_folder, root / "arm", root / "run", *extra)))
    train(config)
    return config


@pytest.mark.slow
def test_a_mixtures_run_teaches_every_source_its_own(runs):
    own = {key: value for key, value in saved(runs_folder(runs)).items() if key.startswith("head.own.")}
    assert {key.split(".")[2] for key in own} == {"arm", "gripper"}
    for value in own.values():
        assert len(value) == 2
    assert all(row.any() for row in own["head.own.arm.weight"])


def runs_folder(config):
    return resolve_checkpoint(Path(config.output_dir)).parents[1]


@pytest.mark.slow
def test_sessions_of_two_robots_in_one_batch_act_as_each_alone_and_as_the_batch_forward(runs):
    engine = PolicyEngine.from_checkpoint(resolve_checkpoint(runs_folder(runs)))
    with torch.no_grad():
        for parameter in engine.policy.head.own.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
    plan = plan_of(runs)
    shown = [synthetic_observations(engine.policy, source, 0) for source in plan.sources]
    sessions = [engine.open(source.name) for source in plan.sources]
    alone = [engine.open(source.name) for source in plan.sources]
    for step in range(3):
        together = [
            unwrap(each) for each in engine.predict([(s, o[step]) for s, o in zip(sessions, shown, strict=True)])
        ]
        for session, observations, chunk in zip(alone, shown, together, strict=True):
            (one,) = engine.predict([(session, observations[step])])
            assert abs(unwrap(one) - chunk).max() < 1e-4


@pytest.mark.slow
def test_a_new_run_takes_a_sources_projectors_by_name_and_acts_as_before(runs, calvin_folder, tmp_path):
    """The order of the sources changes, and one is new."""
    extra = ["head.per_source=true", "+data@data.sources.new=calvin", f"data.sources.new.root={calvin_folder}"]
    extra += ["data.sources.new.convert.control_hz=10"]
    config = completed(composed(*mixture(calvin_folder, runs.data.sources["arm"].root, tmp_path, *extra)))
    config.data.sources = dict(sorted(config.data.sources.items()))  # arm, new, play
    policy = VLAPolicy.from_config(config, plan_of(config))
    init_weights(policy, config, resolve_checkpoint(runs_folder(runs)))
    old = saved(runs_folder(runs))
    for key, value in policy.head.own.state_dict().items():
        play, arm = old[f"head.own.{key}"]
        assert torch.equal(value, torch.stack([arm, torch.zeros_like(arm), play]))


@pytest.mark.slow
def test_a_policy_without_own_projectors_gives_them_to_a_mixture_that_has_some(runs, calvin_folder, tmp_path):
    plain = [*mixture(calvin_folder, runs.data.sources["arm"].root, tmp_path / "plain", "schedule.total=2 step")]
    train(completed(composed(*plain)))
    mine = completed(composed(*plain, "head.per_source=true"))
    plan = plan_of(mine)
    policies = [VLAPolicy.from_config(config, plan) for config in (completed(composed(*plain)), mine)]
    for policy, config in zip(policies, (completed(composed(*plain)), mine), strict=True):
        init_weights(policy.eval(), config, resolve_checkpoint(tmp_path / "plain"))
    normalizers = plan.normalizers(compute_statistics(plan, open_sources(plan, mine.window, "train")))
    dataset = build_dataset(plan, mine.window, "validation")
    batch = Collator(policies[0].processor, normalizers, mine.window)(
        [(dataset[i], Draw(i, i)) for i in (0, len(dataset) - 1)]
    )
    assert torch.equal(*(policy.predict(batch) for policy in policies))

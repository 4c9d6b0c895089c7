"""bf16 weights with fp32 masters: what is rounded, what is kept, and that any precision goes on from any other."""

import itertools
import json

import pytest
import torch
from calvin_folder import assert_same_state, losses, tiny_run, weights
from composing import completed, composed
from safetensors.torch import load_file, save_file
from torch import nn

from robovlms.backbones.families.nano import Nano
from robovlms.commands.train import train
from robovlms.config.choices import Precision
from robovlms.config.renamed import rename
from robovlms.config.training import OptimizerConfig
from robovlms.errors import UserError
from robovlms.policy.checkpoint import checkpoints, load_config
from robovlms.policy.policy import VLAPolicy
from robovlms.registry import BACKBONES
from robovlms.training.checkpoints.state import TrainingState, optimizer_pieces
from robovlms.training.optimizer.optimization import make_optimizer, named_weights
from robovlms.training.optimizer.precision import MasterWeights
from robovlms.training.parallel.base import Share

TWO = ("schedule.total=2 step", "trainer.save_every=2 step")
FOUR = ("schedule.total=4 step", "trainer.save_every=2 step", "trainer.resume=auto")


def run(data, folder, *extra):
    train(completed(composed(*tiny_run(data, folder, *extra))))
    return folder


class OnePolicy(VLAPolicy):
    """A backbone and a head, as the optimizer sees a policy."""

    def __init__(self, backbone):
        nn.Module.__init__(self)
        self.backbone, self.head = backbone, nn.Linear(2, 2)


def rounded(backbone):
    policy = OnePolicy(backbone)
    return policy, MasterWeights.round(policy)


def test_weights_are_bf16_and_the_optimizer_and_checkpoints_hold_fp32():
    before = {name: p.clone() for name, p in Nano.tiny().named_parameters()}
    backbone = Nano.tiny()
    backbone.load_state_dict(before, strict=False)
    policy, masters = rounded(backbone)
    assert {p.dtype for p in policy.backbone.parameters()} == {torch.bfloat16}
    assert policy.head.weight.dtype is torch.float32
    optimizer = make_optimizer(
        policy, OptimizerConfig(name="adamw", lr=1e-3), {each: masters.of(each) for each in policy.parameters()}
    )
    assert {p.dtype for p in named_weights(optimizer).values()} == {torch.float32}
    saved = policy.state_dict()
    assert all(torch.equal(saved[f"backbone.{name}"], value) for name, value in before.items())


def test_steps_too_small_for_bf16_add_up_in_the_masters():
    policy, masters = rounded(Nano.tiny())
    optimizer = make_optimizer(
        policy, OptimizerConfig(name="adamw", lr=1e-4), {each: masters.of(each) for each in policy.parameters()}
    )
    weight = next(p for p in policy.backbone.parameters() if p.ndim == 2)
    weight.data.fill_(1)
    masters.of(weight).data.fill_(1)
    seen = []
    for _ in range(60):
        weight.grad = torch.ones_like(weight)
        masters.collect_gradients()
        optimizer.step()
        masters.copy_back()
        seen.append(weight[0, 0].item())
    assert seen[0] == 1  # one step of 1e-4 is below half a digit of bf16
    assert seen[-1] == torch.tensor(1 - 60e-4).bfloat16().item()
    assert masters.of(weight)[0, 0].item() == pytest.approx(1 - 60e-4, abs=1e-6)


def test_a_gradient_that_is_not_finite_changes_no_master():
    policy, masters = rounded(Nano.tiny())
    optimizer = make_optimizer(
        policy, OptimizerConfig(name="adamw", lr=1e-2), {each: masters.of(each) for each in policy.parameters()}
    )
    before = {name: p.clone() for name, p in policy.state_dict().items()}
    for parameter in policy.backbone.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    masters.collect_gradients()
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    masters.copy_back()
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


def test_frozen_weights_are_saved_as_they_were_and_kept_only_where_rounding_loses_something():
    backbone = Nano.tiny().requires_grad_(False)
    first, second = itertools.islice((p for p in backbone.parameters() if p.ndim == 2), 2)
    first.data.copy_(first.bfloat16())
    before = second.clone()
    policy, masters = rounded(backbone)
    assert first not in masters._frozen
    assert any(torch.equal(value, before) for value in policy.state_dict().values())


@pytest.mark.parametrize("name", BACKBONES.names())
def test_every_backbone_computes_in_bf16_throughout(name):
    torch.manual_seed(0)
    backbone = BACKBONES.get(name).tiny().eval()
    size, wanted = backbone.image_spec.size, {}
    images, queries = torch.randn(2, 1, 2, 3, size, size), torch.randn(2, 1, 1, backbone.hidden_dim)
    ids = torch.tensor([[0, 5, 6, 7], [0, 5, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    with torch.no_grad():
        wanted = backbone(images, ids, mask, queries)
    _, masters = rounded(backbone)
    wide = []

    def watch(module, _, output):
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv2d) and output.dtype is not torch.bfloat16:
            wide.append(module)

    for module in backbone.modules():
        module.register_forward_hook(watch)
    with torch.autocast("cpu", torch.bfloat16), backbone.arithmetic():
        image = backbone.encode(images)
        features = backbone.read(image, ids, mask, queries)
    assert image.dtype is torch.bfloat16
    assert not wide
    error = (features.float() - wanted).norm() / wanted.norm()
    assert error < 0.05
    features.float().square().sum().backward()
    masters.collect_gradients()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert all(p.grad is None for p in trained)
    assert any(masters.of(p).grad is not None for p in trained)
    assert {p.dtype for p in trained} == {torch.bfloat16}


def test_tables_and_frequencies_stay_fp32():
    for name in BACKBONES.names():
        backbone = BACKBONES.get(name).tiny()
        before = {key: value.clone() for key, value in backbone.named_buffers()}
        rounded(backbone)
        assert all(torch.equal(value, before[key]) for key, value in backbone.named_buffers()), name


@pytest.mark.extended
@pytest.mark.parametrize("precision", Precision)
def test_two_steps_and_two_more_are_four_in_every_precision(calvin_folder, tmp_path, precision):
    choice = f"precision={precision}"
    whole = run(calvin_folder, tmp_path / "whole", choice)
    run(calvin_folder, tmp_path / "halves", choice, *TWO)
    halves = run(calvin_folder, tmp_path / "halves", choice, *FOUR)
    assert_same_state(whole, halves)
    assert losses(whole) == losses(halves)
    assert {value.dtype for value in weights(whole).values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.extended
@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(Precision, 2)))
def test_a_run_goes_on_in_another_precision_from_the_same_weights(calvin_folder, tmp_path, first, second):
    run(calvin_folder, tmp_path / "run", f"precision={first}", *TWO)
    path = checkpoints(tmp_path / "run")[-1]
    before = load_file(path / "model.safetensors")
    run(calvin_folder, tmp_path / "run", f"precision={second}", *FOUR, "optimizer.lr=1e-9")
    after = weights(tmp_path / "run")
    assert all(torch.allclose(before[key], value, atol=1e-6) for key, value in after.items())


@pytest.mark.slow
def test_bf16_stays_near_fp32(calvin_folder, tmp_path):
    found = {name: losses(run(calvin_folder, tmp_path / name, f"precision={name}")) for name in Precision}
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.02)
    assert found["bf16_autocast"] == pytest.approx(found["fp32"], rel=0.02)
    assert len({tuple(each) for each in found.values()}) == 3


@pytest.mark.slow
def test_a_config_from_before_masters_keeps_its_meaning(calvin_folder, tmp_path):
    path = run(calvin_folder, tmp_path / "run", "precision=bf16", *TWO) / "config.yaml"
    assert load_config(path).precision.name is Precision.bf16
    text = path.read_text()
    assert "  moments: fp32\n" in text
    path.write_text(text.replace("  moments: fp32\n", ""))
    assert load_config(path).precision.name is Precision.bf16_autocast
    node = {"optimizer": {"lr": 1}, "precision": {"name": "fp32"}}
    rename(node)
    assert node["precision"]["name"] == "fp32"


def whole_shares(optimizer):
    return {name: Share(parameter=weight, weight=weight) for name, weight in named_weights(optimizer).items()}


def test_a_state_that_numbers_its_parameters_is_read_as_the_names_that_it_means(tmp_path):
    policy = OnePolicy(Nano.tiny())
    optimizer = make_optimizer(policy, OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.1))
    for parameter in policy.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    saved = optimizer.state_dict()
    folder = tmp_path / "step_000003" / "training_state"
    folder.mkdir(parents=True)
    save_file(
        {f"{i}.{kind}": v.contiguous() for i, entry in saved["state"].items() for kind, v in entry.items()},
        folder / "optimizer.safetensors",
    )
    groups = [{"params": group["params"]} for group in saved["param_groups"]]
    (folder / "state.json").write_text(json.dumps({"step": 3, "num_ranks": 0, "param_groups": groups}))
    fresh = make_optimizer(policy, OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.1))
    shares = whole_shares(fresh)
    TrainingState.load(folder).restore(fresh, list(shares), shares)
    ours, theirs = optimizer_pieces(fresh, shares), optimizer_pieces(optimizer, shares)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key].values, piece.values) for key, piece in theirs.items())


def test_a_state_of_other_parameters_is_refused_with_a_name(tmp_path):
    policy = OnePolicy(Nano.tiny())
    optimizer = make_optimizer(policy, OptimizerConfig(name="adamw", lr=1e-3))
    names = [*named_weights(optimizer)][:-1]
    state = TrainingState(step=1, parameters=names, rng=[])
    with pytest.raises(UserError, match=r"1 are of one alone, e\.g\. head\.bias"):
        state.restore(optimizer, list(named_weights(optimizer)), whole_shares(optimizer))

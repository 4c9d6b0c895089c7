"""Frozen layers in four bits: what they keep, what adapters beside them learn, and checkpoints that load alone."""

import pytest
import torch
from calvin_folder import assert_same_state, losses, make_calvin_folder, tiny_run
from composing import completed, composed
from test_backbones import NAMES, inputs, tiny
from torch import nn

from robovlms.actions.plan import DataPlan
from robovlms.backbones.lora import merge_lora
from robovlms.backbones.nf4 import LEVELS, STORED, NF4Linear, dequantize, own_linears
from robovlms.commands.merge_lora import merge_checkpoint
from robovlms.commands.train import train
from robovlms.config.policy import FrozenQuantization, LoRAConfig
from robovlms.errors import UserError
from robovlms.planner.machines import GPUS
from robovlms.planner.plan import make_plan
from robovlms.policy.checkpoint import load_policy, resolve_checkpoint
from robovlms.policy.policy import VLAPolicy
from robovlms.policy.quantization.int8 import weight_bytes
from robovlms.training.warm_start import init_weights

pytest.importorskip("peft")
NF4 = FrozenQuantization.nf4
QLORA = ("backbone.quantization=nf4", "backbone.lora.rank=4", "backbone.lora.parts=[text,vision]")

LEARNS = ("optimizer.lr=1e-2", "precision=bf16", "debug.overfit=true", "trainer.validate_every=null")


def of_size(rows, columns, std=0.02):
    torch.manual_seed(0)
    linear = nn.Linear(columns, rows)
    nn.init.normal_(linear.weight, std=std)
    return linear


def test_normal_weights_lose_nine_percent_and_take_a_little_more_than_four_bits():
    linear = of_size(512, 512)
    found = NF4Linear(linear)
    error = (found.weight - linear.weight).norm() / linear.weight.norm()
    assert error.item() == pytest.approx(0.0921, abs=5e-4)  # bitsandbytes' NF4 of the same weights: 0.0921
    assert 8 * sum(getattr(found, name).nbytes for name in STORED) / linear.weight.numel() == pytest.approx(4.127, 1e-3)


def test_every_level_is_kept_and_a_weight_goes_to_the_nearest():
    linear = nn.Linear(64, 4, bias=False)
    levels = torch.tensor(LEVELS)
    linear.weight.data = levels.repeat(4, 4) * 0.5
    torch.testing.assert_close(NF4Linear(linear).weight, linear.weight.data, rtol=0, atol=1e-6)
    linear.weight.data += 0.02  # less than half of the smallest gap, but at the end
    torch.testing.assert_close(
        NF4Linear(linear).weight[:, 1:15], levels.repeat(4, 1)[:, 1:15] * 0.52, rtol=0, atol=0.02
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 64), (64, 300)])
@pytest.mark.parametrize("std", [0.0, 1e-20, 1e20])
def test_any_size_and_scale_is_kept_to_a_tenth(shape, std):
    linear = of_size(*shape, std=std)
    found = NF4Linear(linear).weight
    assert found.shape == shape
    assert (found - linear.weight).norm() <= 0.15 * linear.weight.norm()


def test_gradients_are_those_of_the_weights_that_are_stored_and_no_weight_is_kept_for_them():
    linear = of_size(96, 80)
    found, plain = NF4Linear(linear), nn.Linear(80, 96)
    plain.weight.data, plain.bias.data = found.weight, linear.bias.data
    for_backward, x = sizes_kept(found), torch.randn(5, 80)
    assert max(for_backward, default=0) < 96 * 80 <= max(sizes_kept(plain))
    torch.testing.assert_close(gradient_of(found, x), gradient_of(plain, x))


def sizes_kept(layer):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda _: _):
        layer(torch.randn(5, layer.in_features).requires_grad_())
    return kept


def gradient_of(layer, x):
    x = x.clone().requires_grad_()
    layer(x).square().sum().backward()
    return x.grad


@pytest.mark.parametrize("name", NAMES)
def test_every_family_computes_with_layers_in_four_bits_and_adapters_beside_them(name):
    torch.manual_seed(0)
    lora = LoRAConfig(rank=4, parts=["text", "vision"])
    backbone = tiny(name, lora=lora, quantization=NF4)
    frozen = [key for _, key, linear in own_linears(backbone) if not linear.weight.requires_grad]
    assert not frozen
    assert any(isinstance(module, NF4Linear) for module in backbone.modules())
    batch = inputs(backbone)
    found = backbone(*batch)
    found.square().sum().backward()
    adapters = {key: p for key, p in backbone.named_parameters() if "lora_B" in key}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapters.values())
    for p in adapters.values():
        nn.init.normal_(p, std=0.1)
    with torch.no_grad():
        wanted = backbone.eval()(*batch)
        dequantize(backbone)
        torch.testing.assert_close(backbone(*batch), wanted, rtol=0, atol=1e-5)
        merge_lora(backbone)
        torch.testing.assert_close(backbone(*batch), wanted, rtol=0, atol=1e-4)
    assert set(backbone.state_dict()) == set(tiny(name).state_dict())


@pytest.mark.parametrize("name", ["nano", "kosmos", "smolvlm", "paligemma", "qwen2_5_vl"])
def test_adapters_beside_four_bits_learn(name):
    torch.manual_seed(0)
    backbone = tiny(name, lora=LoRAConfig(rank=4), quantization=NF4, freeze_vision=True, freeze_embeddings=True)
    adapters = [p for key, p in backbone.named_parameters() if "lora_" in key]
    assert {id(p) for p in backbone.parameters() if p.requires_grad} >= {id(p) for p in adapters}
    batch, optimizer = inputs(backbone), torch.optim.AdamW(adapters, lr=1e-2)
    with torch.no_grad():
        wanted = backbone(*batch).roll(1, dims=-1)
    seen = []
    for _ in range(15):
        loss = (backbone(*batch) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    assert seen[-1] < 0.7 * seen[0]


def test_four_bits_of_what_is_trained_are_refused():
    with pytest.raises(UserError, match=r"backbone\.quantization=nf4 .* none is frozen: set backbone\.lora\.rank=16"):
        tiny("nano", quantization=NF4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_calvin_folder(tmp_path_factory.mktemp("calvin"))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Runs of four steps: in 4 bits with adapters, and two of full weights, one with the same adapters."""
    folder = tmp_path_factory.mktemp("runs")
    choices = {"qlora": QLORA, "lora": QLORA[1:], "full": ()}
    for name, choice in choices.items():
        train(completed(composed(*tiny_run(data, folder / name, *choice, *LEARNS))))
    return folder


def chunk(policy):
    images, ids, mask, _ = inputs(policy.backbone)
    queries = policy.head.queries(1, 1, None).flatten(0, 1)[:, None].expand(len(images), *images.shape[1:2], -1, -1)
    with torch.no_grad():
        return policy.eval().backbone(images, ids, mask, queries)


@pytest.mark.slow
def test_a_checkpoint_holds_four_bits_loads_alone_and_acts_as_it_was(runs, tmp_path):
    checkpoint = resolve_checkpoint(runs / "qlora")
    policy = load_policy(checkpoint).policy
    again = load_policy(checkpoint).policy
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in policy.state_dict().items())
    assert any(isinstance(module, NF4Linear) for module in policy.modules())
    assert weight_bytes(policy.backbone) < 0.8 * weight_bytes(
        load_policy(resolve_checkpoint(runs / "lora")).policy.backbone
    )
    merge_checkpoint(checkpoint, tmp_path / "merged")
    merged = load_policy(tmp_path / "merged")
    assert (merged.config.backbone.lora.rank, merged.config.backbone.quantization) == (0, None)
    assert not any("lora" in key or "codes" in key for key in merged.policy.state_dict())
    torch.testing.assert_close(chunk(merged.policy), chunk(policy), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(data, runs, tmp_path):
    choice = (*QLORA, *LEARNS)
    train(completed(composed(*tiny_run(data, tmp_path, *choice, "schedule.total=2 step"))))
    train(completed(composed(*tiny_run(data, tmp_path, *choice, "trainer.resume=auto"))))
    assert_same_state(runs / "qlora", tmp_path)
    assert losses(runs / "qlora") == losses(tmp_path)


@pytest.mark.slow
def test_adapters_learn_as_beside_full_weights(runs):
    found, wanted = losses(runs / "qlora"), losses(runs / "lora")
    assert found[-1] < found[0]
    assert found == pytest.approx(wanted, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("old", ["qlora", "lora", "full"])
@pytest.mark.parametrize(
    "new", [QLORA, ("backbone.lora.rank=2",), (), ("backbone.quantization=nf4", "backbone.lora.rank=2")]
)
def test_a_run_starts_where_another_ended_whatever_is_in_four_bits(data, runs, tmp_path, old, new):
    config = completed(composed(*tiny_run(data, tmp_path / "run", *new)))
    policy = VLAPolicy.from_config(config, DataPlan.of(config.data, config.view.views))
    init_weights(policy, config, resolve_checkpoint(runs / old))
    before = load_policy(resolve_checkpoint(runs / old)).policy
    difference = (chunk(policy) - chunk(before)).norm() / chunk(before).norm()
    is_rounded_again = config.backbone.quantization is not None and (old, new) != ("qlora", QLORA)
    assert difference < (0.3 if is_rounded_again else 1e-4)


@pytest.mark.slow
def test_the_planner_counts_four_bits():
    plain, packed = (
        make_plan(completed(composed("backbone=nano", "device_batch_size=1", "window=w1_c10", *choice)), GPUS["l4"])
        for choice in (QLORA[1:], QLORA)
    )
    saved = plain.memory.weights - packed.memory.weights
    linear = plain.trace.parameters - packed.trace.parameters
    assert linear > 500_000
    assert saved * 1e9 == pytest.approx(linear * (2 - 4.13 / 8), rel=0.05)

"""Matrices of the backbone in eight bits: what they hold, what stays, and what is refused."""

from __future__ import annotations

import re
from copy import deepcopy

import numpy as np
import pytest
import torch
from composing import completed, composed
from test_engine import SOURCES, one_of_each
from test_parity import make_policy, observe
from torch import nn

from robovlms.config.choices import EngineDtype, Quantization, Structure
from robovlms.config.closed_loop import EngineConfig
from robovlms.config.commands import ServeConfig
from robovlms.errors import UserError
from robovlms.policy.engine import PolicyEngine
from robovlms.policy.quantization.int8 import Int8Linear, quantize_linears, weight_bytes

FAMILIES = ("nano", "kosmos", "paligemma", "qwen2_5_vl")


def engine_of(policy, **options):
    return PolicyEngine(policy, SOURCES, window_size=3, config=EngineConfig(device="cpu", **options))


def chunks_of(engine):
    sessions = one_of_each(engine, 3)
    for step in range(3):
        chunks = engine.predict([(session, observe(10 * i + step)) for i, session in enumerate(sessions)])
    return np.stack(chunks)


def test_a_weight_is_at_most_half_a_step_from_its_integer_and_the_largest_of_a_row_is_kept():
    torch.manual_seed(0)
    linear = nn.Linear(40, 6)
    with torch.no_grad():
        linear.weight[0] = 0
        linear.weight[1] *= 1e-6
        linear.weight[2] *= 1e6
    found = Int8Linear(linear)
    assert found.integers.dtype is torch.int8
    assert found.integers[1:].abs().amax(1).tolist() == [127] * 5
    assert ((found.weight - linear.weight).abs() <= found.scale[:, None] * 0.5001).all()
    x = torch.randn(2, 3, 40)
    summed = x.abs() @ found.weight.abs().T + linear.bias.abs()  # what rounding is relative to, where terms cancel
    assert ((found(x) - nn.functional.linear(x, found.weight, linear.bias)).abs() <= 1e-6 * summed).all()
    assert found(x.bfloat16()).dtype is torch.bfloat16


class Tied(nn.Module):
    """An embedding that is also the vocabulary head, an adapter, attention, and a plain layer."""

    def __init__(self):
        super().__init__()
        self.words, self.plain = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.words.weight
        self.lora_A = nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)})
        self.attention = nn.MultiheadAttention(8, 2)


def test_embeddings_tied_heads_adapters_and_layers_that_others_compute_with_stay():
    module = Tied()
    before = deepcopy(module.state_dict())
    quantize_linears(module)
    assert [name for name, each in module.named_modules() if isinstance(each, Int8Linear)] == ["plain"]
    after = module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if name != "plain.weight")
    assert module.head.weight is module.words.weight
    assert module.attention(*[torch.randn(3, 1, 8)] * 3)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [EngineDtype.fp32, EngineDtype.bf16])
@pytest.mark.parametrize("name", FAMILIES)
def test_actions_are_those_of_the_rounded_weights_and_head_and_embedding_stay(name, dtype):
    plain = chunks_of(engine_of(make_policy(name, Structure.policy_head, "mlp", proprio=True), dtype=dtype))
    policy = make_policy(name, Structure.policy_head, "mlp", proprio=True)
    others = {id(each): each for each in policy.head.parameters()}
    before = weight_bytes(policy.backbone)
    found = chunks_of(engine_of(policy, quantize=Quantization.int8, dtype=dtype))
    layers = [each for each in policy.backbone.modules() if isinstance(each, Int8Linear)]
    assert len(layers) >= 8
    assert weight_bytes(policy.backbone) < before
    assert {id(each) for each in policy.head.parameters()} == set(others)
    rounded = make_policy(name, Structure.policy_head, "mlp", proprio=True)
    linears = [each for each in rounded.backbone.modules() if type(each) is nn.Linear]
    with torch.no_grad():
        for linear in linears:
            linear.weight.copy_(Int8Linear(linear).weight)
    expected = chunks_of(engine_of(rounded, dtype=dtype))
    tolerance = 1e-5 if dtype is EngineDtype.fp32 else 0.05
    np.testing.assert_allclose(found[..., :-1], expected[..., :-1], rtol=0, atol=tolerance)
    if dtype is EngineDtype.fp32:
        assert np.abs(found - plain)[..., :-1].max() > 1e-5


@pytest.mark.parametrize("name", ["nano", "paligemma"])
def test_more_change_than_allowed_is_refused_with_the_amount_which_is_enough_when_allowed(name):
    options = {"quantize": Quantization.int8}
    with pytest.raises(UserError, match=r"quantize=int8 changes the arm by up to .* of a range of 2") as caught:
        engine_of(make_policy(name, Structure.policy_head, "mlp", proprio=True), max_action_change=1e-9, **options)
    enough = float(re.search(r"allow ([\d.e-]+)\.$", str(caught.value)).group(1))
    assert 0 < enough <= 2
    engine_of(make_policy(name, Structure.policy_head, "mlp", proprio=True), max_action_change=1.01 * enough, **options)
    with pytest.raises(UserError, match=f"allow {enough:g}"):
        engine_of(
            make_policy(name, Structure.policy_head, "mlp", proprio=True), max_action_change=0.98 * enough, **options
        )


def test_reference_observations_are_the_same_at_every_call_and_move_the_actions():
    engine = engine_of(make_policy("nano", Structure.policy_head, "mlp", proprio=True))
    chunks = engine.act_on_reference()
    assert torch.equal(chunks, engine.act_on_reference())
    assert len(chunks) == 2 * 4 * 8  # sources, episodes, steps
    assert chunks[..., :-1].std(0).max() > 1e-4


def test_a_bound_on_nothing_is_refused():
    given = ["checkpoint=x", "engine.max_action_change=0.1"]
    with pytest.raises(UserError, match=r"engine\.max_action_change=0\.1 bounds what engine\.quantize changes"):
        completed(composed(*given, config_name="serve"), schema=ServeConfig)
    assert completed(
        composed(*given, "engine.quantize=int8", config_name="serve"), schema=ServeConfig
    ).engine.quantize is Quantization.int8  # fmt: skip

"""The paper's heads start and compute as upstream's do: GPT-2 by transformers, Xavier-uniform decoders."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model

from robovlms.heads.base import HeadSizes
from robovlms.heads.schemas.gpt import GPTHeadConfig
from robovlms.heads.schemas.lstm import LSTMHeadConfig
from robovlms.heads.schemas.mlp import MLPHeadConfig
from robovlms.registry import HEADS

W, D, WIDTH, LAYERS = 4, 48, 256, 2


def make_head(config, feature_dim=D):
    torch.manual_seed(0)
    return HEADS.get(config.name)(
        config, HeadSizes(feature_dim=feature_dim, action_dim=7, binary=(6,), window_size=W, chunk_size=10)
    )


def gpt_config(**changes):
    return GPTHeadConfig(**{"name": "gpt", "hidden_dim": WIDTH, "num_layers": LAYERS, "num_heads": 4, **changes})


@pytest.mark.parametrize(
    "config", [LSTMHeadConfig(name="lstm", num_layers=1), MLPHeadConfig(name="mlp")], ids=["lstm", "mlp"]
)
def test_decoders_start_xavier_uniform_without_biases(config):
    head = make_head(config, feature_dim=1024)
    for decoder in (head.arm, head.gripper):
        for layer in decoder:
            if isinstance(layer, nn.Linear):
                bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
                assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
                assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
                assert not layer.bias.any()


@pytest.mark.slow
def test_the_lstm_head_starts_with_upstreams_spread_of_actions_over_inputs():
    head = make_head(LSTMHeadConfig(name="lstm"), feature_dim=2048).eval()
    with torch.no_grad():
        arm, gripper = head.decode(torch.randn(64, 16, 1, 2048))
    # Measured with upstream's LSTMDecoder on such inputs, three seeds: 0.00133 to 0.00145, 0.00154 to 0.00160.
    assert arm[:, -1].std(0).mean().item() == pytest.approx(0.0014, rel=0.2)
    assert gripper[:, -1].std(0).mean().item() == pytest.approx(0.0016, rel=0.25)


def test_the_gpt_head_is_gpt_2():
    head = make_head(gpt_config()).eval()
    gpt2 = GPT2Model(GPT2Config(vocab_size=1, n_positions=W, n_embd=WIDTH, n_layer=LAYERS, n_head=4)).eval()
    for parameter in gpt2.parameters():
        nn.init.normal_(parameter, std=0.2)
    state = {"position": gpt2.wpe.weight, "norm.weight": gpt2.ln_f.weight, "norm.bias": gpt2.ln_f.bias}
    for i, block in enumerate(gpt2.h):
        attention = {"in_proj_": block.attn.c_attn, "out_proj.": block.attn.c_proj}
        layers = {f"self_attn.{name}": layer for name, layer in attention.items()}
        layers |= {"linear1.": block.mlp.c_fc, "linear2.": block.mlp.c_proj}
        for name, layer in layers.items():
            state |= {f"blocks.{i}.{name}weight": layer.weight.T, f"blocks.{i}.{name}bias": layer.bias}
        for name, norm in (("norm1", block.ln_1), ("norm2", block.ln_2)):
            state |= {f"blocks.{i}.{name}.weight": norm.weight, f"blocks.{i}.{name}.bias": norm.bias}
    missing, unexpected = head.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [name for name in missing if name.startswith(("blocks", "norm", "position"))]
    features = torch.randn(3, W, D)
    with torch.no_grad():
        expected = gpt2(inputs_embeds=head.project(features)).last_hidden_state
        torch.testing.assert_close(head.fuse(features), expected, rtol=0, atol=1e-4)


def test_the_gpt_head_starts_and_drops_as_gpt_2_does():
    head = make_head(gpt_config())
    for block in head.blocks:
        for name, parameter in block.named_parameters():
            if name.endswith("bias"):
                assert not parameter.any(), name
            elif not name.startswith("norm"):
                assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        assert (block.self_attn.dropout, block.dropout1.p, block.dropout2.p, block.dropout.p) == (0.1, 0.1, 0.1, 0)
    assert head.dropout.p == 0.1
    assert not torch.equal(head.blocks[0].linear1.weight, head.blocks[1].linear1.weight)


def test_where_features_are_as_wide_as_the_gpt_they_enter_it_as_they_are():
    head = make_head(gpt_config(), feature_dim=WIDTH)
    features = torch.randn(2, W, WIDTH)
    assert torch.equal(head.project(features), features)

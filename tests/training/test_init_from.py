"""A new run that starts from the weights of another, with or without adapters on either side."""

import pytest
import torch
from calvin_folder import make_calvin_folder, tiny_run
from composing import completed, composed

from robovlms.actions.plan import DataPlan
from robovlms.commands.train import train
from robovlms.errors import UserError
from robovlms.policy.checkpoint import load_config, load_policy, resolve_checkpoint
from robovlms.policy.policy import VLAPolicy
from robovlms.training.warm_start import init_weights

pytest.importorskip("peft")
FULL, RANK_4, RANK_2 = [], ["backbone.lora.rank=4"], ["backbone.lora.rank=2", "backbone.lora.alpha=3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_calvin_folder(tmp_path_factory.mktemp("calvin"))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A run without adapters and one with, both trained a little."""
    folder = tmp_path_factory.mktemp("runs")
    for name, lora in (("full", FULL), ("rank_4", RANK_4)):
        train(completed(composed(*tiny_run(data, folder / name, "optimizer.lr=1e-2", *lora))))
    return folder


def plain(policy):
    """Return the weights that a policy acts with, adapters merged into them."""
    merged = {}
    for name, module in policy.named_modules():
        if hasattr(module, "base_layer"):
            merged[f"{name}.weight"] = module.base_layer.weight + module.get_delta_weight("default")
    names = {key: value for key, value in policy.state_dict().items() if ".lora_" not in key}
    return {key.replace(".base_layer.", "."): value for key, value in names.items()} | merged


@pytest.mark.parametrize("new", [FULL, RANK_4, RANK_2], ids=["full", "rank_4", "rank_2"])
@pytest.mark.parametrize("old", ["full", "rank_4"])
def test_a_run_starts_where_another_ended_whatever_adapters_either_has(data, runs, tmp_path, old, new):
    config = completed(composed(*tiny_run(data, tmp_path / "run", *new)))
    policy = VLAPolicy.from_config(config, DataPlan.of(config.data, config.view.views))
    checkpoint = resolve_checkpoint(runs / old)
    init_weights(policy, config, checkpoint)
    before, after = plain(load_policy(checkpoint).policy), plain(policy)
    assert before.keys() == after.keys()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, atol=1e-6, rtol=1e-5)
    assert load_config(checkpoint / "config.yaml").backbone.lora.rank == (4 if old == "rank_4" else 0)


def test_fine_tuning_with_adapters_from_a_full_run_trains(data, runs, tmp_path):
    train(completed(composed(*tiny_run(data, tmp_path / "run", *RANK_4, f"trainer.init_from={runs / 'full'}"))))
    assert resolve_checkpoint(tmp_path / "run").name == "step_000004"


def test_weights_of_another_policy_are_refused_in_a_few_lines(data, runs, tmp_path):
    other = ["backbone.hidden_dim=64", "head=gpt", "head.num_heads=2", f"trainer.init_from={runs / 'full'}"]
    with pytest.raises(UserError, match="do not fit this policy") as error:
        train(completed(composed(*tiny_run(data, tmp_path / "run", *other))))
    assert len(str(error.value)) < 1500

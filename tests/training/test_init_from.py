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

pytestmark = pytest.mark.slow
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


FEWER = ["data.contract.names=[dx,dy,dz,gripper]", "data.contract.rotation=none"]
OTHERS = ["data.contract.names=[j0,j1,j2,j3,j4,j5,gripper]", "data.contract.rotation=none"]
SEEN = ["data.proprio_key=robot_obs", "data.proprio_names=[x,y]"]


def started(data, folder, checkpoint, *options):
    """Return a policy as it was made, what it is after a warm start, and which parts are to be calibrated."""
    config = completed(composed(*tiny_run(data, folder, *options)))
    policy = VLAPolicy.from_config(config, DataPlan.of(config.data, config.view.views))
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    return before, policy.state_dict(), init_weights(policy, config, resolve_checkpoint(checkpoint))


@pytest.mark.parametrize("lora", [[], RANK_4], ids=["full", "rank_4"])
@pytest.mark.parametrize("actions", [FEWER, OTHERS], ids=["fewer", "others"])
def test_other_actions_start_anew_and_all_else_is_kept(data, runs, tmp_path, caplog, actions, lora):
    old = load_policy(resolve_checkpoint(runs / "full")).policy.state_dict()
    before, after, parts = started(data, tmp_path, runs / "full", *actions, *lora)
    anew = {key for key, value in after.items() if torch.equal(value, before[key]) and value.numel() > 1}
    renamed = {key.replace(".base_layer.", "."): key for key in after}
    kept = {key for key in old if torch.equal(after[renamed[key]], old[key])} if old.keys() <= renamed.keys() else set()
    output = {key for key in after if key.startswith("head.arm.") and key not in kept}
    assert output
    assert output == {key for key in anew if key.startswith("head.")}
    assert old.keys() - kept == output
    assert parts == {"head"}
    (told,) = [record.getMessage() for record in caplog.records if "starts anew" in record.getMessage()]
    assert all(key in told for key in output)
    assert "actions: dx, dy, dz, droll, dpitch, dyaw before, " in told


def test_proprioception_that_is_new_starts_anew_and_is_calibrated(data, runs, tmp_path, caplog):
    _, _, parts = started(data, tmp_path / "look", runs / "full", *SEEN)
    assert parts == {"proprio"}
    train(completed(composed(*tiny_run(data, tmp_path / "seen", *SEEN, f"trainer.init_from={runs / 'full'}"))))
    seen = load_policy(resolve_checkpoint(tmp_path / "seen")).policy
    assert seen.proprio.mean.abs().min() > 0.1  # of what the folder holds, about 1
    _, after, parts = started(data, tmp_path / "look", tmp_path / "seen")
    assert parts == set()
    assert not any(key.startswith("proprio.") for key in after)
    assert "x, y before, none now; what depends on them is left out" in caplog.text
    before, after, parts = started(data, tmp_path / "look", tmp_path / "seen", "data.proprio_key=robot_obs",
                                   "data.proprio_names=[y,x]")  # fmt: skip
    assert parts == {"proprio"}
    assert torch.equal(after["proprio.embed.0.weight"], before["proprio.embed.0.weight"])
    assert torch.equal(after["proprio.embed.2.weight"], seen.proprio.embed[2].weight)


def test_the_same_actions_keep_everything(data, runs, tmp_path, caplog):
    old = load_policy(resolve_checkpoint(runs / "full")).policy.state_dict()
    _, after, parts = started(data, tmp_path, runs / "full")
    assert all(torch.equal(after[key], value) for key, value in old.items())
    assert parts == set()
    assert not [record for record in caplog.records if "starts anew" in record.getMessage()]

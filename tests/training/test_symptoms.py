from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from calvin_folder import assert_same_state, losses, tiny_run
from colour_folder import colour_run, make_colour_folder
from composing import completed, composed, plan_of

from robovlms.commands.train import train
from robovlms.data.loading.loader import Collator
from robovlms.data.opening import build_dataset, open_sources
from robovlms.data.statistics import compute_statistics
from robovlms.policy.policy import VLAPolicy
from robovlms.training.symptoms import LANGUAGE, PICTURES, Probe, still_grippers, unlearned
from robovlms.training.tracking import load_warnings

pytestmark = pytest.mark.slow

KINDS = {"language": "language is ignored", "pictures": "proprioception is copied", "gripper": "never moves"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return runs on data in which picture and instruction decide, and on data in which nothing but the state does."""
    root = tmp_path_factory.mktemp("colours")
    for is_healthy in (True, False):
        make_colour_folder(root / f"data_{is_healthy}", is_healthy=is_healthy)
        train(completed(composed(*colour_run(root / f"data_{is_healthy}", root / f"run_{is_healthy}"))))
    return root


def validation_metrics(run):
    (found,) = [
        row for line in (run / "metrics.jsonl").read_text().splitlines() if "val/loss" in (row := json.loads(line))
    ]
    return found


def test_a_policy_that_uses_what_it_is_given_is_not_warned_of(folders):
    assert load_warnings(folders / "run_True") == []
    metrics = validation_metrics(folders / "run_True")
    assert min(metrics[LANGUAGE], metrics[PICTURES]) > 0.3


def test_a_policy_that_copies_its_state_is_warned_of_kind_by_kind(folders):
    found = json.loads((folders / "run_False" / "warnings.json").read_text())
    assert found.keys() == KINDS.keys()
    for kind, text in KINDS.items():
        assert text in found[kind]["what"]
        assert found[kind]["where"] == "validation at step 60"
    metrics = validation_metrics(folders / "run_False")
    assert max(metrics[LANGUAGE], metrics[PICTURES]) < 0.05
    assert metrics["val/action_rmse"] < 0.3 * metrics["val/mean_action_rmse"]  # it is no bad policy otherwise


def test_each_kind_is_logged_once_however_often_a_run_validates(folders, tmp_path, caplog):
    often = ["trainer.validate_every=20 step", "schedule.total=40 step", "optimizer.lr=1e-9"]
    with caplog.at_level(logging.WARNING):
        train(completed(composed(*colour_run(folders / "data_True", tmp_path / "run", *often))))
    told = [each.message for each in caplog.records if "never moves" in each.message]
    assert len(told) == 1
    assert "at step 20" in told[0]


def test_looking_changes_no_weight_no_loss_and_no_random_number(calvin_folder, tmp_path):
    for name in ("true", "false"):
        flow = ["head=flow", "head.num_heads=2", f"trainer.early_warnings={name}"]
        train(completed(composed(*tiny_run(calvin_folder, tmp_path / name, *flow))))
    assert losses(tmp_path / "true") == losses(tmp_path / "false")
    assert losses(tmp_path / "true", "val/loss") == losses(tmp_path / "false", "val/loss")
    assert_same_state(tmp_path / "true", tmp_path / "false")
    assert losses(tmp_path / "true", PICTURES)
    assert not losses(tmp_path / "false", PICTURES)
    assert not (tmp_path / "false" / "warnings.json").exists()


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_effects_do_not_depend_on_how_many_windows_are_asked_at_once(folders, tmp_path, batch_size):
    policy, dataset, collator = set_up(folders / "data_True", tmp_path)
    expected = Probe(dataset, collator, 32).measure(policy)
    assert expected.keys() == {LANGUAGE, PICTURES}
    assert Probe(dataset, collator, batch_size).measure(policy) == pytest.approx(expected, rel=1e-3)


def test_a_probe_leaves_a_policy_in_the_mode_it_was_in(folders, tmp_path):
    policy, dataset, collator = set_up(folders / "data_True", tmp_path)
    for mode in (True, False):
        Probe(dataset, collator, 8).measure(policy.train(mode))
        assert policy.training is mode


def test_one_instruction_cannot_be_ignored(folders, tmp_path):
    policy, dataset, collator = set_up(folders / "data_True", tmp_path)
    for episode, info in enumerate(dataset.reader.episodes):
        dataset.reader.episodes[episode] = info._replace(instruction="go to the light")
    assert Probe(dataset, collator, 8).measure(policy).keys() == {PICTURES}


def set_up(root, tmp_path):
    """Return a policy with random weights, the validation windows, and what makes batches of them."""
    config = completed(composed(*colour_run(root, tmp_path, "data.cache_mb=0")))
    plan = plan_of(config)
    torch.manual_seed(0)
    policy = VLAPolicy.from_config(config, plan)
    torch.nn.init.normal_(policy.head.query)
    normalizers = plan.normalizers(compute_statistics(plan, open_sources(plan, config.window, "train")))
    return (
        policy,
        build_dataset(plan, config.window, "validation"),
        Collator(policy.processor, normalizers, config.window),
    )


def test_what_is_no_better_than_a_constant_is_named_by_its_source():
    good, bad = {"action_rmse": 0.4, "mean_action_rmse": 0.5}, {"action_rmse": 0.5, "mean_action_rmse": 0.5}

    def metrics(**sources):
        return {f"{prefix}/{name}": value for prefix, each in sources.items() for name, value in each.items()}

    assert not unlearned(metrics(val=good), "here")
    assert list(unlearned(metrics(val=bad), "here")) == ["mean_action"]
    mixed = unlearned(metrics(**{"val": good, "val/play": good, "val/arm": bad}), "here")
    assert list(mixed) == ["mean_action arm"]
    assert mixed["mean_action arm"].what.startswith("arm: the policy is no better than")
    assert not unlearned(metrics(**{"val": bad, "val/play": good}), "here")  # judged by the sources


@pytest.mark.parametrize(
    ("predicted", "target", "is_still"),
    [
        ([-1.0] * 40, [-1.0] * 30 + [1.0] * 10, True),
        ([-1.0] * 40, [-1.0] * 31 + [1.0] * 9, False),  # too few to tell
        ([-1.0] * 39 + [1.0], [-1.0] * 30 + [1.0] * 10, False),  # it has moved
        ([-1.0] * 40, [-1.0] * 40, False),  # nothing moves
        ([0.5] * 40, list(np.linspace(0, 1, 40)), True),  # an opening width
        (list(np.linspace(0.2, 0.8, 40)), list(np.linspace(0, 1, 40)), False),
    ],
)
def test_a_gripper_that_never_moves_is_told_from_one_that_need_not(predicted, target, is_still):
    columns = [np.stack([np.zeros(40), np.array(each)], axis=1).astype(np.float32) for each in (predicted, target)]
    assert bool(still_grippers(*columns, {"gripper": 1}, "here")) is is_still


def test_a_run_that_looked_for_nothing_has_no_warnings(tmp_path):
    assert load_warnings(tmp_path) == []

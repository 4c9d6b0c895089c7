from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from composing import completed, composed, plan_of
from mixed_data import make_arm_folder, mixture

from robovlms.commands.train import train
from robovlms.data.loading.loader import Collator, validation_loader
from robovlms.data.loading.sampler import Draw
from robovlms.data.opening import build_dataset, open_sources
from robovlms.data.statistics import compute_statistics
from robovlms.policy.policy import VLAPolicy
from robovlms.training.validation import validate

LOSSES = ["loss", "arm", "gripper", "gripper_accuracy"]
ERRORS = ["action_error", "action_rmse", "mean_action_error", "mean_action_rmse"]
MEANS = torch.tensor([[0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.5, -0.5, 0.3, 0.0, 0.0, 0.0, 0.0]])  # normalised
MEANS = MEANS[:, None].expand(-1, 3, -1)  # of each part and every step of a chunk


@pytest.fixture(scope="module")
def arm_folder(tmp_path_factory):
    return make_arm_folder(tmp_path_factory.mktemp("arm") / "demos")


@pytest.fixture(scope="module")
def setup(calvin_folder, arm_folder, tmp_path_factory):
    """Return a policy and two batches of each part's validation windows."""
    config = completed(composed(*mixture(calvin_folder, arm_folder, tmp_path_factory.mktemp("run"))))
    torch.manual_seed(0)
    policy = VLAPolicy.from_config(config, plan_of(config))
    normalizers = plan_of(config).normalizers(
        compute_statistics(plan_of(config), open_sources(plan_of(config), config.window, "train"))
    )
    dataset = build_dataset(plan_of(config), config.window, "validation")
    collator = Collator(policy.processor, normalizers, config.window)
    size = dataset.sizes[0]
    numbers = [[0, 1, 2], [3, size - 1], [size, size + 1], [size + 4, size + 5, size + 6]]
    return policy, [collator([(dataset[n], Draw(n, 0)) for n in group]) for group in numbers]


def on_ranks(policy, ranks, means=MEANS, sources=("play", "arm")):
    """Validate as several ranks would: every rank gets the sum of what all of them have."""
    sent = []

    def send(sums):
        sent.append(sums)
        return sums

    for batches in ranks:
        validate(policy, batches, means, sources, send)
    return [validate(policy, batches, means, sources, lambda sums: sum(sent))[0] for batches in ranks]


def test_each_part_is_measured_as_if_it_were_alone(setup):
    policy, batches = setup
    (metrics,) = on_ranks(policy, [batches])
    for number, (source, mine) in enumerate((("play", batches[:2]), ("arm", batches[2:]))):
        alone, _ = validate(policy, mine, MEANS, ["play", "arm"], lambda sums: sums)
        for name in ERRORS:
            assert metrics[f"val/{source}/{name}"] == pytest.approx(alone[f"val/{name}"])
            assert f"val/{('arm', 'play')[number]}/{name}" not in alone
    assert set(metrics) == {
        *(f"val/{name}" for name in [*LOSSES, *ERRORS]),
        *(f"val/{source}/{name}" for source in ("play", "arm") for name in ERRORS),
    }


def test_a_part_is_held_against_its_own_mean_in_the_entries_it_records(setup):
    policy, batches = setup
    (metrics,) = on_ranks(policy, [batches])
    target = torch.cat([batch.actions[:, -1][batch.action_mask[:, -1]] for batch in batches[2:]])[:, :2]
    error = (target - torch.tensor([0.5, -0.5])).abs().mean().item()
    assert metrics["val/arm/mean_action_error"] == pytest.approx(error, rel=1e-5)


def test_ranks_without_a_sample_of_a_part_agree_with_one_process(setup):
    policy, batches = setup
    (whole,) = on_ranks(policy, [batches])
    for ranks in ([batches[:2], batches[2:]], [batches[:1], batches[2:], batches[1:2]]):
        for metrics in on_ranks(policy, ranks):
            assert metrics == pytest.approx(whole, rel=1e-5)


def test_a_head_draws_the_same_for_a_window_whichever_others_are_measured(calvin_folder, arm_folder, tmp_path):
    config = completed(composed(*mixture(calvin_folder, arm_folder, tmp_path)))
    plan = plan_of(config)
    normalizers = plan.normalizers(compute_statistics(plan, open_sources(plan, config.window, "train")))
    collator = Collator(VLAPolicy.from_config(config, plan).processor, normalizers, config.window)
    dataset = build_dataset(plan, config.window, "validation")
    seeds = {}
    for options in ({"batch_size": 8}, {"batch_size": 3, "rank": 1, "world_size": 2}, {"batch_size": 2, "most": 3}):
        options = {"max_batches": options.pop("most", None), **options}
        for batch in validation_loader(dataset, collator, **options):
            for index, seed in zip(batch.index.tolist(), batch.seeds.tolist(), strict=True):
                assert seeds.setdefault(index, seed) == seed
    assert len(set(seeds.values())) == len(seeds) == len(dataset)


def test_a_single_data_set_has_no_metrics_by_part(setup):
    policy, batches = setup
    metrics, _ = validate(policy, batches[:2], MEANS[:1], ["play"], lambda sums: sums)
    assert set(metrics) == {f"val/{name}" for name in [*LOSSES, *ERRORS]}


@pytest.mark.slow
@pytest.mark.plots
def test_a_mixtures_run_logs_its_parts_and_draws_the_whole(calvin_folder, arm_folder, tmp_path):
    train(completed(composed(*mixture(calvin_folder, arm_folder, tmp_path, "schedule.total=2 step"))))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (validation,) = (row for row in rows if "val/loss" in row)
    assert np.isfinite([validation[f"val/{source}/action_rmse"] for source in ("play", "arm")]).all()
    assert (tmp_path / "plots" / "loss.png").is_file()

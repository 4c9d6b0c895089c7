from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from calvin_folder import assert_same_state, losses
from composing import completed, composed, open_windows, plan_of
from mixed_data import make_arm_folder, mixture

from robovlms.commands.train import train
from robovlms.data.loading.loader import Collator
from robovlms.data.loading.sampler import BLOCK, Draw, StepSampler, block_shares
from robovlms.data.opening import open_sources
from robovlms.data.statistics import compute_statistics, sample_chunks
from robovlms.policy.checkpoint import checkpoints, load_config, load_policy
from robovlms.policy.policy import VLAPolicy
from robovlms.policy.runner import PolicyRunner
from robovlms.types import Observation


@pytest.fixture(scope="module")
def arm_folder(tmp_path_factory):
    return make_arm_folder(tmp_path_factory.mktemp("arm") / "demos")


def config(*options: str):
    return completed(composed(*options))


def test_a_part_without_a_view_rotation_and_gripper_fills_the_mixtures_sample(calvin_folder, arm_folder, tmp_path):
    dataset = open_windows(config(*mixture(calvin_folder, arm_folder, tmp_path)), "train")
    play, arm = dataset[0], dataset[dataset.sizes[0]]
    assert (play.source, arm.source) == (0, 1)
    assert play.action_dims.all()
    assert arm.action_dims.tolist() == [True, True, False, False, False, False, False]
    np.testing.assert_allclose(arm.actions[0, :3], [0.2, -0.2, 0], atol=1e-6)  # two steps of 20 Hz
    assert (sorted(play.frames), sorted(arm.frames)) == (["side", "wrist"], ["side"])
    assert "75.0%" in dataset.summary()
    assert dataset.location(dataset.sizes[0]).startswith("arm: ")


@pytest.mark.slow
def test_a_mixture_trains_resumes_bit_for_bit_and_acts_as_one_of_its_parts(calvin_folder, arm_folder, tmp_path):
    whole, source = tmp_path / "whole", tmp_path / "part"
    train(config(*mixture(calvin_folder, arm_folder, whole)))
    train(config(*mixture(calvin_folder, arm_folder, source, "schedule.total=2 step")))
    train(config(*mixture(calvin_folder, arm_folder, source, "trainer.resume=auto")))
    assert_same_state(whole, source)
    assert losses(whole) == losses(source)

    checkpoint = checkpoints(whole)[-1]
    assert list(load_config(checkpoint / "config.yaml").data.sources) == ["play", "arm"]
    with pytest.raises(ValueError, match=r"^source=None: .*Choose one of play, arm"):
        PolicyRunner.from_checkpoint(checkpoint)
    runner = PolicyRunner.from_checkpoint(checkpoint, source="arm")
    frames = {view: np.zeros((24, 20, 3), np.uint8) for view in ("side", "wrist")}
    action = runner.step(Observation(frames=frames, instruction="go 0"))
    assert action.shape == (2,)  # no gripper, as recorded
    assert 0.19 <= action[0] <= 0.81  # within the part's own statistics


@pytest.mark.slow
@pytest.mark.parametrize("head", ["flow", "diffusion", "tokens"])
def test_a_robot_acts_as_in_training_without_the_entries_that_it_lacks(calvin_folder, arm_folder, tmp_path, head):
    options = [f"head={head}", "schedule.total=2 step", "structure=one_step", "window.window_size=1", "view=side"]
    options += ["head.num_bins=64"] if head == "tokens" else ["head.num_heads=2"]
    fitting = [line for line in mixture(calvin_folder, arm_folder, tmp_path, *options) if takes(head, line)]
    run = config(*fitting)
    train(run)
    checkpoint = checkpoints(tmp_path)[-1]
    dataset = open_windows(run, "validation")
    _, policy, stats, plan = load_policy(checkpoint)
    collate = Collator(policy.processor, plan.normalizers(stats), run.window)
    window = dataset.sizes[0] + 3
    policy.eval()
    batch = collate([(dataset[window], Draw(window, window))])
    chunk = plan.normalizers(stats)[1].denormalize(policy.predict(batch))[0]

    k = run.window.chunk_size
    runner = PolicyRunner.from_checkpoint(checkpoint, source="arm", execute_steps=k)
    if head in ("flow", "diffusion"):
        runner.policy.head.noise[:, 2:] = 9.0  # of the entries that the arm lacks
    frames = {"side": batch.frames["side"][0, 0].numpy()}
    seen = Observation(frames=frames, instruction=dataset[window].instruction)
    np.testing.assert_allclose(np.stack([runner.step(seen)[:2] for _ in range(k)]), chunk[:, :2], atol=1e-5)


def takes(head: str, line: str) -> bool:
    """Tell whether a head has the option that a line sets."""
    return head in ("flow", "diffusion") or not line.startswith(("head.hidden_dim", "head.num_layers"))


def test_every_row_of_a_mixtures_batch_is_normalised_by_its_own_source(calvin_folder, arm_folder, tmp_path):
    run = config(*mixture(calvin_folder, arm_folder, tmp_path, *(
        f"data.sources.{source}.normalization.mode=quantile" for source in ("play", "arm")
    )))  # fmt: skip
    dataset = open_windows(run, "train")
    stats = compute_statistics(plan_of(run), open_sources(plan_of(run), run.window, "train"))
    normalizers = plan_of(run).normalizers(stats)
    policy = VLAPolicy.from_config(run, plan_of(run))
    collate = Collator(policy.processor, normalizers, run.window)
    size = dataset.sizes[0]
    windows = [0, size + 2, 5, size + 9, size]
    together = collate([(dataset[window], Draw(window, window)) for window in windows])
    for row, window in enumerate(windows):
        alone = collate([(dataset[window], Draw(window, window))])
        assert torch.equal(together.actions[row], alone.actions[0])
        assert together.text_ids[row][together.text_mask[row]].tolist() == alone.text_ids[0].tolist()
        assert torch.equal(together.seeds[row], alone.seeds[0])
        raw = torch.from_numpy(dataset[window].actions[0])
        source = dataset[window].source
        name, places = ("play", range(7)) if source == 0 else ("arm", range(2))
        for place in places[:2]:  # (x - q01) / (q99 - q01) in [-1, 1]
            low, high = stats[name].q01[place], stats[name].q99[place]
            expected = (raw[place].clamp(low, high) - low) / (high - low) * 2 - 1
            assert together.actions[row, 0, 0, place].item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_tokenizer_is_fitted_to_the_entries_that_each_source_records(calvin_folder, arm_folder, tmp_path):
    run = config(*mixture(calvin_folder, arm_folder, tmp_path))
    plan, dataset = plan_of(run), open_windows(run, "train")
    stats = compute_statistics(plan, open_sources(plan, run.window, "train"))
    chunks = sample_chunks(dataset, plan, run.window.chunk_size, stats)
    widths = [7] * dataset.sizes[0] + [2] * dataset.sizes[1]
    assert [chunk.shape for chunk in chunks] == [(run.window.chunk_size, width) for width in widths]
    for source, size in ((0, 7), (1, 2)):  # normalised by the source's own statistics, and varied
        mine = np.concatenate([chunk for chunk in chunks if chunk.shape[1] == size])
        expected = plan.normalizers(stats)[source]
        raw = torch.from_numpy(np.stack([dataset[i].actions[0] for i in range(len(dataset)) if widths[i] == size]))
        own = expected.normalize(raw)[:, :size].double().numpy()
        np.testing.assert_allclose(mine[:: run.window.chunk_size].mean(0), own.mean(0), atol=1e-6)


@pytest.mark.slow
def test_accumulation_does_not_change_a_mixtures_numbers(calvin_folder, arm_folder, tmp_path):
    one, four = tmp_path / "one", tmp_path / "four"
    train(config(*mixture(calvin_folder, arm_folder, one, "device_batch_size=8")))
    train(config(*mixture(calvin_folder, arm_folder, four, "device_batch_size=2")))
    assert losses(one) == pytest.approx(losses(four), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.sources.arm.convert.control_hz=20", r"control_hz: policy 20.0, the mixture 10.0"),
        (
            "data.contract.control_hz=31",
            r"control_hz=31 is above the 30 that data\.sources\.play.*to the slowest source",
        ),
        ("data.sources.arm.root=/nowhere", "arm: /nowhere"),
        ("data.sources.arm.views.side=front", r"data\.sources\.arm: data\.views\.side=front is not a camera"),
        ("data.sources.arm.contract.frame=tcp", r"train again with data\.sources\.arm\.convert\.frame=world"),
        ("data.sources.arm.contract.names=[dx,dq]", r"data\.sources\.arm\.contract\.names has 'dq'"),
        ("data.skip_bad=true", r"data\.skip_bad of a mixture is ignored: set data\.sources\.<name>\.skip_bad"),
        ("data.skip_idle=true", r"data\.skip_idle of a mixture is ignored: set data\.sources\.<name>\.skip_idle"),
        ("data.idle.keep_s=1", r"data\.idle of a mixture is ignored"),
        ("data.convert.control_hz=5", r"set data\.sources\.<name>\.convert"),
        ("data.sources.arm.num_workers=2", r"data\.sources\.arm\.num_workers is ignored: set the mixture's"),
        ("data.sources.arm.weight=0", r"data\.sources\.arm\.weight=0\.0 must be above 0"),
        ("data.sources.arm.wieght=1", "Could not override"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_what_fixes_them(calvin_folder, arm_folder, tmp_path, change, message):
    with pytest.raises(Exception, match=message):
        train(config(*mixture(calvin_folder, arm_folder, tmp_path / "run", change)))


@cache
def draws(steps: int, **changes):
    options = {"batch_size": 100, "device_batch_size": 50, "weights": (1.0, 2.0, 5.0), "seed": 3, **changes}
    sampler = StepSampler([30, 1000, 70], **options)
    iterator = iter(sampler)
    return [[draw for _ in range(sampler.accumulation) for draw in next(iterator)] for _ in range(steps)]


def part_of(window: int) -> int:
    return int(np.searchsorted([30, 1030, 1100], window, side="right"))


def test_parts_are_drawn_by_their_weights():
    counts = np.bincount(
        [part_of(draw.window) for step in draws(100, batch_size=1000, device_batch_size=1000) for draw in step],
        minlength=3,
    )
    expected = 100_000 * np.array([1, 2, 5]) / 8
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 degrees of freedom, p = 0.001


def test_a_part_repeats_nothing_before_it_was_gone_through():
    windows = [draw.window for step in draws(100, batch_size=1000, device_batch_size=1000) for draw in step]
    for first, size in ((0, 30), (30, 1000), (1030, 70)):
        mine = [window for window in windows if first <= window < first + size]
        epochs = [mine[start : start + size] for start in range(0, len(mine) - size + 1, size)]
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert len(epochs) < 2 or epochs[0] != epochs[1]


def test_ranks_and_resumed_runs_see_the_same_mixture():
    one = draws(20)
    assert one == draws.__wrapped__(20)
    assert draws(5, start_step=15) == one[15:]
    for world_size in (2, 4):
        ranks = [draws(20, world_size=world_size, rank=rank, device_batch_size=25) for rank in range(world_size)]
        assert [[draw for rank in ranks for draw in rank[step]] for step in range(20)] == one


def test_shares_of_a_block_are_whole_and_as_weighed():
    assert block_shares([1.0, 1.0, 2.0]).tolist() == [BLOCK // 4, BLOCK // 4, BLOCK // 2]
    assert block_shares([1.0, 1.0, 1.0]).sum() == BLOCK
    with pytest.raises(ValueError, match="leave that part out"):
        block_shares([1e-9, 1.0])

"""From recordings to targets that are relative to the state of the frame that each chunk is predicted from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from recordings import MemoryReader, make_contract

from robovlms.actions.plan import DataPlan, Source
from robovlms.actions.statistics import COLUMNS, save_statistics
from robovlms.config.choices import NormalizationMode, ReferenceFrame, RelativeTo, Representation, Rotation
from robovlms.config.data import ConvertConfig, DataConfig, MixtureDataConfig, NormalizationConfig
from robovlms.config.policy import WindowConfig
from robovlms.data.base import Numbers
from robovlms.data.loading.loader import Collator
from robovlms.data.loading.sampler import Draw
from robovlms.data.mixture import MixtureDataset
from robovlms.data.statistics import compute_statistics, load_steps, sample_chunks
from robovlms.data.windows import WindowDataset
from robovlms.errors import UserError
from robovlms.images.processor import Processor
from robovlms.registry import BACKBONES
from robovlms.training.feeding import mean_actions

JOINTS = ["shoulder", "elbow", "gripper"]
W, K = 2, 3
WINDOW = WindowConfig(window_size=W, chunk_size=K)


class ArmReader(MemoryReader):
    """Joints that go where they are told one step later; episode e is at 100 e + t and 100 e - 2 t at first."""

    reads = 0

    def __init__(self, lengths):
        super().__init__(lengths)
        self.states = [np.array([[100 * e + t, 100 * e - 2 * t, 0.5] for t in range(n)], np.float32)
                       for e, n in enumerate(lengths)]  # fmt: skip
        self.actions = [np.array([[100 * e + t + 1, 100 * e - 2 * t - 2, 1 if t < n // 2 else -1] for t in range(n)],
                                 np.float32) for e, n in enumerate(lengths)]  # fmt: skip
        for actions, states in zip(self.actions, self.states, strict=True):
            actions[:, :2] += np.random.default_rng(0).uniform(-0.1, 0.1, (len(states), 2))

    def numbers(self, episode, steps):
        self.reads += 1
        return Numbers(self.actions[episode][steps], self.states[episode][steps])


def config_of(relative_to=RelativeTo.state, name="arm", cache_dir=None, seen=(), **convert):
    contract = make_contract(
        names=JOINTS, representation=Representation.absolute, frame=ReferenceFrame.joint, rotation=Rotation.none,
        position_unit=None,
    )  # fmt: skip
    return DataConfig(
        name=name, root="/nowhere", views={"side": "a", "wrist": "b"}, contract=contract, cache_dir=cache_dir,
        normalization=NormalizationConfig(mode=NormalizationMode.min_max), proprio_key="state",
        proprio_names=JOINTS, proprio_seen=list(seen), convert=ConvertConfig(relative_to=relative_to, **convert),
    )  # fmt: skip


def dataset_of(source, lengths=(9, 7), chunk_size=K):
    return WindowDataset(ArmReader(list(lengths)), source, window_size=W, chunk_size=chunk_size)


def planned(*configs, lengths=(9, 7)):
    """Return the plan of one data set or of a mixture, its windows, joined and by source, and their statistics."""
    mixture = MixtureDataConfig(
        name="mixture", contract=replace(configs[0].contract), normalization=configs[0].normalization,
        sources={f"s{number}": config for number, config in enumerate(configs)},
    )  # fmt: skip
    plan = DataPlan.of(mixture if len(configs) > 1 else configs[0], ["side", "wrist"])
    windows = [dataset_of(source, lengths) for source in plan.sources]
    joined = MixtureDataset(plan, windows) if plan.is_mixture else windows[0]
    return plan, joined, windows, compute_statistics(plan, windows)


def collated(plan, data, stats, indices):
    processor = Processor(BACKBONES.get("nano").tiny(), ["side", "wrist"], max_text_tokens=64)
    collator = Collator(processor, plan.normalizers(stats), WINDOW)
    return collator([(data[index], Draw(index, index)) for index in indices])


def test_every_frames_chunk_comes_back_from_the_state_of_its_own_frame(tmp_path):
    plan, data, _, stats = planned(config_of(cache_dir=str(tmp_path)))
    (normalizer,), batch = plan.normalizers(stats), collated(plan, data, stats, range(len(data)))
    assert batch.proprio is None
    for row, index in enumerate(range(len(data))):
        sample = data[index]
        for frame in range(W):
            chunk = normalizer.denormalize(batch.actions[row, frame], torch.from_numpy(sample.state[frame]))
            recorded = torch.from_numpy(sample.actions[frame : frame + K])
            real = batch.action_mask[row, frame]
            torch.testing.assert_close(
                chunk[real], recorded[real], atol=2e-5, rtol=0
            )  # a millionth of what the joints cover


def test_statistics_are_of_each_step_over_real_steps_alone_and_read_once(tmp_path):
    source = Source.of(config_of(cache_dir=str(tmp_path)))
    data = dataset_of(source, lengths=(9, 2), chunk_size=4)
    stats = compute_statistics(DataPlan.of(source.config, ["side"]), [data])["arm"]
    for step in range(4):
        differences = [actions[t + step, :2] - states[t, :2]
                       for actions, states in zip(data.reader.actions, data.reader.states, strict=True)
                       for t in range(len(states) - step)]  # fmt: skip
        assert stats.steps[step].num_rows == len(differences)
        np.testing.assert_allclose(stats.steps[step].mean[:2], np.mean(differences, axis=0), rtol=1e-6)
        np.testing.assert_allclose(stats.steps[step].max[:2], np.max(differences, axis=0), rtol=1e-6)
        assert stats.steps[step].mean[2] == stats.mean[2]
    before = data.reader.reads
    assert load_steps(data, stats) == stats.steps
    assert data.reader.reads == before
    assert len(load_steps(dataset_of(source, lengths=(9, 2), chunk_size=2), stats)) == 2


def test_a_step_that_no_episode_reaches_has_the_statistics_of_the_step_before(tmp_path):
    source = Source.of(config_of(cache_dir=str(tmp_path)))
    data = dataset_of(source, lengths=(3, 3), chunk_size=5)
    stats = compute_statistics(DataPlan.of(source.config, ["side"]), [data])["arm"]
    assert [step.num_rows for step in stats.steps] == [6, 4, 2, 0, 0]
    assert stats.steps[4].mean == stats.steps[2].mean


def test_beside_a_relative_source_the_others_keep_their_numbers_to_the_last_bit(tmp_path):
    plain = config_of(RelativeTo.none, name="plain", cache_dir=str(tmp_path))
    plan, data, _, stats = planned(config_of(cache_dir=str(tmp_path)), plain)
    alone_plan, alone, _, alone_stats = planned(plain)
    indices = range(data.sizes[0], len(data))
    mixed = collated(plan, data, stats, [0, *indices])
    single = collated(alone_plan, alone, alone_stats, range(len(alone)))
    assert torch.equal(mixed.actions[1:], single.actions)
    assert torch.equal(mixed.action_mask[1:], single.action_mask)
    means = mean_actions(plan, plan.normalizers(stats), stats, K)
    assert means.shape == (2, K, 3)
    assert torch.equal(means[1], means[1][:1].expand(K, -1))
    assert not torch.equal(means[0][0], means[0][1])
    relative = collated(plan, data, stats, [0]).actions[0, 0]
    np.testing.assert_allclose(sample_chunks(data, plan, K, stats)[0], relative.double().numpy(), atol=1e-6)


def test_at_a_lower_rate_the_state_is_that_of_the_recorded_frame_that_a_step_begins_at(tmp_path):
    data = dataset_of(Source.of(config_of(cache_dir=str(tmp_path), control_hz=5.0)))
    sample = data[1]
    assert sample.state[:, 0].tolist() == [2, 4]
    np.testing.assert_array_equal(sample.actions[0], data.reader.actions[0][3])
    chunks = data.chunks(100)
    np.testing.assert_array_equal(chunks.state[1], sample.state[0])
    np.testing.assert_array_equal(chunks.actions[1], sample.actions[:K])


def test_what_the_policy_sees_and_what_actions_are_relative_to_are_two_things(tmp_path):
    sample = dataset_of(Source.of(config_of(cache_dir=str(tmp_path), seen=["elbow"])))[0]
    assert sample.proprio.tolist() == [[0], [-2]]
    assert sample.state.tolist() == [[0, 0], [-2, 1]]
    assert dataset_of(Source.of(config_of(RelativeTo.none, cache_dir=str(tmp_path))))[0].state is None


def test_a_state_that_is_not_finite_is_refused_by_name(tmp_path):
    source = Source.of(config_of(cache_dir=str(tmp_path)))
    data = dataset_of(source)
    data.reader.states[1][3, 1] = np.nan
    with pytest.raises(UserError, match="proprioception that is not finite: elbow"):
        compute_statistics(DataPlan.of(source.config, ["side"]), [data])


def test_statistics_of_another_relative_run_are_taken_as_they_are_for_chunks_that_are_no_longer(tmp_path):
    config = config_of(cache_dir=str(tmp_path))
    plan = DataPlan.of(config, ["side"])
    ours = compute_statistics(plan, [dataset_of(plan.sources[0])])["arm"]
    assert ours.relative == ["shoulder", "elbow"]
    save_statistics(tmp_path / "stats.json", {"other": replace(ours, mean=[7.0, 8.0, 9.0])})
    for chunk_size in (K, 2):
        given = given_statistics(tmp_path / "stats.json", config, chunk_size)
        assert given.mean == [7, 8, 9]
        for step, same in zip(given.steps, ours.steps[:chunk_size], strict=True):
            assert [getattr(step, name) for name in COLUMNS] == [getattr(same, name) for name in COLUMNS]
    absolute = given_statistics(tmp_path / "stats.json", config_of(RelativeTo.none, cache_dir=str(tmp_path)), K)
    assert (absolute.mean, absolute.steps, absolute.relative) == ([7, 8, 9], [], [])


def given_statistics(path, config, chunk_size):
    config = replace(config, normalization=replace(config.normalization, statistics_file=str(path)))
    plan = DataPlan.of(config, ["side"])
    return compute_statistics(plan, [dataset_of(plan.sources[0], chunk_size=chunk_size)])["arm"]


@pytest.mark.parametrize(
    ("change", "chunk_size", "said"),
    [
        (lambda stats: stats.absolute, K, "has no statistics of every step of a chunk"),
        (
            lambda stats: replace(stats, relative=["elbow"]),
            K,
            "of elbow relative to the state, and this run learns sho",
        ),
        (lambda stats: replace(stats, relative=[]), K, "of entries that it does not name relative to the state"),
        (lambda stats: stats, K + 1, r"of chunks of 3 steps, less than window\.chunk_size=4"),
    ],
)
def test_statistics_of_other_actions_are_refused_for_relative_ones(tmp_path, change, chunk_size, said):
    config = config_of(cache_dir=str(tmp_path))
    plan = DataPlan.of(config, ["side"])
    ours = compute_statistics(plan, [dataset_of(plan.sources[0])])["arm"]
    save_statistics(tmp_path / "stats.json", {"other": change(ours)})
    with pytest.raises(UserError, match=rf"statistics_file=.*stats\.json (.|\n)*{said}"):
        given_statistics(tmp_path / "stats.json", config, chunk_size)

"""Folders of LeRobot v2.0 and v2.1 as others published them: one file an episode, h264 and AV1, odd columns."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robovlms.actions.plan import Source
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation, Rotation
from robovlms.config.data import ActionContract, NormalizationConfig
from robovlms.data.lerobot.format import read_episodes, read_info, read_tasks
from robovlms.data.lerobot.reader import LeRobotReader
from robovlms.data.lerobot.schema import LeRobotDataConfig
from robovlms.data.windows import WindowDataset

FRANKA_ACTION = "action.delta_eef_position+action.delta_eef_rotation+action.gripper_close"


@pytest.fixture(scope="module")
def gr1(shared_data) -> Path:
    """v2.0: 5 episodes of 416, 470, 470, 412, 328 frames, 44 float64 joints, one h264 camera of 256 x 256 at 20 Hz."""
    return shared_data / "lerobot_v20_gr1_sim_pick_place" / "robot_sim.PickNPlace"


@pytest.fixture(scope="module")
def franka(shared_data) -> Path:
    """v2.1: 4 episodes of 412, 411, 398, 446 frames at 30 Hz; AV1 videos of episodes 2 (three cameras) and 3 (ego)."""
    return shared_data / "lerobot_v21_franka_sim_internvla" / "sim_pick_place"


def gr1_config(root: Path, **changes) -> LeRobotDataConfig:
    contract = ActionContract(
        names=[f"joint_{i}" for i in range(44)],
        representation=Representation.absolute,
        frame=ReferenceFrame.joint,
        position_unit=1.0,
        control_hz=20.0,
    )
    return make_config(root, contract, **{"views": {"side": "observation.images.ego_view"}, **changes})


def franka_config(root: Path, **changes) -> LeRobotDataConfig:
    contract = ActionContract(
        names=["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"],
        representation=Representation.delta,
        frame=ReferenceFrame.base,
        rotation=Rotation.euler,
        position_unit=1.0,
        gripper_closed=1.0,
        gripper_open=0.0,
        control_hz=30.0,
    )
    views = {"side": "video.base_view", "wrist": "video.ego_view"}
    return make_config(root, contract, **{"views": views, "action_key": FRANKA_ACTION, **changes})


def make_config(root: Path, contract: ActionContract, **changes) -> LeRobotDataConfig:
    normalization = NormalizationConfig(mode=NormalizationMode.quantile)
    return LeRobotDataConfig(
        name="lerobot",
        root=str(root),
        normalization=normalization,
        **{"contract": contract, "validation_fraction": 0.0, **changes},
    )


def windows(config: LeRobotDataConfig, split="train", views=(), window_size=1, chunk_size=1) -> WindowDataset:
    reader = LeRobotReader(config, split, views=list(views))
    return WindowDataset(reader, Source.of(config), window_size=window_size, chunk_size=chunk_size)


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def copy_meta(root: Path, folder: Path) -> Path:
    """Return a folder with its own meta/ and links to the data and videos of `root`."""
    shutil.copytree(root / "meta", folder / "meta")
    for name in ("data", "videos"):
        (folder / name).symlink_to(root / name)
    return folder


# --- v2.0, GR1


def test_a_v20_folder_counts_as_its_files_do(gr1):
    dataset = windows(gr1_config(gr1))

    assert [episode.length for episode in dataset.reader.episodes] == [416, 470, 470, 412, 328]
    assert dataset.summary().endswith("(train): 5 episodes, 2096 frames, 5 instructions, 2096 windows of 1")
    assert dataset.reader.episodes[4].instruction == "pick the cupcake from the counter and place it in the plate"
    assert read_tasks(read_info(gr1))[1] == "valid"


@pytest.mark.slow
def test_h264_videos_hold_as_many_frames_as_there_are_rows_and_all_can_be_read(gr1):
    reader = LeRobotReader(gr1_config(gr1), "train", views=["side"])
    for number, episode in enumerate(reader.episodes):
        frames = decode(gr1 / f"videos/chunk-000/observation.images.ego_view/episode_{number:06d}.mp4")
        assert len(frames) == episode.length
        ends = np.array([0, episode.length - 1])
        np.testing.assert_array_equal(reader.frames(number, ends)["side"], np.stack([frames[0], frames[-1]]))


def test_timestamps_that_count_from_one_step_still_begin_with_the_first_frame(gr1):
    path = gr1 / "data/chunk-000/episode_000001.parquet"
    stamps = pq.read_table(path, columns=["timestamp"])["timestamp"].to_pylist()
    frames = decode(gr1 / "videos/chunk-000/observation.images.ego_view/episode_000001.mp4")

    assert stamps[0] == pytest.approx(1 / 20)
    sample = windows(gr1_config(gr1), views=["side"], window_size=8)[409 + 463 - 1]  # the last window of episode 1
    np.testing.assert_array_equal(sample.frames["side"], np.stack(frames[462:470]))


def test_float64_columns_become_float32(gr1):
    config = gr1_config(gr1, proprio_key="observation.state", proprio_names=[f"s{i}" for i in range(44)])
    sample = windows(config, window_size=2, chunk_size=2)[100]
    table = pq.read_table(gr1 / "data/chunk-000/episode_000000.parquet")

    assert table.schema.field("action").type == pa.list_(pa.float64())
    expected = np.array(table["action"].to_pylist()[100:103]).astype(np.float32)
    np.testing.assert_array_equal(sample.actions[:, :44], expected)
    expected = np.array(table["observation.state"].to_pylist()[100:102]).astype(np.float32)
    np.testing.assert_array_equal(sample.proprio, expected)


def test_a_camera_that_is_listed_without_files_is_missed_only_when_it_is_read(gr1, caplog):
    config = gr1_config(gr1, views={"side": "observation.images.ego_view", "top": "observation.images.egoview"})

    assert len(windows(config, views=["side"])) == 2096
    with pytest.raises(FileNotFoundError, match=r"images\.egoview/episode_000000\.mp4 \(episode 0\) does not exist"):
        LeRobotReader(config, "train", views=["top"])
    assert not caplog.records


def test_parts_of_a_column_make_an_action(gr1):
    config = gr1_config(gr1, action_key="action[0:3] + action[43] + next.reward")
    config.contract.names = ["a", "b", "c", "d", "e"]
    table = pq.read_table(gr1 / "data/chunk-000/episode_000002.parquet")
    actions, rewards = np.array(table["action"].to_pylist()), np.array(table["next.reward"].to_pylist())
    expected = np.concatenate([actions[:, :3], actions[:, 43:], rewards[:, None]], axis=1).astype(np.float32)

    numbers = LeRobotReader(config, "train", views=[]).numbers(2, np.arange(470))
    np.testing.assert_array_equal(numbers.actions, expected)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("action[0:45]", r"data\.action_key=action\[0:45\]: 'action' .* has entries 0 to 43, not action\[0:45\]"),
        ("action[3:3]", r"has entries 0 to 43, not action\[3:3\]"),
        ("action[0:3", "write keys or parts of them, joined by +"),
        ("action[0:3]+acton[4]", r"data\.action_key=acton is not a numeric feature.*Did you mean 'action'"),
        ("observation.images.ego_view", "is not a numeric feature"),
    ],
)
def test_parts_that_there_are_not_name_the_option(gr1, key, message):
    with pytest.raises(ValueError, match=message):
        LeRobotReader(gr1_config(gr1, action_key=key), "train", views=[])


def test_another_column_may_say_which_instruction_an_episode_has(gr1):
    column = "annotation.human.validity"  # 1 in every row, the number of the task "valid"
    dataset = windows(gr1_config(gr1, language_key=column))

    assert {episode.instruction for episode in dataset.reader.episodes} == {"valid"}
    assert len(dataset.reader.episodes) == 5
    described = LeRobotReader(
        gr1_config(gr1, language_key="annotation.human.action.task_description"), "train", views=[]
    )
    assert described.episodes[0].instruction == "pick the pear from the counter and place it in the plate"


def test_a_language_key_that_there_is_not_or_that_counts_something_else_names_the_option(gr1):
    with pytest.raises(ValueError, match=r"data\.language_key=task is not a column of numbers .* It has: .*task_index"):
        LeRobotReader(gr1_config(gr1, language_key="task"), "train", views=[])
    with pytest.raises(ValueError, match=r"has index \[.*which the tasks of .*do not list.*data\.language_key"):
        LeRobotReader(gr1_config(gr1, language_key="index"), "train", views=[])


def test_totals_of_a_v2_folder_that_disagree_are_a_warning(gr1, tmp_path, caplog):
    root = copy_meta(gr1, tmp_path)
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "total_episodes": 9, "total_frames": 8, "total_tasks": 7}))

    assert len(windows(gr1_config(root))) == 2096
    for total in ("total_episodes=9", "total_frames=8", "total_tasks=7"):
        assert total in caplog.text


def test_episode_numbers_may_have_gaps(gr1, tmp_path):
    root = copy_meta(gr1, tmp_path)
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    (root / "meta/episodes.jsonl").write_text("\n".join([lines[4], lines[1]]) + "\n")
    dataset = windows(gr1_config(root), views=["side"])

    assert [episode.length for episode in dataset.reader.episodes] == [470, 328]
    assert dataset.location(470).endswith("episode_000004.parquet: episode 4, frames 0-0")
    first = decode(gr1 / "videos/chunk-000/observation.images.ego_view/episode_000004.mp4")[0]
    np.testing.assert_array_equal(dataset[470].frames["side"][0], first)


def test_episodes_are_found_in_the_chunk_of_their_number(gr1, tmp_path):
    root = tmp_path / "chunks"
    shutil.copytree(gr1 / "meta", root / "meta")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "chunks_size": 3}))
    episodes = read_episodes(read_info(root), ["observation.images.ego_view"])

    assert [str(e.file.relative_to(root)) for e in episodes[2:4]] == [
        "data/chunk-000/episode_000002.parquet",
        "data/chunk-001/episode_000003.parquet",
    ]
    path = root / "videos/chunk-001/observation.images.ego_view/episode_000003.mp4"
    assert episodes[3].videos["observation.images.ego_view"][:2] == (path, 0.0)


# --- v2.1, Franka


def test_missing_videos_stop_a_run_that_does_not_skip(franka):
    with pytest.raises(FileNotFoundError, match=r"video\.base_view/episode_000000\.mp4 .*data\.skip_bad=true"):
        LeRobotReader(franka_config(franka), "train", views=["side", "wrist"])


@pytest.mark.parametrize(("views", "kept"), [(["wrist"], [398, 446]), (["side", "wrist"], [398]), ([], None)])
def test_with_skip_bad_only_complete_episodes_remain(franka, views, kept, caplog):
    with caplog.at_level(logging.WARNING):
        reader = LeRobotReader(franka_config(franka, skip_bad=True), "train", views=views)

    assert [episode.length for episode in reader.episodes] == (kept or [412, 411, 398, 446])
    assert len(caplog.records) == (kept is not None)
    if kept:
        assert f"{4 - len(kept)} of 4 episodes of " in caplog.text


@pytest.mark.slow
def test_av1_videos_hold_as_many_frames_as_there_are_rows_and_all_can_be_read(franka):
    reader = LeRobotReader(franka_config(franka, skip_bad=True), "train", views=["wrist"])
    for number, name in enumerate(("episode_000002", "episode_000003")):
        frames = decode(franka / f"videos/chunk-000/video.ego_view/{name}.mp4")
        length = reader.episodes[number].length
        assert len(frames) == length
        ends = np.array([0, length - 1])
        np.testing.assert_array_equal(reader.frames(number, ends)["wrist"], np.stack([frames[0], frames[-1]]))


@pytest.mark.slow
def test_a_window_of_an_av1_video_equals_its_frames_decoded_one_by_one(franka):
    config = franka_config(franka, skip_bad=True)
    sample = windows(config, views=["side", "wrist"], window_size=4, chunk_size=3)[201]
    for view, key in config.views.items():
        frames = decode(franka / f"videos/chunk-000/{key}/episode_000002.mp4")
        np.testing.assert_array_equal(sample.frames[view], np.stack(frames[201:205]))
    assert sample.instruction == "Move the potato to the top of the cooking utensils."


def test_split_columns_make_one_action(franka):
    config = franka_config(franka)
    dataset = windows(config, chunk_size=5)
    table = pq.read_table(franka / "data/chunk-000/episode_000000.parquet", columns=config.action_key.split("+"))
    expected = np.concatenate([np.array(table[key].to_pylist()) for key in table.column_names], axis=1)
    expected = expected.astype(np.float32)

    np.testing.assert_array_equal(dataset.reader.numbers(0, np.arange(412)).actions, expected)
    sample = dataset[100]
    np.testing.assert_array_equal(sample.actions[:, :6], expected[100:105, :6])
    np.testing.assert_array_equal(sample.actions[:, 6], 1 - 2 * expected[100:105, 6])  # closed 1 becomes -1


def test_statistics_are_those_that_the_folder_publishes(franka):
    published = json.loads((franka / "meta/stats.json").read_text())["action.delta_eef_position"]
    rows = windows(franka_config(franka)).rows(10_000).actions
    stats = Statistics.compute(rows)

    assert len(rows) == 412 + 411 + 398 + 446
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(getattr(stats, name)[:3], published[name], rtol=1e-5, atol=1e-9, err_msg=name)


def test_pickled_annotations_are_never_opened(franka, monkeypatch):
    asked: list[str] = []
    read = pq.ParquetFile.read

    def watch(self, *args, columns=None, **options):
        asked.extend(columns or ["everything"])
        return read(self, *args, columns=columns, **options)

    def refuse(*_args, **_options):
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(pq.ParquetFile, "read", watch)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    dataset = windows(franka_config(franka, skip_bad=True), views=["wrist"], window_size=2)
    assert dataset[0].frames["wrist"].shape == (2, 480, 640, 3)
    assert set(asked) == {*FRANKA_ACTION.split("+"), "episode_index", "frame_index", "task_index", "timestamp"}

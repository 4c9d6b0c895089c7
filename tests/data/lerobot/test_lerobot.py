import dataclasses
import io
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file
from torch.utils.data import DataLoader

from robovlms.actions.plan import Source
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation
from robovlms.config.data import ActionContract, NormalizationConfig
from robovlms.data.files.video import open_video, read_frames, write_video
from robovlms.data.lerobot.features import arrow_schema, make_features
from robovlms.data.lerobot.format import read_episodes, read_info, read_numbers
from robovlms.data.lerobot.reader import LeRobotReader
from robovlms.data.lerobot.schema import LeRobotDataConfig
from robovlms.data.lerobot.stats import PixelCounts, number_stats
from robovlms.data.lerobot.writer import LeRobotWriter
from robovlms.data.opening import open_reader
from robovlms.data.windows import WindowDataset
from robovlms.registry import DATASETS

SIZES = {"side": (16, 24), "wrist": (8, 8)}
LENGTHS = [5, 6, 4]
TASKS = ["open the drawer", "close the drawer", "open the drawer"]
PUSHT = "lerobot_v30_pusht_tabular_with_golden_frames"
GOLDEN = [0, 1, 80, 81, 159, 160]


def make_episode(number: int, length: int) -> dict:
    """Frame i is a ramp of brightness 20 * i; action i of episode e is [e, i, +1 or -1]."""
    frames = {}
    for view, (height, width) in SIZES.items():
        ramp = np.linspace(0, 100, width).astype(np.uint8)[None, None, :, None]
        frames[view] = np.broadcast_to(ramp, (length, height, width, 3)).copy()
        frames[view] += (20 * np.arange(length, dtype=np.uint8) + number)[:, None, None, None]
    steps = np.arange(length, dtype=np.float32)
    actions = np.stack(
        [np.full(length, number, np.float32), steps, np.where(steps < 2, 1, -1).astype(np.float32)], axis=1
    )
    return {"frames": frames, "actions": actions, "proprio": actions[:, :2] / 10}


def open_writer(root: Path, **changes) -> LeRobotWriter:
    options = {"fps": 10, "robot_type": "sawyer", "action_names": ["dx", "dy", "gripper"], "proprio_names": ["x", "y"]}
    return LeRobotWriter(root, **{**options, "image_keys": SIZES, **changes})


def write(root: Path, **changes) -> Path:
    with open_writer(root, **changes) as writer:
        for number, (length, task) in enumerate(zip(LENGTHS, TASKS, strict=True)):
            writer.add_episode(**make_episode(number, length), task=task)
    return root


def make_config(root: Path, **changes) -> LeRobotDataConfig:
    contract = ActionContract(
        names=["dx", "dy", "gripper"],
        representation=Representation.delta,
        frame=ReferenceFrame.world,
        control_hz=10.0,
        position_unit=1.0,
    )
    return LeRobotDataConfig(
        name="lerobot",
        root=str(root),
        views={"side": "observation.images.side", "wrist": "observation.images.wrist"},
        normalization=NormalizationConfig(mode=NormalizationMode.min_max),
        **{"contract": contract, "proprio_key": "observation.state", "proprio_names": ["x", "y"], **changes},
    )


def read(root: Path, split: str = "train", *, views=("side", "wrist"), window_size=3, chunk_size=2, **changes):
    return windows(make_config(root, **changes), split, list(views), window_size, chunk_size)


def windows(config: LeRobotDataConfig, split="train", views=(), window_size=1, chunk_size=1) -> WindowDataset:
    reader = LeRobotReader(config, split, views=list(views))
    return WindowDataset(reader, Source.of(config), window_size=window_size, chunk_size=chunk_size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("embedded") / "demos")


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("video") / "demos", video=True)


@pytest.fixture
def damaged(tmp_path):
    """A fresh copy that a test may break."""
    return write(tmp_path / "demos")


def edit_info(root: Path, **changes) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_column(path: Path, key: str, rows: list) -> None:
    table = pq.read_table(path)
    number = table.schema.get_field_index(key)
    pq.write_table(
        table.set_column(number, table.schema.field(key), pa.array(rows, table.schema.field(key).type)), path
    )


DATA = "data/chunk-000/file-000.parquet"


# --- reading what was written


def test_the_registry_knows_the_dataset():
    assert DATASETS.get("lerobot") is LeRobotReader


def test_the_last_episode_of_each_task_with_several_is_for_validation(folder):
    assert read(folder).summary().endswith("(train): 2 episodes, 11 frames, 2 instructions, 7 windows of 3")
    assert (
        read(folder, "validation")
        .summary()
        .endswith("(validation): 1 episodes, 4 frames, 1 instructions, 2 windows of 3")
    )


def test_embedded_frames_come_back_exactly(folder):
    dataset = read(folder)
    sample = dataset[4]  # 3 windows of episode 0, then the second of episode 1
    original = make_episode(1, 6)
    for view in SIZES:
        np.testing.assert_array_equal(sample.frames[view], original["frames"][view][1:4])
    np.testing.assert_array_equal(sample.actions, original["actions"][1:5])
    np.testing.assert_array_equal(sample.proprio, original["proprio"][1:4])
    assert sample.action_mask.all()
    assert sample.instruction == "close the drawer"


def test_every_window_of_a_video_shows_the_same_frames_as_its_embedded_twin(folder, video_folder):
    embedded, video = read(folder), read(video_folder)
    assert len(embedded) == len(video) == 7
    for index in range(7):
        ours, theirs = embedded[index], video[index]
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        for view in SIZES:
            difference = ours.frames[view].astype(int) - theirs.frames[view]
            assert np.abs(difference).mean() < 4  # neighbouring frames differ by 20


def test_actions_past_the_end_repeat_the_last_and_are_masked(folder):
    sample = read(folder, chunk_size=4)[2]  # frames 2, 3, 4 of 5; actions 2 .. 7
    np.testing.assert_array_equal(sample.actions[:, 1], [2, 3, 4, 4, 4, 4])
    np.testing.assert_array_equal(sample.action_mask, [True, True, True, False, False, False])


def test_raw_actions_are_spread_over_the_frames_of_the_split(folder):
    dataset = read(folder)
    assert dataset.rows(100).actions.shape == (11, 3)
    np.testing.assert_array_equal(
        dataset.rows(4).actions[:, :2], [[0, 0], [0, 2], [1, 0], [1, 3]]
    )  # rows 0, 2, 5, 8 of 11


def test_a_window_names_its_file_episode_and_frames(folder):
    assert read(folder).location(4) == f"{folder / DATA}: episode 1, frames 1-3"


def test_a_fraction_keeps_that_share_of_the_training_episodes(tmp_path):
    with open_writer(tmp_path / "demos", image_keys={}) as writer:
        for number in range(10):
            writer.add_episode(**{**make_episode(number, 4), "frames": {}}, task="push")
    kept = read(tmp_path / "demos", views=[], fraction=0.5)  # episodes 0 .. 8 train, ceil(4.5) = 5 of them stay
    np.testing.assert_array_equal(np.unique(kept.rows(100).actions[:, 0]), [0, 1, 3, 5, 7])
    assert len(read(tmp_path / "demos", "validation", views=[], validation_fraction=0.3)) == 3 * 2


def test_forked_loader_processes_read_what_the_main_process_reads(folder, video_folder):
    for root in (folder, video_folder):
        dataset = read(root)
        expected = [dataset[index].frames["side"] for index in range(7)]  # opens files in this process first
        loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
        for ours, theirs in zip(expected, loader, strict=True):
            np.testing.assert_array_equal(ours, theirs.frames["side"])


def test_a_pickled_dataset_holds_no_open_file(folder):
    dataset = read(folder)
    expected = dataset[0].frames["side"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset))[0].frames["side"], expected)


@pytest.mark.parametrize("rows_per_group", [1, 4, 300])
def test_any_row_groups_can_be_read(damaged, rows_per_group):
    expected = [sample.frames["side"] for sample in (read(damaged)[index] for index in range(7))]
    pq.write_table(pq.read_table(damaged / DATA), damaged / DATA, row_group_size=rows_per_group)
    for index, frames in enumerate(expected):
        np.testing.assert_array_equal(read(damaged)[index].frames["side"], frames)


def test_an_action_of_one_entry_is_a_scalar_column_and_reads_as_a_vector(tmp_path):
    with open_writer(tmp_path / "demos", action_names=["lift"], image_keys={}) as writer:
        for _ in range(2):
            writer.add_episode({}, np.array([[1.0], [-1.0]], np.float32), np.zeros((2, 2), np.float32), "grasp")
    assert pq.read_schema(tmp_path / "demos" / DATA).field("action").type == pa.float32()
    contract = dataclasses.replace(make_config(tmp_path).contract, names=["lift"])
    config = dataclasses.replace(make_config(tmp_path / "demos"), contract=contract)
    dataset = windows(config, chunk_size=2)
    np.testing.assert_array_equal(dataset[0].actions, [[1], [-1]])


# --- what others wrote


def test_episodes_that_share_one_video_file_are_found_by_their_start_time(tmp_path, video_folder):
    root = write(tmp_path / "demos", video=True)
    expected = [read(video_folder)[index].frames["side"].astype(int) for index in range(7)]
    frames = [make_episode(number, length)["frames"]["side"] for number, length in enumerate(LENGTHS)]
    folder = root / "videos/observation.images.side/chunk-000"
    for file in folder.iterdir():
        file.unlink()
    write_video(folder / "file-000.mp4", np.concatenate(frames), 10)
    episodes = root / "meta/episodes/chunk-000/file-000.parquet"
    edit_column(episodes, "videos/observation.images.side/file_index", [0, 0, 0])
    edit_column(episodes, "videos/observation.images.side/from_timestamp", [0.0, 0.5, 1.1])
    dataset = read(root)
    for index in (6, 0, 3, 2):
        assert np.abs(expected[index] - dataset[index].frames["side"]).mean() < 4  # neighbouring frames differ by 20


def test_embedded_jpeg_frames_are_read_as_rgb(damaged):
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (250, 0, 0)).save(buffer, "JPEG")
    edit_column(damaged / DATA, "observation.images.side", [{"bytes": buffer.getvalue(), "path": None}] * 15)
    np.testing.assert_allclose(read(damaged)[0].frames["side"][0, 0, 0], [250, 0, 0], atol=5)


def test_pusht_rows_equal_the_golden_items_of_lerobot(shared_data):
    root = shared_data / PUSHT / "pusht"
    contract = ActionContract(
        names=["x", "y"],
        representation=Representation.absolute,
        frame=ReferenceFrame.image,
        control_hz=10.0,
        position_unit=1.0,
    )
    config = dataclasses.replace(make_config(root), contract=contract)
    dataset = windows(config)
    info = read_info(root)
    episodes = read_episodes(info, [])
    numbers = read_numbers(episodes[0].file, episodes, ["timestamp", "index"])
    assert (len(episodes), len(numbers["index"])) == (206, 25650)
    for row in GOLDEN:
        golden = load_file(shared_data / PUSHT / f"golden_frames/pusht_frame_{row}.safetensors")
        np.testing.assert_array_equal(dataset[row].actions[0], golden["action"])
        assert dataset[row].action_dims is None  # nothing is added that would have to be left out
        np.testing.assert_array_equal(dataset[row].proprio[0], golden["observation.state"])
        assert numbers["timestamp"][row] == golden["timestamp"]
        assert numbers["index"][row] == golden["index"]
    assert dataset[0].instruction == "Push the T-shaped block onto the T-shaped target."


@pytest.mark.parametrize(
    ("name", "fps", "rows"), [("pusht", 10, GOLDEN), ("xarm_lift_medium", 15, [0, 1, 12, 13, 23, 24])]
)
def test_decoded_video_frames_equal_the_golden_frames_bit_for_bit(shared_data, name, fps, rows):
    folder = shared_data / "lerobot_v1_video_golden" / name
    golden = [load_file(folder / f"frame_{row}.safetensors")["observation.image"] for row in rows]
    expected = np.stack([np.rint(image * 255).astype(np.uint8).transpose(1, 2, 0) for image in golden])
    video = open_video(folder / "observation.image_episode_000000.mp4")
    np.testing.assert_array_equal(read_frames(video, np.array(rows) / fps, 0.25 / fps), expected)
    for first in (4, 2, 0):  # backwards, each a seek of its own
        times = np.array(rows[first : first + 2]) / fps
        np.testing.assert_array_equal(read_frames(video, times, 0.25 / fps), expected[first : first + 2])


# --- what is written


def test_the_same_episodes_give_the_same_bytes(folder, tmp_path):
    again = write(tmp_path / "demos")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert [str(file) for file in files] == [
        DATA,
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
    ]
    for file in files:
        assert (folder / file).read_bytes() == (again / file).read_bytes()


def test_the_written_columns_have_the_types_of_a_foreign_v3_folder(video_folder, shared_data):
    foreign = shared_data / PUSHT / "pusht"
    for file in (DATA, "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"):
        ours, theirs = pq.read_schema(video_folder / file), pq.read_schema(foreign / file)
        common = [name for name in theirs.names if "next." not in name and "image" not in name]
        assert set(common) <= set(ours.names)
        for name in common:
            if not pa.types.is_fixed_size_list(theirs.field(name).type):  # their action has two entries
                assert ours.field(name).type == theirs.field(name).type, name
        for name in [name for name in theirs.names if "observation.image" in name]:
            ours_type = ours.field(name.replace("observation.image", "observation.images.side")).type
            assert ours_type == theirs.field(name).type, name
    ours, theirs = (json.loads((root / "meta/info.json").read_text()) for root in (video_folder, foreign))
    assert set(ours) == set(theirs)
    assert (ours["data_path"], ours["video_path"]) == (theirs["data_path"], theirs["video_path"])


def test_image_columns_carry_the_note_of_the_datasets_library(folder):
    features = make_features(10, ["dx", "dy", "gripper"], ["x", "y"], SIZES, False)
    schema = pq.read_schema(folder / DATA)
    assert schema.equals(arrow_schema(features))
    note = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert note["observation.images.side"] == {"_type": "Image"}
    assert note["action"] == {"feature": {"dtype": "float32", "_type": "Value"}, "length": 3, "_type": "Sequence"}


def test_each_episode_is_one_row_group(folder):
    metadata = pq.read_metadata(folder / DATA)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == LENGTHS


def test_a_full_data_file_is_followed_by_the_next(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("robovlms.data.lerobot.folder._DATA_FILE_MB", 0)
    split = read(write(tmp_path / "demos"))
    assert [path.name for path in sorted((tmp_path / "demos/data/chunk-000").iterdir())] == [
        "file-000.parquet",
        "file-001.parquet",
        "file-002.parquet",
    ]
    for index in range(7):
        np.testing.assert_array_equal(split[index].frames["side"], read(folder)[index].frames["side"])


def test_statistics_are_those_of_all_frames(folder):
    stats = json.loads((folder / "meta/stats.json").read_text())
    actions = np.concatenate([make_episode(number, length)["actions"] for number, length in enumerate(LENGTHS)])
    assert stats["action"]["count"] == [15]
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats["action"]["q90"], np.quantile(actions, 0.9, axis=0), rtol=1e-6)
    frames = np.concatenate([make_episode(n, length)["frames"]["side"] for n, length in enumerate(LENGTHS)]) / 255
    side = {name: np.array(value) for name, value in stats["observation.images.side"].items()}
    assert side["mean"].shape == (3, 1, 1)
    assert (side["count"], side["min"][0, 0, 0], side["max"][0, 0, 0]) == (15, frames.min(), frames.max())
    np.testing.assert_allclose(side["mean"].ravel(), frames.mean((0, 1, 2)))
    np.testing.assert_allclose(side["std"].ravel(), frames.std((0, 1, 2)))


def test_image_statistics_of_four_pixels_by_hand():
    frames = np.array([[[[0], [51]], [[51], [255]]]], np.uint8)  # one frame, 2 x 2, one channel
    stats = {name: value.ravel()[0] for name, value in PixelCounts.of(frames).stats().items()}
    assert (stats["min"], stats["q50"], stats["max"], stats["count"]) == (0, 0.2, 1, 1)
    assert stats["mean"] == pytest.approx(0.35)
    assert number_stats(np.array([1, 2, 3]))["q50"] == [2]


def test_a_black_camera_has_statistics_without_nan():
    stats = PixelCounts.of(np.zeros((3, 4, 4, 3), np.uint8)).stats()
    assert stats["std"].ravel().tolist() == [0, 0, 0]
    assert stats["q99"].ravel().tolist() == [0, 0, 0]


def test_an_existing_folder_is_never_overwritten(folder):
    with pytest.raises(FileExistsError, match="delete it first"):
        open_writer(folder)


def test_an_error_while_collecting_leaves_nothing_behind(tmp_path):
    def collect():
        with open_writer(tmp_path / "demos") as writer:
            writer.add_episode(**make_episode(0, 3), task="push")
            raise RuntimeError("the simulator died")

    with pytest.raises(RuntimeError, match="the simulator died"):
        collect()
    assert list(tmp_path.iterdir()) == []


def test_nothing_lies_at_the_root_before_finalize(tmp_path):
    writer = open_writer(tmp_path / "demos")
    writer.add_episode(**make_episode(0, 3), task="push")
    assert not (tmp_path / "demos").exists()
    writer.finalize()
    assert [path.name for path in tmp_path.iterdir()] == ["demos"]


def test_a_writer_without_episodes_refuses_to_finalize(tmp_path):
    with pytest.raises(ValueError, match="No episode was added"):
        open_writer(tmp_path / "demos").finalize()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.full((3, 3), np.nan, np.float32)}, "not finite"),
        ({"actions": np.zeros((3, 4), np.float32)}, r"'action' has shape \(3, 4\), expected \(3, 3\)"),
        ({"frames": {"side": np.zeros((3, 16, 24, 3), np.uint8)}}, r"\['side'\], expected \['side', 'wrist'\]"),
        ({"task": ""}, "task ''"),
    ],
)
def test_the_writer_refuses_an_episode_that_does_not_fit(tmp_path, change, message):
    episode = {**make_episode(0, 3), "task": "push", **change}

    def collect():
        with open_writer(tmp_path / "demos") as writer:
            writer.add_episode(**episode)

    with pytest.raises(ValueError, match=message):
        collect()


def test_the_writer_refuses_odd_videos_and_dotted_views(tmp_path):
    with pytest.raises(ValueError, match="needs even sizes"):
        open_writer(tmp_path / "demos", image_keys={"side": (15, 16)}, video=True)
    with pytest.raises(ValueError, match="bare name"):
        open_writer(tmp_path / "demos", image_keys={"observation.images.side": (16, 16)})


# --- what a reader says


def test_a_missing_folder_says_how_to_get_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.root=.*nowhere is not a folder\. Set data\.root to a LeRobot"):
        read(tmp_path / "nowhere")


def test_an_older_version_is_refused_with_the_converter(damaged):
    edit_info(damaged, codebase_version="v1.6")
    with pytest.raises(ValueError, match=r"codebase_version=v1\.6, supported are v2\.0, v2\.1 and v3\.x: convert"):
        read(damaged)


@pytest.mark.parametrize("key", ["total_episodes", "total_frames", "total_tasks"])
def test_totals_that_disagree_are_a_warning_and_the_tables_count(damaged, key, caplog):
    edit_info(damaged, **{key: 99})
    assert len(read(damaged)) == 7
    assert f"says {key}=99, but" in caplog.text
    assert "the latter counts" in caplog.text


def test_rows_that_the_episodes_do_not_promise_are_refused(damaged):
    pq.write_table(pq.read_table(damaged / DATA).slice(0, 14), damaged / DATA)
    with pytest.raises(ValueError, match="holds 14 rows, but not the 15"):
        read(damaged)


def test_an_unknown_camera_lists_those_there_are(folder):
    config = dataclasses.replace(make_config(folder), views={"side": "observation.images.sied"})
    with pytest.raises(ValueError, match=r"Did you mean 'observation\.images\.side'.*wrist.*data\.views\.side"):
        windows(config, views=["side"])


@pytest.mark.parametrize("option", ["action_key", "proprio_key"])
def test_an_unknown_action_or_proprio_key_names_the_option(folder, option):
    with pytest.raises(ValueError, match=rf"data\.{option}=acton is not a numeric feature.*Set data\.{option}"):
        read(folder, **{option: "acton"})


def test_an_action_of_another_size_than_the_contract_is_refused(folder):
    with pytest.raises(ValueError, match=r"shape \[2\], but data\.contract\.names lists 3 entries"):
        read(folder, action_key="observation.state")


def test_a_recording_of_another_rate_than_the_contract_is_refused(folder):
    contract = dataclasses.replace(make_config(folder).contract, control_hz=20.0)
    with pytest.raises(ValueError, match=r"recorded at 10 frames a second, but .*Set data\.contract\.control_hz=10"):
        open_reader(make_config(folder, contract=contract), "train", [])


def test_proprioception_of_another_size_than_its_names_is_refused(folder):
    with pytest.raises(ValueError, match=r"shape \[2\], but data\.proprio_names lists 1 entries \(x\)"):
        read(folder, proprio_names=["x"])


def test_rows_of_proprioception_are_those_of_the_actions_frames(folder):
    dataset = read(folder)
    np.testing.assert_allclose(dataset.rows(100).proprio, dataset.rows(100).actions[:, :2] / 10, rtol=1e-6)


def test_a_window_longer_than_every_episode_is_refused(folder):
    with pytest.raises(ValueError, match=r"window\.window_size=7 .* longest has 6 steps"):
        read(folder, window_size=7)


def test_one_episode_alone_is_for_training(tmp_path):
    with open_writer(tmp_path / "demos") as writer:
        writer.add_episode(**make_episode(0, 3), task="push")
    splits = [read(tmp_path / "demos", split) for split in ("train", "validation")]
    assert [(len(dataset.reader.episodes), len(dataset)) for dataset in splits] == [(1, 1), (0, 0)]


def test_an_unknown_split_is_refused(folder):
    with pytest.raises(ValueError, match="split='test' does not exist"):
        read(folder, "test")


def test_a_nan_action_is_refused_or_its_episode_dropped_with_a_count(damaged, caplog):
    rows = pq.read_table(damaged / DATA)["action"].to_pylist()
    rows[6][0] = float("nan")
    edit_column(damaged / DATA, "action", rows)
    with pytest.raises(ValueError, match=r"'action' of episode 1, frame 1 is not finite.*data\.skip_bad"):
        read(damaged)
    with caplog.at_level(logging.WARNING):
        dataset = read(damaged, skip_bad=True)
    assert len(dataset) == 3  # only episode 0 remains for training
    assert len(caplog.records) == 1
    assert "1 of 3 episodes of" in caplog.text


def test_a_missing_data_file_is_named(damaged):
    (damaged / DATA).unlink()
    for skip_bad in (False, True):  # nothing is left to skip to
        with pytest.raises(FileNotFoundError, match=r"file-000\.parquet"):
            read(damaged, skip_bad=skip_bad)


def test_a_missing_video_is_refused_or_its_episode_dropped(tmp_path):
    root = write(tmp_path / "demos", video=True)
    (root / "videos/observation.images.wrist/chunk-000/file-001.mp4").unlink()
    with pytest.raises(FileNotFoundError, match=r"file-001\.mp4 \(episode 1\) does not exist"):
        read(root)
    assert len(read(root, skip_bad=True)) == 3
    assert len(read(root, views=["side"])) == 7  # a view that is not read is not missed


def test_a_damaged_image_and_a_damaged_video_are_named(damaged, tmp_path):
    cells = pq.read_table(damaged / DATA)["observation.images.side"].to_pylist()
    cells[1]["bytes"] = b"no image"
    edit_column(damaged / DATA, "observation.images.side", cells)
    with pytest.raises(
        ValueError, match=r"cannot read 'observation\.images\.side' of episode 0, frames 0-2: neither PNG"
    ):
        read(damaged)[0]
    root = write(tmp_path / "videos", video=True)
    dataset = read(root)
    (root / "videos/observation.images.side/chunk-000/file-000.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"file-000\.mp4: cannot read 'observation\.images\.side' of episode 0"):
        dataset[0]


def test_a_video_that_is_too_short_is_refused(video_folder):
    video = open_video(video_folder / "videos/observation.images.side/chunk-000/file-000.mp4")
    with pytest.raises(ValueError, match=r"no frame at 0\.5000 s"):
        read_frames(video, np.array([0.4, 0.5]), 0.025)


def test_episodes_without_words_are_named_and_refused_or_left_out_after_the_division(tmp_path):
    root = tmp_path / "demos"
    with open_writer(root) as writer:
        for number, task in enumerate([" ", "lift", " ", "lift"]):
            writer.add_episode(**make_episode(number, 5), task=task)
    message = r"1 of 2 episodes .* because: .*file-000\.parquet: episode 0, frames 0-4: its instruction is empty\."
    with pytest.raises(ValueError, match=message + r".*data\.language_key"):
        open_reader(make_config(root), "train", [])
    config = make_config(root, skip_bad=True)
    for split, kept in (("train", 1), ("validation", 3)):
        rows = (
            WindowDataset(open_reader(config, split, []), Source.of(config), window_size=1, chunk_size=1)
            .rows(100)
            .actions
        )
        assert np.unique(rows[:, 0]).tolist() == [kept]

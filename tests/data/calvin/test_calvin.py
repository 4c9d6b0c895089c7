from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from calvin_folder import CONTRACT

from robovlms.actions.plan import Source
from robovlms.config.data import ActionContract
from robovlms.data.calvin.reader import CalvinReader
from robovlms.data.calvin.schema import CalvinDataConfig
from robovlms.data.calvin.segments import play_segments, read_few_shot, read_segments
from robovlms.data.opening import open_reader
from robovlms.data.windows import WindowDataset
from robovlms.errors import UserError
from robovlms.registry import DATASETS

# The frame number f is written into every array, so that a test reads off which frames a sample was made of.


def write_frame(folder: Path, frame: int, **replaced: np.ndarray) -> None:
    arrays = {
        "rel_actions": np.full(7, frame, np.float64),
        "rgb_static": np.full((4, 4, 3), frame, np.uint8),
        "rgb_gripper": np.full((2, 2, 3), frame, np.uint8),
        "robot_obs": np.full(2, frame, np.float64),
        "depth_static": np.zeros((4, 4), np.float32),
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"episode_{frame:07d}.npz", **(arrays | replaced))


def write_annotations(folder: Path, segments: list[tuple[int, int]]) -> None:
    (folder / "lang_annotations").mkdir(parents=True, exist_ok=True)
    language = {
        "ann": [f"instruction {i}" for i in range(len(segments))],
        "task": [f"task_{i}" for i in range(len(segments))],
        "emb": np.zeros((len(segments), 1, 384), np.float32),
    }
    content = {"language": language, "info": {"episodes": [], "indx": segments}}
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", content)


@pytest.fixture
def root(tmp_path) -> Path:
    """Segments (10, 16) and (20, 23): 6 and 3 usable frames."""
    for split in ("training", "validation"):
        for frame in [*range(10, 17), *range(20, 24)]:
            write_frame(tmp_path / split, frame)
        write_annotations(tmp_path / split, [(10, 16), (20, 23)])
    return tmp_path


def config(root: Path, **changed: object) -> CalvinDataConfig:
    contract = ActionContract(**CONTRACT)
    views = {"side": "rgb_static", "wrist": "rgb_gripper"}
    return CalvinDataConfig(root=str(root), **{"views": views, "contract": contract, **changed})


def read(root: Path, split: str = "train", window_size: int = 3, chunk_size: int = 3, views=("side",), **changed):
    options = config(root, **changed)
    reader = CalvinReader(options, split, views=list(views))
    return WindowDataset(reader, Source.of(options), window_size=window_size, chunk_size=chunk_size)


def starts(dataset: WindowDataset) -> list[int]:
    return [int(dataset[i].frames["side"][0, 0, 0, 0]) for i in range(len(dataset))]


def test_it_is_registered():
    assert DATASETS.get("calvin") is CalvinReader


def test_windows_start_at_s_to_e_minus_w(root):
    assert starts(read(root, window_size=3)) == [10, 11, 12, 13, 20]
    assert starts(read(root, window_size=4)) == [10, 11, 12]
    assert starts(read(root, window_size=6)) == [10]


def test_actions_past_the_segment_are_masked_copies_of_the_last_real_one(root):
    dataset = read(root, window_size=3, chunk_size=3)  # s = 5 actions; segment (10, 16)
    expected = {
        0: ([10, 11, 12, 13, 14], [True] * 5),
        1: ([11, 12, 13, 14, 15], [True] * 5),
        2: ([12, 13, 14, 15, 15], [True] * 4 + [False]),  # upstream copies frame 16 here; no loss counts it
        3: ([13, 14, 15, 15, 15], [True] * 3 + [False] * 2),
    }
    for index, (frames, mask) in expected.items():
        sample = dataset[index]
        np.testing.assert_array_equal(sample.actions, np.repeat(np.array(frames, np.float32)[:, None], 7, axis=1))
        assert sample.action_mask.tolist() == mask
        np.testing.assert_array_equal(sample.frames["side"][:, 0, 0, 0], frames[:3])


def upstream_windows(start: int, end: int, window_size: int, chunk_size: int) -> list[tuple[list[int], list[bool]]]:
    """Frames and mask of every window of a segment, its last row dropped as in the collater.

    Source: RoboVLMs data/calvin_dataset.py: _build_file_indices_lang, _load_episode, collater.
    """
    windows = []
    right_pad = end - start - (chunk_size + 1) - window_size + 1
    for first in range(start, end + 1 - window_size):
        frames = np.arange(first, first + window_size + chunk_size)
        mask = np.ones(len(frames), bool)
        if right_pad < 0:
            frames[right_pad:], mask[right_pad:] = frames[right_pad], False
        windows.append((frames[:-1].tolist(), mask[:-1].tolist()))
        right_pad -= 1
    return windows


@pytest.mark.parametrize(("window_size", "chunk_size"), [(1, 1), (1, 10), (2, 5), (3, 1), (3, 3), (6, 2)])
def test_windows_equal_upstreams_in_their_real_actions_and_masks(root, window_size, chunk_size):
    dataset = read(root, window_size=window_size, chunk_size=chunk_size)
    expected = [w for segment in [(10, 16), (20, 23)] for w in upstream_windows(*segment, window_size, chunk_size)]
    samples = [dataset[i] for i in range(len(dataset))]

    assert [s.action_mask.tolist() for s in samples] == [mask for _, mask in expected]
    for sample, (frames, mask) in zip(samples, expected, strict=True):
        np.testing.assert_array_equal(sample.actions[mask, 0], np.array(frames)[mask])


def test_a_single_step_window_never_sees_the_last_frame(root):
    dataset = read(root, window_size=1, chunk_size=1)

    assert starts(dataset) == [10, 11, 12, 13, 14, 15, 20, 21, 22]
    assert all(dataset[i].action_mask.all() for i in range(len(dataset)))


def test_only_the_chosen_views_are_read_in_their_recorded_size(root):
    sample = read(root, views=("side", "wrist"))[4]

    assert {view: frames.shape for view, frames in sample.frames.items()} == {
        "side": (3, 4, 4, 3),
        "wrist": (3, 2, 2, 3),
    }
    assert sample.frames["wrist"].dtype == np.uint8
    assert sample.instruction == "instruction 1"
    assert list(read(root)[0].frames) == ["side"]


def test_images_past_the_window_are_not_read(root):
    write_frame(root / "training", 13, rgb_static=np.zeros(3))

    assert read(root)[0].actions[3, 0] == 13


def test_actions_are_spread_over_frames_that_count(root):
    dataset = read(root)

    assert dataset.rows(100).actions[:, 0].tolist() == [10, 11, 12, 13, 14, 15, 20, 21, 22]
    assert dataset.rows(3).actions[:, 0].tolist() == [10, 13, 20]


def test_source_and_summary_say_where_and_how_much(root):
    dataset = read(root)

    assert "episode_0000020.npz to episode_0000022.npz (task_1: 'instruction 1')" in dataset.location(4)
    assert "2 segments, 9 frames, 2 tasks, 2 instructions, 5 windows of 3" in dataset.summary()


def test_the_few_shot_file_and_the_fraction_thin_training_only(root, caplog):
    few = root / "few.json"
    few.write_text(json.dumps({"task_1": [[20, 23], [90, 99]]}))

    assert starts(read(root, few_shot_file=str(few))) == [20]
    assert "1 of 2 segments of data.few_shot_file are not in" in caplog.text
    assert starts(read(root, fraction=0.5)) == [10, 11, 12, 13]
    assert len(read(root, split="validation", few_shot_file=str(few), fraction=0.5)) == 5


def test_wrong_few_shot_files_and_fractions_name_their_option(root):
    few = root / "few.json"
    with pytest.raises(FileNotFoundError, match=r"data.few_shot_file"):
        read(root, few_shot_file=str(few))
    few.write_text(json.dumps({"task": [[1, 2]]}))
    with pytest.raises(ValueError, match=r"none of the 1 segments of data.few_shot_file"):
        read(root, few_shot_file=str(few))
    few.write_text(json.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"data.few_shot_file.*is not JSON of"):
        read(root, few_shot_file=str(few))


def test_a_wrong_root_says_which_path_to_give(root, tmp_path):
    shutil.copytree(root / "training", tmp_path / "all" / "task_D_D" / "training")
    with pytest.raises(FileNotFoundError, match=r"data\.root=.*nowhere is not a folder"):
        read(root / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"It is itself a split: set data.root={root}\\."):
        read(root / "training")
    with pytest.raises(FileNotFoundError, match=r"set data\.root=.*task_D_D\."):
        read(tmp_path / "all")
    with pytest.raises(FileNotFoundError, match=r"It holds training\..*data\.validation_split=training"):
        read(tmp_path / "all" / "task_D_D", split="validation")
    with pytest.raises(ValueError, match="choose 'train' or 'validation'"):
        read(root, split="test")


def test_missing_empty_and_uneven_annotations_name_their_file(root):
    path = root / "training" / "lang_annotations" / "auto_lang_ann.npy"
    write_annotations(root / "training", [])
    with pytest.raises(ValueError, match=r"auto_lang_ann\.npy lists no segment"):
        read(root)
    write_annotations(root / "training", [(10, 12.5)])
    with pytest.raises(ValueError, match="not pairs of whole numbers"):
        read(root)
    np.save(path, {"language": {"ann": ["a"], "task": []}, "info": {"indx": []}})
    with pytest.raises(ValueError, match="equal length: 1 instructions, 0 tasks"):
        read(root)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no language annotations: .*It holds lang_annotations beside"):
        read(root)


@pytest.mark.parametrize("name", ["lang_paraphrase-MiniLM-L3-v2", "lang_clip_resnet50", "lang_BERT"])
def test_annotations_are_found_in_the_folder_of_any_language_model(root, name):
    (root / "training" / "lang_annotations").rename(root / "training" / name)
    assert len(read(root)) == 5
    assert len(read(root, annotations=name)) == 5


def test_several_folders_of_annotations_are_one_if_they_describe_the_same_and_else_a_choice(root):
    folder = root / "training"
    shutil.copytree(folder / "lang_annotations", folder / "lang_a")
    (folder / "lang_annotations").rename(folder / "lang_b")
    assert len(read(root)) == 5
    write_annotations(folder, [(10, 16)])
    shutil.move(folder / "lang_annotations" / "auto_lang_ann.npy", folder / "lang_b" / "auto_lang_ann.npy")
    with pytest.raises(ValueError, match=r"different segments: .*data.annotations=lang_a or data.annotations=lang_b"):
        read(root)
    assert [len(read(root, annotations=name)) for name in ("lang_a", "lang_b")] == [5, 4]


def test_missing_annotations_are_told_with_what_there_is_and_with_a_split_that_helps(root):
    (root / "validation" / "lang_annotations").rename(root / "validation" / "texts")
    said = r"validation has no language annotations: .*There are: texts\..*data\.validation_split=training"
    with pytest.raises(FileNotFoundError, match=said):
        read(root, "validation")
    assert len(read(root, "validation", annotations="texts")) == 5
    assert len(read(root, "validation", validation_split="training")) == 5
    with pytest.raises(FileNotFoundError, match=r"data\.annotations=lang_x: .*There are: texts\."):
        read(root, "validation", annotations="lang_x")


def test_a_window_longer_than_every_segment_names_the_longest(root):
    with pytest.raises(ValueError, match=r"window.window_size=7 is longer than every .* has 6 steps.*window_size <= 6"):
        read(root, window_size=7)


def test_a_view_the_files_lack_lists_their_keys(root):
    with pytest.raises(ValueError, match=r"no 'rgb_top'; it has depth_static, .*view=.*data\.views"):
        CalvinReader(config(root, views={"top": "rgb_top"}), "train", views=["top"])


def gap(folder: Path) -> None:
    (folder / "episode_0000021.npz").unlink()


def reverse(folder: Path) -> None:
    write_annotations(folder, [(10, 16), (23, 20)])


INDEX_FAULTS = {
    gap: (FileNotFoundError, r"segment 1.* lacks 1 frames, the first being episode_0000021\.npz"),
    reverse: (ValueError, "segment 1.* ends before it starts"),
}


def truncate(folder: Path) -> None:
    path = folder / "episode_0000021.npz"
    path.write_bytes(path.read_bytes()[:-20])


def nan_action(folder: Path) -> None:
    write_frame(folder, 21, rel_actions=np.full(7, np.nan))


def short_action(folder: Path) -> None:
    write_frame(folder, 21, rel_actions=np.zeros(6))


def integer_action(folder: Path) -> None:
    write_frame(folder, 21, rel_actions=np.zeros(7, np.int64))


def float_image(folder: Path) -> None:
    write_frame(folder, 21, rgb_static=np.zeros((4, 4, 3), np.float32))


def larger_image(folder: Path) -> None:
    write_frame(folder, 21, rgb_static=np.zeros((8, 8, 3), np.uint8))


READ_FAULTS = {
    truncate: "0000021.npz cannot be read",
    nan_action: "7 finite floats",
    short_action: "7 finite floats",
    integer_action: "7 finite floats",
    float_image: "is float32 .* must be images",
    larger_image: r"is uint8 \(8, 8, 3\), but the first frame of the data set has \(4, 4, 3\)",
}


@pytest.mark.parametrize("damage", INDEX_FAULTS, ids=lambda f: f.__name__)
def test_faults_that_the_listing_shows_stop_the_constructor(root, damage):
    error, match = INDEX_FAULTS[damage]
    damage(root / "training")

    with pytest.raises(error, match=match + r".*data\.skip_bad=true"):
        read(root)


@pytest.mark.parametrize("damage", READ_FAULTS, ids=lambda f: f.__name__)
def test_faults_inside_a_file_stop_the_read_of_its_windows(root, damage):
    damage(root / "training")
    dataset = read(root)

    assert dataset[0].action_mask.all()
    with pytest.raises(ValueError, match=READ_FAULTS[damage] + r".*data\.skip_bad=true"):
        dataset[4]


@pytest.mark.parametrize("damage", [*INDEX_FAULTS, *READ_FAULTS], ids=lambda f: f.__name__)
def test_skip_bad_drops_the_segment_with_one_counted_warning(root, damage, caplog):
    damage(root / "training")
    with caplog.at_level(logging.WARNING):
        dataset = read(root, skip_bad=True)

    assert starts(dataset) == [10, 11, 12, 13]
    assert [record.message[:34] for record in caplog.records] == ["data.skip_bad: 1 of 2 segments of "]


@pytest.mark.parametrize(
    ("segment", "instruction", "named"),
    [
        ((20, 20), "lift", r"episode_0000020\.npz.*: it has no frame"),
        ((20, 23), " \t", r"episode_0000020\.npz.*: its instruction is empty"),
    ],
)
def test_a_segment_without_frames_or_words_is_named_and_refused_or_left_out(root, segment, instruction, named, caplog):
    options = config(root, name="calvin")
    language = {"ann": ["open", instruction], "task": ["a", "b"]}
    annotations = root / "training" / "lang_annotations" / "auto_lang_ann.npy"
    np.save(annotations, {"language": language, "info": {"indx": [(10, 16), segment]}})
    with pytest.raises(ValueError, match=r"1 of 2 episodes .*" + named + r".*data\.skip_bad=true"):
        open_reader(options, "train", ["side"])
    assert not caplog.records
    options = config(root, name="calvin", skip_bad=True)
    dataset = WindowDataset(open_reader(options, "train", ["side"]), Source.of(options), window_size=2, chunk_size=1)
    assert {dataset[index].instruction for index in range(len(dataset))} == {"open"}
    assert dataset.rows(100).actions[:, 0].tolist() == [10, 11, 12, 13, 14, 15]
    assert [record.message[:34] for record in caplog.records] == ["data.skip_bad: 1 of 2 episodes of "]


def test_a_recorder_of_another_rate_than_the_contracts_is_refused(root):
    recorder = root / "training" / ".hydra" / "merged_config.yaml"
    recorder.parent.mkdir()
    recorder.write_text("record: true\nrecorder: {record: '${record}', record_fps: 15.0}\n")
    with pytest.raises(ValueError, match=r"recorded at 15 frames a second, but data\.contract\.control_hz=30"):
        open_reader(config(root, name="calvin"), "train", ["side"])
    recorder.write_text("recorder: [")
    with pytest.raises(ValueError, match=r"merged_config\.yaml is not the config of a recording"):
        read(root)
    recorder.write_text("recorder: {}")
    assert read(root).reader.fps is None


def test_skip_bad_with_nothing_left_says_why(root):
    for frame in (10, 20):
        write_frame(root / "training", frame, rel_actions=np.zeros(6))

    with pytest.raises(ValueError, match=r"None of the 2 segments .* can be used, .*episode_0000010\.npz"):
        read(root, skip_bad=True)


def test_a_sound_folder_warns_about_nothing(root, caplog):
    read(root, skip_bad=True)

    assert not caplog.records


@pytest.mark.parametrize(("split", "segments", "windows"), [("train", 12, 308), ("validation", 6, 153)])
def test_real_recordings_read_back_exactly(shared_data, split, segments, windows):
    dataset = read(shared_data / "calvin_mini", split, window_size=16, chunk_size=10, views=("side", "wrist"))
    sample = dataset[0]
    first = {"train": 1000, "validation": 50}[split]
    folder = shared_data / "calvin_mini" / {"train": "training", "validation": "validation"}[split]
    for step in (0, 15):
        with np.load(folder / f"episode_{first + step:07d}.npz") as frame:
            np.testing.assert_array_equal(sample.frames["side"][step], frame["rgb_static"])
            np.testing.assert_array_equal(sample.frames["wrist"][step], frame["rgb_gripper"])
            np.testing.assert_array_equal(sample.actions[step], frame["rel_actions"].astype(np.float32))

    assert sample.frames["side"].shape == (16, 200, 200, 3)
    assert sample.actions.shape == (25, 7)
    assert len(dataset) == windows
    assert f"{segments} segments" in dataset.summary()
    assert np.abs(dataset.rows(50).actions).max() <= 1


def write_scenes(folder: Path, scenes: dict[str, list[int]]) -> None:
    content = np.empty((), object)
    content[()] = scenes
    np.save(folder / "scene_info.npy", content)


@pytest.mark.parametrize("name", ["B", "calvin_scene_B"])
def test_scenes_keep_the_segments_inside_their_frames_for_training_only(root, name):
    write_scenes(root / "training", {"calvin_scene_A": [10, 18], "calvin_scene_B": [19, 30]})

    assert starts(read(root, scenes=[name])) == [20]
    assert len(read(root, scenes=[name, "A"])) == 5
    assert len(read(root, "validation", scenes=[name])) == 5


def test_scenes_that_there_are_not_are_named(root):
    with pytest.raises(FileNotFoundError, match=r"scene_info\.npy does not exist, but data\.scenes=\['A'\] needs it"):
        read(root, scenes=["A"])
    write_scenes(root / "training", {"calvin_scene_A": [10, 15]})
    with pytest.raises(ValueError, match=r"data\.scenes has 'D', but .*scene_info\.npy has A"):
        read(root, scenes=["D"])
    with pytest.raises(ValueError, match=r"data\.scenes=\['A'\] .* leave no segment"):
        read(root, scenes=["A"])  # ends before the segment 10-16 does
    write_scenes(root / "training", {"calvin_scene_A": ["x", "y"]})
    with pytest.raises(ValueError, match=r"scene_info\.npy must hold"):
        read(root, scenes=["A"])


def test_excluded_tasks_are_left_out_of_training_only(root):
    assert starts(read(root, exclude_tasks=["task_0"])) == [20]
    assert len(read(root, "validation", exclude_tasks=["task_0"])) == 5
    with pytest.raises(ValueError, match=r"'tsk_0', which is not a task of .*Did you mean 'task_0'\?.*task_0, task_1"):
        read(root, exclude_tasks=["tsk_0"])
    with pytest.raises(ValueError, match="leave no segment"):
        read(root, exclude_tasks=["task_0", "task_1"])


def recordings(root: Path, rows: list[tuple[int, int]]) -> None:
    np.save(root / "training" / "ep_start_end_ids.npy", np.array(rows))


def test_play_is_what_no_segment_covers_and_has_its_own_instruction(root):
    for frame in [*range(5, 10), *range(17, 20), *range(24, 27)]:
        write_frame(root / "training", frame)
    recordings(root, [(5, 26)])
    dataset = read(root, window_size=2, play_instruction="play")

    # segments 10-16 and 20-23 as before; play 5-10, 16-20 and 23-26, of which the last is padding everywhere
    assert starts(dataset) == [10, 11, 12, 13, 14, 20, 21, 5, 6, 7, 8, 16, 17, 18, 23, 24]
    assert {dataset[i].instruction for i in (7, 15)} == {"play"}
    assert len(read(root, "validation", window_size=2, play_instruction="play")) == 7
    assert "4 segments" not in read(root, window_size=2).summary()


def test_an_excluded_task_is_not_taught_as_play(root):
    recordings(root, [(10, 16), (20, 23)])

    assert starts(read(root, exclude_tasks=["task_0"], play_instruction="play")) == [20]


def test_play_beyond_a_few_shot_list_stays_what_no_segment_covers(root):
    few = root / "few.json"
    few.write_text(json.dumps({"task_1": [[20, 23]]}))
    recordings(root, [(10, 16), (20, 23)])

    assert starts(read(root, few_shot_file=str(few), play_instruction="play")) == [20]


def test_play_is_thinned_to_scenes(root):
    for frame in [*range(5, 10), *range(17, 20), *range(24, 27)]:
        write_frame(root / "training", frame)
    recordings(root, [(5, 18), (19, 26)])
    write_scenes(root / "training", {"calvin_scene_A": [5, 18], "calvin_scene_B": [19, 26]})

    assert starts(read(root, window_size=2, scenes=["B"], play_instruction="play")) == [20, 21, 23, 24]


def test_play_without_recordings_or_words_names_the_option(root):
    with pytest.raises(FileNotFoundError, match=r"ep_start_end_ids\.npy does not exist, but data\.play_instruction"):
        read(root, play_instruction="play")
    with pytest.raises(ValueError, match=r"data\.play_instruction is empty"):
        read(root, play_instruction=" ")
    recordings(root, [(10, 10**12)])
    with pytest.raises(ValueError, match=r"ep_start_end_ids\.npy must hold pairs of frame numbers"):
        read(root, play_instruction="play")
    recordings(root, [(0, 30)])
    with pytest.raises(FileNotFoundError, match=r"lacks 10 frames, the first being episode_0000000\.npz"):
        read(root, play_instruction="play")


def test_real_recordings_give_play_where_their_segments_are_not_described(shared_data):
    folder = shared_data / "calvin_mini" / "training"
    segments = read_segments(folder / "lang_annotations" / "auto_lang_ann.npy")
    options = config(shared_data / "calvin_mini", play_instruction="play")

    assert play_segments(folder, segments, options) == []  # every recording is one segment
    play = play_segments(folder, segments[2:], options)
    assert [(segment.start, segment.end, segment.length) for segment in play] == [(1000, 1041, 41), (1049, 1090, 41)]
    assert {(segment.task, segment.instruction) for segment in play} == {("play", "play")}


def test_real_recordings_without_a_task(shared_data):
    root = shared_data / "calvin_mini"
    dataset = read(root, exclude_tasks=["open_drawer"], window_size=16)

    assert "10 segments" in dataset.summary()
    assert "5 tasks" in dataset.summary()


def test_the_released_ten_shot_list_is_read_as_ten_segments_of_each_of_34_tasks(shared_data):
    path = shared_data / "calvin" / "robovlms" / "10_shot_task_data.json"
    ranges = read_few_shot(path)

    assert len(ranges) == 340
    assert (1876582, 1876646) in ranges
    assert max(end - start for start, end in ranges) == 64


def test_the_released_ten_shot_list_has_ten_segments_of_each_task(shared_data, root):
    few = shared_data / "calvin" / "robovlms" / "10_shot_task_data.json"

    with pytest.raises(ValueError, match="none of the 340 segments"):
        read(root, few_shot_file=str(few))


def test_proprioception_is_read_for_the_observed_frames_only_when_asked(root):
    dataset = read(root, proprio_key="robot_obs", proprio_names=["x", "y"])
    assert dataset[1].proprio.tolist() == [[11, 11], [12, 12], [13, 13]]
    np.testing.assert_array_equal(dataset.rows(4).proprio[:, 0], dataset.rows(4).actions[:, 0])
    assert read(root)[1].proprio is None


def test_proprioception_of_another_size_than_its_names_is_refused(root):
    with pytest.raises(ValueError, match=r"robot_obs must be 3 finite floats, as many as data.proprio_names lists"):
        read(root, proprio_key="robot_obs", proprio_names=["x", "y", "z"])


def test_the_simulators_state_is_that_of_the_segments_first_frame(root):
    write_frame(root / "training", 20, robot_obs=np.arange(15.0), scene_obs=np.arange(24.0))
    reader = read(root).reader
    state = reader.simulator_state(1)
    assert state.values.tolist() == [*range(15), *range(24)]
    assert state.solved
    with pytest.raises(UserError, match=r"episode_0000010\.npz: the simulator's state cannot be read .*scene_obs"):
        reader.simulator_state(0)

"""A LeRobotDataset is held against itself when it is opened: what is wrong is told before a window is drawn."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from lerobot_folder import CAMERA, FPS, NAMES, encode, gray, shown, write_mp4, write_v2, write_v3

from robovlms.actions.plan import Source
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation
from robovlms.config.data import ActionContract, NormalizationConfig
from robovlms.data.base import Reader
from robovlms.data.files.video import index_video
from robovlms.data.lerobot import recording
from robovlms.data.lerobot.reader import LeRobotReader
from robovlms.data.lerobot.schema import LeRobotDataConfig
from robovlms.data.windows import WindowDataset


def make_config(root: Path, **changes) -> LeRobotDataConfig:
    contract = ActionContract(
        names=NAMES,
        representation=Representation.delta,
        frame=ReferenceFrame.base,
        position_unit=1.0,
        control_hz=10.0,
    )
    values = {"contract": contract, "validation_fraction": 0.0, "views": {"side": CAMERA}}
    normalization = NormalizationConfig(mode=NormalizationMode.min_max)
    return LeRobotDataConfig(name="lerobot", root=str(root), normalization=normalization, **{**values, **changes})


def open_folder(root: Path, **changes) -> Reader:
    return LeRobotReader(make_config(root, **changes), "train", views=["side"])


def pictures(reader: Reader, episode: int) -> list[int]:
    """Return the numbers of the frames that the rows of an episode show."""
    return shown(reader.frames(episode, np.arange(reader.episodes[episode].length))["side"])


CLOCK = [0.0, 0.11, 0.19, 0.34, 0.36, 0.52, 0.58, 0.72]  # up to 40 ms off


# --- timestamps against the frame rate


@pytest.mark.parametrize(
    ("stamps", "kind", "message"),
    [
        ([0.0] * 8, pa.float32(), r"up to 0\.7 s off frame_index / fps: all are 0 \(fps=10"),
        (CLOCK, pa.float32(), r"up to 0\.04 s off frame_index / fps \("),
        (np.arange(8) * 100.0, pa.float32(), "they look like milliseconds"),
        (np.arange(8) * 100_000_000, pa.int64(), "they look like nanoseconds"),
        (1.7e9 + np.arange(8) / FPS, pa.float32(), "since 1970, which float32 keeps only to the minute"),
        (np.arange(8)[::-1] / FPS, pa.float32(), "they go back"),
        ([0.0, 0.1, 0.2, 0.2, 0.4, 0.5, 0.6, 0.7], pa.float32(), r"up to 0\.1 s off"),
        ([0.0, 0.1, float("nan"), 0.3, 0.4, 0.5, 0.6, 0.7], pa.float32(), "the timestamp of its frame 2 is not finite"),
    ],
)
def test_timestamps_that_contradict_the_rate_are_told_when_the_folder_is_opened(tmp_path, stamps, kind, message):
    write_v2(tmp_path / "a", stamps=[stamps] * 3, videos=[8] * 3, columns={"stamp_type": kind})
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path / "a")


@pytest.mark.parametrize("stamps", [[0.0] * 8, CLOCK])
def test_a_tolerance_finds_the_frames_by_number_and_the_message_says_which(tmp_path, stamps):
    root = write_v2(tmp_path / "a", lengths=[8, 8], stamps=[np.arange(8) / FPS, stamps], videos=[8, 8])
    with pytest.raises(ValueError, match=r"data\.timestamp_tolerance_s=([\d.]+)") as error:
        open_folder(root)
    asked = float(str(error.value).split("timestamp_tolerance_s=")[1].split()[0])
    reader = open_folder(root, timestamp_tolerance_s=asked)
    assert [pictures(reader, episode) for episode in (0, 1)] == [list(range(8))] * 2


def test_the_tolerance_in_the_message_is_enough_for_every_episode(tmp_path):
    late = [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    root = write_v2(tmp_path / "a", lengths=[8, 8], stamps=[CLOCK, late], videos=[8, 8])
    with pytest.raises(ValueError, match=r"data\.timestamp_tolerance_s=0\.11 "):
        open_folder(root)


def test_timestamps_further_off_than_the_tolerance_are_still_refused(tmp_path):
    root = write_v2(tmp_path / "a", lengths=[8], stamps=[CLOCK], videos=[8])
    with pytest.raises(ValueError, match=r"up to 0\.04 s off"):
        open_folder(root, timestamp_tolerance_s=0.03)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32()])
def test_timestamps_may_begin_at_any_time(tmp_path, kind):
    offset = 1.7e9 if kind == pa.float64() else 5.3
    root = write_v2(
        tmp_path / "a", stamps=[offset + np.arange(8) / FPS] * 3, videos=[8] * 3, columns={"stamp_type": kind}
    )
    assert pictures(open_folder(root), 1) == list(range(8))


def test_a_video_that_begins_before_the_rows_is_read_at_their_timestamps_as_lerobot_does(tmp_path):
    root = write_v2(tmp_path / "a", lengths=[8], stamps=[0.3 + np.arange(8) / FPS], videos=[11])
    assert pictures(open_folder(root), 0) == list(range(3, 11))


def test_a_video_whose_own_times_are_those_of_the_rows_needs_no_tolerance(tmp_path):
    root = write_v2(tmp_path / "a", lengths=[8], stamps=[CLOCK], videos=[8], mp4={"times": CLOCK})
    assert pictures(open_folder(root), 0) == list(range(8))


def test_a_video_that_shows_its_first_frame_late_is_read_from_that_frame_on(tmp_path):
    times = (0.4 + np.arange(8) / FPS).tolist()
    root = write_v2(tmp_path / "a", lengths=[8], videos=[8], mp4={"times": times})
    assert pictures(open_folder(root), 0) == list(range(8))


def test_bad_timestamps_do_not_matter_to_pictures_within_the_table(tmp_path):
    root = write_v2(tmp_path / "a", lengths=[8], stamps=[[0.0] * 8])
    assert pictures(open_folder(root), 0) == list(range(8))


@pytest.mark.parametrize(
    ("stamps", "told"),
    [
        (np.arange(8) / 15, "are 0.06667 s apart (15 rows a second), but meta/info.json says fps=10"),
        (np.arange(8) * 100.0, "are 100 s apart"),
        (np.arange(8) / 10.5, ""),
        (CLOCK, ""),
        ([0.0] * 8, ""),
        ([float("nan")] * 8, ""),
    ],
)
def test_a_clock_of_another_rate_is_a_warning_where_pictures_do_not_depend_on_it(tmp_path, caplog, stamps, told):
    open_folder(write_v2(tmp_path / "a", stamps=[stamps] * 3))
    assert [told in record.message for record in caplog.records] == [True] * bool(told)


def test_the_rows_of_an_episode_must_be_in_order(tmp_path):
    order = pa.array([0, 1, 2, 5, 4, 3, 6, 7], pa.int64())
    root = write_v2(tmp_path / "a", columns={"frame_index": order})
    with pytest.raises(ValueError, match="the rows of episode 0 are not in order of frame_index"):
        open_folder(root)


# --- containers


@pytest.mark.parametrize("bf", [0, 2])
def test_the_index_of_a_video_tells_what_decoding_shows(tmp_path, bf):
    write_mp4(tmp_path / "a.mp4", 9, bf=bf)
    index = index_video(tmp_path / "a.mp4")
    np.testing.assert_allclose(index.times, np.arange(9) / FPS, atol=1e-3)
    assert (index.num_frames, index.pixel_format) == (9, "yuv420p")


def test_uneven_times_of_reordered_frames_are_found(tmp_path):
    write_mp4(tmp_path / "a.mp4", 8, times=CLOCK, bf=2)
    np.testing.assert_allclose(index_video(tmp_path / "a.mp4").times, CLOCK, atol=1e-3)


def test_a_video_with_fewer_frames_than_rows_is_told_and_its_episode_dropped(tmp_path, caplog):
    root = write_v2(tmp_path / "a", videos=[8, 6, 8])
    message = r"episode_000001\.mp4, episode 1: its 8 rows .* holds 6 frames \(10 a second\), shown from 0 to 0\.5 s"
    with pytest.raises(ValueError, match=message + r".*data\.skip_bad=true"):
        open_folder(root)
    with caplog.at_level(logging.WARNING):
        reader = open_folder(root, skip_bad=True)
    assert "1 of 3 episodes of" in caplog.text
    assert [reader.location(number, 0, 0).partition(": ")[2][:9] for number in (0, 1)] == ["episode 0", "episode 2"]


def test_a_video_with_more_frames_than_rows_is_read_as_far_as_there_are_rows(tmp_path):
    assert pictures(open_folder(write_v2(tmp_path / "a", videos=[11, 8, 9])), 0) == list(range(8))


def test_a_video_of_another_rate_than_the_folder_says_is_told(tmp_path):
    root = write_v2(tmp_path / "a", videos=[8] * 3, mp4={"fps": 30})
    with pytest.raises(ValueError, match=r"rows at fps=10 .* holds 8 frames \(30\.?\d* a second\)"):
        open_folder(root)


def test_a_video_of_thrice_the_rate_shows_every_third_frame(tmp_path):
    root = write_v2(tmp_path / "a", lengths=[6], videos=[18], mp4={"fps": 30})
    assert pictures(open_folder(root), 0) == [0, 3, 6, 9, 12, 15]


def test_a_damaged_video_is_told_when_the_folder_is_opened_and_dropped(tmp_path):
    root = write_v2(tmp_path / "a", videos=[8] * 3)
    path = root / f"videos/chunk-000/{CAMERA}/episode_000002.mp4"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"episode_000002\.mp4 cannot be read as a video"):
        open_folder(root)
    assert len(open_folder(root, skip_bad=True).episodes) == 2


def test_depth_in_a_video_is_refused_by_its_flag_and_by_its_pixels(tmp_path):
    root = write_v2(tmp_path / "a", videos=[8] * 3)
    info = json.loads((root / "meta/info.json").read_text())
    for place in ({"info": {"video.is_depth_map": True}}, {"video_info": {"is_depth_map": True}}, {"dtype": "depth"}):
        feature = {**info["features"][CAMERA], **place}
        (root / "meta/info.json").write_text(json.dumps(info | {"features": info["features"] | {CAMERA: feature}}))
        with pytest.raises(ValueError, match=rf"data\.views\.side={CAMERA} is .*depth"):
            open_folder(root)
    root = write_v2(tmp_path / "b", videos=[8], lengths=[8], mp4={"codec": "ffv1", "pix_fmt": "gray16le", "bf": -1})
    with pytest.raises(ValueError, match="its pixels are gray16le, those of a depth map"):
        open_folder(root)


@pytest.mark.parametrize("starts", [[0.0, 0.0, 0.0], [0.0, 0.5, 1.6]])
def test_episodes_that_show_the_same_frames_of_a_file_are_told(tmp_path, starts):
    root = write_v3(tmp_path / "a", video=True, starts=starts)
    with pytest.raises(ValueError, match=r"episodes 0 and 1 show the same frames .* from_timestamp"):
        open_folder(root)


def test_episodes_one_behind_another_in_a_file_show_their_own_frames(tmp_path):
    reader = open_folder(write_v3(tmp_path / "a", lengths=[6, 6, 6], video=True))
    assert [pictures(reader, e)[0] for e in range(3)] == [0, 6, 12]


def test_an_episode_that_begins_behind_its_video_is_told(tmp_path):
    root = write_v3(tmp_path / "a", video=True, starts=[0.0, 0.8, 3.0])
    with pytest.raises(ValueError, match=r"episode 2: its 8 rows .* 24 frames"):
        open_folder(root)


def test_many_videos_are_indexed_once_and_kept(tmp_path, monkeypatch):
    root = write_v2(tmp_path / "a", lengths=[8, 8], stamps=[CLOCK, np.arange(8) / FPS], videos=[8, 8],
                    mp4={"times": CLOCK})  # fmt: skip
    (root / f"videos/chunk-000/{CAMERA}/episode_000001.mp4").write_bytes(b"damaged")
    monkeypatch.setattr(recording, "KEEP_FROM", 1)
    for _ in range(2):
        recording._index.cache_clear()
        reader = open_folder(root, skip_bad=True, cache_dir=str(tmp_path / "cache"))
        assert pictures(reader, 0) == list(range(8))
    assert len(list((tmp_path / "cache").glob("videos-*.npz"))) == 1


# --- pictures in the tables


DEPTH = np.full((32, 32), 1500, np.uint16)


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_depth_in_a_table_is_refused_whatever_is_skipped(tmp_path, write, kind, skip_bad):
    root = write(tmp_path / "a", cells=[[encode(DEPTH, kind)] * 8] * 3)
    with pytest.raises(ValueError, match=rf"the first picture of '{CAMERA}' .*depth maps"):
        open_folder(root, skip_bad=skip_bad)


def test_a_damaged_first_picture_is_told_or_its_episode_dropped(tmp_path):
    good = [encode(gray(i)) for i in range(8)]
    root = write_v3(tmp_path / "a", cells=[[b"damaged", *good[1:]], good, good])
    with pytest.raises(ValueError, match=rf"the first picture of '{CAMERA}' in episode 0 .* neither PNG nor JPEG"):
        open_folder(root)
    assert len(open_folder(root, skip_bad=True).episodes) == 2


def test_pictures_beside_the_table_are_read_and_none_outside_the_folder(tmp_path):
    root = write_v2(tmp_path / "a", lengths=[3], cells=[[{"bytes": None, "path": f"images/{i}.png"} for i in range(3)]])
    with pytest.raises(ValueError, match=r"has no 'images/0\.png'"):
        open_folder(root)
    (root / "images").mkdir()
    for i in range(3):
        (root / f"images/{i}.png").write_bytes(encode(gray(i)))
    assert pictures(open_folder(root), 0) == [0, 1, 2]
    (tmp_path / "secret.png").write_bytes(encode(gray(0)))
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        outside = write_v2(tmp_path / f"b{len(name)}", lengths=[1], cells=[[{"bytes": None, "path": name}]])
        with pytest.raises(ValueError, match="is not embedded in the parquet file"):
            open_folder(outside)


# --- data files


@pytest.mark.parametrize(
    ("files", "listed"),
    [([0, 1, 1], [0, 0, 1]), ([0, 0, 1], [0, 0, 0]), ([0, 1, 2], [0, 0, 1]), ([1, 1, 0], [0, 0, 1])],
)
def test_episodes_that_are_listed_in_another_file_are_found_by_their_number(tmp_path, caplog, files, listed):
    lengths = [8, 5, 6]
    reader = open_folder(write_v3(tmp_path / "a", lengths=lengths, files=files, listed=listed))
    for episode, length in enumerate(lengths):
        numbers = reader.numbers(episode, np.arange(length)).actions
        assert numbers[:, :2].tolist() == [[episode, step] for step in range(length)]
        assert pictures(reader, episode) == list(range(length))
    assert "in another data file than holds them (lerobot#2401)" in caplog.text


def test_a_sound_index_of_files_is_believed_without_a_word(tmp_path, caplog):
    open_folder(write_v3(tmp_path / "a", files=[0, 1, 1]))
    assert not caplog.records


def test_a_missing_file_beside_a_stale_index_is_told_and_its_episodes_dropped(tmp_path):
    root = write_v3(tmp_path / "a", lengths=[8, 5, 6, 7], files=[0, 1, 1, 2], listed=[0, 0, 1, 1])
    (root / "data/chunk-000/file-002.parquet").unlink()
    with pytest.raises(ValueError, match=r"file-001\.parquet holds"):
        open_folder(root)


@pytest.mark.parametrize("name", ["data/chunk-000/episode_000001.parquet", "meta/info.json", "meta/tasks.jsonl",
                                  "meta/episodes.jsonl", f"videos/chunk-000/{CAMERA}/episode_000001.mp4"])  # fmt: skip
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    root = write_v2(tmp_path / "a", videos=[8] * 3)
    (root / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ValueError, match=rf"{Path(name).name} .*Git LFS pointer, and its 12345 bytes .*git lfs pull"):
        open_folder(root)


def test_an_incomplete_download_says_how_much_is_missing_and_never_advises_what_is_set(tmp_path):
    root = write_v2(tmp_path / "a", videos=[None, None, 8])
    with pytest.raises(FileNotFoundError, match=r"Files of 2 of 3 episodes are missing: the download is incomplete"):
        open_folder(root)
    assert len(open_folder(root, skip_bad=True).episodes) == 1
    root = write_v2(tmp_path / "b", videos=[None, None, None])
    for skip_bad in (False, True):
        with pytest.raises(FileNotFoundError) as error:
            open_folder(root, skip_bad=skip_bad)
        assert "skip_bad" not in str(error.value)


@pytest.mark.parametrize(("root", "hint"), [("", "a"), ("a/data/chunk-000", "a"), ("a/meta", "a")])
def test_a_root_too_high_or_too_low_is_told_with_the_right_one(tmp_path, root, hint):
    write_v2(tmp_path / "sets/a")
    with pytest.raises(FileNotFoundError, match=rf"Set data\.root={tmp_path / 'sets' / hint}\."):
        open_folder(tmp_path / "sets" / root)


# --- names


@pytest.mark.parametrize(
    ("recorded", "declared", "problem"),
    [
        (NAMES, NAMES, None),
        (None, ["dy", "dx", "gripper"], None),  # nothing to compare with
        (["y", "x", "gripper"], NAMES, r"'dx' is entry 0, but 'x' is recorded as entry 1"),
        ({"motors": ["gripper", "dx", "dy"]}, NAMES, r"'dx' is entry 0, but 'dx' is recorded as entry 1"),
        (["shoulder_pan.pos", "elbow_flex.pos", "gripper.pos"], ["pan", "elbow", "gripper"], None),
        (["gripper.pos", "shoulder_pan.pos", "elbow_flex.pos"], ["pan", "elbow", "gripper"], r"'pan' is entry 0, but"),
        (["elbow_flex", "wrist_flex", "gripper"], ["wrist_flex", "elbow_flex", "gripper"], r"'wrist_flex' is entry 0"),
        (["elbow_flex", "wrist_flex", "gripper"], ["j1", "flex", "gripper"], None),  # either of them
        (["motor_0", "motor_1", "motor_2"], NAMES, None),
        (["left_x", "right_x", "left_gripper.pos"], ["left/dx", "right/dx", "left/gripper"], None),
        (
            ["left_x", "right_x", "left_gripper.pos"],
            ["right/dx", "left/dx", "left/gripper"],
            r"'right/dx' is entry 0, but",
        ),
    ],
)
def test_names_are_held_against_those_of_the_folder(tmp_path, recorded, declared, problem):
    root = write_v2(tmp_path / "a")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"]["names"] = recorded
    (root / "meta/info.json").write_text(json.dumps(info))
    contract = replace(make_config(root).contract, names=declared, frame=ReferenceFrame.joint)
    if problem is None:
        assert len(open_folder(root, contract=contract).episodes) == 3
    else:
        with pytest.raises(ValueError, match=rf"data\.contract\.names=.*{problem}.*data\.action_key"):
            open_folder(root, contract=contract)


def test_an_action_put_in_another_order_has_its_names_in_that_order(tmp_path):
    root = write_v2(tmp_path / "a")
    contract = replace(make_config(root).contract, names=["dy", "dx", "gripper"])
    reader = open_folder(root, contract=contract, action_key="action[1]+action[0]+action[2]")
    assert reader.numbers(1, np.array([3])).actions.tolist() == [[3, 1, 1]]


# --- instructions


def test_an_episode_is_divided_where_its_instruction_changes(tmp_path):
    root = write_v2(tmp_path / "a", lengths=[8, 8], tasks=["push", "pull"], task_of=[[0] * 8, [1, 1, 1, 0, 0, 0, 0, 1]])
    config = make_config(root)
    dataset = WindowDataset(
        LeRobotReader(config, "train", views=["side"]), Source.of(config), window_size=2, chunk_size=3
    )
    episodes = [(e.length, e.instruction) for e in dataset.reader.episodes]
    assert episodes == [(8, "push"), (3, "pull"), (4, "push"), (1, "pull")]
    assert [len(dataset.windows(number)) for number in range(4)] == [7, 2, 3, 0]
    sample = dataset[dataset.windows(2)[1]]  # frames 4 and 5 of episode 1, actions 4 ... 7, of which 7 is a pull
    assert (sample.instruction, shown(sample.frames["side"])) == ("push", [4, 5])
    assert sample.actions[:, 1].tolist() == [4, 5, 6, 6]
    assert sample.action_mask.tolist() == [True, True, True, False]
    assert dataset.location(dataset.windows(2)[1]).endswith("episode 1, frames 4-5")
    rows = dataset.rows(100).actions
    assert sorted(map(tuple, rows[:, :2].tolist())) == [(e, s) for e in range(2) for s in range(8)]


def test_the_stretches_of_a_video_show_their_own_frames(tmp_path):
    root = write_v2(tmp_path / "a", lengths=[8], tasks=["push", "pull"], task_of=[[0] * 5 + [1] * 3], videos=[8],
                    stamps=[CLOCK])  # fmt: skip
    reader = open_folder(root, timestamp_tolerance_s=0.05)
    assert [pictures(reader, stretch) for stretch in (0, 1)] == [[0, 1, 2, 3, 4], [5, 6, 7]]


def test_all_stretches_of_a_recording_are_in_the_same_split(tmp_path):
    root = write_v2(tmp_path / "a", lengths=[8] * 4, tasks=["push", "pull"], task_of=[[0] * 4 + [1] * 4] * 4)
    config = make_config(root, validation_fraction=0.25)
    readers = [LeRobotReader(config, split, views=[]) for split in ("train", "validation")]
    assert [len(reader.episodes) for reader in readers] == [6, 2]
    assert {reader.location(e, 0, 0).split(":")[0][-9:] for reader in readers[1:] for e in (0, 1)} == {"3.parquet"}

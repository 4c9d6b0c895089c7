"""Editing a LeRobot folder into a new one: what stays the same to the bit, what is cut, renamed, joined and divided."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_folder import CAMERA, FPS, LEVEL, NAMES, encode, gray, shown, write_v2, write_v3

from robovlms.commands.edit_data import edit_data
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation
from robovlms.config.data import ActionContract, NormalizationConfig
from robovlms.data.editing.schema import EditDataConfig
from robovlms.data.lerobot.reader import LeRobotReader
from robovlms.data.lerobot.schema import LeRobotDataConfig
from robovlms.data.lerobot.stats import number_stats
from robovlms.errors import UserError

ROWS = "data/chunk-000/file-000.parquet"


def edit(root: Path, name: str = "new", **options: Any) -> Path:
    target = root.parent / name
    edit_data(EditDataConfig(root=str(root), output_dir=str(target), **options))
    return target


def opened(root: Path, camera: str = CAMERA) -> LeRobotReader:
    contract = ActionContract(
        names=NAMES,
        representation=Representation.delta,
        frame=ReferenceFrame.base,
        position_unit=1.0,
        control_hz=float(FPS),
    )
    config = LeRobotDataConfig(
        name="lerobot",
        root=str(root),
        views={"side": camera},
        contract=contract,
        normalization=NormalizationConfig(mode=NormalizationMode.min_max),
        validation_fraction=0.0,
    )
    return LeRobotReader(config, "train", views=["side"])


def contents(root: Path, camera: str = CAMERA) -> list[tuple[str, list[list[float]], list[int]]]:
    """Return instruction, actions and gray levels of every episode."""
    reader = opened(root, camera)
    return [
        (
            episode.instruction,
            reader.numbers(i, np.arange(episode.length)).actions.tolist(),
            shown(reader.frames(i, np.arange(episode.length))["side"]),
        )
        for i, episode in enumerate(reader.episodes)
    ]


def rows(root: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(root.glob("data/*/*.parquet"))])


def hashes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("write", [write_v2, write_v3])
def test_episodes_that_are_kept_keep_numbers_and_encoded_pictures_to_the_bit(tmp_path, write):
    root = write(tmp_path / "old", lengths=(8, 6, 7))
    before, cells = hashes(root), rows(root)[CAMERA].to_pylist()
    new = edit(root, drop="1")
    old = contents(root)
    assert contents(new) == [old[0], old[2]]
    assert [c["bytes"] for c in rows(new)[CAMERA].to_pylist()] == [c["bytes"] for c in cells[:8] + cells[14:]]
    assert rows(new)["index"].to_pylist() == list(range(15))
    assert rows(new)["episode_index"].to_pylist() == [0] * 8 + [1] * 7
    assert hashes(root) == before


def test_meta_says_what_the_new_folder_holds(tmp_path):
    new = edit(write_v2(tmp_path / "old", lengths=(8, 6, 7)), keep="1-", robot_type="so101")
    info, stats = (json.loads((new / f"meta/{name}.json").read_text()) for name in ("info", "stats"))
    assert (info["codebase_version"], info["robot_type"]) == ("v3.0", "so101")
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (2, 13, 1)
    actions = np.array(rows(new)["action"].to_pylist())
    assert stats["action"]["mean"] == pytest.approx(number_stats(actions)["mean"].tolist())
    assert stats[CAMERA]["min"] == [[[0.0]]] * 3
    assert stats[CAMERA]["max"][0][0][0] == pytest.approx(LEVEL * 6 / 255)


def test_videos_of_whole_episodes_are_copied_and_those_of_a_part_encoded_again(tmp_path):
    root = write_v2(tmp_path / "old", videos=(8, 8, 8))
    new = edit(root, keep="0,2", trim="2:3-6")
    videos = sorted(new.glob("videos/*/*/*.mp4"))
    assert videos[0].read_bytes() == (root / f"videos/chunk-000/{CAMERA}/episode_000000.mp4").read_bytes()
    first, last = contents(new)
    assert first == contents(root)[0]
    assert (last[1], last[2]) == ([[2.0, float(i), 1.0 if i < 4 else -1.0] for i in range(3, 7)], [3, 4, 5, 6])
    assert rows(new)["timestamp"].to_pylist() == pytest.approx([i / FPS for i in (*range(8), *range(4))])


def test_a_file_of_several_episodes_is_copied_where_all_of_them_stay(tmp_path):
    root = write_v3(tmp_path / "old", video=True)
    file = f"videos/{CAMERA}/chunk-000/file-000.mp4"
    kept = edit(root, "kept", set_instruction="push it")
    assert (kept / file).read_bytes() == (root / file).read_bytes()
    assert [c[1:] for c in contents(kept)] == [c[1:] for c in contents(root)]
    assert {c[0] for c in contents(kept)} == {"push it"}
    fewer = edit(root, "fewer", drop="0")
    assert contents(fewer) == contents(root)[1:]
    assert len(list(fewer.glob("videos/*/*/*.mp4"))) == 2


def test_a_video_whose_frames_lerobot_would_miss_is_encoded_again(tmp_path):
    times = [i / FPS + 0.004 * (i % 2) for i in range(8)]
    root = write_v2(tmp_path / "old", lengths=(8,), videos=(8,), mp4={"times": times})
    new = edit(root)
    assert contents(new) == contents(root)
    video = next(new.glob("videos/*/*/*.mp4"))
    assert video.read_bytes() != (root / f"videos/chunk-000/{CAMERA}/episode_000000.mp4").read_bytes()


def write_waiting(root: Path) -> Path:
    """Write 2 episodes of 20 frames whose state moves from frame 6 to 12, and in the second from 0 to 19."""
    state = [[0.0] * 6 + [0.5 * i for i in range(1, 8)] + [3.5] * 7, [0.1 * i for i in range(20)]]
    write_v2(root, lengths=(20, 20))
    for episode, values in enumerate(state):
        path = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        column = pa.array([[v, 7.0] for v in values], pa.list_(pa.float32()))
        pq.write_table(pq.read_table(path).append_column("observation.state", column), path)
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.state"] = {"dtype": "float32", "shape": [2], "names": ["x", "y"]}
    path.write_text(json.dumps(info))
    return root


@pytest.mark.parametrize(("keep", "first", "last"), [(0, 5, 12), (2, 3, 14), (50, 0, 19)])
def test_waiting_at_both_ends_is_cut_but_for_some_frames(tmp_path, keep, first, last):
    new = edit(write_waiting(tmp_path / "old"), trim_idle=True, idle_keep=keep)
    steps = [[row[1] for row in actions] for _, actions, _ in contents(new)]
    assert steps == [list(range(first, last + 1)), list(range(20))]


def test_an_episode_that_is_trimmed_by_hand_is_not_trimmed_again(tmp_path):
    new = edit(write_waiting(tmp_path / "old"), trim_idle=True, trim="0:2-18")
    assert [len(actions) for _, actions, _ in contents(new)] == [17, 20]


def test_episodes_that_only_wait_are_named(tmp_path):
    with pytest.raises(UserError, match=r"leaves nothing of the episodes 1, .*drop=1"):
        edit(write_waiting(tmp_path / "old"), trim_idle=True, idle_threshold=0.6)


def test_a_folder_is_divided_by_shares_and_by_numbers(tmp_path):
    root = write_v2(tmp_path / "old", lengths=(5, 6, 7, 8, 9))
    edit(root, "shares", split={"train": "0.8", "test": "0.2"})
    edit(root, "numbers", split={"a": "0-1", "b": "3-", "c": "2"})
    old = contents(root)
    assert contents(tmp_path / "shares/train") + contents(tmp_path / "shares/test") == old
    assert [len(contents(tmp_path / f"numbers/{name}")) for name in "abc"] == [2, 2, 1]
    assert contents(tmp_path / "numbers/c") == [old[2]]
    edit(root, "fewer", drop="1", split={"a": "0-2", "b": "3-"})
    assert contents(tmp_path / "fewer/a") == [old[0], old[2]]


def test_folders_of_two_versions_are_put_together_and_their_tasks_numbered_anew(tmp_path):
    first = write_v2(tmp_path / "a", tasks=("lift", "push"), task_of=[[1] * 8, [0] * 8, [1] * 8])
    second = write_v3(tmp_path / "b", lengths=(4, 5, 6))
    new = edit(first, merge=[str(second)], drop="1,3", rename_instructions={"lift": "lift it"})
    old = contents(first), contents(second)
    assert contents(new) == [old[0][0], old[0][2], old[1][1], old[1][2]]
    assert pq.read_table(new / "meta/tasks.parquet")["__index_level_0__"].to_pylist() == ["push"]


def test_annotations_that_number_tasks_keep_their_texts(tmp_path):
    columns = {"annotation.human.validity": pa.array([0] * 8, pa.int64())}
    root = write_v2(tmp_path / "old", tasks=("valid", "push"), task_of=[[1] * 8] * 3, columns=columns)
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["annotation.human.validity"] = {"dtype": "int64", "shape": [1], "names": None}
    path.write_text(json.dumps(info))
    new = edit(root, set_instruction="push it")
    tasks = pq.read_table(new / "meta/tasks.parquet").to_pydict()
    told = dict(zip(tasks["task_index"], tasks["__index_level_0__"], strict=True))
    assert {told[i] for i in rows(new)["annotation.human.validity"].to_pylist()} == {"valid"}
    assert {text for text, _, _ in contents(new)} == {"push it"}


def test_cameras_and_features_get_new_names(tmp_path):
    root = write_v3(tmp_path / "old", video=True)
    new = edit(root, rename_cameras={"side": "front"})
    assert contents(new, "observation.images.front") == contents(root)
    again = edit(new, "again", rename={"action": "action.joints"}, drop_features=["observation.images.front"])
    assert rows(again)["action.joints"].to_pylist() == rows(root)["action"].to_pylist()
    assert not list(again.glob("videos/**/*.mp4"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"drop": "3"}, "drop names 3, but .*old has 3 episodes, 0-2"),
        ({"drop": "0-"}, "leaves no episode"),
        ({"keep": "0", "drop": "1"}, "drop names 1, but"),
        ({"trim": "5:0-3"}, "trim has 5, which is none of the episodes that are kept: 0-2"),
        ({"trim": "1:3-8"}, r"trim=1:3-8 must be .* 0-7: the episode has 8 frames"),
        ({"trim": "0:3-,1:5-4"}, "must be the first and the last frame"),
        ({"trim": "1=2-3"}, r"write an episode's number and the frames that are kept, e\.g\. 3:12-87"),
        ({"trim_idle": True}, "idle_key=observation.state is no feature of numbers"),
        ({"split": {"a": "0.5"}}, "must name two folders"),
        ({"split": {"a": "0.5", "b": "0.4"}}, "add up to 1"),
        ({"split": {"a": "0-1", "b": "1-2"}}, "puts the episodes 1 into more than one"),
        ({"split": {"a": "0", "b": "2"}}, "puts the episodes 1 into no folder"),
        ({"split": {"a": "0-1", "b": "2"}, "drop": "2"}, r"split\.b=2 names episodes alone that are left out"),
        ({"split": {"a": "0-1", "b": "2-3"}}, r"split\.b names 2-3, but"),
        ({"split": {"../a": "0", "b": "1-"}}, "no name of a folder"),
        ({"rename_cameras": {"top": "side"}}, "has 'top', which is no camera"),
        ({"rename": {"actoin": "a"}}, "Did you mean 'action'"),
        ({"rename": {"action": "index"}}, "cannot be the name"),
        ({"rename": {"action": "a/b"}}, "cannot be the name"),
        ({"rename": {"action": CAMERA}}, "two features of .* would be called"),
        ({"drop_features": ["index"]}, "every LeRobot folder must have"),
        ({"rename_instructions": {"pull": "push"}}, "has 'pull', which no task"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path, options, told):
    root = write_v2(tmp_path / "old")
    with pytest.raises(UserError, match=told):
        edit(root, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_folders_that_are_not_recorded_alike_are_refused_with_every_difference(tmp_path):
    first = write_v2(tmp_path / "a", robot_type="so101")
    second = write_v2(tmp_path / "b", robot_type="so100", fps=20, stamps=[[i / 20 for i in range(8)]] * 3)
    path = second / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["action"]["names"] = ["x", "y", "gripper"]
    info["features"]["wrist"] = info["features"].pop(CAMERA)
    path.write_text(json.dumps(info))
    with pytest.raises(UserError) as refused:
        edit(first, merge=[str(second)])
    for told in ("20 frames a second, not 10", "robot_type so100, not so101", "'action' has names", "has 'wrist'",
                 f"lacks '{CAMERA}'", "rename_cameras", "data=mixture"):  # fmt: skip
        assert told in str(refused.value)


def test_a_target_that_exists_is_left_alone(tmp_path):
    root = write_v2(tmp_path / "old")
    (tmp_path / "new").mkdir()
    with pytest.raises(FileExistsError, match="Nothing is edited in place"):
        edit(root)
    with pytest.raises(FileExistsError):
        edit(root, "old")


def test_damage_in_the_middle_leaves_no_half_folder_and_names_the_episode(tmp_path):
    cells = [[encode(gray(i)) for i in range(8)] for _ in range(3)]
    cells[1][5] = b"no picture"
    root = write_v2(tmp_path / "old", cells=cells)
    for options in ({}, {"split": {"a": "0", "b": "1-"}}):
        with pytest.raises(UserError, match=r"episode 1: .*drop=1"):
            edit(root, **options)
        assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert len(contents(edit(root, drop="1"))) == 2


def test_missing_videos_are_told_with_what_to_leave_out(tmp_path):
    some = write_v2(tmp_path / "some", videos=(8, None, None))
    with pytest.raises(FileNotFoundError, match=r"2 of 3 episodes lack .*set drop=1-2"):
        edit(some)
    assert len(contents(edit(some, drop="1-2"))) == 1
    none = write_v2(tmp_path / "none", videos=(None, None, None))
    with pytest.raises(FileNotFoundError, match=rf"drop_features=\[{CAMERA}\]"):
        edit(none, "other")
    assert len(rows(edit(none, "other", drop_features=[CAMERA]))) == 24

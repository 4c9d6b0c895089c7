"""A data set of every format becomes a LeRobot folder with the same numbers, pictures and instructions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from composing import completed, composed
from miniatures import make_miniature

from robovlms.commands.edit_data import edit_data
from robovlms.config.data import ActionContract, DataConfig
from robovlms.data.base import Reader
from robovlms.data.editing.reader_recordings import ReaderRecordings
from robovlms.data.editing.schema import EditDataConfig
from robovlms.data.lerobot.reader import LeRobotReader
from robovlms.data.lerobot.schema import LeRobotDataConfig
from robovlms.errors import UserError
from robovlms.registry import DATASETS

pytest.importorskip("h5py", reason='pip install "robovlms[libero]"')

PROPRIO = {"aloha": "observations/qpos", "calvin": "robot_obs", "lerobot": "observation.state", "libero": "obs/states"}
STATES = ["s0", "s1", "s2", "s3"]


@pytest.fixture(scope="module", params=DATASETS.names())
def data(request, tmp_path_factory) -> DataConfig:
    name = request.param
    key = PROPRIO.get(name, "observation/state")
    overrides = [f"data.proprio_key={key}", f"data.proprio_names=[{','.join(STATES)}]"]
    config = completed(composed(f"data={name}", "view=side", "window=w1_c10", *overrides)).data
    return make_miniature(config, tmp_path_factory.mktemp(name) / "made")


def reader_of(data: DataConfig) -> Reader:
    whole = {"validation_fraction": 0.0} if hasattr(data, "validation_fraction") else {}
    return DATASETS.get(data.name)(replace(data, **whole), "train", views=list(data.views))


def written(root: Path, contract: ActionContract, views: list[str]) -> LeRobotReader:
    config = completed(composed("data=lerobot", "view=side")).data
    config = replace(config, root=str(root), contract=contract, validation_fraction=0.0)
    assert isinstance(config, LeRobotDataConfig)
    keys = {view: f"observation.images.{view}" for view in views}
    config = replace(config, views=keys, proprio_key="observation.state", proprio_names=STATES)
    return LeRobotReader(config, "train", views=views)


def test_what_is_written_reads_like_what_it_was_made_of(data, tmp_path):
    edit_data(EditDataConfig(data=data, output_dir=str(tmp_path / "new")))
    old, new = reader_of(data), written(tmp_path / "new", data.contract, list(data.views))
    assert [episode[:2] for episode in new.episodes] == [episode[:2] for episode in old.episodes]
    assert new.fps == data.contract.control_hz
    for i, episode in enumerate(old.episodes):
        steps = np.arange(episode.length)
        for ours, theirs in zip(new.numbers(i, steps), old.numbers(i, steps), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        for view, frames in old.frames(i, steps).items():
            np.testing.assert_array_equal(new.frames(i, steps)[view], frames)


def test_videos_show_the_same_but_for_what_the_codec_loses(data, tmp_path):
    edit_data(EditDataConfig(data=replace(data, fraction=0.3), output_dir=str(tmp_path / "new"), video=True))
    old = reader_of(replace(data, fraction=0.3))
    new = written(tmp_path / "new", data.contract, list(data.views))
    steps = np.arange(10)
    for view, frames in old.frames(0, steps).items():
        assert np.abs(new.frames(0, steps)[view].astype(int) - frames).mean() < 4


def test_edits_of_lerobot_folders_are_refused_for_what_is_converted(data, tmp_path):
    with pytest.raises(UserError, match=r"drop edits a LeRobot folder.*data\.episodes"):
        EditDataConfig(data=data, output_dir=str(tmp_path / "new"), drop="1")
    with pytest.raises(UserError, match=r"give root=<LeRobot folder>"):
        EditDataConfig(output_dir=str(tmp_path / "new"))
    with pytest.raises(UserError, match="video=true is for data="):
        EditDataConfig(root="/x", output_dir=str(tmp_path / "new"), video=True)


def test_deltas_that_stand_still_are_waiting_and_a_steady_motion_is_not(tmp_path):
    root = tmp_path / "calvin"
    config = completed(composed("data=calvin", "view=side")).data
    config = make_miniature(config, root)
    source = ReaderRecordings(config, robot_type="x", instruction=None, is_video=False)
    steps = np.arange(source.listed[0].length)
    actions = source.reader.numbers(0, steps).actions.astype(float)
    track = source.positions(0)
    np.testing.assert_allclose(track[:, :6], np.cumsum(actions[:, :6], axis=0))
    np.testing.assert_array_equal(track[:, 6], actions[:, 6])

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calvin_folder import make_calvin_folder
from composing import completed, composed, plan_of
from recordings import MemoryReader, make_contract, make_dataset
from rlds_folder import episode, make_rlds_folder

from robovlms.actions.plan import Source
from robovlms.config.data import ConvertConfig, DataConfig
from robovlms.config.run import TrainConfig
from robovlms.data.opening import open_sources
from robovlms.data.statistics import compute_statistics, load_rows
from robovlms.data.windows import WindowDataset


class Counted(MemoryReader):
    """Counts how often numbers are asked for."""

    reads = 0

    def numbers(self, episode, steps):
        self.reads += 1
        return super().numbers(episode, steps)


@pytest.fixture
def data(tmp_path) -> WindowDataset:
    return make_dataset(Counted([5, 9]), cache_dir=str(tmp_path))


def again(data: WindowDataset, **changes) -> WindowDataset:
    config: DataConfig = replace(data.config, **changes)
    return WindowDataset(data.reader, Source.of(config), window_size=2, chunk_size=1)


def test_rows_are_read_from_the_data_once(data):
    rows, origin = load_rows(data, 100)
    assert origin.startswith("read in ")
    assert data.reader.reads == 2
    kept, origin = load_rows(again(data, weight=3.0, cache_mb=5), 100)  # other windows and options of the loader
    assert origin.startswith("kept in ")
    assert data.reader.reads == 2
    np.testing.assert_array_equal(kept.actions, rows.actions)
    np.testing.assert_array_equal(kept.actions, np.concatenate(data.reader.actions))


@pytest.mark.parametrize(
    "changes",
    [
        {"contract": make_contract(position_unit=2.0)},
        {"convert": ConvertConfig(position_unit=0.5)},
        {"fraction": 0.5},
        {"skip_bad": True},
    ],
)
def test_settings_that_may_change_rows_have_rows_of_their_own(data, changes):
    load_rows(data, 100)
    assert load_rows(again(data, **changes), 100)[1].startswith("read in ")


def test_other_data_and_another_number_of_rows_are_read(data, monkeypatch):
    load_rows(data, 100)
    assert len(load_rows(data, 3)[0].actions) == 3
    monkeypatch.setattr(Counted, "fingerprint", lambda self: "changed")
    assert load_rows(data, 100)[1].startswith("read in ")


@pytest.mark.parametrize("damage", [lambda d: d[:50], lambda d: b"", lambda d: d[:200] + b"\xff\xff" + d[202:]])
def test_a_damaged_file_is_made_anew(data, tmp_path, caplog, damage):
    load_rows(data, 100)
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(damage(path.read_bytes()))
    assert load_rows(data, 100)[1].startswith("read in ")
    assert f"{path} is damaged" in caplog.text
    assert load_rows(data, 100)[1].startswith("kept in ")


def test_rows_of_another_width_count_as_damage(data, tmp_path, caplog):
    load_rows(data, 100)
    (path,) = tmp_path.glob("*.npz")
    np.savez(path, actions=np.zeros((14, 6), np.float32), proprio=np.zeros((14, 0), np.float32))
    assert load_rows(data, 100)[1].startswith("read in ")
    assert "are not rows of 7 entries" in caplog.text


def test_a_folder_that_cannot_be_written_is_a_warning(data, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    rows, _ = load_rows(again(data, cache_dir=str(tmp_path / "file")), 100)
    assert len(rows.actions) == 14
    assert "is not kept, because" in caplog.text
    assert "data.cache_dir or ROBOVLMS_CACHE" in caplog.text


def statistics(caplog, config: TrainConfig) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        compute_statistics(plan_of(config), open_sources(plan_of(config), config.window, "train"))
    return [record.message for record in caplog.records if record.name == "robovlms.data.statistics"]


def calvin(tmp_path: Path) -> tuple[list[str], Path]:
    root = make_calvin_folder(tmp_path / "data")
    return [f"data.root={root}", "window=w4_c10"], root / "training" / "episode_0000003.npz"


def rlds(tmp_path: Path) -> tuple[list[str], Path]:
    episodes = [[episode(number, 5) for number in range(2)]]
    root = make_rlds_folder(tmp_path / "data", {"train": episodes, "val": episodes})
    contract = (
        "data.contract={frame:base,rotation:none,position_unit:1e-5,control_hz:5,gripper_closed:0,gripper_open:200}"
    )
    names = "data.contract.names=[a,b,c,d,e,f,gripper]"
    options = ["data=rlds", f"data.root={root}", "view=side", "data.views.side=image_0", contract, names]
    return [*options, "window=w4_c10"], root / "toy-train.tfrecord-00000-of-00001"


@pytest.mark.parametrize("folder", [calvin, rlds])
def test_a_changed_file_makes_new_statistics(tmp_path, caplog, folder):
    options, file = folder(tmp_path)
    config = completed(composed(*options, f"data.cache_dir={tmp_path / 'cache'}", "name=a"))
    assert "steps, read in " in statistics(caplog, config)[-1]
    assert "steps, kept in " in statistics(caplog, config)[-1]
    os.utime(file, (1, 1))
    assert "steps, read in " in statistics(caplog, config)[-1]


def test_what_is_wrong_with_kept_rows_is_still_reported(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("robovlms.data.statistics.MAX_STATS_ROWS", 50)
    config = completed(composed(*calvin(tmp_path)[0], f"data.cache_dir={tmp_path / 'cache'}", "name=a"))
    first, second = statistics(caplog, config), statistics(caplog, config)
    assert first[0] == second[0]
    assert "never changes: dz (0)" in second[0]
    assert (
        "statistics of 50 of 96 steps, evenly spread (standard error of q01 and q99: 1.41% of the rows), kept in"
        in second[1]
    )

"""A folder of another format than `data=` reads is named, with what to do."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from composing import completed, composed
from miniatures import make_miniature

from robovlms.config.data import DataConfig
from robovlms.data.formats import recognise
from robovlms.data.opening import open_reader
from robovlms.registry import DATASETS

h5py = pytest.importorskip("h5py")


def config_of(name: str) -> DataConfig:
    return completed(composed(f"data={name}", "view=side", "window=w1_c10")).data


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """A folder of every format."""
    found = {}
    for name in DATASETS.names():
        found[name] = tmp_path_factory.mktemp(name) / "data"
        make_miniature(config_of(name), found[name], steps=3)
    return found


def opened(name: str, root: Path) -> None:
    open_reader(replace(config_of(name), root=str(root)), "train", ["side"])


@pytest.mark.parametrize("wanted", DATASETS.names())
@pytest.mark.parametrize("held", DATASETS.names())
def test_a_folder_of_another_format_is_refused_with_the_option_that_reads_it(roots, held, wanted):
    assert recognise(roots[held]).option == held
    if held == wanted:
        opened(wanted, roots[held])
        return
    with pytest.raises(FileNotFoundError, match=f"which data={wanted} does not read: set data={held}"):
        opened(wanted, roots[held])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["shard-000000.tar", "shard-000001.tar"], "WebDataset"),
        (["replay_buffer.zarr/data/.zarray"], "zarr"),
        ([".zgroup", "data/.zarray"], "zarr"),
        (["demos.zarr.zip"], "zarr"),
        (["train.lance/_versions/1.manifest"], "Lance"),
        (["run.mcap", "metadata.yaml"], "ROS"),
        (["data-00000-of-00001.arrow", "state.json"], "Hugging Face"),
    ],
)
@pytest.mark.parametrize("option", DATASETS.names())
def test_a_folder_of_a_format_that_is_not_read_is_named_with_the_way_to_one_that_is(tmp_path, option, names, said):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=rf"holds .*{said}.*which data={option} does not read: .*LeRobot"):
        opened(option, tmp_path)


def test_a_download_beside_the_data_does_not_hide_what_is_wrong_with_them(roots, tmp_path):
    for name, root in roots.items():
        copy = tmp_path / name
        shutil.copytree(root, copy)
        (copy / "download.tar").write_bytes(b"x")
        opened(name, copy)
        with pytest.raises(ValueError, match=r"data\.views"):
            open_reader(replace(config_of(name), root=str(copy), views={"side": "nowhere"}), "train", ["side"])


@pytest.mark.parametrize("groups", [["states", "actions"], ["states", "actions", "obs/object"]])
def test_robosuite_files_without_pictures_say_that_they_are_rendered_first(tmp_path, groups):
    with h5py.File(tmp_path / "demo_demo.hdf5", "w") as file:
        for group in groups:
            file[f"data/demo_1/{group}"] = [[0.0] * 7] * 5
    with pytest.raises(ValueError, match=r"no pictures\. .*dataset_states_to_obs\.py"):
        opened("libero", tmp_path)

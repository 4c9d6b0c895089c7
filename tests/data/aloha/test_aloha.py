"""HDF5 files of ALOHA and ACT: an episode each, pictures as pixels or as padded JPEG."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from composing import completed, composed
from miniatures import make_miniature
from PIL import Image

from robovlms.data.aloha.reader import AlohaReader
from robovlms.data.aloha.schema import AlohaDataConfig

h5py = pytest.importorskip("h5py")


def config_of(*overrides: str) -> AlohaDataConfig:
    return completed(
        composed("data=aloha", "view=side", "window=w1_c10", "data.instruction='lift it'", *overrides)
    ).data


def jpegs(count: int, width: int = 900) -> np.ndarray:
    """Return pictures of 16 x 24 px, all red, one a row and padded with zeros."""
    rows = np.zeros((count, width), np.uint8)
    for row in rows:
        buffer = io.BytesIO()
        Image.new("RGB", (24, 16), (200, 0, 0)).save(buffer, "JPEG")
        row[: buffer.tell()] = np.frombuffer(buffer.getvalue(), np.uint8)
    return rows


def write(path: Path, length: int = 6, **members: np.ndarray) -> None:
    pixels = np.repeat(np.arange(length, dtype=np.uint8), 16 * 24 * 3).reshape(length, 16, 24, 3)
    content = {
        "action": np.arange(length * 14).reshape(length, 14) / 100,
        "observations/qpos": np.zeros((length, 14)),
        "observations/images/cam_high": jpegs(length),
        "observations/images/cam_right_wrist": pixels,
    }
    with h5py.File(path, "w") as file:
        for key, value in (content | members).items():
            file[key] = value


def read(root: Path, split: str = "train", views=("side", "wrist"), **changes) -> AlohaReader:
    return AlohaReader(replace(config_of(), root=str(root), **changes), split, views=list(views))


@pytest.fixture
def root(tmp_path) -> Path:
    for number in (0, 1, 2, 10):
        write(tmp_path / f"episode_{number}.hdf5", length=5 + number)
    return tmp_path


def test_a_file_is_an_episode_in_the_order_of_their_numbers_and_the_last_is_for_validation(root):
    assert [episode.length for episode in read(root).episodes] == [5, 6, 7]
    assert [episode.length for episode in read(root, "validation").episodes] == [15]
    assert read(root, "validation").location(0, 2, 3) == f"{root}/episode_10.hdf5, frames 2-3"


def test_pictures_are_read_from_padded_jpegs_and_from_pixels_alike(root):
    frames = read(root).frames(0, np.array([1, 1, 4]))
    assert frames["side"].shape == frames["wrist"].shape == (3, 16, 24, 3)
    np.testing.assert_allclose(frames["side"][:, 8, 8], [[200, 0, 0]] * 3, atol=4)
    assert frames["wrist"][:, 0, 0, 0].tolist() == [1, 1, 4]


def test_views_that_were_written_blue_first_come_out_red_first(root):
    frames = read(root, bgr=["side"]).frames(0, np.array([0]))
    np.testing.assert_allclose(frames["side"][0, 8, 8], [0, 0, 200], atol=4)


@pytest.mark.parametrize("place", ["attribute", "dataset"])
def test_the_instruction_is_the_configs_or_a_files_own(root, place):
    assert {episode.instruction for episode in read(root).episodes} == {"lift it"}
    for path in root.iterdir():
        with h5py.File(path, "a") as file:
            if place == "attribute":
                file.attrs["task"] = f"do {path.stem}"
            else:
                file["task"] = f"do {path.stem}"
    told = [episode.instruction for episode in read(root, instruction=None, language_key="task").episodes]
    assert told[:2] == ["do episode_0", "do episode_1"]
    with pytest.raises(ValueError, match=r"no instruction in data\.language_key=language_instruction: set"):
        read(root, instruction=None)


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        (np.zeros((6, 900), np.uint8), r"cam_high, which data\.views\.side names, neither JPEG"),
        (np.zeros((6, 16, 24), np.uint16), r"is uint16 \(6, 16, 24\), but must be pictures"),
        (jpegs(5), r"has 6 rows of action, but of others \{'observations/images/cam_high': 5\}"),
    ],
)
def test_what_is_no_picture_is_refused_when_the_folder_is_opened(root, pictures, said):
    write(root / "episode_1.hdf5", **{"observations/images/cam_high": pictures})
    with pytest.raises(ValueError, match=f"episode_1.*{said}"):
        read(root)
    assert len(read(root, skip_bad=True).episodes) == 2


def test_a_damaged_picture_inside_an_episode_is_named_with_its_frame(root):
    rows = jpegs(6)
    rows[3, :100] = 0
    write(root / "episode_1.hdf5", **{"observations/images/cam_high": rows})
    with pytest.raises(ValueError, match=r"episode_1\.hdf5: /observations/images/cam_high, frame 3: neither JPEG"):
        read(root).frames(1, np.arange(6))


def test_one_arm_with_a_gripper_is_a_matter_of_names(tmp_path):
    one = config_of("data.contract.names=[j1,j2,j3,j4,j5,j6,gripper]", "data.contract.gripper_closed=0")
    reader = AlohaReader(make_miniature(one, tmp_path / "made"), "train", views=["side"])
    assert reader.numbers(0, np.array([0])).actions.shape == (1, 7)


def test_files_without_pictures_say_so(root):
    for path in root.iterdir():
        with h5py.File(path, "a") as file:
            del file["observations/images"]
    with pytest.raises(ValueError, match=r"no observations/images/cam_high in /\. It has no pictures\."):
        read(root)

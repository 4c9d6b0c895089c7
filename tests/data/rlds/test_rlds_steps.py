"""What keys and slices cannot say of Open X-Embodiment: which steps and episodes count, how they are written."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rlds_folder import FLOAT7, IMAGE, SPECS, TEXT, episode, make_rlds_folder, png

from robovlms.config.choices import NormalizationMode, PictureFormat, ReferenceFrame, Representation, RLDSTransform
from robovlms.config.data import ActionContract, NormalizationConfig
from robovlms.data.rlds.reader import RldsReader
from robovlms.data.rlds.schema import RLDSDataConfig
from robovlms.data.rlds.transforms import gripper_clip

NAMES = ["dx", "dy", "dz", "j1", "j2", "j3", "gripper"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOVLMS_CACHE", str(tmp_path / "cache"))


def read(root: Path, representation: Representation = Representation.delta, **changes) -> RldsReader:
    contract = ActionContract(
        names=NAMES, representation=representation, frame=ReferenceFrame.base, position_unit=1.0, control_hz=5.0
    )
    options = {"views": {"side": "image_0"}, "validation_split": "train", **changes}
    config = RLDSDataConfig(
        name="rlds",
        root=str(root),
        contract=contract,
        normalization=NormalizationConfig(mode=NormalizationMode.quantile),
        **options,
    )
    return RldsReader(config, "train", views=["side"])


def actions(reader: RldsReader, number: int = 0) -> np.ndarray:
    return reader.numbers(number, np.arange(reader.episodes[number].length)).actions


@pytest.mark.parametrize("values", [[-1, 1, 0.4, 1.5], [0, 1, 0.4, 1]])
def test_a_clipped_gripper_is_the_same_whether_minus_one_or_zero_is_its_other_end(values):
    recorded = np.zeros((4, 7), np.float32)
    recorded[:, 0], recorded[:, 6] = -3, values
    clipped = gripper_clip(recorded, None)
    np.testing.assert_allclose(clipped[:, 6], [0, 1, 0.4, 1])
    assert (clipped[:, 0] == -3).all()


def test_motions_and_clips_are_options(tmp_path):
    steps = episode(0, 3)
    steps["steps/action"][:, 6] = [-1, 0, 1]
    root = make_rlds_folder(tmp_path / "toy", {"train": [[steps]]})
    assert actions(read(root, transform=RLDSTransform.gripper_motions))[:, 6].tolist() == [1, 1, 0]
    assert actions(read(root, transform=RLDSTransform.gripper_clip))[:, 6].tolist() == [0, 0, 1]


def test_episodes_that_failed_are_left_out_and_counted(tmp_path, caplog):
    flag = {"tensor": {"shape": {}, "dtype": "bool"}}
    episodes = [
        episode(0, 3) | {"aspects/success": np.array([1])},
        episode(1, 4) | {"aspects/success": np.array([0])},
        episode(2, 5) | {"aspects/success": np.array([1])},
    ]
    context = {"aspects": {"success": flag}, "file": TEXT}
    root = make_rlds_folder(tmp_path / "toy", {"train": [episodes]}, context=context)
    assert [e.length for e in read(root).episodes] == [3, 4, 5]
    with caplog.at_level(logging.WARNING):
        assert [e.length for e in read(root, success_key="aspects/success").episodes] == [3, 5]
    assert "1 of 3 episodes where data.success_key=aspects/success says no left out" in caplog.text
    with pytest.raises(ValueError, match=r"data.success_key=succes is not a flag .* It has: aspects/success"):
        read(root, success_key="succes")


def test_a_flag_that_a_record_lacks_is_named(tmp_path):
    flag = {"tensor": {"shape": {}, "dtype": "int64"}}
    root = make_rlds_folder(tmp_path / "toy", {"train": [[episode(0, 3)]]}, context={"success": flag})
    with pytest.raises(ValueError, match=r"record 0 at byte \d+: it has 0 values of 'success', expected 1"):
        read(root, success_key="success")


def test_idle_steps_are_left_out_of_numbers_pictures_and_sources_and_the_gripper_does_not_count(tmp_path, caplog):
    steps, still = episode(0, 6), episode(1, 4)
    steps["steps/action"][[0, 2, 3], :6] = 0
    still["steps/action"][:, :6] = 0
    root = make_rlds_folder(tmp_path / "toy", {"train": [[steps, still, episode(2, 3)]]})
    with caplog.at_level(logging.WARNING):
        reader = read(root, skip_idle=True)
    assert [e.length for e in reader.episodes] == [3, 3]
    assert actions(reader)[:, 0].tolist() == [10, 40, 50]
    assert actions(reader, 1)[:, 0].tolist() == [200, 210, 220]
    assert reader.frames(0, np.array([1, 1, 2]))["side"][:, 0, 0, 0].tolist() == [40, 40, 50]
    assert reader.location(0, 0, 1).endswith("record 0, steps 1-4")
    assert reader.location(1, 0, 2).endswith("record 2, steps 0-2")
    assert "1 of 3 episodes that data.skip_idle leaves nothing of" in caplog.text
    assert read(root).fingerprint() != reader.fingerprint()
    with pytest.raises(ValueError, match=r"data.skip_idle=true is for deltas"):
        read(root, Representation.absolute, skip_idle=True)


def test_idle_steps_and_leading_steps_are_left_out_together(tmp_path):
    steps = episode(0, 5)
    steps["steps/action"][2, :6] = 0
    reader = read(make_rlds_folder(tmp_path / "toy", {"train": [[steps]]}), skip_idle=True, drop_first=1)
    assert actions(reader)[:, 0].tolist() == [10, 30, 40]
    assert reader.frames(0, np.array([1]))["side"][0, 0, 0, 0] == 30


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (200, 0, 0)).save(buffer, kind, quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "blue"), [("PNG", True), ("JPEG", False)])
def test_pictures_written_blue_first_are_turned_round_where_they_still_are_what_was_published(tmp_path, kind, blue):
    steps = episode(0, 2) | {"steps/observation/image_0": [picture(kind)] * 2}
    root = make_rlds_folder(tmp_path / "toy", {"train": [[steps]]})
    pixel = read(root, bgr={"side": PictureFormat.png}).frames(0, np.array([1]))["side"][0, 0, 0]
    np.testing.assert_allclose(pixel, [0, 0, 200] if blue else [200, 0, 0], atol=3)
    assert read(root).frames(0, np.array([1]))["side"][0, 0, 0, 0] > 190
    with pytest.raises(ValueError, match=r"data.bgr names \['wrist'\], which are not among data.views \['side'\]"):
        read(root, bgr={"wrist": PictureFormat.png})


def test_a_text_may_be_written_as_its_bytes(tmp_path):
    codes = np.zeros((2, 16), np.int64)
    text = "push ö".encode()
    codes[:, : len(text)] = list(text)
    steps = episode(0, 2) | {"steps/observation/instruction": codes}
    vector = {"tensor": {"shape": {"dimensions": ["16"]}, "dtype": "int32"}}
    specs = {**SPECS, "observation": {"image_0": IMAGE, "state": FLOAT7, "instruction": vector}}
    root = make_rlds_folder(tmp_path / "toy", {"train": [[steps]]}, specs)
    assert read(root, language_key="instruction").episodes[0].instruction == "push ö"


def test_a_text_of_bytes_that_are_none_is_named(tmp_path):
    steps = episode(0, 1) | {"steps/observation/instruction": np.array([[300, 0]])}
    vector = {"tensor": {"shape": {"dimensions": ["2"]}, "dtype": "int32"}}
    specs = {**SPECS, "observation": {"image_0": IMAGE, "state": FLOAT7, "instruction": vector}}
    root = make_rlds_folder(tmp_path / "toy", {"train": [[steps]]}, specs)
    with pytest.raises(ValueError, match=r"record 0 at byte \d+: 'steps/observation/instruction': bytes must be in"):
        read(root, language_key="instruction")


def test_what_is_read_by_default_is_as_it_was_written(tmp_path):
    root = make_rlds_folder(tmp_path / "toy", {"train": [[episode(0, 2)]]})
    reader = read(root)
    assert reader.frames(0, np.array([0]))["side"][0].tolist() == np.asarray(Image.open(io.BytesIO(png(0)))).tolist()

"""What keys and slices cannot say of Open X-Embodiment: which steps and episodes count, how they are written."""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rlds_folder import FLOAT7, IMAGE, SPECS, TEXT, episode, make_rlds_folder, png

from robovlms.actions.plan import Source
from robovlms.config.choices import NormalizationMode, PictureFormat, ReferenceFrame, Representation, RLDSTransform
from robovlms.config.data import ActionContract, IdleConfig, NormalizationConfig
from robovlms.data.rlds.reader import RldsReader
from robovlms.data.rlds.schema import RLDSDataConfig
from robovlms.data.rlds.transforms import gripper_clip
from robovlms.data.windows import WindowDataset

NAMES = ["dx", "dy", "dz", "j1", "j2", "j3", "gripper"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOVLMS_CACHE", str(tmp_path / "cache"))


def read(
    root: Path, representation: Representation = Representation.delta, split: str = "train", **changes
) -> RldsReader:
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
    return RldsReader(config, split, views=["side"])


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


CODES = {"tensor": {"shape": {"dimensions": ["8"]}, "dtype": "int32"}}


def codes(text: str) -> list[int]:
    return [*text.encode(), *[0] * (8 - len(text))]


@pytest.mark.parametrize(
    ("key", "written", "spec"),
    [
        ("episode_metadata/language_instruction", [b" lift it "], TEXT),
        ("episode_metadata/language_instruction", [b"lift it"], {"tensor": {"shape": {}, "dtype": "string"}}),
        ("episode_metadata/task/told", [b"lift it"], {"tensor": {"shape": {"dimensions": ["1"]}, "dtype": "string"}}),
        ("episode_metadata/codes", np.array(codes("lift it")), CODES),
        ("told", [b"lift it"], TEXT),
    ],
)
@pytest.mark.parametrize("shortened", [False, True])
def test_the_instruction_may_be_a_feature_of_the_episode(tmp_path, key, written, spec, shortened):
    steps = {name: value for name, value in episode(0, 4).items() if not name.endswith("language_instruction")}
    specs = {name: value for name, value in SPECS.items() if name != "language_instruction"}
    context: dict = {}
    *groups, leaf = key.split("/")
    inner = context
    for group in groups:
        inner = inner.setdefault(group, {})
    inner[leaf] = spec
    root = make_rlds_folder(tmp_path / "toy", {"train": [[steps | {key: written}]]}, specs, context=context)
    asked = key.removeprefix("episode_metadata/") if shortened else key
    assert read(root, language_key=asked).episodes == [(4, "lift it", "")]
    with pytest.raises(ValueError, match=rf"data\.language_key=nowhere is not a text of the steps or episodes.*{key}"):
        read(root, language_key="nowhere")


def test_an_instruction_that_changes_inside_a_recording_makes_an_episode_of_each_stretch(tmp_path, caplog):
    told = [b"open", b"open", b" open ", b"close", b"close", b"", b"open"]
    episodes = [episode(0, 7) | {"steps/language_instruction": told}, episode(1, 3)]
    root = make_rlds_folder(tmp_path / "toy", {"train": [episodes]})
    with caplog.at_level(logging.INFO):
        reader = read(root)
    assert [(e.length, e.instruction) for e in reader.episodes] == [(3, "open"), (2, "close"), (1, "open"), (3, "pick")]
    assert "2 recordings are 4 episodes of one instruction" in caplog.text
    assert "1 stretches of steps without an instruction left out" in caplog.text
    assert actions(reader, 1)[:, 0].tolist() == [30, 40]
    assert reader.frames(1, np.array([0, 1]))["side"][:, 0, 0, 0].tolist() == [30, 40]
    assert reader.location(1, 0, 1).endswith("record 0, steps 3-4")
    assert actions(reader, 3)[:, 0].tolist() == [100, 110, 120]
    assert [e[:2] for e in read(root).episodes] == [e[:2] for e in reader.episodes]  # from the index that was kept


def test_texts_written_as_codes_may_change_too(tmp_path):
    told = np.array([codes("open"), codes("open"), codes("close")])
    steps = episode(0, 3) | {"steps/language_instruction": told}
    root = make_rlds_folder(tmp_path / "toy", {"train": [[steps]]}, {**SPECS, "language_instruction": CODES})
    assert [(e.length, e.instruction) for e in read(root).episodes] == [(2, "open"), (1, "close")]


def test_stretches_stay_on_one_side_of_the_split_and_windows_inside_a_stretch(tmp_path):
    changing = {"steps/language_instruction": [b"open"] * 4 + [b"close"] * 4}
    root = make_rlds_folder(tmp_path / "toy", {"train": [[episode(n, 8) | changing for n in range(4)]]})
    sides = {split: read(root, validation_split="val", split=split) for split in ("train", "validation")}
    assert [len(reader.episodes) for reader in sides.values()] == [6, 2]
    dataset = WindowDataset(sides["train"], Source.of(sides["train"]._config), window_size=2, chunk_size=3)
    sample = dataset[2]  # the last of the first stretch
    assert sample.instruction == "open"
    assert sample.action_mask.tolist() == [True, True, False, False]
    assert sample.actions[:, 0].tolist() == [20, 30, 30, 30]
    assert dataset[3].instruction == "close"
    assert dataset.num_steps == 24


def test_recipes_of_whole_recordings_see_across_a_change_of_instruction(tmp_path):
    told = [b"open"] * 3 + [b"close"] * 3
    root = make_rlds_folder(tmp_path / "toy", {"train": [[episode(0, 6) | {"steps/language_instruction": told}]]})
    reader = read(root, transform=RLDSTransform.bridge)
    assert [e.length for e in reader.episodes] == [2, 2]  # without the first and the last step
    np.testing.assert_allclose(actions(reader, 0)[:, 0], [1, 1], rtol=1e-5)  # the state moves by a tenth of 10


@pytest.mark.parametrize("told", [[b"open"] * 2, [b"open"] * 4])
def test_another_number_of_texts_than_of_steps_is_a_damaged_record(tmp_path, told):
    steps = episode(0, 3) | {"steps/language_instruction": told}
    root = make_rlds_folder(tmp_path / "toy", {"train": [[steps]]})
    with pytest.raises(ValueError, match=rf"record 0 .*language_instruction.: it has {len(told)} texts, expected 3"):
        read(root)


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


def test_of_every_dwell_the_first_steps_may_stay_and_what_counts_as_one_may_be_set(tmp_path):
    steps = episode(0, 6)
    steps["steps/action"][[1, 2, 3], :6] = 0.002
    root = make_rlds_folder(tmp_path / "toy", {"train": [[steps]]})
    hz = read(root)._config.contract.control_hz
    assert [e.length for e in read(root, skip_idle=True).episodes] == [6]
    waiting = IdleConfig(threshold=0.01)
    assert actions(read(root, skip_idle=True, idle=waiting))[:, 0].tolist() == [0, 40, 50]
    first = read(root, skip_idle=True, idle=replace(waiting, keep_s=2 / hz))
    assert [e.length for e in first.episodes] == [5]
    assert first.fingerprint() != read(root, skip_idle=True, idle=waiting).fingerprint()


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
    with pytest.raises(ValueError, match=r"record 0 at byte \d+: .*instruction': its codes are not bytes"):
        read(root, language_key="instruction")


def test_what_is_read_by_default_is_as_it_was_written(tmp_path):
    root = make_rlds_folder(tmp_path / "toy", {"train": [[episode(0, 2)]]})
    reader = read(root)
    assert reader.frames(0, np.array([0]))["side"][0].tolist() == np.asarray(Image.open(io.BytesIO(png(0)))).tolist()

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from composing import completed, composed
from damaging import break_file, damage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rlds_folder import FLOAT7, IMAGE, SPECS, TEXT, episode, example, feature, make_rlds_folder, png, record

from robovlms.actions.plan import Source
from robovlms.actions.statistics import Statistics
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation, RLDSTransform, Rotation
from robovlms.config.data import ActionContract, NormalizationConfig
from robovlms.data.rlds import index
from robovlms.data.rlds.features import open_folder, read_features
from robovlms.data.rlds.reader import RldsReader
from robovlms.data.rlds.schema import RLDSDataConfig
from robovlms.data.rlds.transforms import absolute_gripper, binary_gripper, bridge
from robovlms.data.windows import WindowDataset
from robovlms.registry import DATASETS

NAMES = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
BRIDGE = "rlds_bridge_octo_debug/bridge_dataset"
quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOVLMS_CACHE", str(tmp_path / "cache"))


def contract(names: list[str] = NAMES) -> ActionContract:
    return ActionContract(
        names=names,
        representation=Representation.delta,
        frame=ReferenceFrame.base,
        rotation=Rotation.euler_increment if len(names) == 7 else Rotation.none,
        position_unit=1.0,
        gripper_closed=0.0,
        gripper_open=1.0,
        control_hz=5.0,
    )


def config(root: Path, **changes) -> RLDSDataConfig:
    defaults = {"views": {"side": "image_0"}, "contract": contract()}
    normalization = NormalizationConfig(mode=NormalizationMode.quantile)
    return RLDSDataConfig(name="rlds", root=str(root), normalization=normalization, **{**defaults, **changes})


def read(root: Path, split: str = "train", *, views=("side",), **changes) -> RldsReader:
    return RldsReader(config(root, **changes), split, views=list(views))


def all_actions(reader: RldsReader) -> np.ndarray:
    return np.concatenate([reader.numbers(i, np.arange(e.length)).actions for i, e in enumerate(reader.episodes)])


@pytest.fixture
def folder(tmp_path) -> Path:
    """Training: episodes 0 to 2 of 5, 3 and 4 steps in two files; validation: episode 3 of 4 steps."""
    shards = [[episode(0, 5, "pick"), episode(1, 3, "place")], [episode(2, 4, "pick")]]
    return make_rlds_folder(tmp_path / "toy", {"train": shards, "val": [[episode(3, 4, "pick")]]})


# ---- real data


@pytest.mark.parametrize("split", ["train", "validation"])
def test_bridge_has_the_episodes_instructions_and_statistics_that_are_known_of_it(shared_data, split):
    reader = read(shared_data / BRIDGE, split)
    assert [e.length for e in reader.episodes] == [10] * 25
    assert Counter(e.instruction for e in reader.episodes) == {
        "put carrot on plate": 8,
        "put cup from counter or drying rack into sink": 6,
        "turn lever vertical to front": 6,
        "flip pot upright which is in sink": 5,
    }
    found = Statistics.compute(all_actions(reader))
    known = {
        "mean": [0.001592, -0.000971, -0.002935, -0.009942, -0.004846, -0.005332, 0.739201],
        "std": [0.005735, 0.005613, 0.008285, 0.036344, 0.028768, 0.036266, 0.434099],
        "q01": [-0.016338, -0.020154, -0.018314, -0.138898, -0.090286, -0.194928, 0],
        "q99": [0.01614, 0.010305, 0.026095, 0.068327, 0.061483, 0.051643, 1],
    }
    for name, values in known.items():
        np.testing.assert_allclose(getattr(found, name), values, atol=6e-7)


def test_all_pictures_of_bridge_are_decoded(shared_data):
    views = {f"view{i}": f"observation/image_{i}" for i in range(4)}
    reader = RldsReader(config(shared_data / BRIDGE / "1.0.0", views=views), "train", views=list(views))
    means = {view: [] for view in views}
    for i in range(25):
        for view, frames in reader.frames(i, np.arange(10)).items():
            assert (frames.shape, frames.dtype) == ((10, 64, 64, 3), np.uint8)
            means[view] += frames.mean(axis=(1, 2, 3)).tolist()
    assert sum(map(len, means.values())) == 1000
    assert max(means["view3"]) < 1
    assert all(min(means[f"view{i}"]) > 10 for i in range(3))


def test_bridge_as_it_is_trained_on(shared_data):
    raw, reader = (
        read(shared_data / BRIDGE),
        read(
            shared_data / BRIDGE,
            transform=RLDSTransform.bridge,
            proprio_key="observation/state",
            proprio_names=["x", "y", "z", "roll", "pitch", "yaw", "opening"],
        ),
    )
    assert [e.length for e in reader.episodes] == [8] * 25
    numbers = reader.numbers(4, np.arange(8))
    assert numbers.proprio is not None
    np.testing.assert_allclose(np.diff(numbers.proprio[:, :6], axis=0), numbers.actions[:-1, :6], atol=1e-6)
    assert set(np.unique(all_actions(reader)[:, 6])) == {0, 1}
    np.testing.assert_array_equal(reader.frames(4, np.array([0]))["side"], raw.frames(4, np.array([1]))["side"])
    assert "steps 1-3" in reader.location(4, 0, 2)


def test_windows_of_bridge_are_read_with_their_padding(shared_data):
    settings = config(shared_data / BRIDGE, transform=RLDSTransform.bridge)
    dataset = WindowDataset(
        RldsReader(settings, "train", views=["side"]), Source.of(settings), window_size=4, chunk_size=3
    )
    assert len(dataset) == 25 * 5
    sample = dataset[4]
    assert sample.frames["side"].shape == (4, 64, 64, 3)
    assert sample.action_mask.tolist() == [True] * 4 + [False] * 2


@pytest.mark.slow
def test_neither_tensorflow_nor_protobuf_is_imported(shared_data, tmp_path):
    code = (
        "import sys, test_rlds; from pathlib import Path\n"
        f"test_rlds.read(Path({str(shared_data / BRIDGE)!r})).frames(0, test_rlds.np.arange(2))\n"
        "print([m for m in sys.modules if m.startswith(('tensorflow', 'google.protobuf'))])"
    )
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), str(here.parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "ROBOVLMS_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


# ---- what is read


def test_it_is_an_option_of_data():
    assert DATASETS.get("rlds") is RldsReader


@pytest.mark.parametrize("key", ["image_0", "observation/image_0"])
def test_frames_and_numbers_are_those_of_the_steps_asked_for(folder, key):
    reader = RldsReader(config(folder, views={"side": key}), "train", views=["side"])
    assert [(e.length, e.instruction) for e in reader.episodes] == [(5, "pick"), (3, "place"), (4, "pick")]
    frames = reader.frames(2, np.array([1, 3, 3]))["side"]
    assert frames.shape == (3, 4, 6, 3)
    assert frames[:, 0, 0, 0].tolist() == [12, 32, 32]
    assert reader.numbers(2, np.array([1, 3])).actions[:, 0].tolist() == [210, 230]
    assert reader.numbers(2, np.array([1])).proprio is None
    assert reader.location(2, 1, 3).endswith("toy-train.tfrecord-00001-of-00002: record 0, steps 1-3")
    assert reader.summary().endswith("(train: 'train'): 3 episodes, 12 frames, 2 instructions")
    assert set(reader.frames(0, np.array([0]))) == {"side"}
    assert read(folder, views=[]).frames(0, np.array([0])) == {}


def test_vectors_are_put_together_from_parts_of_keys(folder):
    reader = read(
        folder,
        action_key="action[1:3]+observation/state[6]",
        contract=contract(["dx", "dy", "gripper"]),
        proprio_key="observation/state[0:2]",
        proprio_names=["x", "y"],
    )
    numbers = reader.numbers(1, np.array([0, 2]))
    np.testing.assert_allclose(numbers.actions, [[101, 102, 10.6], [121, 122, 12.6]], rtol=1e-6)
    np.testing.assert_allclose(numbers.proprio, [[10, 10.1], [12, 12.1]], rtol=1e-6)


def test_a_text_and_actions_may_lie_deeper_and_numbers_be_of_any_kind(tmp_path):
    steps = {
        "steps/action/world_vector": np.array([[1, 2, 3], [4, 5, 6]], np.float32),
        "steps/action/open_gripper": np.array([0, 1], np.int64),
        "steps/observation/packed": [zlib.compress(np.float64([v]).tobytes()) for v in (7, 8)],
        "steps/observation/natural_language_instruction": [b" lift ", b" lift "],
        "steps/observation/image": [png(5), png(6)],
    }
    vector = {"tensor": {"shape": {"dimensions": ["3"]}, "dtype": "float32"}}
    packed = {"tensor": {"shape": {"dimensions": ["1"]}, "dtype": "float64", "encoding": "zlib"}}
    specs = {
        "action": {"world_vector": vector, "open_gripper": {"tensor": {"shape": {}, "dtype": "bool"}}},
        "observation": {
            "packed": packed,
            "natural_language_instruction": TEXT,
            "image": IMAGE,
            "points": {"sequence": {}},
        },
    }
    reader = RldsReader(
        config(
            make_rlds_folder(tmp_path / "toy", {"train": [[steps]], "val": [[steps]]}, specs),
            views={"side": "image"},
            action_key="action/world_vector+observation/packed+action/open_gripper",
            contract=contract(["x", "y", "z", "roll", "gripper"]),
            language_key="natural_language_instruction",
        ),
        "train",
        views=["side"],
    )
    assert reader.episodes[0].instruction == "lift"
    assert reader.numbers(0, np.arange(2)).actions.tolist() == [[1, 2, 3, 7, 0], [4, 5, 6, 8, 1]]


@pytest.mark.parametrize("encoding", ["none", "bytes", "zlib"])
def test_pictures_need_not_be_compressed(tmp_path, encoding):
    pixels = np.arange(2 * 4 * 6).reshape(2, 4, 6, 1).astype(np.uint8)
    entries = [p.tobytes() for p in pixels]
    written = {"none": pixels.astype(np.int64), "bytes": entries, "zlib": [zlib.compress(e) for e in entries]}
    image = {"tensor": {"shape": {"dimensions": ["4", "6", "1"]}, "dtype": "uint8", "encoding": encoding}}
    steps = episode(0, 2) | {"steps/observation/image_0": written[encoding]}
    specs = {**SPECS, "observation": {"image_0": image, "state": FLOAT7}}
    frames = read(make_rlds_folder(tmp_path / "toy", {"train": [[steps]], "val": [[steps]]}, specs)).frames(
        0, np.array([1])
    )["side"]
    np.testing.assert_array_equal(frames, np.repeat(pixels[1:], 3, axis=3))


def index_of(root: Path, cache: Path, monkeypatch, **changes) -> bytes:
    """Return the file that an index is kept in, made anew."""
    monkeypatch.setenv("ROBOVLMS_CACHE", str(cache))
    read(root, **changes)
    (path,) = cache.rglob("rlds-*.npz")
    return path.read_bytes()


def test_several_processes_make_the_index_that_one_makes(tmp_path, monkeypatch):
    shards = [[episode(10 * i + j, 3, f"pick {i}") for j in range(2)] for i in range(5)]
    root = make_rlds_folder(tmp_path / "toy", {"train": shards, "val": [[episode(99, 4, "pick")]]})
    for damaged in sorted(root.rglob("*train*tfrecord*"))[1::2]:
        damaged.write_bytes(damaged.read_bytes()[:-40])
    alone = index_of(root, tmp_path / "alone", monkeypatch, skip_bad=True)
    monkeypatch.setattr(index, "WORTH_PROCESSES", 0)
    monkeypatch.setenv(index.WORKERS, "2")
    assert index_of(root, tmp_path / "both", monkeypatch, skip_bad=True) == alone
    with pytest.raises(ValueError, match="00001-of-00005"):  # the first, in the files' order
        index_of(root, tmp_path / "strict", monkeypatch)
    monkeypatch.setenv(index.WORKERS, "many")
    with pytest.raises(ValueError, match="ROBOVLMS_INDEX_WORKERS=many must be a whole number"):
        index_of(root, tmp_path / "wrong", monkeypatch, skip_bad=True)


def test_the_first_steps_may_be_left_out(folder):
    reader = read(folder, drop_first=3)
    assert [e.length for e in reader.episodes] == [2, 1]
    assert reader.numbers(0, np.arange(2)).actions[:, 0].tolist() == [30, 40]
    assert reader.frames(0, np.array([0]))["side"][0, 0, 0, 0] == 30


def test_episodes_that_are_too_short_or_not_labelled_are_left_out_and_counted(tmp_path, caplog):
    episodes = [episode(0, 5), episode(1, 3, ""), episode(2, 2), episode(3, 4, "  ")]
    root = make_rlds_folder(tmp_path / "toy", {"train": [episodes], "val": [episodes]})
    with caplog.at_level(logging.WARNING):
        assert len(read(root, drop_first=2).episodes) == 1
    assert "2 of 4 episodes without an instruction in data.language_key=language_instruction left out" in caplog.text
    assert "1 of 4 episodes with no more than 2 steps left out" in caplog.text


def test_a_reader_goes_to_loader_processes(folder):
    reader = read(folder)
    before = reader.frames(0, np.array([2]))["side"]
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(copy.frames(0, np.array([2]))["side"], before)


# ---- splits


def test_validation_is_the_folders_own_split_if_it_has_one(folder):
    assert all_actions(read(folder, "validation"))[0, 0] == 300


def test_without_one_validation_is_the_last_share_of_training(tmp_path):
    root = make_rlds_folder(tmp_path / "toy", {"train": [[episode(i, 2) for i in range(10)]]})
    training, validation = (read(root, split, validation_fraction=0.2) for split in ("train", "validation"))
    assert all_actions(training)[::2, 0].tolist() == [0, 100, 200, 300, 400, 500, 600, 700]
    assert all_actions(validation)[::2, 0].tolist() == [800, 900]
    assert "(validation: 'train', of it the last 0.2)" in validation.summary()
    thinned = read(root, validation_fraction=0.2, fraction=0.5)
    assert all_actions(thinned)[::2, 0].tolist() == [0, 200, 400, 600]


def test_one_recording_alone_is_for_training(tmp_path):
    root = make_rlds_folder(tmp_path / "toy", {"train": [[episode(0, 2)]]})
    assert [len(read(root, split).episodes) for split in ("train", "validation")] == [1, 0]


def test_a_share_thins_the_training_split_only(folder):
    assert all_actions(read(folder, fraction=0.3))[0, 0] == 0
    assert len(read(folder, fraction=0.3).episodes) == 1
    assert len(read(folder, "validation", fraction=0.3).episodes) == 1


# ---- transforms


def test_bridge_takes_the_arms_actions_from_states_and_leaves_both_ends_out(tmp_path):
    steps = episode(0, 5)
    states = np.zeros((5, 7), np.float32)
    states[:, 0] = [9, 1, 2, 4, 7]
    states[:, 5] = [9, 3.0, -3.0, -3.1, 3.1]
    steps["steps/observation/state"] = states
    steps["steps/action"][:, 6] = [0, 0.5, 0.97, 0.4, 0.01]
    reader = read(
        make_rlds_folder(tmp_path / "toy", {"train": [[steps]], "val": [[steps]]}), transform=RLDSTransform.bridge
    )
    actions = reader.numbers(0, np.arange(reader.episodes[0].length)).actions
    np.testing.assert_array_equal(actions[:, 0], [1, 2, 3])
    np.testing.assert_allclose(actions[:, 5], [2 * np.pi - 6, -0.1, 6.2 - 2 * np.pi], atol=1e-6)
    np.testing.assert_array_equal(actions[:, 6], [1, 1, 0])
    assert reader.frames(0, np.array([0]))["side"][0, 0, 0, 0] == 10


@pytest.mark.parametrize(
    ("openings", "binary"),
    [
        ([1, 0.6, 0.3, 0, 0.3, 0.96], [1, 0, 0, 0, 1, 1]),
        ([0.95, 0.05, 0.01], [0, 0, 0]),
        ([1, 0.3], [1, 0]),
        ([0, 0.7, 0.6], [0, 1, 1]),
        ([0.2], [0]),
    ],
)
def test_a_gripper_on_its_way_counts_as_where_it_arrives(openings, binary):
    assert binary_gripper(np.array(openings, np.float32)).tolist() == binary


@pytest.mark.parametrize(
    ("motions", "openings"),
    [
        ([0, 1, 0, -1, 0], [1, 0, 0, 1, 1]),
        ([0, 0, -1, 0.05], [0, 0, 1, 1]),
        ([0, 0.1, -0.1], [1, 1, 1]),
        ([-1, 1], [1, 0]),
    ],
)
def test_a_grippers_motions_become_where_it_is(motions, openings):
    assert absolute_gripper(np.array(motions, np.float32)).tolist() == openings


def test_a_turn_by_less_than_half_a_circle_is_never_taken_the_long_way():
    states = np.random.default_rng(0).uniform(-np.pi, np.pi, (50, 6)).astype(np.float32)
    turns = bridge(np.zeros((50, 7), np.float32), states)[:, 3:]
    assert np.abs(turns).max() <= np.pi + 1e-6


def test_fractal_reads_its_parts(tmp_path):
    steps = episode(0, 3) | {
        "steps/action/world_vector": np.full((3, 3), 1, np.float32),
        "steps/action/rotation_delta": np.full((3, 3), 2, np.float32),
        "steps/action/gripper_closedness_action": np.array([[0], [1], [0]], np.float32),
        "steps/observation/natural_language_instruction": [b"pick coke can"] * 3,
    }
    three = {"tensor": {"shape": {"dimensions": ["3"]}, "dtype": "float32"}}
    one = {"tensor": {"shape": {"dimensions": ["1"]}, "dtype": "float32"}}
    specs = {
        "action": {"world_vector": three, "rotation_delta": three, "gripper_closedness_action": one},
        "observation": {"image_0": IMAGE, "natural_language_instruction": TEXT},
    }
    reader = read(
        make_rlds_folder(tmp_path / "toy", {"train": [[steps]], "val": [[steps]]}, specs),
        transform=RLDSTransform.gripper_motions,
        action_key="action/world_vector+action/rotation_delta+action/gripper_closedness_action",
        language_key="observation/natural_language_instruction",
    )
    assert all_actions(reader).tolist() == [[1, 1, 1, 2, 2, 2, g] for g in (1, 0, 0)]


# ---- the index


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.npz"))


def test_the_index_is_kept_and_read_again(folder, tmp_path, caplog):
    first = read(folder)
    with caplog.at_level(logging.INFO):
        second = read(folder)
    assert "reading" not in caplog.text
    assert len(cached(tmp_path)) == 1
    assert not list((tmp_path / "cache").glob("*.part"))
    np.testing.assert_array_equal(all_actions(first), all_actions(second))
    assert first.fingerprint() == second.fingerprint()
    assert first.episodes == second.episodes


def test_changed_data_make_a_new_index(folder, tmp_path):
    before = read(folder).fingerprint()
    shard = next(folder.glob("*train*"))
    os.utime(shard, ns=(1, 1))
    assert read(folder).fingerprint() != before
    assert len(cached(tmp_path)) == 2


def test_other_keys_make_a_new_index(folder, tmp_path):
    read(folder)
    read(folder, proprio_key="observation/state", proprio_names=NAMES)
    assert len(cached(tmp_path)) == 2


def rewritten(data: bytes, **changes) -> bytes:
    """Return an npz with other arrays, whole and with right checksums."""
    buffer = io.BytesIO()
    with np.load(io.BytesIO(data)) as arrays:
        np.savez(buffer, **{**arrays, **changes})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: rewritten(d, places=np.full((7, 3), 9)),
        lambda d: rewritten(d, places=np.zeros((7, 3))),
        lambda d: rewritten(d, texts=np.frombuffer(b"[" * 10**5, np.uint8)),
        lambda d: d.replace(b"\x93NUMPY", b"{{{{{{"),
    ],
    ids=["instruction", "type", "depth", "magic"],
)
def test_an_index_with_a_wrong_content_is_made_anew(folder, tmp_path, caplog, damage):
    expected = all_actions(read(folder))
    (path,) = cached(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(all_actions(read(folder)), expected)
    assert "is damaged" in caplog.text


@pytest.mark.parametrize(
    "damage", [lambda d: d[:50], lambda d: b"", lambda d: d[:200] + b"\xff\xff" + d[202:], lambda d: b"x" * 300]
)
def test_a_damaged_index_is_made_anew(folder, tmp_path, caplog, damage):
    expected = all_actions(read(folder))
    (path,) = cached(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(all_actions(read(folder)), expected)
    assert "is damaged" in caplog.text
    caplog.clear()
    read(folder)
    assert not caplog.text


def test_where_no_index_can_be_kept_a_warning_says_so(folder, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROBOVLMS_CACHE", str(tmp_path / "file"))
    assert len(read(folder).episodes) == 3
    assert "is not kept, because" in caplog.text


def test_a_name_with_slashes_keeps_the_index_in_its_folder(tmp_path):
    root = make_rlds_folder(tmp_path / "toy", {"train": [[episode(0, 3)]], "val": [[episode(1, 3)]]})
    info = json.loads((root / "dataset_info.json").read_text())
    info["splits"][1] |= {"filepathTemplate": "{DATASET}-val.{FILEFORMAT}-{SHARD_X_OF_Y}", "name": "../up"}
    (root / "dataset_info.json").write_text(json.dumps(info))
    read(root, "validation", validation_split="../up")
    assert [p.parent for p in cached(tmp_path)] == [tmp_path / "cache"]


# ---- errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_key": "actoin"}, r"data.action_key=actoin is not a numeric feature .* Did you mean 'action'\?"),
        ({"action_key": "action[0:8]"}, r"'action' of .* has entries 0 to 6"),
        ({"action_key": "action[0:3]"}, r"has shape \[3\], but data.contract.names lists 7"),
        ({"proprio_key": "state", "proprio_names": ["x"]}, r"data.proprio_key=state .* has: action, observation/state"),
        ({"views": {"side": "image_9"}}, r"data.views.side=image_9 is not a camera .* It has: observation/image_0"),
        ({"views": {"side": "state"}}, r"data.views.side=state is not a camera"),
        ({"language_key": "text"}, r"data.language_key=text is not a text .* It has: language_instruction"),
        ({"train_split": "trian"}, r"data.train_split=trian is not a split of .* Did you mean 'train'"),
        ({"drop_first": 9}, r"has no usable episode in split train"),
        (
            {"transform": RLDSTransform.bridge, "action_key": "action[0:3]", "contract": contract(["x", "y", "z"])},
            r"data.transform=bridge is of data sets with one gripper, which is the last entry, but data.contract",
        ),
    ],
)
def test_an_option_that_does_not_fit_is_named(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        RldsReader(config(folder, **changes), "train", views=["side"])


def test_the_root_may_be_the_folder_above_the_version(folder):
    assert open_folder(folder.parent).path == folder


def test_a_root_that_is_not_a_data_set_says_what_to_give(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing is not a folder"):
        read(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"nor has a folder in it: set it to .*toy/1.0.0"):
        read(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"it is not a TFDS data set"):
        read(tmp_path / "empty")
    (folder.parent / "1.0.1").mkdir()
    (folder.parent / "1.0.1/dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match=r"several versions: set it to one of .*1.0.0, .*1.0.1"):
        read(folder.parent)
    (folder / "features.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"features.json does not exist"):
        read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fileFormat": "array_record"}, r"fileFormat='array_record', but only tfrecord is read"),
        ({"name": 3}, r"has no name or no list of splits"),
        ({"splits": [{"name": "train"}]}, r"split 'train' has no shardLengths"),
        ({"splits": [{"name": "train", "shardLengths": ["x"]}]}, r"shardLengths has 'x'"),
        ({"name": "../../etc/passwd"}, r"which is not a file of this folder"),
        (
            {"splits": [{"name": "", "shardLengths": ["1"], "filepathTemplate": "{SPLIT}"}]},
            r"gives '', which is not a file of this folder",
        ),
        ({"splits": [{"name": "t", "shardLengths": ["1"], "filepathTemplate": "{X}"}]}, r"filepathTemplate='\{X\}'"),
    ],
)
def test_a_dataset_info_that_is_not_tfds_is_refused(folder, change, message):
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        open_folder(folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "[]", "{}", '{"featuresDict": {"features": {"steps": 3}}}', "\xff"]
)
def test_features_that_are_not_tfds_are_refused(tmp_path, text):
    (tmp_path / "features.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"features.json"):
        read_features(tmp_path / "features.json")


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("toy-train*"))


def test_a_damaged_record_is_named_or_left_out(folder, caplog):
    first, _ = shards_of(folder)
    data = bytearray(first.read_bytes())
    data[100] ^= 1
    first.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"00000-of-00002, record 0 at byte 12: its checksum is wrong.*data.skip_bad=true"
    ):
        read(folder)
    for _ in range(2):  # the second time from the index
        caplog.clear()
        reader = read(folder, skip_bad=True)
        assert all_actions(reader)[0, 0] == 100
        assert "data.skip_bad: 1 of 3 records or files of" in caplog.text
    with pytest.raises(ValueError, match=r"its checksum is wrong"):
        read(folder)


def test_a_file_cut_off_is_named_or_read_as_far_as_it_goes(folder):
    first, second = shards_of(folder)
    second.write_bytes(second.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"00001-of-00002, record 0 at byte 12: it says that it has \d+ bytes, but"):
        read(folder)
    assert len(read(folder, skip_bad=True).episodes) == 2
    second.write_bytes(b"")
    with pytest.raises(ValueError, match=r"has 0 records, but dataset_info.json says 1"):
        read(folder)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=r"00001-of-00002 does not exist"):
        read(folder)
    assert len(read(folder, skip_bad=True).episodes) == 2
    first.unlink()
    with pytest.raises(ValueError, match=r"None of the 2 records or files .* can be used, .*00000-of-00002"):
        read(folder, skip_bad=True)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "steps/action",
            np.zeros(13, np.float32),
            r"record 1 at byte \d+: 'steps/action': it has 13 numbers, no multiple",
        ),
        ("steps/action", np.zeros(14, np.float32), r"different numbers of steps: \{'action': 2"),
        ("steps/action", np.zeros(14, np.int64), r"'steps/action': it holds int64, expected float"),
        ("steps/language_instruction", [b"\xff"], r"'steps/language_instruction': 'utf-8' codec"),
        (
            "steps/action",
            np.full((3, 7), np.nan, np.float32),
            r"record 1 at byte \d+: step 0 of data.action_key is not finite",
        ),
    ],
)
def test_a_record_with_other_content_is_named_or_left_out(tmp_path, key, value, message):
    proprio = {"proprio_key": "observation/state", "proprio_names": NAMES}
    root = make_rlds_folder(tmp_path / "toy", {"train": [[episode(0, 4), episode(1, 3) | {key: value}]], "val": [[]]})
    with pytest.raises(ValueError, match=message):
        read(root, **proprio)
    assert [e.length for e in read(root, skip_bad=True, **proprio).episodes] == [4]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([png(0), png(0)[:45], png(0)], r"step 1: a damaged PNG"),
        ([png(0), b"GIF89a", png(0)], r"step 1: neither JPEG nor PNG"),
        ([png(0), png(0, (5, 6)), png(0)], r"step 1: the picture is \[5, 6\] px, expected \[4, 6\]"),
        ([png(0)] * 2, r"it has 2 pictures, but the episode 3 steps"),
        (np.zeros(3, np.int64), r"it holds int64, expected bytes"),
    ],
)
def test_a_damaged_picture_is_named_when_it_is_read(tmp_path, pictures, message):
    steps = episode(0, 3) | {"steps/observation/image_0": pictures}
    reader = read(make_rlds_folder(tmp_path / "toy", {"train": [[steps]], "val": [[steps]]}))
    with pytest.raises(ValueError, match=r"00000-of-00001, record 0, 'steps/observation/image_0': .*" + message):
        reader.frames(0, np.array([0, 1]))


def test_a_record_whose_pictures_are_no_feature_is_named_when_it_is_read(tmp_path):
    folder = make_rlds_folder(tmp_path / "toy", {"train": [[episode(0, 2)]], "val": [[episode(1, 2)]]})
    path = next(folder.glob("*train*"))
    payload = example(episode(0, 2))
    pictures = feature(episode(0, 2)["steps/observation/image_0"])
    assert payload.count(pictures) == 1
    path.write_bytes(record(payload.replace(pictures, b"\x0f" + pictures[1:])))  # wire type 7
    reader = read(folder)
    with pytest.raises(ValueError, match=r"00000-of-00001, record 0: not a tf\.train\.Example: wire type 7"):
        reader.frames(0, np.array([0]))


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path):
    steps = episode(0, 1) | {"steps/observation/image_0": [png(0, (9000, 9000), "L")]}
    image = {"image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8"}}
    specs = {**SPECS, "observation": {"image_0": image, "state": FLOAT7}}
    reader = read(make_rlds_folder(tmp_path / "toy", {"train": [[steps]], "val": [[steps]]}, specs))
    with pytest.raises(ValueError, match=r"a picture of 9000 x 9000 px, more than"):
        reader.frames(0, np.array([0]))


# ---- whatever the files hold


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


def use(root: Path) -> None:
    """Read everything once; only ValueError and OSError may come out."""
    for skip_bad in (False, True):
        try:
            reader = read(root, skip_bad=skip_bad)
            reader.summary(), reader.fingerprint(), all_actions(reader)
            for i, e in enumerate(reader.episodes):
                reader.frames(i, np.arange(e.length))
        except (ValueError, OSError) as error:
            if str(root) not in str(error) and "data." not in str(error):
                raise AssertionError("the message names neither file nor option") from error


@quick
@given(number=st.integers(0, 3), changes=damage())
def test_a_damaged_folder_ends_in_value_error_or_os_error_or_is_read(tmp_path_factory, number, changes):
    root = tmp_path_factory.mktemp("toy")
    folder = make_rlds_folder(root, {"train": [[episode(0, 3), episode(1, 2)]], "val": [[episode(2, 2)]]})
    break_file(sorted(folder.iterdir())[number], changes)
    use(folder)


def paths_of(value: object, path: tuple = ()) -> list[tuple]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, child in children for p in paths_of(child, (*path, key)))]


@quick
@given(data=st.data())
def test_any_value_in_the_json_files_ends_in_value_error_or_os_error_or_is_read(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("toy")
    folder = make_rlds_folder(root, {"train": [[episode(0, 3), episode(1, 2)]], "val": [[episode(2, 2)]]})
    path = folder / data.draw(st.sampled_from(["features.json", "dataset_info.json"]))
    content = json.loads(path.read_text())
    *way, last = data.draw(st.sampled_from(paths_of(content)[1:]))
    place = content
    for key in way:
        place = place[key]
    place[last] = data.draw(
        values | st.sampled_from([0, -1, 10**12, 10**30, "0", "-1", "../x", "zlib", "none", "uint8"])
    )
    path.write_text(json.dumps(content))
    use(folder)


def test_the_options_bridge_and_fractal_are_complete(shared_data):
    bridge_config = completed(composed("data=bridge", "view=side"), f"data.root={shared_data / BRIDGE}").data
    reader = RldsReader(bridge_config, "train", views=["side"])
    assert reader.summary().endswith("25 episodes, 200 frames, 4 instructions")
    with pytest.raises(ValueError, match=r"data.action_key=action/world_vector is not a numeric feature"):
        RldsReader(
            completed(composed("data=fractal", "view=side"), f"data.root={shared_data / BRIDGE}").data,
            "train",
            views=[],
        )
    assert set(composed("data=oxe").data.sources) == {"bridge", "fractal"}

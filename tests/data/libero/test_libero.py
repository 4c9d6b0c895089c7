"""Demonstrations in the layouts that LIBERO and robomimic publish, made up and small."""

from __future__ import annotations

import json
import logging
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from robovlms.actions.plan import Source
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation, Rotation
from robovlms.config.data import ActionContract, NormalizationConfig
from robovlms.data.libero.reader import LiberoReader, instruction_of
from robovlms.data.libero.schema import LiberoDataConfig
from robovlms.data.opening import open_reader
from robovlms.data.windows import WindowDataset
from robovlms.registry import DATASETS

h5py = pytest.importorskip("h5py")

STOVE = "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5"
BOWL = "pick_up_the_black_bowl_demo.hdf5"
LENGTHS = [5, 6, 4]


def make_demo(number: int, length: int) -> dict[str, np.ndarray]:
    """Frame i has i in its first (LIBERO: bottom left) pixel, action i is i / 10 with a gripper of -1, +1, -1, ..."""
    steps = np.arange(length)
    side = np.full((length, 8, 6, 3), 100 + number, np.uint8)
    side[:, 0, 0] = steps[:, None]
    wrist = np.full((length, 4, 4, 3), 200, np.uint8)
    wrist[:, 0, 0] = steps[:, None]
    actions = np.repeat(steps[:, None] / 10, 7, axis=1)
    actions[:, 6] = np.where(steps % 2, 1.0, -1.0)
    return {
        "actions": actions,
        "states": np.zeros((length, 10)),
        "rewards": np.zeros(length, np.uint8),
        "dones": np.zeros(length, np.uint8),
        "obs/agentview_rgb": side,
        "obs/eye_in_hand_rgb": wrist,
        "obs/ee_states": np.arange(length * 6).reshape(length, 6) / 100,
        "obs/gripper_states": np.stack([steps, -steps], axis=1) / 50,
    }


def write(path: Path, lengths=LENGTHS, attributes=None, **dataset_options: Any) -> Path:
    told = {
        "problem_info": json.dumps({"problem_name": "P", "language_instruction": f"say {path.stem}"}),
        "env_args": json.dumps({"env_name": "P", "env_kwargs": {"control_freq": 20}}),
        "num_demos": len(lengths),
        "total": sum(lengths),
    }
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for key, value in (told | (attributes or {})).items():
            if value is not None:
                data.attrs[key] = value
        for number, length in enumerate(lengths):
            for key, value in make_demo(number, length).items():
                data.create_dataset(f"demo_{number}/{key}", data=value, **dataset_options)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two tasks of 3 demonstrations of 5, 6 and 4 frames."""
    for name in (STOVE, BOWL):
        write(tmp_path / name)
    return tmp_path


def make_config(root: Path, **changes: Any) -> LiberoDataConfig:
    contract = ActionContract(
        names=["dx", "dy", "dz", "drx", "dry", "drz", "gripper"],
        representation=Representation.delta,
        frame=ReferenceFrame.world,
        rotation=Rotation.axis_angle,
        position_unit=0.05,
        rotation_unit=0.5,
        gripper_closed=1.0,
        gripper_open=-1.0,
        control_hz=20.0,
    )
    return LiberoDataConfig(
        name="libero",
        root=str(root),
        normalization=NormalizationConfig(mode=NormalizationMode.quantile),
        **{
            "contract": contract,
            "views": {"side": "agentview_rgb", "wrist": "obs/eye_in_hand_rgb"},
            **changes,
        },
    )


def read(root: Path, split="train", *, cameras=("side", "wrist"), window_size=3, chunk_size=2, **changes: Any):
    config = make_config(root, **changes)
    reader = LiberoReader(config, split, views=list(cameras))
    return WindowDataset(reader, Source.of(config), window_size=window_size, chunk_size=chunk_size)


def edit(path: Path, key: str, value: Any, **options: Any) -> None:
    """Replace a dataset, or remove it."""
    with h5py.File(path, "a") as file:
        if key in file:
            del file[key]
        if value is not None:
            file.create_dataset(key, data=value, **options)


# --- what is read


def test_the_registry_knows_it():
    assert DATASETS.get("libero") is LiberoReader


def test_the_last_demonstration_of_each_file_is_for_validation(folder):
    assert (
        read(folder)
        .summary()
        .endswith("(train): 2 files, 4 demonstrations, 22 frames, 2 instructions, 14 windows of 3")
    )
    validation = read(folder, "validation")
    assert "2 files, 2 demonstrations, 8 frames" in validation.summary()
    assert validation.location(0) == f"{folder / STOVE}: demo_2, frames 0-2"
    assert validation.reader.episodes[1].task == "pick_up_the_black_bowl_demo"


def test_a_window_holds_its_frames_turned_by_180_degrees_and_actions_with_a_closed_gripper_of_minus_one(folder):
    sample = read(folder)[3 + 1]  # 3 windows of demo_0, then the second of demo_1
    original = make_demo(1, 6)

    assert sample.frames["side"].shape == (3, 8, 6, 3)
    np.testing.assert_array_equal(sample.frames["side"][:, -1, -1, 0], [1, 2, 3])
    np.testing.assert_array_equal(sample.frames["side"], original["obs/agentview_rgb"][1:4, ::-1, ::-1])
    np.testing.assert_array_equal(sample.frames["wrist"][:, -1, -1, 0], [1, 2, 3])
    assert sample.frames["side"].flags.c_contiguous
    np.testing.assert_array_equal(sample.actions[:, :6], original["actions"][1:5, :6].astype(np.float32))
    np.testing.assert_array_equal(sample.actions[:, 6], [-1, 1, -1, 1])  # recorded as +1, -1, +1, -1
    assert sample.instruction == f"say {Path(STOVE).stem}"


def test_pictures_stay_as_they_are_without_flip(folder):
    np.testing.assert_array_equal(read(folder, flip=False)[0].frames["side"][:, 0, 0, 0], [0, 1, 2])


def test_proprioception_is_put_together_from_datasets_and_parts_of_them(folder):
    names = ["x", "y", "z", "rx", "ry", "rz", "left"]
    dataset = read(folder, proprio_key="obs/ee_states + obs/gripper_states[0]", proprio_names=names)
    original = make_demo(0, 5)
    expected = np.concatenate([original["obs/ee_states"], original["obs/gripper_states"][:, :1]], axis=1)

    np.testing.assert_array_equal(dataset[1].proprio, expected[1:4].astype(np.float32))
    assert dataset.rows(100).proprio.shape == (22, 7)
    assert read(folder)[0].proprio is None


def test_one_file_is_a_data_set_too(folder):
    assert len(read(folder / BOWL)) == 7


def test_a_fraction_thins_training(folder):
    assert len(read(folder, fraction=0.5).reader.episodes) == 2


def test_demonstrations_are_counted_by_number_not_by_letter(tmp_path):
    write(tmp_path / BOWL, lengths=[3] * 11)
    sources = [read(tmp_path).location(i).split(": ")[1] for i in range(10)]

    assert sources == [f"demo_{i}, frames 0-2" for i in range(10)]


def test_only_what_is_wanted_is_read(folder, monkeypatch):
    taken: list[tuple[str, Any]] = []
    take = h5py.Dataset.__getitem__

    def watch(self, where, **options):
        taken.append((self.name.rpartition("/")[2], where))
        return take(self, where, **options)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watch)
    dataset = read(folder, cameras=["side"])
    assert taken == []
    dataset[3]
    assert taken == [("agentview_rgb", slice(0, 3)), ("actions", slice(0, 4)), ("actions", slice(0, 3))]


def test_frames_that_lie_far_apart_or_repeat_are_read_one_by_one(tmp_path):
    write(tmp_path / BOWL, lengths=[40, 3])
    reader = read(tmp_path).reader

    steps = np.array([0, 17, 17, 39])
    np.testing.assert_array_equal(reader.frames(0, steps)["side"][:, -1, -1, 0], steps)
    np.testing.assert_array_equal(reader.frames(0, np.array([2, 2, 3]))["side"][:, -1, -1, 0], [2, 2, 3])


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip", "chunks": True},
        {"compression": "lzf", "shuffle": True, "chunks": True},
        {"fletcher32": True},
        {"maxshape": None},
    ],
)
def test_compressed_and_chunked_files_read_alike(folder, tmp_path, options):
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / STOVE, **options)
    ours, theirs = read(tmp_path / "other"), read(folder / STOVE)

    for index in range(len(theirs)):
        np.testing.assert_array_equal(ours[index].frames["side"], theirs[index].frames["side"])
        np.testing.assert_array_equal(ours[index].actions, theirs[index].actions)


@pytest.mark.parametrize("dtype", [">f4", "f2", "i8", "f8"])
def test_other_types_of_numbers_become_float32(tmp_path, dtype):
    path = write(tmp_path / BOWL)
    edit(path, "data/demo_0/actions", np.arange(35).reshape(5, 7).astype(dtype))

    np.testing.assert_array_equal(read(tmp_path)[0].actions[1, :6], np.arange(7, 13, dtype=np.float32))


def test_a_robomimic_file_reads_with_its_own_keys(tmp_path):
    path = write(tmp_path / "image_v15.hdf5", attributes={"problem_info": None})
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            demo.move("obs/agentview_rgb", "obs/agentview_image")
            demo.move("obs/ee_states", "obs/robot0_eef_pos")
        file.create_dataset("mask/train", data=np.array([b"demo_0"]))
    options = {"views": {"side": "agentview_image"}, "proprio_key": "obs/robot0_eef_pos[0:3]", "flip": False}
    options["proprio_names"] = ["x", "y", "z"]
    dataset = read(path, cameras=["side"], instruction="lift the cube", **options)

    assert dataset[0].instruction == "lift the cube"
    np.testing.assert_array_equal(dataset[0].frames["side"][:, 0, 0, 0], [0, 1, 2])
    with pytest.raises(ValueError, match=r"says no instruction: set data\.instruction"):
        read(path, cameras=["side"], **options)


def test_forked_loaders_and_pickled_copies_read_what_the_main_process_reads(folder):
    dataset = read(folder)
    expected = [dataset[index].frames["side"] for index in range(len(dataset))]  # opens files here first
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for ours, theirs in zip(expected, loader, strict=True):
        np.testing.assert_array_equal(ours, theirs.frames["side"])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset))[0].frames["side"], expected[0])


def test_a_fingerprint_changes_with_a_file(folder):
    before = read(folder).reader.fingerprint()
    assert read(folder).reader.fingerprint() == before
    write(folder / BOWL, lengths=[5, 6, 5])
    assert read(folder).reader.fingerprint() != before


# --- instructions


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("KITCHEN_SCENE10_put_the_bowl_on_the_plate_demo.hdf5", "put the bowl on the plate"),
        ("LIVING_ROOM_SCENE5_put_the_red_mug_down_demo.hdf5", "put the red mug down"),
        ("pick_up_the_black_bowl_demo.hdf5", "pick up the black bowl"),
        ("image_v15.hdf5", None),
    ],
)
def test_the_file_name_says_the_instruction(name, instruction):
    assert instruction_of(Path(name)) == instruction


@pytest.mark.parametrize(
    ("told", "expected"),
    [("open it", "open it"), ('"open it"', "open it"), (list("open it"), "open it"), (["open it"], "open it")],
)
def test_the_file_says_the_instruction_in_any_of_its_ways(tmp_path, told, expected):
    write(tmp_path / BOWL, attributes={"problem_info": json.dumps({"language_instruction": told})})
    assert read(tmp_path)[0].instruction == expected


def test_without_problem_info_the_name_counts_and_the_config_before_both(tmp_path):
    write(tmp_path / STOVE, attributes={"problem_info": None})
    assert read(tmp_path)[0].instruction == "turn on the stove"
    assert read(tmp_path, instruction="be good")[0].instruction == "be good"
    with pytest.raises(ValueError, match=r"set data\.instruction"):
        read(tmp_path, instruction=" ")


# --- what is refused


def test_without_h5py_the_error_says_how_to_install_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[libero\]"'):
        read(folder)


def test_folders_without_files_say_where_there_are_some(folder):
    with pytest.raises(FileNotFoundError, match=r"data\.root=.*nowhere does not exist"):
        read(folder / "nowhere")
    (folder / "libero_goal").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no \*\.hdf5\. Set data\.root to a suite"):
        read(folder / "libero_goal")
    (folder / BOWL).rename(folder / "libero_goal" / BOWL)
    (folder / STOVE).unlink()
    with pytest.raises(FileNotFoundError, match=rf"Set data\.root={folder}/libero_goal\."):
        read(folder)
    with pytest.raises(ValueError, match="split='test' does not exist"):
        read(folder / "libero_goal", "test")


def test_another_rate_than_the_contracts_is_refused(tmp_path):
    write(tmp_path / BOWL, attributes={"env_args": json.dumps({"env_kwargs": {"control_freq": 10}})})
    with pytest.raises(ValueError, match=r"recorded at 10 frames a second, but .*Set data\.contract\.control_hz=10"):
        open_reader(make_config(tmp_path), "train", [])
    write(tmp_path / STOVE, attributes={"env_args": json.dumps({"env_kwargs": {"control_freq": 20}})})
    with pytest.raises(ValueError, match=r"was recorded at \d+ actions a second, files before it at \d+"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_key": "action"}, r"data\.action_key=action is not a numeric .*Did you mean 'actions'"),
        ({"action_key": "actions[0:6]"}, r"has shape \[6\], but data\.contract\.names lists 7"),
        ({"proprio_key": "obs/ee_states", "proprio_names": ["x"]}, r"shape \[6\], but data\.proprio_names lists 1"),
        ({"proprio_key": "obs/agentview_rgb", "proprio_names": ["x"]}, r"has shape \[8, 6, 3\].*expected a vector"),
        (
            {"views": {"side": "agentview", "wrist": "eye_in_hand_rgb"}},
            r"data\.views\.side=agentview: .*Did you mean .obs/agentview_rgb.*obs/eye_in_hand_rgb",
        ),
        (
            {"views": {"side": "ee_states", "wrist": "eye_in_hand_rgb"}},
            r"obs/ee_states, which data\.views\.side names, is float64",
        ),
    ],
)
def test_options_that_name_what_there_is_not_are_told(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        read(folder, **changes)


def test_totals_that_disagree_are_a_warning(tmp_path, caplog):
    write(tmp_path / BOWL, attributes={"num_demos": 50})
    assert len(read(tmp_path)) == 7
    assert "says num_demos=50, but holds 3: the latter counts" in caplog.text


def missing(path: Path) -> None:
    edit(path, "data/demo_1/obs/agentview_rgb", None)


def short(path: Path) -> None:
    edit(path, "data/demo_1/obs/agentview_rgb", np.zeros((5, 8, 6, 3), np.uint8))


def empty(path: Path) -> None:
    for key, value in make_demo(1, 0).items():
        edit(path, f"data/demo_1/{key}", value)


def narrow(path: Path) -> None:
    edit(path, "data/demo_1/actions", np.zeros((6, 5)))


def larger(path: Path) -> None:
    edit(path, "data/demo_1/obs/agentview_rgb", np.zeros((6, 9, 6, 3), np.uint8))


def text(path: Path) -> None:
    edit(path, "data/demo_1/actions", np.array([b"a"] * 6))


def objects(path: Path) -> None:
    edit(path, "data/demo_1/actions", ["a"] * 6, dtype=h5py.string_dtype())


def external_link(path: Path) -> None:
    edit(path, "data/demo_1/actions", None)
    with h5py.File(path, "a") as file:
        file["data/demo_1/actions"] = h5py.ExternalLink(str(path.parent / BOWL), "/data/demo_0/actions")


def soft_link(path: Path) -> None:
    edit(path, "data/demo_1/actions", None)
    with h5py.File(path, "a") as file:
        file["data/demo_1/actions"] = h5py.SoftLink("/data/demo_0/actions")


def group_link(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["data/demo_1"]
        file["data/demo_1"] = h5py.ExternalLink(BOWL, "/data/demo_0")


def virtual(path: Path) -> None:
    layout = h5py.VirtualLayout((6, 7), "f8")
    layout[:] = h5py.VirtualSource(str(path.parent / BOWL), "/data/demo_1/actions", (6, 7))
    edit(path, "data/demo_1/actions", None)
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("data/demo_1/actions", layout)


def external_storage(path: Path) -> None:
    (path.parent / "raw").write_bytes(b"\0" * 6 * 7 * 8)
    edit(path, "data/demo_1/actions", None)
    with h5py.File(path, "a") as file:
        file.create_dataset("data/demo_1/actions", (6, 7), "f8", external=[(str(path.parent / "raw"), 0, 6 * 7 * 8)])


def endless(path: Path) -> None:
    edit(path, "data/demo_1/actions", None)
    with h5py.File(path, "a") as file:
        file.create_dataset("data/demo_1/actions", (10**12, 7), "f8", chunks=(1000, 7))


def not_a_group(path: Path) -> None:
    edit(path, "data/demo_1", np.zeros(3))


FAULTS = {
    missing: "demo_1/obs/agentview_rgb is not there; .* has .*obs/ee_states",
    short: r"demo_1 has 6 rows of actions, but of others \{'obs/agentview_rgb': 5\}",
    empty: "demo_1 has no frame",
    narrow: r"'actions' has \[5\] entries a frame, but .* says 7",
    larger: r"is of \(9, 6\), but the first of the data set of \(8, 6\)",
    text: r"demo_1/actions holds \|S1 \(6,\), expected numbers",
    objects: r"demo_1/actions holds object \(6,\), expected numbers",
    external_link: "demo_1/actions is a link, and links are not followed",
    soft_link: "demo_1/actions is a link, and links are not followed",
    group_link: "demo_1 is a link, and links are not followed",
    virtual: "demo_1/actions lies in another file",
    external_storage: "demo_1/actions lies in another file",
    endless: r"demo_1/actions has the shape \(1000000000000, 7\).*too large",
    not_a_group: "demo_1 is not a group",
}


@pytest.mark.parametrize("damage", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_stops_the_constructor_or_drops_its_demonstration_with_a_count(folder, damage, caplog):
    damage(folder / STOVE)
    with pytest.raises(ValueError, match=f"{STOVE}.*{FAULTS[damage]}"):
        read(folder)
    with caplog.at_level(logging.WARNING):
        dataset = read(folder, skip_bad=True)

    assert [dataset.location(i).split(": ")[1][:6] for i in (0, 3)] == ["demo_0", "demo_0"]  # of either file
    assert "1 of 6 files or demonstrations of" in caplog.text
    assert "are left out, the first because: " in caplog.text


@pytest.mark.parametrize("key", ["actions", "obs/ee_states"])
def test_a_number_that_is_not_finite_stops_its_read_or_drops_its_demonstration(folder, key, caplog):
    values = make_demo(0, 5)[key]
    values[4, 2] = np.nan
    edit(folder / STOVE, f"data/demo_0/{key}", values)
    options = {"proprio_key": "obs/ee_states", "proprio_names": ["x", "y", "z", "rx", "ry", "rz"]}
    dataset = read(folder, **options)

    assert dataset[0].action_mask.all()
    with pytest.raises(ValueError, match=rf"{STOVE}: demo_0, frame 4: {key} is not finite.*data\.skip_bad=true"):
        dataset[2]
    assert read(folder, skip_bad=True, **options).location(0).endswith("demo_1, frames 0-2")
    assert "1 of 6 files or demonstrations" in caplog.text


@pytest.mark.parametrize("damage", [lambda data: data[:-500], lambda _: b"no HDF5", lambda _: b""])
def test_a_truncated_or_foreign_file_is_named_or_dropped(folder, damage, caplog):
    (folder / STOVE).write_bytes(damage((folder / STOVE).read_bytes()))
    with pytest.raises(ValueError, match=rf"{STOVE} cannot be read as HDF5 \(.*download it again"):
        read(folder)
    assert "1 files, 2 demonstrations" in read(folder, skip_bad=True).summary()
    assert "1 of 4 files or demonstrations of" in caplog.text
    (folder / BOWL).write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        read(folder, skip_bad=True)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"problem_info": "{"}, "attribute problem_info of /data must be a JSON object"),
        ({"problem_info": "[1]"}, "attribute problem_info of /data must be a JSON object"),
        ({"problem_info": 3}, "attribute problem_info of /data must be a JSON object"),
        ({"problem_info": "{}"}, r"says no instruction: set data\.instruction"),
        ({"env_args": "nan"}, "attribute env_args of /data must be a JSON object"),
    ],
)
def test_attributes_that_are_not_what_libero_writes_are_named(tmp_path, attributes, message):
    write(tmp_path / BOWL, attributes=attributes)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_files_without_demonstrations_are_refused(tmp_path):
    write(tmp_path / BOWL, lengths=[])
    with pytest.raises(ValueError, match=r"has no demo_0, demo_1, \.\.\. in /data"):
        read(tmp_path)
    with h5py.File(tmp_path / BOWL, "w") as file:
        file["other"] = 1
    with pytest.raises(ValueError, match="has no group /data"):
        read(tmp_path)


def test_the_simulators_state_is_that_of_the_first_action_with_the_scene_and_the_success_that_are_recorded(tmp_path):
    path = write(tmp_path / BOWL)
    edit(path, "data/demo_0/states", np.arange(50.0).reshape(5, 10) + 7)
    edit(path, "data/demo_0/dones", np.array([0, 0, 0, 0, 1]))
    for key in ("states", "dones", "rewards"):
        edit(path, f"data/demo_1/{key}", None)
    with h5py.File(path, "a") as file:
        file["data/demo_0"].attrs["model_file"] = "<mujoco/>"
    reader = read(tmp_path, validation_fraction=0.0).reader
    first, second, third = (reader.simulator_state(number) for number in range(3))
    assert (first.values.tolist(), first.model, first.solved) == ([*range(7, 17)], "<mujoco/>", True)
    assert second is None
    assert (third.model, third.solved) == (None, False)

"""The contract of a reader, held by every registered one over a miniature of its format; every data option opens."""

from __future__ import annotations

import logging
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from composing import completed, composed
from miniatures import ONE_RECORD, SIZE, TEXTS, make_miniature

from robovlms.actions.plan import DataPlan, Source
from robovlms.config.choices import CacheMode, ImageFormat
from robovlms.config.data import DataConfig, IdleConfig
from robovlms.config.presets import options
from robovlms.data.base import Reader
from robovlms.data.idle import step_sizes
from robovlms.data.opening import _origin as origin_of
from robovlms.data.opening import build_dataset, native_reader, open_reader, packed_folder
from robovlms.data.packed.reader import PackedReader
from robovlms.data.packed.writer import pack
from robovlms.data.windows import WindowDataset
from robovlms.errors import UserError
from robovlms.registry import DATASETS
from robovlms.types import Sample

pytest.importorskip("h5py", reason='pip install "robovlms[libero]"')

PROPRIO = {
    "aloha": "observations/qpos",
    "calvin": "robot_obs",
    "lerobot": "observation.state",
    "libero": "obs/states",
    "rlds": "observation/state",
}
HAVE_OWN_VALIDATION = ("calvin", "rlds")  # a folder or split that `data.episodes` is not about
ENTRIES = ["x", "y", "z", "opening"]
MIXTURES = [
    name
    for name in options("data")
    if "sources:" in (Path(__file__).parents[2] / f"configs/data/{name}.yaml").read_text()
]


class Made(NamedTuple):
    """A data set of one format, and how it is read."""

    config: DataConfig
    root: Path

    def open(self, split: str = "train", **changes: Any) -> Reader:
        config = replace(self.config, **changes)
        return DATASETS.get(config.name)(config, split, views=list(config.views))


def config_of(option: str, *overrides: str) -> DataConfig:
    """Return the config of a data option with proprioception, what it asks for answered."""
    return completed(composed(f"data={option}", "view=side", "window=w1_c10", *overrides)).data


@pytest.fixture(scope="module", params=DATASETS.names())
def made(request, tmp_path_factory) -> Made:
    name = request.param
    key = PROPRIO[name]
    config = config_of(name, f"data.proprio_key={key}", f"data.proprio_names=[{','.join(ENTRIES)}]")
    root = tmp_path_factory.mktemp(name) / "made"
    return Made(make_miniature(config, root), root)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_split_has_episodes_with_frames_and_an_instruction(made, split):
    reader = made.open(split)
    assert reader.episodes
    assert all(episode.length > 20 and episode.instruction in TEXTS for episode in reader.episodes)


def contents(reader: Reader) -> dict[int, tuple[str, bytes, bytes]]:
    """Return what the episodes of a reader show, by the folder's own numbers."""
    steps = np.array([0, 3, 20])
    return {
        reader.number(i): (
            episode.instruction,
            b"".join(frames.tobytes() for frames in reader.frames(i, steps).values()),
            reader.numbers(i, np.arange(episode.length)).actions.tobytes(),
        )
        for i, episode in enumerate(reader.episodes)
    }


def test_chosen_episodes_are_those_of_their_numbers_and_no_others(made):
    has_fraction = hasattr(made.config, "validation_fraction")
    whole = contents(made.open(validation_fraction=0.0) if has_fraction else made.open())
    assert len(whole) == 4
    for text, kept in {"0-2": [0, 1, 2], "-1": [0, 2, 3], "[0,3]": [0, 3], "2-": [2, 3]}.items():
        found: dict[int, tuple[str, bytes, bytes]] = {}
        for split in ("train",) if made.config.name in HAVE_OWN_VALIDATION else ("train", "validation"):
            found |= contents(made.open(split, episodes=text))
        assert found == {number: whole[number] for number in kept}, text


def test_the_whole_folder_chosen_by_number_is_the_folder(made):
    for split in ("train", "validation"):
        whole, chosen = made.open(split), made.open(split, episodes="0-3")
        assert contents(whole) == contents(chosen)
        assert whole.fingerprint() == chosen.fingerprint()
    assert made.open().fingerprint() != made.open(episodes="2-3").fingerprint()


def test_a_packed_copy_is_read_for_the_episodes_that_it_was_made_of(made, tmp_path):
    (tmp_path / "keep.json").write_text("[0, 2, 3]")
    chosen = {"cache_dir": str(tmp_path), "cache": CacheMode.packed, "episodes": str(tmp_path / "keep.json")}
    config, views = replace(made.config, **chosen), list(made.config.views)
    reader = native_reader(config, "train", views)
    folder = packed_folder(config, "train", views, reader, ImageFormat.raw)
    pack(reader, folder, image_format=ImageFormat.raw, origin=origin_of(config, "train", views))
    for text in (config.episodes, "0,2-3", "[3,2,0]"):
        assert isinstance(open_reader(replace(config, episodes=text), "train", views), PackedReader)
    (tmp_path / "keep.json").write_text("[2, 3]")
    with pytest.raises(UserError, match="or its selection changed"):
        open_reader(config, "train", views)


def test_an_episode_that_there_is_not_and_an_empty_choice_are_refused(made):
    with pytest.raises(UserError, match=r"data\.episodes names 4, but .* has 4 episodes, 0-3"):
        made.open(episodes="4")
    with pytest.raises(UserError, match=r"data\.episodes=-0- leaves no episode"):
        made.open(episodes="-0-")


def test_frames_are_pictures_of_every_view_and_the_same_one_by_one_and_together(made):
    reader, steps = made.open(), np.array([0, 0, 3, 20])
    together = reader.frames(1, steps)
    assert list(together) == list(made.config.views)
    for view, frames in together.items():
        assert (frames.dtype, frames.shape) == (np.uint8, (4, *SIZE, 3))
        singly = [reader.frames(1, steps[i : i + 1])[view][0] for i in range(len(steps))]
        assert np.array_equal(frames, singly)
        assert not np.array_equal(frames[0], frames[2])


def test_idle_steps_are_left_out_of_every_format_as_if_they_were_never_recorded(made):
    whole = native_reader(made.config, "train", list(made.config.views))
    rows = whole.numbers(1, np.arange(whole.episodes[1].length)).actions
    sizes = step_sizes(rows, np.zeros(len(rows), np.int64), made.config.contract)
    idle = IdleConfig(threshold=float(np.quantile(sizes, 0.4)))
    kept = np.flatnonzero(sizes > np.float32(idle.threshold))
    config = replace(made.config, skip_idle=True, idle=idle)
    reader = native_reader(config, "train", list(config.views))
    number = [e.instruction for e in reader.episodes].index(whole.episodes[1].instruction)
    assert 0 < len(kept) < len(rows)
    assert reader.episodes[number].length == len(kept)
    assert np.array_equal(reader.numbers(number, np.arange(len(kept))).actions, rows[kept])
    for view, frames in reader.frames(number, np.array([0, 3])).items():
        assert np.array_equal(frames, whole.frames(1, kept[[0, 3]])[view])
    clip = reader.read(number, np.array([1]), np.array([1, 2]))
    assert np.array_equal(clip.numbers.actions, rows[kept[1:3]])
    assert reader.location(number, 0, 2) == whole.location(1, int(kept[0]), int(kept[2]))
    assert reader.fingerprint() != whole.fingerprint()
    other = replace(config, idle=IdleConfig(threshold=0.0))
    assert native_reader(other, "train", []).fingerprint() != reader.fingerprint()


def test_views_that_are_not_asked_for_are_not_read(made):
    reader = DATASETS.get(made.config.name)(made.config, "train", views=["side"])
    assert list(reader.frames(0, np.array([0]))) == ["side"]
    blind = DATASETS.get(made.config.name)(made.config, "train", views=[])
    assert blind.frames(0, np.array([0])) == {}
    assert blind.numbers(0, np.array([0])).actions.shape == (1, len(made.config.contract.names))


def test_numbers_are_a_row_a_frame_with_an_entry_a_name_and_the_same_one_by_one_and_together(made):
    reader, steps = made.open(), np.array([1, 2, 9, 20])
    actions, proprio = reader.numbers(1, steps)
    assert (actions.dtype, actions.shape) == (np.float32, (4, len(made.config.contract.names)))
    assert proprio is not None
    assert (proprio.dtype, proprio.shape) == (np.float32, (4, len(ENTRIES)))
    singly = [reader.numbers(1, steps[i : i + 1]) for i in range(len(steps))]
    assert np.array_equal(actions, np.concatenate([row.actions for row in singly]))
    assert np.array_equal(proprio, np.concatenate([row.proprio for row in singly]))
    assert len(np.unique(actions[:, 0])) == 4


def test_a_window_is_the_frames_and_the_numbers_of_its_steps(made):
    reader, observed, acted = made.open(), np.array([2, 3]), np.array([2, 3, 4, 5])
    clip = reader.read(0, observed, acted)
    for view, frames in reader.frames(0, observed).items():
        assert np.array_equal(clip.frames[view], frames)
    assert np.array_equal(clip.numbers.actions, reader.numbers(0, acted).actions)
    assert np.array_equal(clip.proprio, reader.numbers(0, observed).proprio)


def test_proprioception_is_none_where_no_key_is_set(made):
    reader = made.open(proprio_key=None, proprio_names=[])
    assert reader.numbers(0, np.array([0])).proprio is None
    assert reader.read(0, np.array([0]), np.array([0])).proprio is None


def test_a_pickled_reader_reads_the_same(made):
    reader = made.open()
    frames = reader.frames(0, np.array([4]))
    copy = pickle.loads(pickle.dumps(reader))
    assert all(np.array_equal(frames[view], copy.frames(0, np.array([4]))[view]) for view in frames)
    assert copy.fingerprint() == reader.fingerprint()


def test_what_is_said_names_a_file_that_is_there_the_folder_and_the_rate(made):
    reader = made.open()
    named = reader.location(1, 2, 5)
    assert any(str(path) in named for path in made.root.rglob("*") if path.is_file())
    assert str(made.root) in reader.summary()
    assert "\n" not in reader.summary()
    assert reader.fps in (None, made.config.contract.control_hz)


def test_a_fingerprint_is_the_same_for_the_same_data_and_another_for_others(made, tmp_path):
    assert made.open().fingerprint() == made.open().fingerprint()
    assert made.open().fingerprint() != made.open("validation").fingerprint()
    other = make_miniature(replace(made.config), tmp_path / "other", steps=25)
    assert made.open().fingerprint() != made._replace(config=other).open().fingerprint()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"root": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"views": {"side": "rgb_nowhere"}}, "data.views"),
        ({"proprio_key": "no_such_key"}, "data.proprio_key"),
        ({"proprio_names": ["x"]}, "data.proprio_names"),
    ],
)
def test_what_a_config_gets_wrong_is_said_with_its_option_when_the_folder_is_opened(made, changes, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        made.open(**changes)


def test_an_unknown_split_is_refused(made):
    with pytest.raises(ValueError, match="'test' does not exist"):
        made.open("test")


def test_a_fraction_thins_the_training_split_only(made):
    half = replace(made.config, fraction=0.5)
    whole = len(made.open().episodes)
    assert len(made._replace(config=half).open().episodes) == (whole + 1) // 2
    assert len(made._replace(config=half).open("validation").episodes) == len(made.open("validation").episodes)


def test_files_that_became_empty_after_opening_are_named_when_they_are_read(made, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(made.root, root)
    reader = made._replace(config=replace(made.config, root=str(root))).open()
    files = [path for path in root.rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(b"")
    with pytest.raises((ValueError, OSError)) as error:
        reader.frames(0, np.array([0]))
    assert any(str(path) in str(error.value) for path in files)


def copied(made: Made, root: Path, **changes: Any) -> tuple[DataConfig, Path]:
    """Return the config of a copy, and the file of it that `ONE_RECORD` names."""
    shutil.copytree(made.root, root)
    changes |= {"root": str(root), "cache_dir": str(root.with_suffix(".cache"))}
    (path,) = root.glob(ONE_RECORD[made.config.name])
    return replace(made.config, **changes), path


def cut_off(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def windows(config: DataConfig) -> WindowDataset:
    return WindowDataset(
        open_reader(config, "train", list(config.views)), Source.of(config), window_size=2, chunk_size=1
    )


def read_all(config: DataConfig) -> list[Sample]:
    dataset = windows(config)
    return [dataset[index] for index in range(len(dataset))]


def count_episodes(config: DataConfig) -> int:
    return sum(len(open_reader(config, split, []).episodes) for split in ("train", "validation"))


def is_named(path: Path, message: str) -> bool:
    return str(path) in message


def test_a_damaged_record_stops_the_start_or_a_read_by_name_and_with_the_option_that_leaves_it_out(made, tmp_path):
    config, path = copied(made, tmp_path / "copy")
    cut_off(path)
    with pytest.raises(UserError) as error:
        read_all(config)
    assert is_named(path, str(error.value))
    assert str(error.value).count("data.skip_bad=true") == 1


def test_with_skip_bad_a_damaged_record_is_left_out_and_counted_in_one_warning_that_does_not_advise(
    made, tmp_path, caplog
):
    config, path = copied(made, tmp_path / "copy", skip_bad=True)
    sound = count_episodes(config)
    cut_off(path)
    with caplog.at_level(logging.WARNING):
        samples = read_all(config)
    (warning,) = [record.message for record in caplog.records]
    assert re.match(r"data\.skip_bad: 1 of \d+ [a-z ]+ of \S+ are left out, the first because: ", warning)
    assert is_named(path, warning)
    assert "skip_bad=true" not in warning
    assert 0 < count_episodes(config) < sound
    assert all(np.isfinite(sample.actions).all() for sample in samples)


def test_with_skip_bad_a_data_set_of_damaged_records_alone_is_refused_without_advice(made, tmp_path):
    config, path = copied(made, tmp_path / "copy", skip_bad=True)
    for other in path.parent.glob(f"*{path.suffix.partition('-')[0]}*"):
        other.write_bytes(b"")
    with pytest.raises(UserError, match=r"None of the \d+ [a-z ]+ of \S+ can be used, the first because: ") as error:
        windows(config)
    assert "skip_bad=true" not in str(error.value)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_record_that_is_damaged_after_the_start_is_named_with_the_option_or_replaced(
    made, tmp_path, caplog, skip_bad
):
    config, path = copied(made, tmp_path / "copy", skip_bad=skip_bad)
    dataset = windows(config)
    index = next(i for i in range(len(dataset)) if path.name in dataset.location(i))
    path.write_bytes(b"")
    caplog.clear()
    if not skip_bad:
        with pytest.raises(UserError, match=r"data\.skip_bad=true") as error:
            dataset[index]
        assert is_named(path, str(error.value))
        return
    first, again = dataset[index], dataset[index]
    assert np.array_equal(first.actions, again.actions)
    assert caplog.records
    assert all(record.message.startswith("data.skip_bad: ") for record in caplog.records)
    assert not any("skip_bad=true" in record.message for record in caplog.records)


# ---- every option of the group


@pytest.mark.parametrize("option", [name for name in options("data") if name not in MIXTURES])
def test_every_data_option_reads_a_miniature_that_passes_its_own_checks(option, tmp_path):
    config = make_miniature(config_of(option), tmp_path / "made")
    for split in ("train", "validation"):
        reader = open_reader(config, split, list(config.views))
        sample = WindowDataset(reader, Source.of(config), window_size=4, chunk_size=3)[0]
        assert {view: frames.shape for view, frames in sample.frames.items()} == dict.fromkeys(
            config.views, (4, *SIZE, 3)
        )
        assert np.isfinite(sample.actions).all()


def test_an_instruction_of_the_episode_reads_as_one_of_the_steps(tmp_path):
    config = make_miniature(config_of("rlds", "data.language_key=episode_metadata/told"), tmp_path / "made")
    assert {episode.instruction for episode in open_reader(config, "train", ["side"]).episodes} == set(TEXTS)


def test_a_mixture_reads_a_miniature_of_each_of_its_sources(tmp_path):
    config = completed(composed("data=oxe", "view=side", "window=w4_c10"))
    plan = DataPlan.of(make_miniature(config.data, tmp_path / "made"), config.view.views)
    dataset = build_dataset(plan, config.window, "train")
    assert [size > 0 for size in dataset.sizes] == [True, True]


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_data_set_whose_files_are_git_lfs_pointers_says_so_before_a_frame_is_read(made, tmp_path, skip_bad):
    kinds = {path.suffix.partition("-")[0] for path in made.root.rglob("*") if path.is_file()} - {".yaml"}
    for kind in sorted(kinds):
        root = tmp_path / f"cloned{kind}"
        shutil.copytree(made.root, root)
        for path in root.rglob(f"*{kind}*"):
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
        config = replace(made.config, root=str(root), skip_bad=skip_bad, cache_dir=str(tmp_path / "cache"))
        with pytest.raises(UserError, match="Git LFS pointer, and its 12345 bytes are missing"):
            open_reader(config, "train", list(config.views)).numbers(0, np.array([0]))


def damage_first(root: Path, name: str) -> None:
    """Make the first episode of a miniature useless."""
    if name == "libero":
        import h5py

        with h5py.File(min(root.glob("*.hdf5")), "a") as file:
            del file["data/demo_0/actions"]
        return
    files = {"calvin": "training/*.npz", "aloha": "*.hdf5", "lerobot": "data/*/*.parquet"}
    min(root.glob(files[name])).write_bytes(b"damaged")


def test_damage_in_an_episode_that_is_left_out_stops_nobody(made, tmp_path):
    if made.config.name == "rlds":
        pytest.skip("its index reads every record once")
    root = shutil.copytree(made.root, tmp_path / "copy")
    damage_first(root, made.config.name)
    assert 0 not in contents(made.open(root=str(root), episodes="-0"))
    with pytest.raises((UserError, FileNotFoundError)):
        made.open(root=str(root))

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calvin_folder import CONTRACT

from robovlms.actions.plan import Source
from robovlms.commands.convert_data import convert_data
from robovlms.config.choices import CacheMode, ImageFormat, NormalizationMode
from robovlms.config.commands import ConvertDataConfig, PackConfig
from robovlms.config.data import ActionContract, IdleConfig, NormalizationConfig
from robovlms.config.policy import ViewConfig
from robovlms.data.base import EpisodeInfo, Numbers, Reader
from robovlms.data.calvin.reader import CalvinReader
from robovlms.data.calvin.schema import CalvinDataConfig
from robovlms.data.opening import open_reader
from robovlms.data.packed import shards as packing_shards
from robovlms.data.packed import writer as packing
from robovlms.data.packed.reader import PackedReader
from robovlms.data.packed.shards import encode_jpeg, lay_out
from robovlms.data.packed.writer import pack, verify
from robovlms.data.windows import WindowDataset
from robovlms.images.decoding import decode_own_jpeg

SEGMENTS = [(10, 16), (13, 20), (30, 35)]  # 6, 7 and 5 frames; the first two overlap in 13, 14 and 15
VIEWS = {"side": "rgb_static", "wrist": "rgb_gripper"}
Usage = namedtuple("Usage", "total used free")


def ramp(frame: int, size: int) -> np.ndarray:
    """Return a picture that JPEG stores well, and that tells its frame."""
    line = np.linspace(0, 200, size)
    return np.stack([line[:, None] + 0 * line, 0 * line[:, None] + line, np.full((size, size), 7.0 * frame)], 2).astype(
        np.uint8
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("training", "validation"):
        folder = tmp_path / "calvin" / split
        (folder / "lang_annotations").mkdir(parents=True)
        for frame in [*range(10, 21), *range(30, 36)]:
            action = np.full(7, frame / 100)
            arrays = {"rgb_static": ramp(frame, 32), "rgb_gripper": ramp(frame, 16)}
            np.savez(folder / f"episode_{frame:07d}.npz", rel_actions=action, robot_obs=action[:2], **arrays)
        language = {"ann": [f"do {i}" for i in range(3)], "task": ["a", "a", "b"]}
        np.save(folder / "lang_annotations" / "auto_lang_ann.npy", {"language": language, "info": {"indx": SEGMENTS}})
    return tmp_path / "calvin"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_shards, "MIN_SHARD_ROWS", 4)


def config(root: Path, **changed: object) -> CalvinDataConfig:
    contract = ActionContract(**CONTRACT)
    settings = {
        "name": "calvin",
        "root": str(root),
        "views": dict(VIEWS),
        "contract": contract,
        "normalization": NormalizationConfig(mode=NormalizationMode.bounds),
        "proprio_key": "robot_obs",
        "proprio_names": ["p", "q"],
        "cache_dir": str(root.parent / "cache"),
    }
    return CalvinDataConfig(**(settings | changed))


def native(root: Path) -> CalvinReader:
    return CalvinReader(config(root), "train", views=list(VIEWS))


def convert(data: CalvinDataConfig, **options: object) -> list[Path]:
    pack_config = PackConfig(**({"splits": ["train"]} | options))
    summaries = convert_data(ConvertDataConfig(data=data, view=ViewConfig(views=list(VIEWS)), pack=pack_config))
    return [summary.folder for summary in summaries]


def assert_equal(left: Reader, right: Reader, tolerance: int = 0) -> None:
    assert list(left.episodes) == list(right.episodes)
    for number, episode in enumerate(left.episodes):
        steps = np.arange(episode.length)
        a, b = left.read(number, steps[1:4], steps), right.read(number, steps[1:4], steps)
        for view in a.frames:
            difference = np.abs(a.frames[view].astype(int) - b.frames[view])
            assert difference.max() <= tolerance, (number, view)
        for mine, other in zip((*a.numbers, a.proprio), (*b.numbers, b.proprio), strict=True):
            np.testing.assert_array_equal(mine, other)


def test_raw_frames_and_numbers_are_exactly_the_native_ones(root: Path) -> None:
    summary = pack(native(root), root / "packed", image_format="raw")

    packed = PackedReader(root / "packed", views=["wrist", "side"])
    assert_equal(native(root), packed)
    assert summary.frames == 15  # 6 + 7 + 5, of which 3 are shared
    assert packed.index.shard_rows == 4
    assert packed.index.num_shards == 4
    assert "packed raw" in packed.summary()
    assert "rows 3-4, frames 0-1 of" in packed.location(1, 0, 1)
    assert "episode_0000013.npz" in packed.location(1, 0, 1)


def test_jpeg_frames_are_nearly_the_native_ones_and_smaller(root: Path) -> None:
    pack(native(root), root / "packed", image_format="jpeg")

    packed = PackedReader(root / "packed", views=["side", "wrist"])
    assert_equal(native(root), packed, tolerance=4)
    sizes = [entry.bytes for name, entry in packed.index.files.items() if name.startswith("side") and "bin" in name]
    assert sum(sizes) < 15 * 32 * 32 * 3


def test_shared_frames_get_one_row(root: Path) -> None:
    firsts, spans = lay_out(native(root))

    assert firsts.tolist() == [0, 3, 10]
    assert [tuple(span) for span in spans] == [(0, 0, 0, 6), (6, 1, 3, 4), (10, 2, 0, 5)]


def test_a_copy_without_idle_steps_is_read_with_the_same_choice_alone(root: Path) -> None:
    data = config(root, skip_idle=True, idle=IdleConfig(threshold=0.135))  # frames 10 to 13
    convert(data)
    packed = replace(data, cache=CacheMode.packed)
    reader = open_reader(packed, "train", list(VIEWS))
    assert isinstance(reader, PackedReader)
    assert [episode.length for episode in reader.episodes] == [2, 6, 5]
    assert_equal(open_reader(data, "train", list(VIEWS)), reader)
    assert reader.numbers(0, np.array([0])).actions[0, 0] == pytest.approx(0.14)
    for other in (replace(packed, skip_idle=False), replace(packed, idle=IdleConfig(threshold=0.145))):
        with pytest.raises(FileNotFoundError, match="is not packed"):
            open_reader(other, "train", list(VIEWS))


def test_windows_are_the_same_through_packed_data(root: Path) -> None:
    data = config(root)
    convert(data)
    packed = open_reader(replace(data, cache=CacheMode.packed), "train", list(VIEWS))
    assert isinstance(packed, PackedReader)
    ours, theirs = (WindowDataset(r, Source.of(data), window_size=3, chunk_size=4) for r in (packed, native(root)))
    assert len(ours) == len(theirs) == 12
    for index in range(12):
        np.testing.assert_array_equal(ours[index].frames["side"], theirs[index].frames["side"])
        np.testing.assert_array_equal(ours[index].actions, theirs[index].actions)
    np.testing.assert_array_equal(ours.rows(100).proprio, theirs.rows(100).proprio)


def test_consecutive_frames_of_a_shard_are_the_mapped_file_itself(root: Path) -> None:
    pack(native(root), root / "packed", image_format="raw")
    packed = PackedReader(root / "packed", views=["side"])

    window, again = (packed.frames(0, np.array([0, 1, 2]))["side"] for _ in range(2))
    assert np.shares_memory(window, again)
    assert not window.flags.writeable
    crossing = packed.frames(0, np.array([2, 3, 4, 5]))["side"]  # rows 2 ... 5; shards have 4
    repeated = packed.frames(0, np.array([1, 1, 3]))["side"]
    np.testing.assert_array_equal(crossing[:, 0, 0, 2], [84, 91, 98, 105])  # 7 x frame
    np.testing.assert_array_equal(repeated[:, 0, 0, 2], [77, 77, 91])


def test_a_complete_folder_is_left_alone(root: Path) -> None:
    pack(native(root), root / "packed", image_format="raw")
    before = {path.name: path.stat().st_mtime_ns for path in (root / "packed").iterdir()}

    summary = pack(native(root), root / "packed", image_format="raw")

    assert summary.num_packed == 0
    assert "nothing done" in str(summary)
    assert before == {path.name: path.stat().st_mtime_ns for path in (root / "packed").iterdir()}
    with pytest.raises(ValueError, match="holds other data"):
        pack(native(root), root / "packed", image_format="jpeg")


class _Killed(BaseException):
    pass


def test_a_killed_conversion_goes_on_where_it_stopped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = packing_shards.Packer.write

    def counting(self: packing_shards.Packer, shard: int) -> None:
        if len(written) == 2:
            (root / "packed" / "side-00002.bin").write_bytes(b"half a shard")
            raise _Killed
        written.append(shard)
        write(self, shard)

    monkeypatch.setattr(packing_shards.Packer, "write", counting)
    with pytest.raises(_Killed):
        pack(native(root), root / "packed", image_format="jpeg")
    with pytest.raises(FileNotFoundError, match=r"packing was not finished. Repeat the command"):
        PackedReader(root / "packed", views=["side"])
    (root / "packed" / "side-00000.bin").unlink()  # recorded as finished, but gone
    written.clear()
    monkeypatch.setattr(packing_shards.Packer, "write", lambda self, shard: (written.append(shard), write(self, shard)))

    summary = pack(native(root), root / "packed", image_format="jpeg")

    assert written == [0, 2, 3]
    assert summary.num_packed == 3
    verify(root / "packed")
    assert not (root / "packed" / packing.UNFINISHED).exists()
    assert_equal(native(root), PackedReader(root / "packed", views=list(VIEWS)), tolerance=4)


def test_what_another_plan_left_unfinished_is_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_finish", lambda *_: (_ for _ in ()).throw(_Killed()))
        with pytest.raises(_Killed):
            pack(native(root), root / "packed", image_format="raw")
    pack(native(root), root / "packed", image_format="jpeg")
    verify(root / "packed")
    assert PackedReader(root / "packed", views=["side"]).index.image_format == "jpeg"


@pytest.mark.slow
def test_two_processes_write_what_one_writes(root: Path) -> None:
    pack(native(root), root / "one", image_format="raw", workers=1)
    pack(native(root), root / "two", image_format="raw", workers=2)
    one, two = (json.loads((root / name / "index.json").read_text()) for name in ("one", "two"))
    assert one == two


def test_two_conversions_at_once_are_refused(root: Path) -> None:
    with packing._locked(root / "packed"), pytest.raises(ValueError, match="being packed by another process"):
        pack(native(root), root / "packed", image_format="raw")


def test_verification_finds_a_flipped_byte(root: Path) -> None:
    pack(native(root), root / "packed", image_format="raw")
    size = verify(root / "packed")
    assert size == sum(p.stat().st_size for p in (root / "packed").iterdir() if p.name != "index.json")
    path = root / "packed" / "wrist-00001.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"wrist-00001.bin is damaged"):
        verify(root / "packed")


@pytest.mark.parametrize("image_format", ["raw", "jpeg"])
def test_too_little_room_is_found_before_a_frame_is_written(
    root: Path, image_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 5000))
    with pytest.raises(
        ValueError, match=r"needs .* GB \(\d+ bytes\), but .*\(5000 bytes\) free: set data.cache_dir"
    ) as e:
        pack(native(root), root / "packed", image_format=image_format)
    assert ("(57600 bytes)" in str(e.value)) == (image_format == "raw")  # 15 x 3 x (32 x 32 + 16 x 16)
    assert not list((root / "packed").glob("*.bin"))


class Growing(Reader):
    """Two episodes; the second has larger pictures."""

    episodes = [EpisodeInfo(3, "do"), EpisodeInfo(3, "do")]

    def frames(self, episode, steps):
        return {"side": np.zeros((len(steps), 8 + 8 * episode, 8, 3), np.uint8)}

    def numbers(self, episode, steps):
        return Numbers(np.zeros((len(steps), 2), np.float32), None)

    def location(self, episode, first, last):
        return f"file {episode}"

    def summary(self):
        return "two episodes"

    def fingerprint(self):
        return "growing"


def test_frames_that_change_size_are_refused_with_the_episode(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"file 1: episode 1 has frames of 16 x 8 in view 'side', but the first has 8 x 8"
    ):
        pack(Growing(), tmp_path / "packed", image_format="raw")


def test_nothing_is_read_from_a_packed_copy_unless_asked_for(root: Path) -> None:
    convert(config(root))
    assert isinstance(open_reader(config(root), "train", ["side"]), CalvinReader)


def test_auto_reads_natively_where_nothing_is_packed_and_packed_where_it_is(root: Path) -> None:
    data = config(root, cache=CacheMode.auto)
    assert isinstance(open_reader(data, "train", ["side"]), CalvinReader)
    convert(data)
    assert isinstance(open_reader(data, "train", ["side"]), PackedReader)
    assert isinstance(open_reader(data, "train", []), PackedReader)  # numbers for statistics
    assert isinstance(open_reader(data, "validation", ["side"]), CalvinReader)
    assert isinstance(open_reader(replace(data, proprio_key=None, proprio_names=[]), "train", []), CalvinReader)


def test_raw_is_preferred_to_jpeg(root: Path) -> None:
    data = config(root, cache=CacheMode.auto)
    for image_format in (ImageFormat.jpeg, ImageFormat.raw):
        convert(data, image_format=image_format)
        reader = open_reader(data, "train", ["side"])
        assert isinstance(reader, PackedReader)
        assert reader.index.image_format == image_format


def test_packed_asks_for_the_conversion_with_its_command(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not packed. Pack it: python scripts/convert_data.py data=calvin"):
        open_reader(config(root, cache=CacheMode.packed), "train", ["side"])


def test_a_stale_copy_is_refused_or_passed_over_with_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = config(root, cache=CacheMode.auto)
    convert(data)
    os.utime(root / "training" / "lang_annotations" / "auto_lang_ann.npy", (1, 1))
    with caplog.at_level(logging.WARNING):
        assert isinstance(open_reader(data, "train", ["side"]), CalvinReader)
    assert "data.cache=auto reads natively" in caplog.text
    with pytest.raises(ValueError, match=r"was packed before .* changed. Pack again: python scripts/convert_data.py"):
        open_reader(replace(data, cache=CacheMode.packed), "train", ["side"])


def test_the_cache_lies_where_the_environment_says(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOVLMS_CACHE", str(root / "elsewhere"))
    (folder,) = convert(config(root, cache_dir=None))
    assert folder.parent == root / "elsewhere" / "packed"


def test_what_is_packed_can_be_verified_by_the_same_command(root: Path) -> None:
    (folder,) = convert(config(root))
    assert convert(config(root), verify=True) == []
    (folder / "texts.json").write_text("[]" + " " * ((folder / "texts.json").stat().st_size - 2))
    with pytest.raises(ValueError, match=r"texts.json is damaged"):
        convert(config(root), verify=True)


def change_index(folder: Path, **changed: object) -> None:
    content = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(content | changed))


def change_row(folder: Path) -> None:
    table = np.load(folder / "episodes.npy")
    table[0, 0] = 14  # of 15 rows, but the episode has 6 frames
    np.save(folder / "episodes.npy", table)


DAMAGE = {
    "missing": lambda folder: (folder / "side-00001.bin").unlink(),
    "short": lambda folder: (folder / "side-00001.bin").write_bytes(b"short"),
    "version": lambda folder: change_index(folder, version=99),
    "foreign": lambda folder: (folder / "index.json").write_text('{"version": 1, "weight_map": {}}'),
    "list": lambda folder: (folder / "index.json").write_text("[1, 2]"),
    "nested": lambda folder: (folder / "index.json").write_text("[" * 100_000),
    "huge": lambda folder: change_index(folder, rows=2**62),
    "text": lambda folder: change_index(folder, views={"side": ["32", 32]}),
    "outside": lambda folder: change_index(folder, views={"../side": [32, 32]}),
    "table": lambda folder: (folder / "episodes.npy").write_bytes(bytes((folder / "episodes.npy").stat().st_size)),
    "rows": change_row,
}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "side-00001.bin does not exist. Delete"),
        ("short", "side-00001.bin has 5 bytes, expected 12288. Delete"),
        ("version", "has version 99, but this program reads version 1. Delete"),
        ("foreign", "is not the index of a packed folder"),
        ("list", "has version None"),
        ("nested", "is not the index of a packed folder"),
        ("huge", "is not the index of a packed folder"),
        ("text", "is not the index of a packed folder"),
        ("outside", "is not the index of a packed folder"),
        ("table", "episodes.npy cannot be read"),
        ("rows", "episodes.npy refers to frames or texts that there are not"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused(root: Path, kind: str, message: str) -> None:
    folder = root / "packed"
    pack(native(root), folder, image_format="raw")
    DAMAGE[kind](folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace("[", r"\[")):
        PackedReader(folder, views=["side"])


def test_a_view_that_was_not_packed_is_refused(root: Path) -> None:
    pack(CalvinReader(config(root), "train", views=["side"]), root / "packed", image_format="raw")
    with pytest.raises(ValueError, match=r"holds the views \['side'\], not \['wrist'\]"):
        PackedReader(root / "packed", views=["wrist"])


def test_a_damaged_jpeg_is_named(root: Path) -> None:
    pack(native(root), root / "packed", image_format="jpeg")
    path = root / "packed" / "side-00000.bin"
    path.write_bytes(b"\x00" * path.stat().st_size)
    packed = PackedReader(root / "packed", views=["side"])
    with pytest.raises(ValueError, match=r"side-00000.bin: frame 1 cannot be decoded: not a JPEG"):
        packed.frames(0, np.array([1]))


def test_only_jpegs_of_the_expected_size_are_decoded_whatever_their_bytes() -> None:
    good = encode_jpeg(ramp(20, 16))
    assert decode_own_jpeg(good, 16, 16).shape == (16, 16, 3)
    with pytest.raises(ValueError, match=r"a JPEG of \(16, 16\), expected \(16, 32\)"):
        decode_own_jpeg(good, 16, 32)
    generator = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(good)
        for place in generator.integers(0, len(data), 3):
            data[place] = generator.integers(256)
        try:
            assert decode_own_jpeg(bytes(data[: generator.integers(len(data) // 2, len(data) + 1)]), 16, 16).shape == (
                16,
                16,
                3,
            )
        except ValueError:
            continue


def test_real_calvin_frames_survive_packing(shared_data: Path, tmp_path: Path) -> None:
    data = config(shared_data / "calvin_mini", proprio_key=None, proprio_names=[], cache_dir=str(tmp_path))
    reader = CalvinReader(data, "validation", views=list(VIEWS))
    for image_format in ImageFormat:
        pack(reader, tmp_path / image_format.value, image_format=image_format)
        packed = PackedReader(tmp_path / image_format.value, views=list(VIEWS))
        steps = np.arange(16)
        for view, frames in reader.frames(2, steps).items():
            error = np.abs(packed.frames(2, steps)[view].astype(int) - frames).mean()
            assert error == 0 if image_format is ImageFormat.raw else error < 2

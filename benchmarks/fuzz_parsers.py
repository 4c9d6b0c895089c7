"""What is fuzzed: for every parser, valid files and a reading of all that they hold."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("benchmarks", "tests", "tests/serving"))
sys.path.extend(str(path) for path in (Path(__file__).parents[1] / "tests/data").iterdir() if path.is_dir())

import fuzz_serving
import test_calvin
import test_lerobot
import test_libero
import test_packing
import test_rlds
from damaging import use
from recordings import MemoryReader, make_dataset
from rlds_folder import SPECS, episode, example, features_json, make_rlds_folder, record
from test_damaged_files import to_v2

from robovlms.actions.plan import Source
from robovlms.actions.statistics import import_statistics
from robovlms.backbones.families.nano import Nano
from robovlms.config.training import CotrainConfig
from robovlms.data.base import Reader
from robovlms.data.calvin.reader import CalvinReader
from robovlms.data.lerobot.reader import LeRobotReader
from robovlms.data.libero.reader import LiberoReader
from robovlms.data.loading.conversations import ConversationCollator, ConversationDataset
from robovlms.data.loading.sampler import Draw
from robovlms.data.packed import shards as packing_shards
from robovlms.data.packed.reader import PackedReader
from robovlms.data.packed.writer import pack
from robovlms.data.rlds.features import StepFeature, open_folder, read_features
from robovlms.data.rlds.reader import RldsReader
from robovlms.data.rlds.steps import read_numbers, read_pictures, read_texts
from robovlms.data.rlds.tfrecord import Feature, parse_example, scan_records
from robovlms.data.statistics import load_rows
from robovlms.data.windows import WindowDataset
from robovlms.images.processor import Processor

STEPS = 3
EXAMPLE = {
    **episode(1, STEPS, "lift the cup"),
    "steps/count": np.array([1, -1, 2**40], np.int64),
    "steps/raw": np.arange(STEPS * 4 * 6 * 3).reshape(STEPS, 4, 6, 3) % 256,
}
PAYLOADS = [b"first", b"", example(EXAMPLE), example(EXAMPLE) * 20]


class Parser(NamedTuple):
    """Write valid files into a folder and list those to damage; read everything in the folder."""

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], object]


def _put(folder: Path, name: str, data: bytes) -> list[Path]:
    (folder / name).write_bytes(data)
    return [folder / name]


def read_records(folder: Path) -> None:
    """Scan a file of TFRecords."""
    written = {found.payload for found in scan_records(folder / "records") if found.fault is None}
    if written - set(PAYLOADS):
        raise AssertionError("a payload that was not written passed its checksum")


def read_example(folder: Path) -> None:
    """Parse an Example and decode each of its lists in every way."""
    vector, scalar = StepFeature("tensor", "float32", (7,), "none"), StepFeature("tensor", "int64", (), "none")
    picture, raw = StepFeature("image", "uint8", (4, 6, 3), "none"), StepFeature("tensor", "uint8", (4, 6, 3), "none")
    packed = StepFeature("tensor", "uint8", (4, 6, 3), "zlib")
    steps = np.arange(STEPS)
    ways: list[Callable[[Feature], object]] = [
        lambda found: read_texts(StepFeature("text", "string", (), "none"), found),
        lambda found: read_texts(StepFeature("tensor", "int32", (8,), "none"), found),
        lambda found: read_numbers(vector, found),
        lambda found: read_numbers(scalar, found),
        lambda found: read_pictures(picture, found, steps, STEPS),
        lambda found: read_pictures(raw, found, steps, STEPS),
        lambda found: read_pictures(packed, found, steps, STEPS),
    ]
    for found in parse_example((folder / "example").read_bytes(), EXAMPLE).values():
        for way in ways:
            try:
                way(found)
            except ValueError:
                continue


def read_features_file(folder: Path) -> None:
    """Read a features.json."""
    for spec in read_features(folder / "features.json").values():
        _ = spec.is_picture, spec.is_numeric, spec.is_text, spec.width


def make_info(folder: Path) -> list[Path]:
    """Write a dataset_info.json."""
    _put(folder, "features.json", features_json(SPECS).encode())
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    split = {"name": "train", "shardLengths": ["3", "2"], "filepathTemplate": template}
    content = {"name": "toy", "fileFormat": "tfrecord", "splits": [split]}
    return _put(folder, "dataset_info.json", json.dumps(content).encode())


def read_info_file(folder: Path) -> None:
    """Read a dataset_info.json; nothing outside the folder may be named."""
    for shards in open_folder(folder).splits.values():
        if any(shard.path.parent != folder for shard in shards):
            raise AssertionError("a shard lies outside the folder")


def read_windows(reader: type[Reader], config: Any, views: list[str]) -> None:
    """Read a folder with and without skip_bad; raise what was refused."""
    for error in use(reader, config, views):
        raise error


def make_rlds(folder: Path) -> list[Path]:
    """Write a TFDS folder of three episodes in two shards."""
    shards = [[episode(0, 5, "pick"), episode(1, 3, "place")], [episode(2, 4, "pick")]]
    return sorted(make_rlds_folder(folder / "toy", {"train": shards}).iterdir())


def read_rlds(folder: Path) -> None:
    """Index the folder anew and read it."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    config = test_rlds.config(folder / "toy", cache_dir=str(folder / "cache"))
    read_windows(RldsReader, config, ["side"])


def make_libero(folder: Path) -> list[Path]:
    """Write a file of two demonstrations."""
    return [test_libero.write(folder / "push_the_cube_demo.hdf5", lengths=[3, 4])]


def read_libero(folder: Path) -> None:
    """Read its windows."""
    config = test_libero.make_config(folder / "push_the_cube_demo.hdf5")
    read_windows(LiberoReader, config, ["side", "wrist"])


def make_calvin(folder: Path) -> list[Path]:
    """Write a CALVIN folder of two segments, with its scenes and a few-shot file."""
    for split in ("training", "validation"):
        for frame in [*range(10, 14), *range(20, 23)]:
            test_calvin.write_frame(folder / split, frame)
        test_calvin.write_annotations(folder / split, [(10, 13), (20, 22)])
        np.save(folder / split / "ep_start_end_ids.npy", np.array([[10, 13], [20, 22]]))
        np.save(folder / split / "scene_info.npy", {"calvin_scene_A": [10, 14], "calvin_scene_B": [20, 22]})
    (folder / "few.json").write_text(json.dumps({"task_0": [[10, 13]], "task_1": [[20, 22]]}), encoding="utf-8")
    files = [*sorted((folder / "training").rglob("*.np[yz]")), folder / "few.json"]
    return [path for path in files if path.suffix != ".npz" or path.stem.endswith(("10", "20"))]


def read_calvin(folder: Path) -> None:
    """Read windows with language, with play, of a scene and of the few-shot file."""
    for options in ({}, {"play_instruction": "play"}, {"scenes": ["A"]}, {"few_shot_file": str(folder / "few.json")}):
        read_windows(CalvinReader, test_calvin.config(folder, **options), ["side"])


def make_lerobot(folder: Path) -> list[Path]:
    """Write a folder of v3.0 and one of v2.1, with embedded pictures."""
    v3 = test_lerobot.write(folder / "v3")
    v2 = to_v2(v3, folder / "v2")
    return [path for root in (v2, v3) for path in sorted(root.rglob("*.*")) if path.is_file()]


def read_lerobot(folder: Path) -> None:
    """Read windows of both."""
    for version in ("v2", "v3"):
        read_windows(LeRobotReader, test_lerobot.make_config(folder / version), ["side", "wrist"])


def make_video(folder: Path) -> list[Path]:
    """Write a folder of v3.0 with videos."""
    return sorted(test_lerobot.write(folder / "v3", video=True).rglob("*.mp4"))


def read_video(folder: Path) -> None:
    """Read its windows."""
    read_windows(LeRobotReader, test_lerobot.make_config(folder / "v3"), ["side", "wrist"])


def make_packed(folder: Path) -> list[Path]:
    """Pack a CALVIN folder, raw and as JPEGs."""
    packing_shards.MIN_SHARD_ROWS = 4
    make_calvin(folder / "calvin")
    reader = CalvinReader(test_packing.config(folder / "calvin"), "train", views=list(test_packing.VIEWS))
    for form in ("raw", "jpeg"):
        pack(reader, folder / form, image_format=form)
    return [path for form in ("raw", "jpeg") for path in sorted((folder / form).iterdir()) if path.stat().st_size]


def read_packed(folder: Path) -> None:
    """Read every episode of both copies."""
    for form in ("raw", "jpeg"):
        reader = PackedReader(folder / form, views=list(test_packing.VIEWS))
        for number, found in enumerate(reader.episodes):
            reader.location(number, 0, max(found.length - 1, 0))
            if 0 < found.length < 100:
                reader.read(number, np.arange(found.length), np.arange(found.length))


def make_vl(folder: Path) -> list[Path]:
    """Write conversations as an array and as lines, about a PNG and a JPEG."""
    for name in ("1.png", "2.jpg"):
        Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)).save(folder / name)
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a cup"}]
    rows = [{"id": i, "image": name, "conversations": turns * (i + 1)} for i, name in enumerate(["1.png", "2.jpg"])]
    rows[1]["conversations"] = [turns[0], turns[1], {"from": "human", "value": "Why?"}, turns[1]]
    rows.append({"conversations": [{"from": "user", "value": "é?"}, {"from": "assistant", "value": "é!"}]})
    (folder / "array.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (folder / "lines.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return sorted(folder.iterdir())


BACKBONE = Nano.tiny()


def read_vl(folder: Path) -> None:
    """Read the conversations and turn them into tokens."""
    processor = Processor(BACKBONE, ["side"], max_text_tokens=64)
    for name in ("array.json", "lines.jsonl"):
        config = CotrainConfig(name="vl", file=str(folder / name), image_folder=str(folder))
        collate = ConversationCollator(config, BACKBONE.tokenize, processor.image_spec.size)
        dataset = ConversationDataset(config, processor)
        for i in range(len(dataset)):
            collate([(dataset[i], Draw(i, i))])


def make_statistics(folder: Path) -> list[Path]:
    """Write statistics in the layouts of RoboVLMs, OpenVLA and openpi."""
    columns = {name: [0.5] * 7 for name in ("mean", "std", "min", "max", "q01", "q99")}
    layouts = {
        "robovlms.json": {"action": columns},
        "openvla.json": {"norm_stats": {"bridge": {"action": columns}, "fractal": {"action": columns}}},
        "openpi.json": {"norm_stats": {"state": columns, "actions": columns}},
    }
    for name, content in layouts.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return sorted(folder.iterdir())


def read_statistics(folder: Path) -> None:
    """Import each."""
    for path in folder.glob("*.json"):
        import_statistics(path, "bridge" if path.stem == "openvla" else None, 7)


def make_cache(folder: Path) -> list[Path]:
    """Keep the rows of an RLDS folder and its index."""
    make_rlds(folder)
    read_cache(folder)
    return sorted((folder / "cache").glob("*.npz"))


def read_cache(folder: Path) -> None:
    """Open the folder and give its rows: what is kept is used or made anew, never an error."""
    config = test_rlds.config(folder / "toy", cache_dir=str(folder / "cache"))
    try:
        dataset = WindowDataset(
            RldsReader(config, "train", views=["side"]), Source.of(config), window_size=2, chunk_size=2
        )
        load_rows(dataset, 100), dataset[0]
        load_rows(make_dataset(MemoryReader([4, 5]), cache_dir=str(folder / "cache")), 100)
    except (ValueError, OSError) as error:
        if "records" in str(error) or "tfrecord" in str(error):  # a place that is not a record's is told at reading
            raise
        raise AssertionError("a damaged file of the cache is an error") from error


PARSERS: dict[str, Parser] = {
    "tfrecord": Parser(lambda folder: _put(folder, "records", b"".join(map(record, PAYLOADS))), read_records),
    "example": Parser(lambda folder: _put(folder, "example", example(EXAMPLE)), read_example),
    "features": Parser(lambda folder: _put(folder, "features.json", features_json(SPECS).encode()), read_features_file),
    "info": Parser(make_info, read_info_file),
    "rlds": Parser(make_rlds, read_rlds),
    "libero": Parser(make_libero, read_libero),
    "calvin": Parser(make_calvin, read_calvin),
    "lerobot": Parser(make_lerobot, read_lerobot),
    "video": Parser(make_video, read_video),
    "packed": Parser(make_packed, read_packed),
    "vl": Parser(make_vl, read_vl),
    "statistics": Parser(make_statistics, read_statistics),
    "cache": Parser(make_cache, read_cache),
    "messages": Parser(fuzz_serving.make(fuzz_serving.PACKED), fuzz_serving.read),
    "pickles": Parser(fuzz_serving.make(fuzz_serving.PICKLED), fuzz_serving.read),
}

"""Whatever a downloaded file holds, reading it ends in ValueError or OSError that a user can act on; no other error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damaging import break_file, damage, kept, use
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_calvin import config as calvin_config
from test_calvin import write_annotations, write_frame
from test_lerobot import make_config, write

from robovlms.actions.plan import Source
from robovlms.data.calvin.reader import CalvinReader
from robovlms.data.lerobot.reader import LeRobotReader
from robovlms.data.windows import WindowDataset

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
edges = st.sampled_from(
    [0, -1, 2**31, 2**63, 2**64, 10**30, float("inf"), float("nan"), "", "..", "{", "{video_key}", []]
)


def to_v2(root: Path, target: Path) -> Path:
    """Write the embedded folder of `write` as v2.1."""
    (target / "meta").mkdir(parents=True)
    (target / "data/chunk-000").mkdir(parents=True)
    info = json.loads((root / "meta/info.json").read_text())
    info |= {
        "codebase_version": "v2.1",
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    }
    info["video_path"] = None
    (target / "meta/info.json").write_text(json.dumps(info))
    table = pq.read_table(root / "data/chunk-000/file-000.parquet")
    numbers = table["episode_index"].to_numpy()
    tasks = pq.read_table(root / "meta/tasks.parquet").to_pydict()
    lines = [{"task_index": i, "task": t} for i, t in zip(tasks["task_index"], tasks["__index_level_0__"], strict=True)]
    (target / "meta/tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"episode_index": int(i), "length": int((numbers == i).sum())} for i in np.unique(numbers)]
    (target / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number in np.unique(numbers).tolist():
        rows = table.filter(pa.array(numbers == number))
        pq.write_table(rows, target / f"data/chunk-000/episode_{number:06d}.parquet")
    return target


@pytest.fixture(scope="module")
def v3(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("v3") / "demos")


@pytest.fixture(scope="module")
def v3_video(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "demos", video=True)


@pytest.fixture(scope="module")
def v2(tmp_path_factory, v3) -> Path:
    return to_v2(v3, tmp_path_factory.mktemp("v2") / "demos")


@pytest.fixture(scope="module")
def calvin(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("calvin")
    for frame in [*range(10, 14), *range(20, 23)]:
        write_frame(root / "training", frame)
    write_annotations(root / "training", [(10, 13), (20, 22)])
    np.save(root / "training/ep_start_end_ids.npy", np.array([[10, 13], [20, 22]]))
    return root


def test_the_small_v2_folder_reads_as_its_v3_twin(v2, v3):
    ours, theirs = (
        WindowDataset(LeRobotReader(c, "train", views=["side"]), Source.of(c), window_size=3, chunk_size=2)
        for c in (make_config(v2), make_config(v3))
    )
    for index in range(len(theirs)):
        np.testing.assert_array_equal(ours[index].actions, theirs[index].actions)
        np.testing.assert_array_equal(ours[index].frames["side"], theirs[index].frames["side"])


@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize(
    "key", ["codebase_version", "fps", "features", "total_frames", "data_path", "video_path", "chunks_size"]
)
@given(value=values | edges)
@quick
def test_any_value_in_info_json(request, version, key, value):
    root = request.getfixturevalue(version)
    path = root / "meta/info.json"
    with kept(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
        use(LeRobotReader, make_config(root), ["side"])


@pytest.mark.parametrize("field", ["dtype", "shape"])
@given(value=values | edges | st.lists(st.integers(-2, 5), max_size=3))
@quick
def test_any_value_in_a_feature(v3, field, value):
    path = v3 / "meta/info.json"
    with kept(path):
        info = json.loads(path.read_text())
        info["features"]["action"][field] = value
        path.write_text(json.dumps(info))
        use(LeRobotReader, make_config(v3), ["side"])


@pytest.mark.parametrize(
    ("name", "fields"), [("tasks", ["task_index", "task"]), ("episodes", ["episode_index", "length"])]
)
@given(index=st.integers(0, 1), line=st.integers(0, 1), value=values | edges | st.integers(0, 9))
@quick
def test_any_value_in_the_lines_of_a_v2_folder(v2, name, fields, index, line, value):
    path = v2 / f"meta/{name}.jsonl"
    with kept(path):
        rows = [json.loads(row) for row in path.read_text().splitlines()]
        rows[line][fields[index]] = value
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        use(LeRobotReader, make_config(v2), ["side"])


FILES = {
    "v2": ["meta/info.json", "meta/tasks.jsonl", "meta/episodes.jsonl", "data/chunk-000/episode_000000.parquet"],
    "v3": [
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
    ],
    "v3_video": ["videos/observation.images.side/chunk-000/file-000.mp4"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("version", "file"), [(version, file) for version, files in FILES.items() for file in files])
@given(changes=damage())
@quick
def test_any_bytes_in_a_lerobot_folder(request, version, file, changes):
    root = request.getfixturevalue(version)
    with kept(root / file):
        break_file(root / file, changes)
        use(LeRobotReader, make_config(root), ["side"])


@pytest.mark.parametrize(
    "column", ["length", "dataset_from_index", "data/chunk_index", "episode_index", "data/file_index"]
)
@given(value=st.integers(-3, 20) | st.sampled_from([2**31, 2**62, None]))
@quick
def test_any_number_in_the_episodes_of_a_v3_folder(v3, column, value):
    path = v3 / "meta/episodes/chunk-000/file-000.parquet"
    with kept(path):
        table = pq.read_table(path)
        place, rows = table.schema.get_field_index(column), table[column].to_pylist()
        rows[1] = value
        pq.write_table(table.set_column(place, table.schema.field(column), pa.array(rows, pa.int64())), path)
        use(LeRobotReader, make_config(v3), ["side"])


@pytest.mark.parametrize("column", ["timestamp", "task_index", "action", "episode_index", "observation.images.side"])
@pytest.mark.parametrize("kind", ["text", "null", "vector", "nothing", "nan"])
def test_any_type_of_a_column(v3, tmp_path, column, kind):
    root = tmp_path / "demos"
    shutil.copytree(v3, root)
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    place, rows = table.schema.get_field_index(column), table.num_rows
    if kind == "nothing":
        pq.write_table(table.remove_column(place), path)
    else:
        new = {
            "text": pa.array(["a"] * rows),
            "null": pa.nulls(rows, pa.float32()),
            "vector": pa.array([[1.0, 2.0]] * rows),
            "nan": pa.array([float("nan")] * rows),
        }[kind]
        pq.write_table(table.set_column(place, column, new), path)
    use(LeRobotReader, make_config(root), ["side"])


@pytest.mark.parametrize("numbers", [[[0], [1]], ["0", "1"], [0, None]])
def test_any_numbers_of_tasks(v3, tmp_path, numbers):
    root = tmp_path / "demos"
    shutil.copytree(v3, root)
    path = root / "meta/tasks.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("task_index")
    pq.write_table(table.set_column(place, "task_index", pa.array(numbers)), path)
    refused = use(LeRobotReader, make_config(root), ["side"])
    assert "must hold one whole task_index" in str(refused[0])


def test_text_that_is_not_utf8(v3, tmp_path):
    root = tmp_path / "demos"
    shutil.copytree(v3, root)
    path = root / "meta/tasks.parquet"
    data = path.read_bytes()
    assert b"open the drawer" in data
    path.write_bytes(data.replace(b"open the drawer", b"open the dr\x80wer"))
    refused = use(LeRobotReader, make_config(root), ["side"])
    assert "tasks.parquet cannot be read as parquet (" in str(refused[0])


@given(changes=damage())
@quick
def test_any_bytes_in_a_calvin_frame(calvin, changes):
    path = calvin / "training/episode_0000011.npz"
    with kept(path):
        break_file(path, changes)
        use(CalvinReader, calvin_config(calvin), ["side"])


@pytest.mark.parametrize("name", ["lang_annotations/auto_lang_ann.npy", "ep_start_end_ids.npy"])
@given(changes=damage())
@quick
def test_any_bytes_in_the_index_of_a_calvin_folder(calvin, name, changes):
    path = calvin / "training" / name
    with kept(path):
        break_file(path, changes)
        use(CalvinReader, calvin_config(calvin, play_instruction="play"), ["side"])


annotations = values | edges | st.lists(st.tuples(st.integers(), st.integers()), max_size=2)


@pytest.mark.parametrize("part", ["ann", "task", "indx", "language", "everything"])
@given(value=annotations | st.just([(10, 2**62), (20, 22)]) | st.just([(-(2**62), 2**62), (20, 22)]))
@quick
def test_any_value_in_the_annotations(calvin, part, value):
    path = calvin / "training/lang_annotations/auto_lang_ann.npy"
    with kept(path):
        content: object = {
            "language": {"ann": ["a", "b"], "task": ["t", "t"]} | {part: value},
            "info": {"indx": value if part == "indx" else [(10, 13), (20, 22)]},
        }
        if part == "language":
            content = {"language": value, "info": {"indx": [(10, 13)]}}
        wrapped = np.empty((), object)
        wrapped[()] = value if part == "everything" else content
        np.save(path, wrapped)
        use(CalvinReader, calvin_config(calvin), ["side"])


@given(value=values | edges | st.dictionaries(st.text(max_size=3), st.lists(st.lists(leaves, max_size=3), max_size=2)))
@quick
def test_any_value_in_a_few_shot_file(calvin, tmp_path_factory, value):
    path = tmp_path_factory.mktemp("few") / "few.json"
    path.write_text(json.dumps(value))
    use(CalvinReader, calvin_config(calvin, few_shot_file=str(path)), ["side"])


@pytest.fixture(scope="module")
def libero(tmp_path_factory) -> Path:
    pytest.importorskip("h5py")
    from test_libero import write as write_hdf5

    return write_hdf5(tmp_path_factory.mktemp("libero") / "push_the_cube_demo.hdf5", lengths=[3, 4])


@pytest.mark.slow
@given(changes=damage())
@settings(quick, max_examples=100)
def test_any_bytes_in_a_libero_file(libero, changes):
    from test_libero import make_config as libero_config

    from robovlms.data.libero.reader import LiberoReader

    with kept(libero):
        break_file(libero, changes)
        use(LiberoReader, libero_config(libero), ["side", "wrist"])

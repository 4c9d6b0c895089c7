"""Tiny, valid data folders of every format, with the keys, views and entries that a data config names.

A new format adds its maker to `MAKERS`, and a file to `ONE_RECORD`: the contract test of the readers and
every preset's first step ask for them.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rlds_folder import TEXT, make_rlds_folder
from scipy.spatial.transform import Rotation as Turn

from robovlms.actions.contract import POSITION_NAMES, ROTATION_NAMES, position_entries, rotation_entries
from robovlms.config.choices import Representation, RLDSTransform, Rotation
from robovlms.config.data import ActionContract, DataConfig, MixtureDataConfig
from robovlms.data.aloha.schema import AlohaDataConfig
from robovlms.data.calvin.schema import CalvinDataConfig
from robovlms.data.lerobot.schema import LeRobotDataConfig
from robovlms.data.libero.schema import LiberoDataConfig
from robovlms.data.rlds.schema import RLDSDataConfig

EPISODES, STEPS = 4, 30  # more steps than any preset's window
SIZE = (32, 40)  # height, width
TEXTS = ["open the drawer", "close the drawer"]


def make_miniature(data: DataConfig, root: Path, *, steps: int = STEPS) -> Any:
    """Write a data set of `EPISODES` episodes that `data` can read, and return the config with its root.

    Of a mixture every source gets a folder of its own below `root`.
    """
    if isinstance(data, MixtureDataConfig):
        sources = {name: make_miniature(source, root / name, steps=steps) for name, source in data.sources.items()}
        return replace(data, root=str(root), sources=sources)
    assert data.name in MAKERS, f"data={data.name} has no miniature: write its maker into {__file__}"
    root.mkdir(parents=True)
    MAKERS[data.name](data, root, steps)
    return replace(data, root=str(root))


# ---- numbers


def action_rows(contract: ActionContract, steps: int, seed: int) -> np.ndarray:
    """Return random actions that can mean what the contract says; the gripper is open, then closed."""
    generator = np.random.default_rng(seed)
    is_delta = contract.representation is Representation.delta
    rows = generator.uniform(-0.5, 0.5, (steps, len(contract.names)))
    moves = generator.uniform(-0.02, 0.02, (steps, 3))
    positions = position_entries(contract.names)
    if positions:
        metres = moves if is_delta else 0.4 + moves
        rows[:, positions] = metres[:, : len(positions)] / (contract.position_unit or 1)
    turns = rotation_entries(contract.names, contract.rotation)
    if turns:
        rows[:, turns] = _rotations(generator, contract.rotation, steps)[:, : len(turns)]
        if contract.rotation not in (Rotation.quaternion, Rotation.rotation_6d):
            rows[:, turns] /= contract.rotation_unit or 1
    if contract.names[-1] == "gripper":
        rows[:, -1] = np.where(np.arange(steps) < steps // 2, contract.gripper_open, contract.gripper_closed)
    return rows.astype(np.float32)


def proprio_rows(names: list[str], rotation: Rotation, steps: int, seed: int) -> np.ndarray:
    """Return random states, their poses near a place."""
    generator = np.random.default_rng(seed)
    rows = generator.uniform(0, 1, (steps, len(names)))
    turns = rotation_entries(names, rotation) if rotation is not Rotation.none else []
    if turns:
        rows[:, turns] = _rotations(generator, rotation, steps)
    return rows.astype(np.float32)


def _rotations(generator: np.random.Generator, kind: Rotation, steps: int) -> np.ndarray:
    angles = generator.uniform(-0.05, 0.05, (steps, 3))
    turns = Turn.from_euler("xyz", angles)
    if kind is Rotation.quaternion:
        return turns.as_quat()
    if kind is Rotation.rotation_6d:
        return turns.as_matrix()[:, :, :2].transpose(0, 2, 1).reshape(steps, 6)
    return turns.as_rotvec() if kind is Rotation.axis_angle else angles


def columns_of(text: str, names: list[str], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns that `text`, e.g. a[0:3]+a[6]+b, puts together to `rows`, one entry a name."""
    pieces = [re.fullmatch(r"([^\[\]]+)(?:\[(\d+)(?::(\d+))?\])?", piece.strip()) for piece in text.split("+")]
    assert all(pieces), text
    spans = [(m[1], int(m[2]), int(m[3] or int(m[2]) + 1)) if m[2] else (m[1], 0, None) for m in pieces]
    free = len(names) - sum(last - first for _, first, last in spans if last is not None)
    widths = iter(_divide(names[:free], sum(last is None for *_, last in spans)))
    spans = [(key, first, next(widths) if last is None else last) for key, first, last in spans]
    columns = {key: np.zeros((len(rows), max(end for k, _, end in spans if k == key)), np.float32) for key, *_ in spans}
    place = 0
    for key, first, last in spans:
        columns[key][:, first:last] = rows[:, place : (place := place + last - first)]
    assert place == len(names), f"{text} has {place} entries, but there are {len(names)} names"
    return columns


def _divide(names: list[str], count: int) -> list[int]:
    """Divide entries among keys as robots do: positions, rotations, the rest; the last of the rest for itself."""
    turns = {name for kind in ROTATION_NAMES.values() for name in kind}
    kinds = [0 if name.lstrip("d") in POSITION_NAMES else 1 if name.removeprefix("d") in turns else 2 for name in names]
    sizes = [size for kind in range(3) if (size := kinds.count(kind))]
    while len(sizes) > max(count, 1):
        sizes[:2] = [sum(sizes[:2])]
    if count and len(sizes) < count:
        sizes[-1:] = [sizes[-1] - 1, 1]
    assert len(sizes) == count or not names, f"{names} in {count} keys"
    return sizes


def pictures(steps: int, seed: int) -> np.ndarray:
    """Return frames in which a bright square moves."""
    frames = np.full((steps, *SIZE, 3), 10 * seed + 20, np.uint8)
    for step in range(steps):
        frames[step, step % 20 : step % 20 + 8, 4 + seed : 12 + seed] = 255
    return frames


def png(frame: np.ndarray) -> bytes:
    """Return a frame as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def numbers_of(data: Any, steps: int, seed: int) -> dict[str, np.ndarray]:
    """Return the columns of an episode's actions and proprioception, by the data set's keys."""
    rows = action_rows(data.contract, steps, seed)
    columns = columns_of(data.action_key, data.contract.names, rows)
    if data.proprio_key:
        states = proprio_rows(data.proprio_names, data.proprio_rotation, steps, seed)
        for key, values in columns_of(data.proprio_key, data.proprio_names, states).items():
            if key not in columns:
                columns[key] = values
            elif values.shape[1] > columns[key].shape[1]:
                columns[key] = np.concatenate([columns[key], values[:, columns[key].shape[1] :]], axis=1)
    return columns


# ---- formats


def make_calvin(data: CalvinDataConfig, root: Path, steps: int) -> None:
    """Write npz files, language annotations, the recordings' bounds and scene A, of both splits."""
    for split, count in ((data.train_split, EPISODES), (data.validation_split, EPISODES // 2)):
        folder = root / split
        (folder / "lang_annotations").mkdir(parents=True)
        bounds = [(number * 2 * steps, number * 2 * steps + steps) for number in range(count)]
        for number, (start, end) in enumerate(bounds):
            _write_npz(data, folder, range(start, end + 1), number)
        texts = [TEXTS[number % 2] for number in range(count)]
        language = {"ann": texts, "task": [text.replace(" ", "_") for text in texts]}
        np.save(folder / "lang_annotations" / "auto_lang_ann.npy", {"language": language, "info": {"indx": bounds}})
        np.save(folder / "ep_start_end_ids.npy", np.array(bounds))
        np.save(
            folder / "scene_info.npy", {f"calvin_scene_{data.scenes[0] if data.scenes else 'A'}": (0, bounds[-1][1])}
        )


def _write_npz(data: CalvinDataConfig, folder: Path, frames: range, seed: int) -> None:
    arrays = {"rel_actions": action_rows(data.contract, len(frames), seed).astype(np.float64).clip(-1, 1)}
    if data.proprio_key:
        arrays[data.proprio_key] = proprio_rows(data.proprio_names, data.proprio_rotation, len(frames), seed)
    arrays |= {key: pictures(len(frames), seed) for key in data.views.values()}
    for place, frame in enumerate(frames):
        np.savez(folder / f"episode_{frame:07d}.npz", **{key: rows[place] for key, rows in arrays.items()})


def make_lerobot(data: LeRobotDataConfig, root: Path, steps: int) -> None:
    """Write a v2.1 folder with embedded pictures."""
    for folder in ("meta", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    fps = int(data.contract.control_hz)
    schema: dict[str, Any] = {}
    for number in range(EPISODES):
        numbers = numbers_of(data, steps, number)
        images = {
            key: [{"bytes": png(p), "path": None} for p in pictures(steps, number)] for key in data.views.values()
        }
        scalars = {
            "timestamp": (np.arange(steps) / fps).astype(np.float32),
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, number),
            "index": number * steps + np.arange(steps),
            "task_index": np.full(steps, number % 2),
            data.language_key: np.full(steps, number % 2),
        }
        schema = {key: {"dtype": "float32", "shape": [v.shape[1]], "names": None} for key, v in numbers.items()}
        schema |= {key: {"dtype": "image", "shape": [*SIZE, 3], "names": None} for key in images}
        schema |= {key: {"dtype": values.dtype.name, "shape": [1], "names": None} for key, values in scalars.items()}
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {key: pa.array(values.tolist(), pa.list_(pa.float32())) for key, values in numbers.items()}
        columns |= {key: pa.array(cells, kind) for key, cells in images.items()} | scalars
        pq.write_table(pa.table(columns), root / f"data/chunk-000/episode_{number:06d}.parquet")
    tasks = [{"task_index": i, "task": text} for i, text in enumerate(TEXTS)]
    episodes = [{"episode_index": n, "tasks": [TEXTS[n % 2]], "length": steps} for n in range(EPISODES)]
    for name, lines in (("tasks", tasks), ("episodes", episodes)):
        (root / "meta" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = {
        "codebase_version": "v2.1", "robot_type": "arm", "total_episodes": EPISODES, "total_tasks": len(TEXTS),
        "total_frames": EPISODES * steps, "total_videos": 0, "total_chunks": 1, "chunks_size": 1000, "fps": fps,
        "splits": {"train": f"0:{EPISODES}"}, "video_path": None, "features": schema,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    }  # fmt: skip
    (root / "meta" / "info.json").write_text(json.dumps(info))


def make_rlds(data: RLDSDataConfig, root: Path, steps: int) -> None:
    """Write two shards of the training split and one of the validation split."""
    written = [_rlds_episode(data, steps, number) for number in range(EPISODES)]
    specs: dict[str, Any] = {}
    for key, values in written[0].items():
        if not key.startswith("steps/"):
            continue
        spec: dict[str, Any] = TEXT
        if isinstance(values, np.ndarray):
            shape = {"dimensions": [str(values.shape[1])]}
            spec = {"tensor": {"shape": shape, "dtype": "float32", "encoding": "none"}}
        elif key.removeprefix("steps/") in _rlds_pictures(data):
            shape = {"dimensions": [str(size) for size in (*SIZE, 3)]}
            spec = {"image": {"shape": shape, "dtype": "uint8", "encodingFormat": "png"}}
        _nest(specs, key.removeprefix("steps/"), spec)
    context: dict[str, Any] = {}
    if data.success_key:
        _nest(context, data.success_key, {"tensor": {"shape": {}, "dtype": "bool"}})
    if _is_of_episode(data.language_key):
        _nest(context, data.language_key, TEXT)
    splits = {
        data.train_split: [written[: EPISODES // 2], written[EPISODES // 2 :]],
        data.validation_split: [written[:1]],
    }
    make_rlds_folder(root, splits, specs, context=context)


def _is_of_episode(key: str) -> bool:
    return key.startswith("episode_metadata/")


def _rlds_pictures(data: RLDSDataConfig) -> set[str]:
    return {key if "/" in key else f"observation/{key}" for key in data.views.values()}


def _rlds_episode(data: RLDSDataConfig, steps: int, number: int) -> dict[str, Any]:
    numbers = numbers_of(data, steps, number)
    if data.transform is RLDSTransform.bridge:  # which takes actions from states
        states = numbers.get("observation/state", np.zeros((steps, 7), np.float32))
        states[:, :6] = np.cumsum(action_rows(data.contract, steps, number)[:, :6], axis=0)
        numbers["observation/state"] = states
    if data.transform is RLDSTransform.gripper_motions:  # +1 closes
        key = data.action_key.split("+")[-1]
        numbers[key.partition("[")[0]][:, -1] = np.where(np.arange(steps) < steps // 2, -1, 1)
    frames = [png(frame) for frame in pictures(steps, number)]
    episode: dict[str, Any] = {f"steps/{key}": values for key, values in numbers.items()}
    episode |= {f"steps/{key}": frames for key in _rlds_pictures(data)}
    text = [TEXTS[number % 2].encode()]
    if _is_of_episode(data.language_key):
        episode[data.language_key] = text
    else:
        episode[f"steps/{data.language_key}"] = text * steps
    return episode | ({data.success_key: np.array([1])} if data.success_key else {})


def _nest(tree: dict[str, Any], key: str, spec: dict[str, Any]) -> None:
    *groups, leaf = key.split("/")
    for group in groups:
        tree = tree.setdefault(group, {})
    tree[leaf] = spec


def make_libero(data: LiberoDataConfig, root: Path, steps: int) -> None:
    """Write a file of demonstrations for each instruction."""
    import h5py

    for task, text in enumerate(TEXTS):
        with h5py.File(root / f"{text.replace(' ', '_')}_demo.hdf5", "w") as file:
            group = file.create_group("data")
            group.attrs["problem_info"] = json.dumps({"language_instruction": text})
            group.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": data.contract.control_hz}})
            for number in range(EPISODES // 2):
                columns = numbers_of(data, steps, 2 * task + number)
                columns |= {k if "/" in k else f"obs/{k}": pictures(steps, number) for k in data.views.values()}
                for key, values in columns.items():
                    group[f"demo_{number}/{key}"] = values


def make_aloha(data: AlohaDataConfig, root: Path, steps: int) -> None:
    """Write a file for each episode; pictures of the first view are encoded, padded with zeros."""
    import h5py

    for number in range(EPISODES):
        with h5py.File(root / f"episode_{number}.hdf5", "w") as file:
            frames = pictures(steps, number)
            for key, values in numbers_of(data, steps, number).items():
                file[key] = values
            for place, key in enumerate(data.views.values()):
                file[key if "/" in key else f"observations/images/{key}"] = frames if place else padded(frames)
            if data.instruction is None:
                file.attrs[data.language_key] = TEXTS[number % 2]


def padded(frames: np.ndarray) -> np.ndarray:
    """Return frames as PNG, one a row, filled up with zeros."""
    encoded = [png(frame) for frame in frames]
    rows = np.zeros((len(encoded), max(map(len, encoded)) + 5), np.uint8)
    for row, data in zip(rows, encoded, strict=True):
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return rows


MAKERS: dict[str, Callable[[Any, Path, int], None]] = {
    "aloha": make_aloha,
    "calvin": make_calvin,
    "lerobot": make_lerobot,
    "libero": make_libero,
    "rlds": make_rlds,
}

ONE_RECORD = {  # a file of the training split, but for RLDS and LIBERO of one episode, that a test may damage
    "aloha": "episode_1.hdf5",
    "calvin": "training/episode_0000065.npz",
    "lerobot": "data/*/episode_000001.parquet",
    "libero": "close_the_drawer_demo.hdf5",
    "rlds": "**/*train*00001-of-00002",
}

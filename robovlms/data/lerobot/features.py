"""What a LeRobotDataset that we write says of its columns: the features of `meta/info.json`, arrow's schema, tasks.

Source: github.com/huggingface/lerobot, src/lerobot/datasets/{feature_utils,io_utils}.py.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

SCALARS = {  # columns of every data set, one number a frame
    "timestamp": "float32",  # seconds since the episode's first frame
    "frame_index": "int64",  # within the episode
    "episode_index": "int64",
    "index": "int64",  # within the data set
    "task_index": "int64",
}
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # the `Image` of the `datasets` library


def feature_key(view: str) -> str:
    """Return the feature that holds a camera's frames."""
    return f"observation.images.{view}"


def make_features(
    fps: int, action_names: list[str], proprio_names: list[str], sizes: dict[str, tuple[int, int]], video: bool
) -> dict[str, dict[str, Any]]:
    """Describe the features of a data set as `meta/info.json` does; `sizes` are (height, width) by view."""
    features: dict[str, dict[str, Any]] = {}
    for view, (height, width) in sizes.items():
        feature: dict[str, Any] = {"shape": [height, width, 3], "names": ["height", "width", "channels"]}
        if video:
            info = {"height": height, "width": width, "channels": 3, "fps": fps, "codec": "h264", "pix_fmt": "yuv420p"}
            info = {f"video.{key}": value for key, value in info.items()}
            feature["info"] = {**info, "video.is_depth_map": False, "has_audio": False}
        features[feature_key(view)] = {"dtype": "video" if video else "image", **feature}
    for key, names in (("observation.state", proprio_names), ("action", action_names)):
        if not names:
            continue
        features[key] = {"dtype": "float32", "shape": [len(names)], "names": names}
    return features | {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in SCALARS.items()}


def arrow_schema(features: dict[str, dict[str, Any]]) -> pa.Schema:
    """Return the columns of a data file, with the note by which the `datasets` library recognises images."""
    columns = {key: _column_type(feature) for key, feature in features.items() if feature["dtype"] != "video"}
    notes = {key: note for key, (_, note) in columns.items()}
    fields = [(key, kind) for key, (kind, _) in columns.items()]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": notes}})})


def _column_type(feature: dict[str, Any]) -> tuple[pa.DataType, dict[str, Any]]:
    dtype, shape = feature["dtype"], feature["shape"]
    if dtype == "image":
        return IMAGE_TYPE, {"_type": "Image"}
    kind, note = pa.type_for_alias(dtype), {"dtype": dtype, "_type": "Value"}
    if len(shape) > 1:
        for _ in shape:
            kind = pa.list_(kind)
        return kind, {"shape": shape, "dtype": dtype, "_type": f"Array{len(shape)}D"}
    size = shape[0] if shape else 1
    if size == 1:  # lerobot stores vectors of one entry as scalars
        return kind, note
    return pa.list_(kind, size), {"feature": note, "length": size, "_type": "Sequence"}


def make_tasks_table(tasks: list[str]) -> pa.Table:
    """Return the table that pandas reads as a frame of `task_index`, indexed by the instruction."""
    name = "__index_level_0__"
    text: dict[str, Any] = {"pandas_type": "unicode", "numpy_type": "object"}
    number: dict[str, Any] = {"pandas_type": "int64", "numpy_type": "int64"}
    note = {
        "index_columns": [name],
        "column_indexes": [{**text, "name": None, "field_name": None, "metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", **number, "metadata": None},
            {"name": None, "field_name": name, **text, "metadata": None},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.3",
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), name: pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(note)})

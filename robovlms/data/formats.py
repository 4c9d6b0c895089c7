"""What a folder holds, by its listing: for the message of a reader that finds something else than its own format."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from robovlms.data.files.hdf5 import top_level

MAX_LISTED = 2000  # entries that are looked at: a data set may have millions
CONVERT = "convert it to a LeRobot data set (lerobot's LeRobotDataset.create and add_frame) and set data=lerobot"


class Format(NamedTuple):
    """A format of robot data."""

    name: str
    to_do: str
    sign: str  # what it is recognised by, for people
    option: str | None = None  # of `data=` that reads it


def recognise(root: Path) -> Format | None:
    """Return the format of a file or folder; None where it is missing or unknown."""
    if not root.exists():
        return None
    listed = list(islice(root.iterdir(), MAX_LISTED)) if root.is_dir() else []
    return next((format_ for test, format_ in _FORMATS if test(root, listed)), None)


def foreign(root: Path, option: str) -> str | None:
    """Say what `data.root` holds and what to do, where it is a known format that `data=<option>` does not read."""
    found = recognise(root)
    if found is None or found.option == option:
        return None
    return f"data.root={root} holds {found.name}, which data={option} does not read: {found.to_do}."


def _has(*names: str) -> Callable[[Path, list[Path]], bool]:
    """Test for files or folders below the root, by glob."""
    return lambda root, _: any(next(root.glob(name), None) is not None for name in names)


def _named(*patterns: str) -> Callable[[Path, list[Path]], bool]:
    """Test for names of the root itself, or of what is listed in it."""
    return lambda root, listed: any(path.match(pattern) for pattern in patterns for path in (root, *listed))


def _hdf5(*members: str) -> Callable[[Path, list[Path]], bool]:
    """Test for members of the first HDF5 file."""

    def test(root: Path, listed: list[Path]) -> bool:
        files = [path for path in ([root] if root.is_file() else sorted(listed)) if path.suffix in (".hdf5", ".h5")]
        return bool(files) and set(members) <= top_level(files[0])

    return test


def _lance_in(root: Path, listed: list[Path]) -> bool:
    """Test for a LeRobot folder whose tables are Lance's."""
    if not (root / "meta/info.json").is_file() or any((root / "data").glob("**/*.parquet")):
        return False
    return any(next(root.glob(pattern), None) is not None for pattern in ("*.lance", "*/*.lance", "*/*/*.lance"))


def signs() -> list[str]:
    """List what the formats are recognised by."""
    return [f"{format_.sign} ({format_.name})" for _, format_ in _FORMATS]


_FORMATS: list[tuple[Callable[[Path, list[Path]], bool], Format]] = [  # those that are read come first
    (
        _lance_in,
        Format(
            "a LeRobot data set whose tables are Lance's",
            "load it with the library that wrote it, and write it as parquet (lerobot's LeRobotDataset.create and "
            "add_frame, then data=lerobot)",
            "meta/info.json with *.lance",
        ),
    ),
    (_has("meta/info.json"), Format("a LeRobot data set", "set data=lerobot", "meta/info.json", "lerobot")),
    (
        _has("dataset_info.json", "*/dataset_info.json"),
        Format("an RLDS (TFDS) data set", "set data=rlds", "dataset_info.json", "rlds"),
    ),
    (
        _has("training/episode_*.npz", "episode_*.npz"),
        Format("CALVIN's frames", "set data=calvin", "training/episode_*.npz", "calvin"),
    ),
    (_hdf5("data"), Format("HDF5 files of LIBERO or robomimic", "set data=libero", "*.hdf5 with /data", "libero")),
    (
        _hdf5("action", "observations"),
        Format(
            "HDF5 files of ALOHA/ACT (/action and /observations, an episode each)",
            "set data=aloha and data.instruction='<what the robot does>', or convert them to a LeRobot data set",
            "*.hdf5 with /action and /observations",
            "aloha",
        ),
    ),
    (
        _hdf5("joint_action", "observation"),
        Format(
            "RoboTwin's raw HDF5 files (/joint_action and /observation, states without actions)",
            "convert them with RoboTwin's own scripts, which make the next state the action: process_data.sh of "
            "policy/ACT writes what data=aloha reads, that of policy/pi0 with its convert_aloha_data_to_lerobot writes "
            "what data=lerobot reads",
            "*.hdf5 with /joint_action",
        ),
    ),
    (
        lambda root, _: (root / "index.json").is_file() and (root / "actions.npy").is_file(),
        Format(
            "a packed copy that scripts/convert_data.py made",
            "set data.root to the data set that it was packed from, origin.root of its index.json: with "
            "data.cache=packed the copy is read",
            "index.json with actions.npy",
        ),
    ),
    (
        _named("*.zarr", "*.zarr.zip", ".zgroup", ".zattrs", "zarr.json"),
        Format("zarr arrays (Diffusion Policy, UMI)", CONVERT, "*.zarr"),
    ),
    (_named("*.lance"), Format("a Lance data set", CONVERT, "*.lance")),
    (
        _named("*.tar", "*.tar.gz", "*.tgz"),
        Format("tar archives, a WebDataset or a packed download", f"unpack them, or {CONVERT}", "*.tar"),
    ),
    (_named("*.mcap", "*.bag", "*.db3"), Format("recordings of ROS", CONVERT, "*.mcap, *.bag, *.db3")),
    (
        _named("*.arrow", "dataset_dict.json"),
        Format("a table of Hugging Face's datasets library", CONVERT, "*.arrow"),
    ),
]

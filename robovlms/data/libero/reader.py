"""Demonstrations of LIBERO and robomimic: HDF5 files with one group a demonstration.

    /data                       attributes problem_info, env_args (JSON), num_demos, total
    /data/demo_0/actions        T x 7: position and axis-angle deltas, controller units; gripper -1 open, +1 closed
    /data/demo_0/obs/...        T rows each: agentview_rgb, eye_in_hand_rgb, ee_states, gripper_states (LIBERO);
                                agentview_image, robot0_eef_pos (robomimic)

LIBERO files have no frame from before the first action: frame i was taken after action i, and LIBERO itself trains on
such pairs.
Source: github.com/Lifelong-Robot-Learning/LIBERO scripts/create_dataset.py; github.com/ARISE-Initiative/robomimic.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from robovlms.data.base import EpisodeInfo, Numbers, Reader
from robovlms.data.files.opened import OpenFiles
from robovlms.data.files.vectors import VectorSpec
from robovlms.data.libero.hdf5 import child, dataset, is_group, names, naming, open_hdf5, read_rows
from robovlms.data.libero.schema import LiberoDataConfig
from robovlms.data.splits import check_split, choose_episodes
from robovlms.errors import UserError
from robovlms.registry import DATASETS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """Where one lies and what it shows."""

    file: Path
    name: str  # of its group in /data
    length: int
    instruction: str


@DATASETS.register("libero")
class LiberoReader(Reader):
    """Demonstrations of one file, or of every `*_demo.hdf5` of a folder; a file is a task to split by.

    The constructor opens every file and looks at the shapes of what will be read; with `data.skip_bad` at the numbers
    too. Frames and numbers are read window by window through files that every loader process opens for itself. Links
    and datasets that lie in other files are refused.

    Pictures are turned by 180 degrees with `data.flip`: LIBERO records them in OpenGL's order, bottom row first.
    OpenVLA and openpi turn them so, which also mirrors them, and their checkpoints expect that. robomimic's are
    upright: set it to false. A `mask` group is not looked at: splits are the same as for every other data set.

    Args:
        config: `views` maps our views to datasets of a demonstration, obs/ may be left out.
        split: "train" or "validation": see `choose_episodes`.
        views: the views to read, by our names.

    Raises:
        ImportError: h5py is not installed.
        FileNotFoundError: there is no such file, or no `*_demo.hdf5` in the folder.
        UserError: a file is damaged, contradicts itself or the config; names the file and the option to change.
    """

    def __init__(self, config: LiberoDataConfig, split: str, *, views: list[str]) -> None:
        check_split(split)
        self._config, self._split, self._root = config, split, Path(config.root).expanduser()
        self._keys = {view: key if "/" in (key := config.views[view]) else f"obs/{key}" for view in views}
        self._opened = OpenFiles(open_hdf5)
        self._sizes: dict[str, tuple[int, ...]] = {}  # of a view's pictures, as in the first readable demonstration
        self._action: VectorSpec | None = None
        self._proprio: VectorSpec | None = None
        found = self._find(_files(self._root))
        chosen = choose_episodes([demo.file.name for demo in found], split, config.validation_fraction, config.fraction)
        self._demos = [found[i] for i in chosen]
        self.episodes = [EpisodeInfo(demo.length, demo.instruction, demo.file.stem) for demo in self._demos]

    def frames(self, episode: int, steps: Int64[np.ndarray, "w"]) -> dict[str, UInt8[np.ndarray, "w _h _x c"]]:
        """Read the pictures of some frames, turned upright."""
        demo = self._demos[episode]
        with naming(demo.file):
            group = self._group(demo)
            pictures = {view: read_rows(dataset(group, key), steps) for view, key in self._keys.items()}
        turned = (slice(None), slice(None, None, -1), slice(None, None, -1)) if self._config.flip else ...
        return {view: np.ascontiguousarray(picture[turned]) for view, picture in pictures.items()}

    def numbers(self, episode: int, steps: Int64[np.ndarray, "n"]) -> Numbers:
        """Read actions and proprioception of some frames.

        Raises:
            UserError: one is not finite.
        """
        return self._numbers(self._demos[episode], steps)

    def location(self, episode: int, first: int, last: int) -> str:
        """Name the file, the demonstration and its frames."""
        return f"{self._demos[episode].file}: {self._demos[episode].name}, frames {first}-{last}"

    def summary(self) -> str:
        """Describe the split in one line."""
        return (
            f"libero {self._root} ({self._split}): {len({demo.file for demo in self._demos})} files, "
            f"{len(self._demos)} demonstrations, {sum(demo.length for demo in self._demos)} frames, "
            f"{len({demo.instruction for demo in self._demos})} instructions"
        )

    def fingerprint(self) -> str:
        """Return the files with sizes and times, and the demonstrations that are used."""
        files = [f"{f} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in sorted({d.file for d in self._demos})]
        return f"libero {self._root.resolve()} {files} {[(d.file.name, d.name, d.length) for d in self._demos]}"

    def _find(self, files: list[Path]) -> list[Demonstration]:
        good: list[Demonstration] = []
        faults: list[ValueError] = []
        for path in files:
            try:
                with open_hdf5(path) as file, naming(path):
                    data = _data(file)
                    instruction = self._instruction(path, data)
                    self._read_rate(path, data)
                    for name in _demo_names(path, data):
                        try:
                            good.append(self._look_at(path, name, child(data, name), instruction))
                        except ValueError as error:
                            faults.append(error)
            except ValueError as error:
                faults.append(error)
        if faults and (not self._config.skip_bad or not good):
            raise faults[0]
        if faults:
            logger.warning(
                "data.skip_bad: %d files or demonstrations of %s dropped, %d left, the first because: %s",
                len(faults),
                self._root,
                len(good),
                faults[0],
            )
        return good

    def _look_at(self, path: Path, name: str, group: Any, instruction: str) -> Demonstration:
        """Check the shapes of a demonstration; with `data.skip_bad` that its numbers are finite, too."""
        if not is_group(group):
            raise UserError(f"{path}: {name} is not a group.")
        self._read_specs(path, group)
        assert self._action is not None
        numeric = [*self._action.keys, *(self._proprio.keys if self._proprio else [])]
        with naming(path):
            sizes = {key: dataset(group, key).shape for key in [*numeric, *self._keys.values()]}
            kinds = {key: dataset(group, key).dtype for key in self._keys.values()}
        for spec in [self._action, *([self._proprio] if self._proprio else [])]:
            spec.check_columns(sizes, path)
        length = sizes[numeric[0]][0]
        told, hint = f"{path}: {name}", "Repair the file, or set data.skip_bad=true to drop such demonstrations."
        if not length:
            raise UserError(f"{told} has no frame. {hint}")
        if uneven := {key: size[0] for key, size in sizes.items() if size[0] != length}:
            raise UserError(f"{told} has {length} rows of {numeric[0]}, but of others {uneven}. {hint}")
        for view, key in self._keys.items():
            if kinds[key] != np.uint8 or len(sizes[key]) != 4 or sizes[key][3] != 3 or 0 in sizes[key]:
                raise UserError(
                    f"{told}: {key} is {kinds[key]} {sizes[key]}, but data.views.{view} must be pictures (uint8, "
                    "frames x height x width x 3)."
                )
            if sizes[key][1:] != (expected := self._sizes.setdefault(view, sizes[key][1:])):
                raise UserError(
                    f"{told}: {key} is of {sizes[key][1:]}, but the first of the data set of {expected}. {hint}"
                )
        demo = Demonstration(file=path, name=name, length=length, instruction=instruction)
        if self._config.skip_bad:
            self._take(demo, group, np.arange(length))
        return demo

    def _read_specs(self, path: Path, group: Any) -> None:
        """Understand the options that put vectors together, by the first demonstration."""
        if self._action is not None:
            return
        with naming(path):
            shapes = {name: found.shape[1:] for name in names(group) if (found := child(group, name)).shape}
        config = self._config
        if config.proprio_key:
            self._proprio = VectorSpec(config.proprio_key, "data.proprio_key", shapes, path)
            self._proprio.check_width(config.proprio_names, "data.proprio_names")
        action = VectorSpec(config.action_key, "data.action_key", shapes, path)
        action.check_width(config.contract.names, "data.contract.names")
        self._action = action

    def _numbers(self, demo: Demonstration, steps: Int64[np.ndarray, "n"]) -> Numbers:
        with naming(demo.file):
            return self._take(demo, self._group(demo), steps)

    def _take(self, demo: Demonstration, group: Any, steps: Int64[np.ndarray, "n"]) -> Numbers:
        assert self._action is not None
        return Numbers(
            self._vector(self._action, demo, group, steps),
            self._vector(self._proprio, demo, group, steps) if self._proprio else None,
        )

    def _vector(
        self, spec: VectorSpec, demo: Demonstration, group: Any, steps: Int64[np.ndarray, "n"]
    ) -> Float32[np.ndarray, "n d"]:
        rows = spec.take({key: read_rows(dataset(group, key), steps) for key in spec.keys}, demo.file)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            frame = int(steps[np.argmin(finite)])
            raise UserError(
                f"{demo.file}: {'+'.join(spec.keys)} of {demo.name}, frame {frame} is not finite. "
                "Repair the file, or set data.skip_bad=true to drop such demonstrations."
            )
        return rows

    def _group(self, demo: Demonstration) -> Any:
        return child(_data(self._opened[demo.file]), demo.name)

    def _instruction(self, path: Path, data: Any) -> str:
        text: Any
        if self._config.instruction is not None:
            text = self._config.instruction
        elif "problem_info" in data.attrs:
            told = _json_attribute(path, data, "problem_info").get("language_instruction")
            text = (
                "".join(told).strip('"') if isinstance(told, list) and all(isinstance(t, str) for t in told) else told
            )
        else:
            text = instruction_of(path)
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{path} says no instruction: set data.instruction='<what the robot does>'.")
        return text.strip().strip('"')

    def _read_rate(self, path: Path, data: Any) -> None:
        if "env_args" not in data.attrs:
            return
        options = _json_attribute(path, data, "env_args").get("env_kwargs")
        hz = options.get("control_freq") if isinstance(options, dict) else None
        if not isinstance(hz, int | float):
            return
        if self.fps is None:
            self.fps = float(hz)
        if hz != self.fps:
            raise UserError(
                f"{path} was recorded at {hz:g} actions a second, files before it at {self.fps:g}: give it a data.root "
                "of its own, e.g. as a part of data=mixture."
            )


def instruction_of(path: Path) -> str | None:
    """Return the instruction in a name such as KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5; None: not of this form.

    Source: LIBERO libero/benchmark/__init__.py, grab_language_from_filename.
    """
    match = re.fullmatch(r"(?:[A-Z_]+SCENE\d+_)?(.+)_demo", path.stem)
    return match[1].replace("_", " ") if match else None


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    if not root.exists():
        raise FileNotFoundError(f"data.root={root} does not exist: set it to a HDF5 file, or a folder of *_demo.hdf5.")
    if found := sorted(root.glob("*_demo.hdf5")):
        return found
    deeper = sorted({str(path.parent) for path in root.glob("*/*_demo.hdf5")} | {str(p) for p in root.glob("*.hdf5")})
    hint = f"Set data.root={' or '.join(deeper[:8])}." if deeper else "Set data.root to a folder of a LIBERO suite."
    raise FileNotFoundError(f"data.root={root} has no *_demo.hdf5. {hint}")


def _data(file: Any) -> Any:
    data = child(file, "data")
    if not is_group(data):
        raise UserError(f"{file.filename} has no group /data: it is not a file of LIBERO or robomimic.")
    return data


def _demo_names(path: Path, data: Any) -> list[str]:
    found = sorted((int(match[1]), name) for name in data if (match := re.fullmatch(r"demo_(\d{1,9})", name)))
    if not found:
        raise UserError(f"{path} has no demo_0, demo_1, ... in /data.")
    told = data.attrs.get("num_demos")
    if told is not None and not np.array_equal(told, len(found)):
        logger.warning("%s says num_demos=%s, but holds %d: the latter counts", path, told, len(found))
    return [name for _, name in found]


def _json_attribute(path: Path, data: Any, name: str) -> dict[str, Any]:
    try:
        content = json.loads(data.attrs[name])
        if not isinstance(content, dict):
            raise TypeError("not an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: attribute {name} of /data must be a JSON object ({error}).") from error
    return content

"""Demonstrations in HDF5 files: what LIBERO, robomimic and ALOHA have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from robovlms.config.data import Hdf5DataConfig
from robovlms.data.bad_records import BadRecords
from robovlms.data.base import EpisodeInfo, Numbers, Reader
from robovlms.data.files.hdf5 import child, dataset, is_group, names, naming, open_hdf5, picture_size, read_rows
from robovlms.data.files.opened import OpenFiles
from robovlms.data.files.vectors import VectorSpec
from robovlms.data.selection import EpisodeSelection
from robovlms.data.splits import check_split, choose_episodes
from robovlms.errors import UserError
from robovlms.progress import track
from robovlms.registry import nearest


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """Where one lies and what it shows."""

    file: Path
    name: str  # of its group; "" is the file itself
    length: int
    instruction: str
    number: int = 0  # among the demonstrations of all files

    def __str__(self) -> str:
        return f"{self.file}: {self.name.rpartition('/')[2]}" if self.name else str(self.file)


class Hdf5Reader(Reader):
    """Demonstrations of the files of a folder, each a group of datasets with a row a frame.

    The constructor opens every file and looks at the shapes of what will be read; with `data.skip_bad` at the numbers
    too. Frames and numbers are read window by window through files that every loader process opens for itself. Links
    and datasets that lie in other files are refused.

    Args:
        config: `views` maps our views to datasets of a demonstration, `image_group` may be left out.
        split: "train" or "validation": see `choose_episodes`.
        views: the views to read, by our names.

    Raises:
        ImportError: h5py is not installed.
        FileNotFoundError: there is no such file, or the folder has none of this format.
        UserError: a file is damaged, contradicts itself or the config; names the file and the option to change.
    """

    name: ClassVar[str]  # of the format
    image_group: ClassVar[str]  # in which a view lies whose key is no path
    without_pictures: ClassVar[str]  # what to do about files that have none
    is_one_a_file: ClassVar[bool] = False  # every file is a demonstration

    def __init__(self, config: Hdf5DataConfig, split: str, *, views: list[str]) -> None:
        check_split(split)
        self._config, self._split, self._root = config, split, Path(config.root).expanduser()
        keys = {view: config.views[view] for view in views}
        self._keys = {view: key if "/" in key else f"{self.image_group}/{key}" for view, key in keys.items()}
        self._opened = OpenFiles(open_hdf5)
        self._sizes: dict[str, tuple[int, int]] = {}  # of a view's pictures, as in the first readable demonstration
        self._action: VectorSpec | None = None
        self._proprio: VectorSpec | None = None
        found = self._find(self._files(self._root), EpisodeSelection.parse(config.episodes))
        tasks = [self._task(demo) for demo in found]
        chosen = choose_episodes(tasks, split, config.validation_fraction, config.fraction)
        self._demos = [found[i] for i in chosen]
        self.episodes = [EpisodeInfo(demo.length, demo.instruction, self._task(demo)) for demo in self._demos]

    @abstractmethod
    def _files(self, root: Path) -> list[Path]:
        """List the files of `data.root`."""

    @abstractmethod
    def _groups(self, path: Path, file: Any) -> list[str]:
        """Name the groups of an open file that are demonstrations; "" is the file itself."""

    @abstractmethod
    def _instruction(self, path: Path, file: Any, group: str) -> str:
        """Return what a demonstration of an open file was told."""

    @abstractmethod
    def _task(self, demo: Demonstration) -> str:
        """Return what splits are balanced over."""

    def _rate(self, path: Path, file: Any) -> float | None:
        """Return the frames a second that an open file says it has."""
        return None

    @abstractmethod
    def _pictures(self, view: str, found: Any, steps: Int64[np.ndarray, "w"]) -> UInt8[np.ndarray, "w _h _x c"]:
        """Read pictures of a dataset, upright."""

    def frames(self, episode: int, steps: Int64[np.ndarray, "w"]) -> dict[str, UInt8[np.ndarray, "w _h _x c"]]:
        """Read the pictures of some frames, upright."""
        demo = self._demos[episode]
        with naming(demo.file):
            group = self._group(demo)
            found = {view: dataset(group, key) for view, key in self._keys.items()}
            return {view: self._pictures(view, pictures, steps) for view, pictures in found.items()}

    def numbers(self, episode: int, steps: Int64[np.ndarray, "n"]) -> Numbers:
        """Read actions and proprioception of some frames.

        Raises:
            UserError: one is not finite.
        """
        demo = self._demos[episode]
        with naming(demo.file):
            return self._take(demo, self._group(demo), steps)

    def number(self, episode: int) -> int:
        """Return its number among the demonstrations of all files, in the order of the files."""
        return self._demos[episode].number

    def location(self, episode: int, first: int, last: int) -> str:
        """Name the file, the demonstration and its frames."""
        return f"{self._demos[episode]}, frames {first}-{last}"

    def summary(self) -> str:
        """Describe the split in one line."""
        return (
            f"{self.name} {self._root} ({self._split}): {len({demo.file for demo in self._demos})} files, "
            f"{len(self._demos)} demonstrations, {sum(demo.length for demo in self._demos)} frames, "
            f"{len({demo.instruction for demo in self._demos})} instructions"
        )

    def fingerprint(self) -> str:
        """Return the files with sizes and times, and the demonstrations that are used."""
        files = [f"{f} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in sorted({d.file for d in self._demos})]
        return f"{self.name} {self._root.resolve()} {files} {[(d.file.name, d.name, d.length) for d in self._demos]}"

    def _group(self, demo: Demonstration) -> Any:
        return _group_of(self._opened[demo.file], demo.name)

    def _find(self, files: list[Path], selection: EpisodeSelection) -> list[Demonstration]:
        good: list[Demonstration] = []
        faults: list[ValueError] = []
        number = 0
        for path in track(files, f"opening {self._root}", len(files), "file"):
            if self.is_one_a_file and not selection.includes(number):
                number += 1
                continue
            try:
                with open_hdf5(path) as file, naming(path):
                    groups = self._groups(path, file)
                    found, wrong = self._look_into(path, file, groups, number, selection)
            except ValueError as error:
                if not (self.is_one_a_file or selection.is_all):
                    raise UserError(
                        f"{str(error).rstrip('.')}. {selection.option} counts the demonstrations of all files, so "
                        "none may be unreadable: take it out of the folder."
                    ) from error
                groups, found, wrong = [""], [], [error]
            good, faults, number = good + found, faults + wrong, number + len(groups)
        selection.choose(range(number), self._root)
        bad = BadRecords(f"files or demonstrations of {self._root}", self._config.skip_bad)
        bad.settle_all(faults, len(good) + len(faults))
        return good

    def _look_into(
        self, path: Path, file: Any, groups: list[str], first: int, selection: EpisodeSelection
    ) -> tuple[list[Demonstration], list[ValueError]]:
        """Return the chosen demonstrations of an open file, whose first has the number `first`, and what is wrong."""
        numbered = [(first + i, name) for i, name in enumerate(groups) if selection.includes(first + i)]
        good: list[Demonstration] = []
        if not numbered:
            return good, []
        try:
            self._check_rate(path, self._rate(path, file))
        except ValueError as error:
            return good, [error]
        faults = []
        for number, name in numbered:
            try:
                instruction = self._instruction(path, file, name)
                demo = self._look_at(path, name, _group_of(file, name), instruction)
                good.append(replace(demo, number=number))
            except ValueError as error:
                faults.append(error)
        return good, faults

    def _check_rate(self, path: Path, hz: float | None) -> None:
        if hz is None:
            return
        if self.fps is None:
            self.fps = hz
        if hz != self.fps:
            raise UserError(
                f"{path} was recorded at {hz:g} actions a second, files before it at {self.fps:g}: give it a data.root "
                "of its own, e.g. as a part of data=mixture."
            )

    def _look_at(self, path: Path, name: str, group: Any, instruction: str) -> Demonstration:
        """Check the shapes of a demonstration; with `data.skip_bad` that its numbers are finite, too."""
        told = f"{path}: {name}"
        if not is_group(group):
            raise UserError(f"{told} is not a group.")
        self._read_specs(path, group)
        self._check_views(path, group)
        specs = [spec for spec in (self._action, self._proprio) if spec]
        numeric = [key for spec in specs for key in spec.keys]
        with naming(path):
            shapes = {key: dataset(group, key).shape for key in [*numeric, *self._keys.values()]}
        for spec in specs:
            spec.check_columns(shapes, path)
        length = shapes[numeric[0]][0]
        if not length:
            raise UserError(f"{told} has no frame.")
        if uneven := {key: shape[0] for key, shape in shapes.items() if shape[0] != length}:
            raise UserError(f"{told} has {length} rows of {numeric[0]}, but of others {uneven}.")
        for view, key in self._keys.items():
            try:
                with naming(path):
                    size = picture_size(dataset(group, key))
            except ValueError as error:
                raise UserError(f"{told}: {key}, which data.views.{view} names, {error}") from error
            if size != (expected := self._sizes.setdefault(view, size)):
                raise UserError(f"{told}: {key} is of {size}, but the first of the data set of {expected}.")
        demo = Demonstration(file=path, name=name, length=length, instruction=instruction)
        if self._config.skip_bad:
            self._take(demo, group, np.arange(length))
        return demo

    def _check_views(self, path: Path, group: Any) -> None:
        """Refuse views that the first demonstration does not have."""
        with naming(path):
            keys = {view: key for view, key in self._keys.items() if view not in self._sizes}
            absent = {view: key for view, key in keys.items() if child(group, key) is None}
            known = [name for name in names(group) if absent and _is_picture(child(group, name))]
        for view, key in absent.items():
            there = f"Its pictures: {', '.join(known)}." if known else f"It has no pictures. {self.without_pictures}"
            raise UserError(
                f"data.views.{view}={self._config.views[view]}: {path} has no {key} in {group.name}."
                f"{nearest(key, known)} {there} Set data.views.{view}=<key>."
            )

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
            raise UserError(f"{demo}, frame {frame}: {'+'.join(spec.keys)} is not finite.")
        return rows


def _group_of(file: Any, name: str) -> Any:
    return child(file, name) if name else file


def _is_picture(found: Any) -> bool:
    try:
        picture_size(found)
    except ValueError:
        return False
    return True

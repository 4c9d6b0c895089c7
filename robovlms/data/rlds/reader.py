"""Open X-Embodiment: TFDS folders of TFRecords, one record an episode (RLDS), by random access and without TensorFlow.

Source: arXiv:2310.08864 (data sets); github.com/google-research/rlds (steps of an episode).
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from robovlms.config.choices import Representation, RLDSTransform
from robovlms.data.bad_records import BadRecords
from robovlms.data.base import EpisodeInfo, Numbers, Reader
from robovlms.data.files.cache_folder import cache_folder
from robovlms.data.files.opened import OpenFiles
from robovlms.data.files.vectors import VectorSpec
from robovlms.data.rlds.features import FEATURES, open_folder
from robovlms.data.rlds.index import IndexRequest, load_index
from robovlms.data.rlds.schema import RLDSDataConfig
from robovlms.data.rlds.steps import read_pictures
from robovlms.data.rlds.tfrecord import RecordFile, parse_example
from robovlms.data.rlds.transforms import ARM, STATE_KEY, TRANSFORMS
from robovlms.data.splits import check_split, choose_episodes, thin
from robovlms.errors import UserError
from robovlms.registry import DATASETS

logger = logging.getLogger(__name__)

IDLE = 1e-5  # largest entry of the arm, as recorded, of a step that is left out by data.skip_idle


@DATASETS.register("rlds")
class RldsReader(Reader):
    """Labelled episodes of a split of a TFDS folder.

    The first time, every record is read once, its checksums are checked, and an index with the numbers of all steps is
    kept (`robovlms.data.rlds_index`). From then on the numbers are in memory (4 bytes x steps x entries), and a window
    costs one record and the pictures asked for. A recording whose instruction changes becomes an episode for each
    stretch with one instruction. What has none is left out, with a warning that counts it, as in OpenVLA; so are
    recordings whose `data.success_key` says no, and with `data.skip_idle` steps that tell the arm nothing: its next
    step follows at once.

    Args:
        config: `views` maps our views to keys of a step; `observation/` may be left out.
        split: "train" or "validation". Where the folder has no `data.validation_split`, validation is the last
            `data.validation_fraction` of the training split's episodes.
        views: the views to read, by our names; none reads no picture.

    Raises:
        FileNotFoundError: the folder or a file of it is missing.
        UserError: the folder contradicts itself or the config, or a record is damaged; names the file and the option.
    """

    def __init__(self, config: RLDSDataConfig, split: str, *, views: list[str]) -> None:
        check_split(split)
        self._config, self._split = config, split
        self._folder = open_folder(Path(config.root).expanduser())
        self._path = self._folder.path
        features = self._folder.features
        pictures = [key for key, spec in features.items() if spec.is_picture]
        self._keys = {
            view: self._folder.find(config.views[view], pictures, f"data.views.{view}", "a camera") for view in views
        }
        self._transform = None if config.transform is RLDSTransform.none else TRANSFORMS[config.transform]
        self._drop = config.drop_first + (self._transform.drop_first if self._transform else 0)
        self._check_options()
        self._choose_vectors()
        self._file = OpenFiles(RecordFile)
        self._open_split()

    def frames(self, episode: int, steps: Int64[np.ndarray, "w"]) -> dict[str, UInt8[np.ndarray, "w _h _x c"]]:
        """Read the episode's record and decode the pictures of `steps`.

        Raises:
            UserError: one is damaged; names file, record, key and step (of the record, from 0).
        """
        if not self._keys:
            return {}
        row = self._rows[episode]
        path = self._shards[self._index.shard[row]].path
        payload = self._file[path].read(int(self._index.offset[row]), int(self._index.length[row]))
        names = {view: f"steps/{key}" for view, key in self._keys.items()}
        place = f"{path}, record {self._index.record[row]}"
        try:
            example = parse_example(payload, list(names.values()))
        except ValueError as error:
            raise UserError(f"{place}: {error}. Download the file again.") from error
        frames = {}
        for view, name in names.items():
            try:
                if name not in example:
                    raise UserError(f"the record lacks it, but {self._path / FEATURES} lists it")
                spec, num_steps = self._folder.features[self._keys[view]], int(self._index.steps[row])
                places, bgr = self._places(episode, steps), self._config.bgr.get(view)
                frames[view] = read_pictures(spec, example[name], places, num_steps, bgr)
            except ValueError as error:
                raise UserError(
                    f"{place}, '{name}': {error}. Download the file again, or choose another data.views.{view}."
                ) from error
        return frames

    def numbers(self, episode: int, steps: Int64[np.ndarray, "n"]) -> Numbers:
        """Take rows of the tables in memory."""
        rows = self._starts[episode] + self._places(episode, steps)
        return Numbers(self._actions[rows], None if self._states is None else self._states[rows])

    def location(self, episode: int, first: int, last: int) -> str:
        """Name the file, the record and its steps, as they are counted there."""
        row = self._rows[episode]
        path = self._shards[self._index.shard[row]].path
        first, last = self._places(episode, np.array([first, last])).tolist()
        return f"{path}: record {self._index.record[row]}, steps {first}-{last}"

    def summary(self) -> str:
        """Describe the split in one line."""
        return f"rlds {self._path} ({self._split}: {self._origin}): {self.counts()}"

    def fingerprint(self) -> str:
        """Return a hash of the index, which is of the files, of the episodes and of how they are read."""
        content = [self._digest, self._rows.tolist(), self._config.action_key, self._config.proprio_key, self._drop]
        content += [str(self._config.transform), sorted(self._keys.items())]
        content += [self._config.skip_idle, sorted((view, str(kind)) for view, kind in self._config.bgr.items())]
        return f"rlds {self._path.resolve()} {hashlib.sha256(repr(content).encode()).hexdigest()}"

    def _places(self, episode: int, steps: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
        """Number an episode's steps as they are counted in its record."""
        return self._kept[self._firsts[episode] + steps].astype(np.int64)

    def _check_options(self) -> None:
        config = self._config
        if config.skip_idle and config.contract.representation is not Representation.delta:
            raise UserError("data.skip_idle=true is for deltas: an absolute pose of zeros is no waiting arm.")
        if unknown := set(config.bgr) - set(config.views):
            raise UserError(f"data.bgr names {sorted(unknown)}, which are not among data.views {list(config.views)}.")

    def _choose_vectors(self) -> None:
        config, features = self._config, self._folder.features
        self._shapes = {key: list(spec.shape) for key, spec in features.items() if spec.is_numeric}
        self._action = VectorSpec(config.action_key, "data.action_key", self._shapes, self._path)
        self._action.check_width(config.contract.names, "data.contract.names")
        self._proprio = None
        if config.proprio_key:
            self._proprio = VectorSpec(config.proprio_key, "data.proprio_key", self._shapes, self._path)
            self._proprio.check_width(config.proprio_names, "data.proprio_names")
        self._state = None
        if self._transform and config.contract.grippers != [len(config.contract.names) - 1]:
            raise UserError(
                f"data.transform={config.transform} is of data sets with one gripper, which is the last entry, but "
                f"data.contract.names={config.contract.names}: order data.action_key and them so."
            )
        if self._transform and self._transform.needs_state:
            option = f"data.transform={config.transform}"
            if self._action.width != ARM + 1:
                raise UserError(
                    f"{option} expects {ARM} entries of the arm and the gripper, but data.action_key="
                    f"{config.action_key} has {self._action.width} in {self._path}."
                )
            self._state = VectorSpec(f"{STATE_KEY}[0:{ARM}]", option, self._shapes, self._path)

    def _open_split(self) -> None:
        config, folder = self._config, self._folder
        shares = self._split == "validation" and config.validation_split not in folder.splits
        name = config.train_split if self._split == "train" or shares else config.validation_split
        self._shards = folder.shards(name, "data.train_split")
        language, language_spec = folder.find_text(config.language_key)
        vectors = [spec for spec in (self._action, self._proprio, self._state) if spec]
        request = IndexRequest(
            f"{folder.name}-{name}",
            self._shards,
            {key: folder.features[key] for key in sorted({key for spec in vectors for key in spec.keys})},
            language,
            language_spec,
            folder.find_flag(config.success_key),
        )
        self._digest = request.digest()
        bad = BadRecords(f"records or files of {self._path}", config.skip_bad)
        self._index = load_index(request, cache_folder(config.cache_dir), bad)
        good, kept = self._good_rows(bad)
        self._origin = f"'{name}'"
        if config.validation_split not in folder.splits:
            chosen = choose_episodes([0] * len(good), self._split, config.validation_fraction, config.fraction)
            self._origin += (
                f", without the last {config.validation_fraction:g}"
                if self._split == "train"
                else (f", of it the last {config.validation_fraction:g}")
            )
        else:
            everything = list(range(len(good)))
            chosen = thin(everything, config.fraction) if self._split == "train" else everything
        self._divide(good[np.array(chosen, np.int64)], kept)
        self._index = replace(self._index, columns={})  # what is needed of them is in the tables

    def _divide(self, records: Int64[np.ndarray, "_k"], kept: Bool[np.ndarray, "s"]) -> None:
        """Make an episode of every stretch of `records` with one instruction, of the steps that are `kept`."""
        index = self._index
        starts = np.cumsum(index.steps) - index.steps
        stretch = np.searchsorted(starts[index.stretch_record] + index.stretch_step, np.arange(len(kept)), "right") - 1
        texts = np.array([bool(text) for text in index.instructions], bool)[index.stretch_instruction]
        usable = np.isin(index.stretch_record, records)
        if unlabelled := int((usable & ~texts).sum()):
            logger.warning("%s: %d stretches of steps without an instruction left out", self._path, unlabelled)
        kept = kept & (usable & texts)[stretch]
        lengths = np.bincount(stretch[kept], minlength=len(usable))
        chosen = np.flatnonzero(lengths)
        if len(chosen) > len(records):
            logger.info("%s: %d recordings are %d episodes of one instruction", self._path, len(records), len(chosen))
        lengths, self._rows = lengths[chosen], index.stretch_record[chosen]
        self._starts, self._firsts = starts[self._rows], np.cumsum(lengths) - lengths
        self._kept = (np.flatnonzero(kept) - np.repeat(self._starts, lengths)).astype(np.int32)
        told = [index.instructions[i] for i in index.stretch_instruction[chosen].tolist()]
        self.episodes = [EpisodeInfo(length, text) for length, text in zip(lengths.tolist(), told, strict=True)]

    def _lengths(self) -> Int64[np.ndarray, "n"]:
        """Count the steps of every record that remain."""
        return self._index.steps - self._drop - (self._transform.drop_last if self._transform else 0)

    def _good_rows(self, bad: BadRecords) -> tuple[Int64[np.ndarray, "_k"], Bool[np.ndarray, "s"]]:
        """Make the tables, and give the records and the steps that can be used; warn of why others cannot."""
        index, features = self._index, self._path / FEATURES
        texts = np.array([bool(text) for text in index.instructions], bool)[index.stretch_instruction]
        labelled = np.isin(np.arange(len(index.steps)), index.stretch_record[texts])
        self._warn("without an instruction in data.language_key=" + self._config.language_key, int((~labelled).sum()))
        long = self._lengths() > 0
        self._warn(f"with no more than {self._drop} steps", int((~long & labelled).sum()))
        succeeded = index.success.astype(bool)
        self._warn(f"where data.success_key={self._config.success_key} says no", int((~succeeded).sum()))
        usable = labelled & long & succeeded
        tables = {
            option: spec.take(index.columns, features)
            for option, spec in (
                ("data.action_key", self._action),
                ("data.proprio_key", self._proprio),
                ("data.transform", self._state),
            )
            if spec
        }
        self._drop_infinite(tables, usable, bad)
        bad.settle(len(index.steps) + len(index.faults))
        if not usable.any():
            raise UserError(f"{self._path} has no usable episode in split {self._split}.")
        self._actions, self._states = tables["data.action_key"], tables.get("data.proprio_key")
        if self._transform:
            self._actions = self._transformed(tables.get("data.transform"), np.flatnonzero(usable))
        record = np.repeat(np.arange(len(index.steps)), index.steps)
        kept = self._kept_steps(record)
        moving = np.bincount(record[kept], minlength=len(index.steps)) > 0
        self._warn("that data.skip_idle leaves nothing of", int((usable & ~moving).sum()))
        return np.flatnonzero(usable & moving), kept

    def _kept_steps(self, record: Int64[np.ndarray, "s"]) -> Bool[np.ndarray, "s"]:
        """Say of every step, whose record is given, whether it is neither cut off at an end nor idle."""
        steps = self._index.steps
        place = np.arange(len(record)) - (np.cumsum(steps) - steps)[record]
        kept = (place >= self._drop) & (place < self._drop + self._lengths()[record])
        if self._config.skip_idle:
            arm = np.delete(self._actions, self._config.contract.grippers, axis=1)
            kept &= (np.abs(arm) > IDLE).any(axis=1)
        return kept

    def _drop_infinite(
        self, tables: dict[str, Float32[np.ndarray, "s _"]], usable: Bool[np.ndarray, "n"], bad: BadRecords
    ) -> None:
        index = self._index
        starts = np.cumsum(index.steps) - index.steps
        for option, table in tables.items():
            rows = np.flatnonzero(~np.isfinite(table).all(axis=1))
            records = np.searchsorted(starts + index.steps, rows, side="right")
            counted = rows - starts[records] >= self._drop
            for record, row in zip(records[counted].tolist(), rows[counted].tolist(), strict=True):
                if not usable[record]:
                    continue
                usable[record] = False
                where = f"{self._shards[index.shard[record]].path}, record {index.record[record]}"
                what = f"step {row - starts[record]} of {option} is not finite"
                bad.refuse_or_skip(UserError(f"{where} at byte {index.offset[record]}: {what}. Download it again."))

    def _transformed(
        self, states: Float32[np.ndarray, "s p"] | None, records: Int64[np.ndarray, "k"]
    ) -> Float32[np.ndarray, "s a"]:
        assert self._transform is not None
        actions = self._actions.copy()
        starts = np.cumsum(self._index.steps) - self._index.steps
        for record in records.tolist():
            rows = slice(starts[record] + self._drop, starts[record] + self._index.steps[record])
            made = self._transform.apply(self._actions[rows], None if states is None else states[rows])
            actions[rows.start : rows.start + len(made)] = made
        return actions

    def _warn(self, reason: str, count: int) -> None:
        if count:
            logger.warning("%s: %d of %d episodes %s left out", self._path, count, len(self._index.steps), reason)

"""The folder of a run: refused, resumed or overwritten, never silently mixed with another run's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from robovlms.actions.statistics import STATS
from robovlms.config.data import DataConfig, MixtureDataConfig
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.files import (
    LOCK,
    MARKER,
    PARTIAL,
    REMOVED,
    REPLACED,
    FolderLock,
    Replacement,
    is_marked,
    mark,
    remove_folder,
    sweep,
)
from robovlms.policy.checkpoint import (
    CONFIG,
    checkpoints,
    load_config,
    resolve_checkpoint,
    step_of,
)
from robovlms.training.launch import LOGS
from robovlms.training.tracking import METRICS, WANDB_ID, WARNINGS
from robovlms.training.validation import VALIDATION_ACTIONS

log = logging.getLogger(__name__)

RUN = "run"
CHECKPOINTS, ABANDONED = "checkpoints", "abandoned_"
DURATIONS, FIRST_BATCH, PROFILE, OPEN_LOOP = "durations.json", "first_batch.png", "profile", "open_loop"
OURS = (
    CONFIG,
    STATS,
    DURATIONS,
    METRICS,
    VALIDATION_ACTIONS,
    WARNINGS,
    FIRST_BATCH,
    WANDB_ID,
    "plots",
    "tensorboard",
    "wandb",
    PROFILE,
    "evaluation",
    OPEN_LOOP,
    LOGS,
)  # what a run writes into its folder besides checkpoints


class RunFolder:
    """`output_dir`, held by one run at a time.

    `claim` refuses and changes nothing; `start` makes room once everything else about the run is known to be good; what
    it replaced is deleted by `kept`, after the first checkpoint, and put back by `release` if there never was one.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.path, self._config = Path(config.output_dir), config
        self._lock = FolderLock(self.path, f"output_dir={self.path}")
        self._replacement = Replacement(self.path, _ours)
        self._is_held = self._is_new = False

    def claim(self) -> None:
        """Make `output_dir` and lock it, or say what to do about the one that exists.

        Raises:
            UserError: it holds a run, and neither resume nor overwrite was said; or it is not a run folder, or another
                process writes it.
            PermissionError: it cannot be written.
        """
        try:
            self._is_new = not self.path.is_dir()
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / f".writable{PARTIAL}").touch()
            (self.path / f".writable{PARTIAL}").unlink()
        except OSError as error:
            raise PermissionError(
                f"cannot write to output_dir={self.path}: {error.strerror}. Choose another output_dir=..."
            ) from error
        self._lock.acquire()
        self._is_held = True
        if self._replacement.recover():
            log.info("%s: put back the run that an interrupted trainer.overwrite=true had set aside", self.path)
        self._refuse()

    def _refuse(self) -> None:
        config, trainer = self._config, self._config.trainer
        others = [path.name for path in _visible(self.path)]
        if trainer.overwrite:
            if others and not _is_run(self.path) and not _is_failed_start(self.path):
                raise UserError(
                    f"output_dir={self.path} is not a run folder (it holds {', '.join(sorted(others)[:5])}): refusing "
                    "to delete anything in it. Choose another output_dir=..."
                )
            _check_outside(config, self.path)
        elif checkpoints(self.path):
            if trainer.resume == "never":
                raise UserError(
                    f"output_dir={self.path} exists. Continue it with trainer.resume=auto, start again with "
                    "trainer.overwrite=true, or choose another name=..."
                )
        elif others and not is_marked(self.path, RUN) and not _is_failed_start(self.path):
            mixed = [name for name in others if name in OURS]
            if mixed or trainer.resume == "never":
                raise UserError(
                    f"output_dir={self.path} exists and is not a run folder (it holds "
                    f"{', '.join(sorted(mixed or others)[:5])}): choose another output_dir=..."
                )

    def start(self, step: int) -> None:
        """Make room for a run that goes on from `step`: its own, once all else about it has been checked.

        Checkpoints of later steps are of a course that is given up; they are renamed `abandoned_step_<number>`, their
        evaluations likewise, and nothing but the user deletes them.
        """
        if self._config.trainer.overwrite:
            self._replacement.set_aside()
        mark(self.path, RUN)
        folder = self.path / CHECKPOINTS
        sweep(folder, "step_*")
        for path in checkpoints(self.path):
            if step_of(path) > step:
                aside = _free(folder / f"{ABANDONED}{path.name}")
                path.rename(aside)
                log.warning("%s is of after step %d, which this run goes on from: renamed to %s", path, step, aside)
                for evaluation in (self.path / "evaluation").glob(f"*_{path.name}"):
                    if not evaluation.name.startswith(ABANDONED):
                        evaluation.rename(_free(evaluation.with_name(f"{ABANDONED}{evaluation.name}")))

    def kept(self, step: int) -> None:
        """Delete what the checkpoint of `step`, just written, makes superfluous: all but the newest `keep_last`."""
        self._replacement.delete()
        keep_newest(self.path, self._config.trainer.keep_last, step)

    def release(self) -> None:
        """Let go of the folder; a run that left no checkpoint leaves what was there before."""
        if not self._is_held:
            return
        self._is_held = False
        try:
            if self._replacement.recover():
                log.warning("%s: put back what trainer.overwrite=true had set aside: there is nothing newer", self.path)
        finally:
            self._lock.release()
        if self._is_new and not any(self.path.iterdir()):
            self.path.rmdir()


def keep_newest(run_folder: Path, count: int, step: int) -> None:
    """Delete checkpoints older than that of `step`, until `count` are left with it."""
    older = [path for path in checkpoints(run_folder) if step_of(path) < step]
    for path in older[: max(0, len(older) - max(count, 1) + 1)]:
        remove_folder(path)
    sweep(run_folder / CHECKPOINTS, "step_*")


def _visible(folder: Path) -> list[Path]:
    """List what a folder holds besides our own notes."""
    notes = (MARKER, LOCK, REPLACED)
    return [path for path in folder.iterdir() if path.name not in notes and not path.name.endswith((PARTIAL, REMOVED))]


def _is_run(folder: Path) -> bool:
    """Tell whether a folder is a run of ours; those from before there were markers have a whole checkpoint."""
    return is_marked(folder, RUN) or any(
        (path / CONFIG).is_file() and (path / STATS).is_file() for path in checkpoints(folder)
    )


def _is_failed_start(folder: Path) -> bool:
    """Tell whether a folder holds no more than the config of a run that never saved."""
    if checkpoints(folder) or not (folder / CONFIG).is_file():
        return False
    try:
        load_config(folder / CONFIG)
    except UserError:
        return False
    return True


def _ours(folder: Path) -> list[Path]:
    """List what a run writes into its folder."""
    inside = folder / CHECKPOINTS
    saved = [*checkpoints(folder), *inside.glob(f"{ABANDONED}step_*"), *inside.glob(".step_*")]
    return [*saved, *(folder / name for name in OURS if (folder / name).exists())]


def _free(path: Path) -> Path:
    candidates = (path, *(path.with_name(f"{path.name}_{number}") for number in range(2, 1000)))
    return next(candidate for candidate in candidates if not candidate.exists())


def _check_outside(config: TrainConfig, folder: Path) -> None:
    """Refuse to overwrite a folder that holds what the run needs."""
    for option, path in _inputs(config):
        if Path(path).expanduser().resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"trainer.overwrite=true would delete {option}={path}, which lies in output_dir={folder}: choose "
                "another output_dir=..."
            )


def _inputs(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Name what a run reads from disk, with its options."""
    if config.trainer.init_from is not None:
        yield "trainer.init_from", config.trainer.init_from
    if config.backbone.checkpoint is not None:
        yield "backbone.checkpoint", config.backbone.checkpoint
    if config.cotrain is not None:
        yield from ((f"cotrain.{key}", value) for key, value in asdict(config.cotrain).items() if _is_path(value))
    yield from _roots(config.data, "data")


def _roots(data: DataConfig, option: str) -> Iterator[tuple[str, str]]:
    if isinstance(data, MixtureDataConfig):
        for name, source in data.sources.items():
            yield from _roots(source, f"{option}.sources.{name}")
    else:
        yield f"{option}.root", data.root


def _is_path(value: object) -> bool:
    return isinstance(value, str) and Path(value).exists()


def check_init_from(config: TrainConfig) -> None:
    """Find `trainer.init_from` before anything is read.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    if config.trainer.init_from is not None:
        resolve_checkpoint(Path(config.trainer.init_from))

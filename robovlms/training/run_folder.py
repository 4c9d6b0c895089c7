"""The folder of a run: refused, resumed or overwritten, never silently mixed with another run's."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path

from robovlms.config.fields import RUN, change_keeps
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.policy.checkpoint import CONFIG, STATE, checkpoints, load_config

log = logging.getLogger(__name__)


def prepare_run_folder(config: TrainConfig) -> None:
    """Make `output_dir`, or say what to do about the one that exists.

    Raises:
        UserError: it exists, and neither resume nor overwrite was said; or it is not a run folder.
        PermissionError: it cannot be written.
    """
    folder = Path(config.output_dir)
    if folder.is_dir() and any(folder.iterdir()):
        if config.trainer.overwrite:
            if not (folder / CONFIG).is_file():
                raise UserError(f"output_dir={folder} is not a run folder (no {CONFIG}): refusing to delete it.")
            shutil.rmtree(folder)
        elif config.trainer.resume == "never":
            raise UserError(
                f"output_dir={folder} exists. Continue it with trainer.resume=auto, start again with "
                "trainer.overwrite=true, or choose another name=..."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise PermissionError(
            f"cannot write to output_dir={folder}: {error.strerror}. Choose another output_dir=..."
        ) from error


def find_resume(config: TrainConfig) -> Path | None:
    """Return the checkpoint to continue from, if any.

    Raises:
        FileNotFoundError: trainer.resume names a folder that is no checkpoint with a training state.
        UserError: the checkpoint belongs to a different run; lists what differs.
    """
    resume = config.trainer.resume
    if resume == "never":
        return None
    if resume == "auto":
        found = checkpoints(Path(config.output_dir))
        if not found:
            return None
        folder = found[-1]
    else:
        folder = Path(resume)
    if not (folder / STATE).is_dir():
        raise FileNotFoundError(
            f"trainer.resume={resume}: {folder} has no {STATE}. Give a .../checkpoints/step_<number> folder, or auto."
        )
    check_same_run(config, load_config(folder / CONFIG), folder)
    return folder


def check_same_run(config: TrainConfig, saved: TrainConfig, folder: Path) -> None:
    """Refuse to resume with a config that would make another model or see other samples."""
    now, then = flatten(asdict(config)), flatten(asdict(saved))
    different = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
    fatal = [key for key in different if not change_keeps(config, key, RUN)]
    if fatal:
        lines = "\n".join(f"  {key}: checkpoint {then.get(key)}, now {now.get(key)}" for key in fatal)
        raise UserError(
            f"{folder} is a checkpoint of a different run:\n{lines}\n"
            "Give the same options to resume it, or another output_dir=... for a new run."
        )
    for key in different:
        log.info("resuming with %s=%s (the checkpoint had %s)", key, now.get(key), then.get(key))


def flatten(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested dicts as one, with dotted keys."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

"""A folder that `backbone.checkpoint` can name, from an original checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

from robovlms.backbones.checkpoints.conversion import Convertible
from robovlms.errors import UserError
from robovlms.files import atomic_folder
from robovlms.registry import BACKBONES

logger = logging.getLogger(__name__)


def convert_folder(family: str, source: str, output_dir: str) -> None:
    """Read the original of backbone `family` from `source` and write `output_dir`, complete or not at all.

    Raises:
        FileNotFoundError: `source` lacks a file.
        FileExistsError: `output_dir` exists.
        UserError: the backbone needs no conversion, or the original does not fit; lists the weights.
    """
    backbone = BACKBONES.get(family)
    if not issubclass(backbone, Convertible):
        raise UserError(f"backbone={family} reads published checkpoints itself: set backbone.checkpoint={source}.")
    folder, target = Path(source).expanduser(), Path(output_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"source={source} is not a folder: give the one that holds the original files.")
    if target.exists():
        raise FileExistsError(f"output_dir={output_dir} exists: choose another, or delete it.")
    converted = backbone.from_original(folder)
    with atomic_folder(target) as unfinished:
        converted.save_pretrained(unfinished)
    logger.info("%s: use it with backbone=%s backbone.checkpoint=%s", target, family, target)

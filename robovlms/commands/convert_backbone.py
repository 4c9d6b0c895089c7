"""A folder that `backbone.checkpoint` can name, from an original checkpoint or out of a policy of others."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from robovlms.backbones.base import Backbone
from robovlms.backbones.checkpoints.conversion import Convertible
from robovlms.backbones.checkpoints.policies import POLICIES, vlm_of_policy
from robovlms.config.schemas import schema_of
from robovlms.errors import UserError
from robovlms.files import atomic_folder
from robovlms.registry import BACKBONES

logger = logging.getLogger(__name__)


def convert_folder(family: str, source: str, output_dir: str, vlm: str | None = None) -> None:
    """Write `output_dir`, complete or not at all: backbone `family` of its authors' files, or of a policy of others.

    Args:
        family: a backbone's name.
        source: folder of the authors' files, or of a policy that has such a VLM.
        output_dir: what `backbone.checkpoint` can name.
        vlm: of a policy: folder or hub id of the VLM's config, tokenizer and image processor; None: the published one.

    Raises:
        FileNotFoundError: `source` lacks a file.
        FileExistsError: `output_dir` exists.
        UserError: the backbone needs no conversion, or the original does not fit; lists the weights.
    """
    folder, target = Path(source).expanduser(), Path(output_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"source={source} is not a folder: give the one that holds the original files.")
    if target.exists():
        raise FileExistsError(f"output_dir={output_dir} exists: choose another, or delete it.")
    converted = _converted(family, folder, vlm)
    with atomic_folder(target) as unfinished:
        converted.save_pretrained(unfinished)
    logger.info("%s: use it with backbone=%s backbone.checkpoint=%s", target, family, target)


def _converted(family: str, folder: Path, vlm: str | None) -> Backbone:
    backbone = BACKBONES.get(family)
    if issubclass(backbone, Convertible):
        if vlm is not None:
            raise UserError(
                f"vlm={vlm} is ignored: family={family} is converted from its authors' files. Leave it out."
            )
        found: Backbone = backbone.from_original(folder)
        return found
    if family not in POLICIES or _model_type(folder) == backbone.model_type:
        raise UserError(
            f"backbone={family} reads published checkpoints itself: set backbone.checkpoint={folder}. The VLM of a "
            f"policy is taken out for {', '.join(f'family={name} ({each.policy})' for name, each in POLICIES.items())}."
        )
    config = schema_of("backbone", family)(name=family, checkpoint=vlm or POLICIES[family].vlm, random_init=True)
    return vlm_of_policy(backbone, config, folder)


def _model_type(folder: Path) -> str | None:
    """Return what a folder in Hugging Face format says that it is; None: it is none, as those of policies."""
    if not (folder / "config.json").is_file():
        return None
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found.get("model_type") if isinstance(found, dict) else None

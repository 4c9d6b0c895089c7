"""A checkpoint of ours from one that RoboVLMs released or trained."""

from __future__ import annotations

import logging
from pathlib import Path

from robovlms.config.commands import ConvertCheckpointConfig
from robovlms.policy.checkpoint import save_policy
from robovlms.policy.manifest import new_checkpoint
from robovlms.policy.released.reading import read_policy

logger = logging.getLogger(__name__)


def convert_checkpoint(config: ConvertCheckpointConfig) -> None:
    """Write the checkpoint folder `output_dir`, complete or not at all.

    Raises:
        FileNotFoundError: weights, configuration or the VLM's files are missing.
        FileExistsError: `output_dir` exists.
        UserError: a file is damaged, or they do not belong together; lists the tensors.
    """
    target = Path(config.output_dir).expanduser()
    if target.exists():
        raise FileExistsError(f"output_dir={target} exists: choose another, or delete it.")
    source, settings = Path(config.source).expanduser(), Path(config.config).expanduser()
    trained = read_policy(source, settings, config.data, config.backbone.checkpoint)
    with new_checkpoint(target) as unfinished:
        save_policy(unfinished, trained)
    logger.info("%s acts as %s: evaluate it with checkpoint=%s", target, source, target)

"""ALOHA and ACT: a folder of HDF5 files, one an episode.

    /action                            T x 14: absolute joints, left arm, left gripper, right arm, right gripper
    /observations/qpos                 T x 14: where the joints are
    /observations/images/cam_high      T x height x width x 3, or T x bytes of JPEG, padded with zeros

A file says neither what was asked for nor how often it was recorded.
Source: github.com/tonyzhaozh/aloha aloha_scripts/record_episodes.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from robovlms.data.aloha.schema import AlohaDataConfig
from robovlms.data.files.hdf5 import child, read_pictures
from robovlms.data.files.hdf5_reader import Demonstration, Hdf5Reader
from robovlms.errors import UserError
from robovlms.registry import DATASETS


@DATASETS.register("aloha")
class AlohaReader(Hdf5Reader):
    """The episodes of one file, or of every HDF5 file of a folder.

    `data.bgr` names the views whose pictures have blue first. ACT's own recorder passes RGB to an encoder that expects
    BGR, so that its JPEGs, but not its uncompressed pictures, are such.
    """

    name = "aloha"
    image_group = "observations/images"
    without_pictures = "A policy needs a camera."
    is_one_a_file = True
    _config: AlohaDataConfig

    def _files(self, root: Path) -> list[Path]:
        if root.is_file():
            return [root]
        if not root.is_dir():
            raise FileNotFoundError(f"data.root={root} does not exist: set it to a folder of episode_*.hdf5.")
        found = [path for path in root.iterdir() if path.suffix in (".hdf5", ".h5")]
        if found:
            return sorted(found, key=_natural)
        deeper = sorted({str(path.parent) for path in root.glob("*/*.hdf5")})
        hint = f"Set data.root={' or '.join(deeper[:8])}." if deeper else "Set data.root to a folder of episode_*.hdf5."
        raise FileNotFoundError(f"data.root={root} has no HDF5 file. {hint}")

    def _groups(self, path: Path, file: Any) -> list[str]:
        return [""]

    def _task(self, demo: Demonstration) -> str:
        return demo.instruction

    def _pictures(self, view: str, found: Any, steps: Int64[np.ndarray, "w"]) -> UInt8[np.ndarray, "w _h _x c"]:
        pictures = read_pictures(found, steps)
        return np.ascontiguousarray(pictures[..., ::-1]) if view in self._config.bgr else pictures

    def _instruction(self, path: Path, file: Any, group: str) -> str:
        text: Any = self._config.instruction
        if text is None:
            key = self._config.language_key
            found = child(file, key)
            text = file.attrs.get(key) if found is None else found[()]
        if isinstance(text, np.ndarray) and text.size:
            text = text.ravel()[0]
        if isinstance(text, bytes):
            text = text.decode()
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"{path} has no instruction in data.language_key={self._config.language_key}: set data.instruction="
                "'<what the robot does>'."
            )
        return text.strip()


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]

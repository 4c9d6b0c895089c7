"""Where the official checkouts are, and one message for all that is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from robovlms.sims.calvin.schema import CalvinSimConfig
from robovlms.sims.calvin.tasks import ORACLE, TRAINING, VALIDATION

MODULES = ("pybullet", "pybullet_utils", "gym", "cv2", "git", "quaternion", "scipy")  # that calvin_env imports
OF_ENV = (
    "calvin_env/envs/play_table_env.py",
    "calvin_env/envs/tasks.py",
    "conf/cameras/cameras/static.yaml",
    "conf/env/play_table_env.yaml",
    "conf/robot/panda_longer_finger.yaml",
    "conf/scene/calvin_scene_D.yaml",
    "data/calvin_table_D/urdf/calvin_table_D.urdf",
)
CLONE = "git clone --recurse-submodules https://github.com/mees/calvin"
CLONE_ENV = "git clone https://github.com/mees/calvin_env"


class Installation(NamedTuple):
    """Two checkouts that have what an evaluation needs."""

    root: Path  # github.com/mees/calvin
    env_root: Path  # github.com/mees/calvin_env


def find_installation(config: CalvinSimConfig) -> Installation:
    """Return the checkouts that the config or the environment names.

    Raises:
        ImportError: something is missing; lists all of it, with what to clone, install and set.
    """
    root, root_from = _named(config.root, "root", "CALVIN_ROOT")
    env_root, env_from = _named(config.env_root, "env_root", "CALVIN_ENV_ROOT")
    if env_root is None and root is not None and (root / "calvin_env" / OF_ENV[0]).is_file():
        env_root, env_from = root / "calvin_env", f"the calvin_env of {root_from}"
    missing = [
        *_missing(root, root_from, (str(ORACLE), str(VALIDATION), str(TRAINING)), CLONE, "sim.root or CALVIN_ROOT"),
        *_missing(env_root, env_from, OF_ENV, CLONE_ENV, "sim.env_root or CALVIN_ENV_ROOT"),
        *_missing_packages(),
    ]
    if missing or root is None or env_root is None:
        raise ImportError(f"sim=calvin is not installed: {'; '.join(missing)}. docs/sim_calvin.md has all the steps.")
    return Installation(root, env_root)


def _named(option: str | None, name: str, variable: str) -> tuple[Path | None, str]:
    """Return a folder, and who named it."""
    if option:
        return Path(option).expanduser().resolve(), f"sim.{name}={option}"
    value = os.environ.get(variable)
    return (Path(value).expanduser().resolve(), f"{variable}={value}") if value else (None, f"sim.{name}")


def _missing(folder: Path | None, origin: str, needed: tuple[str, ...], clone: str, setting: str) -> Iterator[str]:
    if folder is None:
        yield f"{origin} is not set: run `{clone}` and set {setting} to its folder"
        return
    absent = [name for name in needed if not (folder / name).exists()]
    if absent:
        yield f"{origin} has no {', '.join(absent)}: run `{clone}` elsewhere and set {setting} to its folder"


def _missing_packages() -> Iterator[str]:
    absent = [name for name in MODULES if find_spec(name) is None]
    if absent:
        yield f'Python finds no {", ".join(absent)}: run `pip install -e ".[calvin]"`'

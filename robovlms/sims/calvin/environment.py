"""CALVIN's own environment, built from its checkout and configuration files.

Source: github.com/mees/calvin_env (MIT license), envs/play_table_env.py and conf/.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from robovlms.errors import UserError
from robovlms.registry import nearest
from robovlms.sims.calvin.schema import CalvinSimConfig, Renderer
from robovlms.sims.calvin.states import State

MERGED = ".hydra/merged_config.yaml"
CAMERAS = ("static", "gripper")  # others are never drawn: the tactile one would need the package tacto
SCENE = "calvin_scene_D"
TARGETS = {
    "calvin_env.envs.play_table_env.PlayTableSimEnv",
    "calvin_env.robot.robot.Robot",
    "calvin_env.scene.play_table_scene.PlayTableScene",
    "calvin_env.camera.static_camera.StaticCamera",
    "calvin_env.camera.gripper_camera.GripperCamera",
}
"""All that a configuration may have built: CALVIN builds whatever one names, and a data set's is foreign."""


def compose(config: CalvinSimConfig, env_root: Path) -> DictConfig:
    """Return the environment's configuration: a data set's own, or the one of calvin_env that they were recorded with.

    Raises:
        UserError: the data set has no readable configuration, lacks a camera or names foreign code, or there is no such
            scene.
    """
    conf = env_root / "conf"
    composed = _of_data_set(config.dataset) if config.dataset else _of_checkout(conf)
    if config.scene or not config.dataset:
        composed.scene = _scene(conf / "scene", config.scene or SCENE)
    composed = OmegaConf.masked_copy(composed, ["env", "robot", "scene", "cameras"])
    composed.cameras = OmegaConf.masked_copy(composed.cameras, list(CAMERAS))
    if foreign := sorted(set(_targets(OmegaConf.to_container(composed))) - TARGETS):
        raise UserError(f"sim.dataset={config.dataset} would run {', '.join(foreign)}, which CALVIN's own do not.")
    composed.data_path = "data"  # the checkout's
    composed.use_vr = composed.show_gui = False
    composed.env.merge_with({"use_vr": False, "show_gui": False, "use_scene_info": True})
    composed.env.use_egl = config.renderer is Renderer.egl
    return composed


def _of_data_set(dataset: str) -> DictConfig:
    folder = Path(dataset).expanduser()
    found = [path for path in (folder / MERGED, folder / "validation" / MERGED) if path.is_file()]
    if not found:
        raise UserError(
            f"sim.dataset={dataset} has no {MERGED}: name a CALVIN data set or its validation folder, or leave it out."
        )
    try:
        composed = OmegaConf.load(found[0])
        missing = [key for key in ("env", "robot", "scene", *(f"cameras.{name}" for name in CAMERAS))
                   if OmegaConf.select(composed, key) is None]  # fmt: skip
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"sim.dataset: {found[0]} cannot be read ({' '.join(str(error).split())}).") from error
    if missing or not isinstance(composed, DictConfig):
        raise UserError(f"sim.dataset: {found[0]} has no {', '.join(missing)}: it is not that of a CALVIN data set.")
    return composed


def _of_checkout(conf: Path) -> DictConfig:
    """Put together what Hydra would, without its application: cameras, robot and environment."""
    robot = _load(conf / "robot/panda.yaml")
    robot.merge_with(_load(conf / "robot/panda_longer_finger.yaml"))
    robot.pop("defaults")  # that its base is panda
    cameras = {name: _load(conf / f"cameras/cameras/{name}.yaml") for name in CAMERAS}
    return OmegaConf.create({"cameras": cameras, "robot": robot, "env": _load(conf / "env/play_table_env.yaml")})


def _scene(folder: Path, name: str) -> DictConfig:
    known = sorted(path.stem for path in folder.glob("calvin_scene_*.yaml"))
    if name not in known:
        raise UserError(f"sim.scene={name} is not in {folder}.{nearest(name, known)} Scenes: {', '.join(known)}.")
    return _load(folder / f"{name}.yaml")


def _targets(node: Any) -> Iterator[str]:
    """Return what Hydra would build of a configuration."""
    if isinstance(node, dict):
        yield from (str(value) for key, value in node.items() if key == "_target_")
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from _targets(inner)


def _load(path: Path) -> DictConfig:
    loaded = OmegaConf.load(path)
    assert isinstance(loaded, DictConfig)
    return loaded


class PlayTable:
    """One table with its arm, in a PyBullet world of its own."""

    def __init__(self, composed: DictConfig, env_root: Path) -> None:
        """Start PyBullet and load the scene, about 0.4 s.

        Raises:
            UserError: PyBullet has no EGL here.
        """
        module = _import("calvin_env.envs.play_table_env", env_root)
        module.get_git_commit_hash = lambda path: "unknown"  # only logged, and an unpacked archive has none
        settings = {key: value for key, value in composed.env.items() if not str(key).startswith("_")}
        try:
            self._env: Any = module.PlayTableSimEnv(**settings)
        except SystemExit as error:  # how it says that the EGL plugin did not load
            raise UserError(
                "sim.renderer=egl: PyBullet cannot load its EGL plugin. Install libegl1 and the GPU's driver, or set "
                "sim.renderer=tiny."
            ) from error
        if settings["use_egl"] and self._env.cid != 0:
            raise RuntimeError("PyBullet's EGL draws the first world of a process alone: close it before another")
        self._env.close = lambda: None  # called by __del__ once more, and prints

    def reset(self, state: State) -> dict[str, Any]:
        """Load the scene anew and put it into a state; return CALVIN's observation.

        `PlayTableSimEnv.reset` alone leaves traces of what was played before: contacts (the same start's blocks were
        tilted by 0.002 rad), the gripper's last command, and whether the button was pressed.
        """
        self._env.load()
        self._env.robot.gripper_action = 1
        observation: dict[str, Any] = self._env.reset(robot_obs=state.robot, scene_obs=state.scene)
        return observation

    def step(self, action: Float64[np.ndarray, "7"]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Apply a relative action for 1/30 s; return CALVIN's observation and info."""
        observation, _, _, info = self._env.step(action)
        return observation, info

    @property
    def info(self) -> dict[str, Any]:
        """CALVIN's info of now."""
        found: dict[str, Any] = self._env.get_info()
        return found

    @property
    def target(self) -> Float64[np.ndarray, "3"]:
        """Where the hand is to be (m): what a relative action adds to."""
        return np.array(self._env.robot.target_pos)

    def close(self) -> None:
        """End this PyBullet world."""
        self._env.p.disconnect(physicsClientId=self._env.cid)
        self._env.ownsPhysicsClient = False


def make_oracle(criteria: dict[str, Any], env_root: Path) -> Any:
    """Return CALVIN's judge of what was done between two infos."""
    return _import("calvin_env.envs.tasks", env_root).Tasks(criteria)


def _import(name: str, env_root: Path) -> Any:
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # GitPython else insists on an executable
    if str(env_root) not in sys.path:
        sys.path.insert(0, str(env_root))
    logging.getLogger("calvin_env").setLevel(logging.WARNING)  # two lines an episode
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # gym and Hydra announce their successors
        warnings.simplefilter("ignore")
        return importlib.import_module(name)

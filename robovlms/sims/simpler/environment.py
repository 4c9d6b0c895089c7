"""SimplerEnv's environments as its evaluator builds them, and what to do where that fails."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from robovlms.errors import UserError
from robovlms.sims.simpler.suite import Scene, Start, Suite

ENV_BUILDER = "simpler_env.utils.env.env_builder"
INSTALL = """SimplerEnv is not on PyPI:
  git clone --recurse-submodules https://github.com/simpler-env/SimplerEnv
  pip install -e SimplerEnv/ManiSkill2_real2sim -e SimplerEnv
It renders with Vulkan on an NVIDIA GPU (apt-get install libvulkan1). docs/sim_simpler.md has the versions it needs."""


def check_installed() -> None:
    """Import SimplerEnv.

    Raises:
        ImportError: it is not installed, or lacks something; says what to install.
        UserError: Vulkan's library is missing, or NumPy is too new.
    """
    try:
        importlib.import_module(ENV_BUILDER)
    except ModuleNotFoundError as error:
        raise ImportError(f"sim=simpler: {error}. {INSTALL}") from error
    except ImportError as error:  # a library that SAPIEN is linked with
        raise UserError(f"sim=simpler cannot load SAPIEN ({error}). {INSTALL}") from error
    if int(np.__version__.partition(".")[0]) >= 2 and _sapien().startswith("2."):
        raise UserError(
            f"sim=simpler: SAPIEN {_sapien()} crashes with NumPy {np.__version__} when an arm moves (a segmentation "
            "fault in its inverse kinematics): run pip install numpy==1.26.4 in this environment."
        )


def _sapien() -> str:
    try:
        return version("sapien")
    except PackageNotFoundError:  # built from source without metadata
        return ""


def build(suite: Suite, scene: Scene, start: Start, max_steps: int) -> Any:
    """Return a new environment, which ends after `max_steps`.

    Raises:
        UserError: SimplerEnv lacks a file, or there is nothing to render with.
    """
    asset_dir = Path(importlib.import_module("mani_skill2_real2sim").ASSET_DIR)
    build_environment = importlib.import_module(ENV_BUILDER).build_maniskill2_env
    photograph = asset_dir / "real_inpainting" / start.photograph if start.photograph else None
    try:
        return build_environment(
            scene.env,
            **scene.build,
            obs_mode="rgbd",
            robot=scene.robot,
            sim_freq=suite.sim_hz,
            control_mode=suite.control_mode,
            control_freq=round(suite.contract.control_hz),
            max_episode_steps=max_steps,
            scene_name=scene.stage,
            camera_cfgs={"add_segmentation": True},
            rgb_overlay_path=None if photograph is None else str(photograph),
        )
    except FileNotFoundError as error:
        raise UserError(
            f"sim=simpler: {error}\nSimplerEnv's files are looked for in {asset_dir}: clone it with "
            "--recurse-submodules, or set MS2_REAL2SIM_ASSET_DIR to ManiSkill2_real2sim/data of a whole clone."
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"sim=simpler: SAPIEN cannot build {scene.env} ({error}). It renders with Vulkan: vulkaninfo must list an "
            "NVIDIA GPU. A container needs NVIDIA_DRIVER_CAPABILITIES=all (or graphics)."
        ) from error

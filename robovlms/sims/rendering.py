"""MuJoCo's renderer: loaded, built, and refused where it draws nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from robovlms.errors import UserError
from robovlms.sims.base import empty_views
from robovlms.types import Observation

os.environ.setdefault("MUJOCO_GL", "egl")  # read by mujoco when it is imported; needs no display and no GPU
logging.getLogger("OpenGL").setLevel(logging.WARNING)  # it reports what it did not find

HIDDEN_GROUP = 5  # of geoms, which MuJoCo does not draw unless told to
LIBRARIES = "libegl1 libegl-mesa0 libgl1"


@contextmanager
def simulator_imports(name: str, extra: str) -> Iterator[None]:
    """Turn what fails while a MuJoCo simulator is imported into what to install.

    Raises:
        ImportError: the simulator is not installed; names the extra.
        UserError: the libraries that MUJOCO_GL names are not there, or a file is not ours.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f'sim={name}: {error}. Install it with pip install -e ".[{extra}]".') from error
    except PermissionError as error:  # robosuite keeps a log in /tmp, whoever made it
        raise UserError(f"sim={name} cannot be imported: {error}. Delete that file, or make it writable.") from error
    except (AttributeError, ImportError) as error:  # what PyOpenGL says of a library that it did not find
        raise UserError(
            f"sim={name} renders with MUJOCO_GL={os.environ['MUJOCO_GL']}, whose libraries are not there ({error}). "
            f"Run apt-get install {LIBRARIES}, as the README does before anything else."
        ) from error


def renderer_name() -> str:
    """Return what draws the pictures."""
    return f"mujoco, {os.environ['MUJOCO_GL']}"


def make_renderer(model: Any, image_size: int, name: str, *, shadows: bool) -> Any:
    """Build a square `mujoco.Renderer`. Without `shadows`, reflections and multisampling software rendering is several
    times faster; quality must be set before the renderer exists, flags after.

    Raises:
        UserError: the graphics libraries do not work; says what to install.
    """
    import mujoco

    model.vis.global_.offwidth = model.vis.global_.offheight = image_size
    if not shadows:
        model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
    try:
        renderer = mujoco.Renderer(model, image_size, image_size)
    except (mujoco.FatalError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"sim={name} cannot render with MUJOCO_GL={os.environ['MUJOCO_GL']} ({error}): install {LIBRARIES} "
            "(README), or set MUJOCO_GL=osmesa and install libosmesa6."
        ) from error
    if not shadows:
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = 0
    return renderer


@contextmanager
def out_of_sight_left_out(model: Any, data: Any, camera: str) -> Iterator[None]:
    """Leave out of a scene updated inside what `camera` cannot see: the arm behind a wrist camera is half of its cost.

    Pictures stay the same to the bit, as long as they have no shadows: only geoms whose bounding sphere lies outside of
    the field of view are left out. For square pictures.
    """
    number = model.camera(camera).id
    centres = (data.geom_xpos - data.cam_xpos[number]) @ data.cam_xmat[number].reshape(3, 3)
    half = np.tan(np.radians(model.cam_fovy[number]) / 2)  # the camera looks along -z
    ahead, aside = -centres[:, 2], np.abs(centres[:, :2]).max(axis=1)
    radius = model.geom_rbound  # 0 for planes, which have no end
    unseen = (radius > 0) & ((ahead < -radius) | (aside - half * ahead > radius * np.hypot(1, half)))
    groups = model.geom_group.copy()
    model.geom_group[unseen] = HIDDEN_GROUP
    try:
        yield
    finally:
        model.geom_group[:] = groups


def check_pictures(observation: Observation, name: str) -> None:
    """Refuse pictures of one colour, which a broken renderer gives without a word.

    Raises:
        UserError: names the views, the renderer and what to try.
    """
    if empty := empty_views(observation):
        raise UserError(
            f"sim={name} draws empty pictures with MUJOCO_GL={os.environ['MUJOCO_GL']}: {empty} has one colour. "
            f" Install {LIBRARIES}, update the graphics driver, or set MUJOCO_GL=osmesa and install libosmesa6."
        )

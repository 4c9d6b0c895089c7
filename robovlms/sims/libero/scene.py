"""One LIBERO task's physics and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from robovlms.errors import UserError
from robovlms.sims.rendering import make_renderer, simulator_imports
from robovlms.types import SimulatorState

with simulator_imports("libero", "libero_sim"):
    import mujoco
    from libero.libero.envs.env_wrapper import ControlEnv
    from robosuite.utils.observables import Observable, sensor
    from robosuite.utils.transform_utils import quat2axisangle

CAMERAS = {"side": "agentview", "wrist": "robot0_eye_in_hand"}
CONTROL_HZ = 20.0
STILL = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)  # what OpenVLA and openpi settle with: no motion, the gripper opens
FIXTURE_SEED = 7  # openpi's


class Scene:
    """A task's environment, rebuilt for no episode.

    Pictures are drawn by MuJoCo's renderer at the moment the environment reads its sensors. That is the first of
    the 25 simulation steps of a control step, so that pictures and hand pose are about a control step old, as
    in every LIBERO recording and in every published evaluation.
    """

    def __init__(self, file: Path, image_size: int, *, shadows: bool) -> None:
        with _numpy_seed(FIXTURE_SEED):
            self._env = ControlEnv(
                bddl_file_name=str(file),
                control_freq=CONTROL_HZ,
                use_camera_obs=False,
                has_offscreen_renderer=False,
                ignore_done=True,  # whoever plays the episode counts its steps
                hard_reset=False,  # the model is built once; states and fixtures are set anew at every reset
            )
        self._renderer = make_renderer(self.sim.model._model, image_size, "libero", shadows=shadows)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision shapes
        self._is_watched = False
        for name in CAMERAS.values():
            self._add_camera(name, np.zeros((image_size, image_size, 3), np.uint8))

    @property
    def sim(self) -> Any:
        """Robosuite's simulation: `model` and `data`."""
        return self._env.sim

    def reset(self, state: Float64[np.ndarray, "s"], number: int, settle_steps: int) -> Mapping[str, Any]:
        """Start from an initial state of the benchmark and wait for things to come to rest.

        Where fixtures stand (within 1 to 2 cm) is not in the state: the benchmark draws it at every reset, from one
        generator for the whole evaluation. Here it is drawn by the state's `number`; number 0 is openpi's first.
        """
        self._is_watched = settle_steps == 0
        self._reset(number)
        observed = self._env.set_init_state(state)
        for left in reversed(range(settle_steps)):
            self._is_watched = left == 0  # only the last picture is seen
            observed, *_ = self._env.step(STILL)
        return observed

    def restore(self, recorded: SimulatorState) -> Mapping[str, Any]:
        """Start from a recorded state, with the fixtures where the recording's XML has them.

        Raises:
            UserError: it is the state of another scene, or its XML is none.
        """
        size = self.sim.get_state().flatten().size
        if recorded.values.size != size:
            raise UserError(
                f"a recorded state has {recorded.values.size} numbers, and this scene {size}: it was recorded in "
                "another scene, or with other objects. Choose the sim.suites and sim.tasks that it was recorded in."
            )
        self._is_watched = True
        self._reset(0)
        if recorded.model is not None:
            self._place(recorded.model)
        return self._env.set_init_state(recorded.values)

    def _reset(self, number: int) -> None:
        with _numpy_seed(FIXTURE_SEED + number):
            self._env.reset()
        for robot in self._env.robots:  # a reset without a new model leaves the fingers' command as it was
            robot.gripper.current_action = np.zeros_like(robot.gripper.current_action)

    def _place(self, xml: str) -> None:
        """Put what stands in the room where an XML has it; what is inside the fixtures stays as the scene has it."""
        model = self.sim.model
        try:
            bodies = ElementTree.fromstring(xml).iterfind("worldbody/body")
            places = {body.get("name"): (_numbers(body, "pos", 3), _numbers(body, "quat", 4)) for body in bodies}
        except (ElementTree.ParseError, ValueError) as error:
            raise UserError(f"the recorded model_file is not MuJoCo's XML ({error}).") from error
        for name in places.keys() & set(model.body_names):
            body = model.body_name2id(name)
            model.body_pos[body], model.body_quat[body] = places[name]

    def step(self, action: Float32[np.ndarray, "7"]) -> tuple[Mapping[str, Any], bool]:
        """Hold an action in the environment's own sense for 1 / 20 s; tell also whether the task is solved now."""
        observed, _, done, _ = self._env.step(action)
        return observed, bool(done)

    def close(self) -> None:
        """Free renderer and simulation."""
        self._renderer.close()
        self._env.close()

    def _add_camera(self, name: str, unseen: UInt8[np.ndarray, "_h _x c"]) -> None:
        def draw(_: Any) -> UInt8[np.ndarray, "_h _x c"]:
            if not self._is_watched:
                return unseen
            self._renderer.update_scene(self.sim.data._data, camera=name, scene_option=self._options)
            return self._renderer.render()

        image = Observable(f"{name}_image", sensor(modality="image")(draw), sampling_rate=CONTROL_HZ)
        self._env.env.add_observable(image)


def _numbers(body: ElementTree.Element, name: str, count: int) -> list[float]:
    """Return an attribute of a body; without it MuJoCo takes the origin, or no rotation."""
    found = [float(text) for text in body.get(name, "0 0 0" if count == 3 else "1 0 0 0").split()]
    if len(found) != count:
        raise ValueError(f"{name} of body {body.get('name')} has {len(found)} numbers")
    return found


def hand_state(observed: Mapping[str, Any]) -> Float32[np.ndarray, "8"]:
    """Return x, y, z (m, world), the rotation vector (rad) and both finger positions (m), as LIBERO's demonstrations
    have them in ee_states and gripper_states.
    """
    rotation = quat2axisangle(np.array(observed["robot0_eef_quat"]))
    parts = [observed["robot0_eef_pos"], rotation, observed["robot0_gripper_qpos"]]
    return np.concatenate(parts).astype(np.float32)


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which robosuite draws from, and give it back as it was."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)

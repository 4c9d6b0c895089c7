"""Demonstrations by a simulator's scripted experts, as a LeRobot data set.

Noise is executed but the clean expert action is recorded, so that the demonstrations also show how to recover. Finished
episodes lie in `<root>.partial` until all are there: an interrupted collection continues where it stopped, and `root`
appears only when it is complete.

Source: noise injection as in DART, arXiv:1703.09327.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import zlib
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from tqdm import tqdm

from robovlms.config import CollectConfig, SimConfig
from robovlms.data.lerobot_writer import LeRobotWriter
from robovlms.registry import SIMULATORS
from robovlms.sims.base import Simulator, Task
from robovlms.types import Observation

log = logging.getLogger(__name__)

VERSION = 1  # raise it when the same request would give other demonstrations
REQUEST_FILE = "robovlms_collect.json"
HOLD_STEPS = 5  # recorded after success, so that a policy learns to stay there
SELECTION = {"collect.demos_per_task", "collect.video", "sim.tasks", "instructions"}  # leave a single episode as it is
MIN_SUCCESS_RATE = 0.2
MIN_ATTEMPTS = 20  # before the success rate is judged


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One successful episode; action i is the expert's answer to frame i."""

    frames: dict[str, UInt8[np.ndarray, "t _h _x c"]]
    actions: Float32[np.ndarray, "t a"]
    proprio: Float32[np.ndarray, "t p"]


class Attempt(NamedTuple):
    """Attempt `number` at a task; its seed, and so its outcome, depends on nothing but the request."""

    task: Task
    number: int

    def path(self, work: Path) -> Path:
        """Give the file that holds the finished attempt, successful or not."""
        return work / self.task.name / f"{self.number:05d}.npz"

    def seed(self, base: int) -> int:
        """Derive the seed of start state and noise from `collect.seed`."""
        task = zlib.crc32(self.task.name.encode())  # like `hash`, but the same in every process
        return int(np.random.SeedSequence([base, task, self.number]).generate_state(1)[0])


def collect_demos(config: CollectConfig, sim: SimConfig, root: Path) -> Path:
    """Give a LeRobot data set of `demos_per_task` expert episodes of every task; only successes are kept.

    Demonstrations depend on the request alone, not on the number of workers or on interruptions. If `root` already
    holds what is asked for, nothing is done.

    Raises:
        ValueError: `root` holds something else (says what differs), or the expert of a task mostly fails.
    """
    simulator: Simulator = SIMULATORS.get(sim.name)(sim)
    request = describe_request(config, sim, simulator.tasks())
    if root.is_dir() and any(root.iterdir()):
        check_request(root, root / "meta" / REQUEST_FILE, request)
        log.info("demonstrations are already in %s", root)
        return root
    work = root.with_name(f"{root.name}.partial")
    episode = {key: value for key, value in request.items() if key not in SELECTION}
    if work.is_dir():
        check_request(work, work / REQUEST_FILE, episode)
    work.mkdir(parents=True, exist_ok=True)
    (work / REQUEST_FILE).write_text(json.dumps(episode, indent=2))
    kept = _collect(config, sim, simulator.tasks(), work)
    dataset = _assemble(kept, work, simulator, config, sim)
    (dataset / "meta" / REQUEST_FILE).write_text(json.dumps(request, indent=2))
    dataset.replace(root)
    shutil.rmtree(work)
    log.info("%d demonstrations of %d tasks are in %s", len(kept), len(simulator.tasks()), root)
    return root


def describe_request(config: CollectConfig, sim: SimConfig, tasks: list[Task]) -> dict[str, Any]:
    """Give everything that decides how the demonstrations come out, as flat JSON: option name to value."""
    request: dict[str, Any] = {f"collect.{key}": value for key, value in asdict(config).items()}
    del request["collect.enabled"], request["collect.num_workers"]
    request |= {f"sim.{key}": value for key, value in asdict(sim).items()}
    request["sim.tasks"] = [task.name for task in tasks]
    return request | {"instructions": [task.instruction for task in tasks], "version": VERSION}


def check_request(folder: Path, file: Path, request: dict[str, Any]) -> None:
    """Refuse a folder that was not made by this request.

    Raises:
        ValueError: names every option that differs, with both values.
    """
    advice = f"Choose another data.root, or delete {folder}."
    if not file.is_file():
        raise ValueError(
            f"{folder} exists and is not a collection of demonstrations ({file.name} is missing). {advice}"
        )
    made = json.loads(file.read_text())
    keys = [key for key in made | request if made.get(key) != request.get(key)]
    if keys:
        differences = "; ".join(f"{key} is {made.get(key)} there, {request.get(key)} here" for key in keys)
        raise ValueError(f"{folder} holds other demonstrations than asked for: {differences}. {advice}")


def record_demo(simulator: Simulator, task: Task, seed: int, noise: float) -> Demo | None:
    """Let the expert play one episode up to `HOLD_STEPS` after success; None if it fails.

    Gaussian noise of standard deviation `noise`, in action units, is executed on the arm but not recorded.
    """
    generator = np.random.default_rng(seed)
    observation, seen, actions = simulator.reset(task, seed), [], []
    steps_left, done = None, False
    while not done and steps_left != 0:
        action = simulator.expert()
        seen.append(observation)
        actions.append(action)
        disturbed = action.copy()
        disturbed[:-1] = np.clip(action[:-1] + noise * generator.standard_normal(len(action) - 1), -1, 1)
        observation, success, done = simulator.step(disturbed)
        if steps_left is not None:
            steps_left -= 1
        elif success:
            steps_left = HOLD_STEPS
    if steps_left is None:
        return None
    return Demo(
        frames={view: np.stack([each.frames[view] for each in seen]) for view in seen[0].frames},
        actions=np.stack(actions).astype(np.float32),
        proprio=np.stack([_proprio(each) for each in seen]),
    )


def _proprio(observation: Observation) -> Float32[np.ndarray, "p"]:
    if observation.proprio is None:
        raise ValueError("demonstrations need proprio, which this simulator does not give: choose another sim.")
    return observation.proprio


def save_demo(path: Path, demo: Demo | None) -> None:
    """Write an attempt so that the file is complete or absent; a failure is an empty archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {}
    if demo is not None:
        arrays = {f"frames.{view}": frames for view, frames in demo.frames.items()}
        arrays |= {"actions": demo.actions, "proprio": demo.proprio}
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
    unfinished.replace(path)


def load_demo(path: Path) -> Demo:
    """Read a successful attempt that `save_demo` wrote."""
    with np.load(path, allow_pickle=False) as file:
        views = [key.removeprefix("frames.") for key in file.files if key.startswith("frames.")]
        frames = {view: file[f"frames.{view}"] for view in views}
        return Demo(frames=frames, actions=file["actions"], proprio=file["proprio"])


def succeeded(path: Path) -> bool:
    """Tell whether a finished attempt is a success, without reading its frames."""
    with np.load(path, allow_pickle=False) as file:
        return bool(file.files)


def _collect(config: CollectConfig, sim: SimConfig, tasks: list[Task], work: Path) -> list[Attempt]:
    """Give the first `demos_per_task` successful attempts of every task, in a fixed order.

    Each round tries exactly as often as demonstrations are missing, so outcomes alone decide which attempts are made.
    """
    attempts: dict[str, list[Attempt]] = {task.name: [] for task in tasks}
    bar = tqdm(total=config.demos_per_task * len(tasks), desc="demonstrations", unit="demo", disable=None)
    executor = ProcessPoolExecutor(config.num_workers, get_context("spawn"), _start_worker, (config, sim, work))
    try:
        while True:
            kept = [attempt for made in attempts.values() for attempt in made if succeeded(attempt.path(work))]
            missing = [
                Attempt(task, number) for task in tasks for number in next_attempts(attempts[task.name], config, work)
            ]
            if not missing:
                return kept
            for attempt in missing:
                attempts[attempt.task.name].append(attempt)
            futures = [executor.submit(_make_attempt, attempt) for attempt in missing]
            for future in as_completed(futures):
                bar.update(int(future.result()))
    finally:
        executor.shutdown(cancel_futures=True)  # after the episodes in progress: they are kept, nobody is orphaned
        bar.close()


def next_attempts(made: list[Attempt], config: CollectConfig, work: Path) -> range:
    """Number the attempts that a task still needs, as many as demonstrations are missing.

    Raises:
        ValueError: the expert mostly failed so far.
    """
    successes = sum(succeeded(attempt.path(work)) for attempt in made)
    if len(made) >= MIN_ATTEMPTS and successes < MIN_SUCCESS_RATE * len(made):
        raise ValueError(
            f"the expert of {made[0].task.name} solved {successes} of {len(made)} episodes: lower collect.noise="
            f"{config.noise}, raise sim.max_steps, or leave the task out of sim.tasks."
        )
    return range(len(made), len(made) + config.demos_per_task - successes)


class _Worker(NamedTuple):
    """What a worker process keeps between attempts."""

    simulator: Simulator
    config: CollectConfig
    work: Path


_worker: _Worker


def _start_worker(config: CollectConfig, sim: SimConfig, work: Path) -> None:
    """Build this process's simulator; Ctrl-C is the parent's to handle."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = _Worker(SIMULATORS.get(sim.name)(sim), config, work)


def _make_attempt(attempt: Attempt) -> bool:
    """Make one attempt, unless an earlier run did, and tell whether it succeeded."""
    path = attempt.path(_worker.work)
    if not path.is_file():
        seed = attempt.seed(_worker.config.seed)
        save_demo(path, record_demo(_worker.simulator, attempt.task, seed, _worker.config.noise))
    return succeeded(path)


def _assemble(kept: list[Attempt], work: Path, simulator: Simulator, config: CollectConfig, sim: SimConfig) -> Path:
    """Write the data set into `work`."""
    folder = work / "dataset"
    shutil.rmtree(folder, ignore_errors=True)
    first = load_demo(kept[0].path(work))
    writer = LeRobotWriter(
        folder,
        fps=round(simulator.contract.control_hz),
        robot_type=sim.name,
        action_names=simulator.contract.names,
        proprio_names=[f"proprio_{index}" for index in range(first.proprio.shape[1])],
        image_keys={view: (frames.shape[1], frames.shape[2]) for view, frames in first.frames.items()},
        video=config.video,
    )
    with writer:
        for attempt in tqdm(kept, desc="writing", unit="demo", disable=None):
            demo = load_demo(attempt.path(work))
            writer.add_episode(demo.frames, demo.actions, demo.proprio, attempt.task.instruction)
    return folder

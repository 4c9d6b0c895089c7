"""Demonstrations by a simulator's scripted experts, as a LeRobot data set.

Noise is executed but the clean expert action is recorded, so that the demonstrations also show how to recover. Finished
episodes lie in `<root>.partial` until all are there: an interrupted collection continues where it stopped, and `root`
appears only when it is complete.

Where a scene's first picture tells its task, a policy may learn to ignore the instruction. Contrast demonstrations take
that shortcut away: in scenes of `collect.contrast_tasks` the opposite's instruction is recorded, and its expert acts.

Source: noise injection as in DART, arXiv:1703.09327.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from robovlms.config.closed_loop import CollectConfig, SimConfig
from robovlms.config.fields import DEMO, fields_that_keep
from robovlms.data.lerobot.writer import LeRobotWriter
from robovlms.errors import UserError
from robovlms.progress import Progress, track
from robovlms.registry import SIMULATORS
from robovlms.sims.base import Simulator, Task
from robovlms.sims.demos import Attempt, Lesson, load_demo, record_demo, save_demo, succeeded
from robovlms.sims.starts import DemoStart, Starts
from robovlms.workers import Pool

log = logging.getLogger(__name__)
VERSION = 1  # raise it when the same request would give other demonstrations
REQUEST_FILE = "robovlms_collect.json"
MIN_SUCCESS_RATE = 0.2
MIN_ATTEMPTS = 20  # before the success rate is judged


def list_lessons(tasks: list[Task], config: CollectConfig) -> dict[Lesson, int]:
    """Count the demonstrations wanted of every lesson: of all tasks, then of their contrasts.

    Raises:
        UserError: a contrast task is not among `tasks`, or its opposite is not.
    """
    by_name = {task.name: task for task in tasks}
    lessons = {Lesson(task, task): config.demos_per_task for task in tasks}
    for name in config.contrast_tasks:
        if name not in by_name or by_name[name].opposite not in by_name:
            raise UserError(
                f"collect.contrast_tasks has '{name}': it and its opposite must be in sim.tasks ({', '.join(by_name)})."
            )
        task = by_name[name]
        lessons[Lesson(task, by_name[str(task.opposite)])] = config.contrast_demos_per_task
    return lessons


def collect_demos(config: CollectConfig, sim: SimConfig, root: Path) -> Path:
    """Return a LeRobot data set of `demos_per_task` expert episodes of every task, and of `contrast_demos_per_task` of
    every contrast task; only successes are kept.

    Demonstrations depend on the request alone, not on the number of workers or on interruptions. If `root` already
    holds what is asked for, nothing is done.

    Raises:
        UserError: `root` holds something else (says what differs), the expert of a task mostly fails, or a contrast
            task has no opposite.
    """
    simulator: Simulator = SIMULATORS.get(sim.name)(sim)
    lessons = list_lessons(simulator.tasks(), config)
    request = describe_request(config, sim, simulator.tasks())
    if root.is_dir() and any(root.iterdir()):
        check_request(root, root / "meta" / REQUEST_FILE, request)
        log.info("demonstrations are already in %s", root)
        return root
    work = root.with_name(f"{root.name}.partial")
    episode = describe_episode(request, config, sim)
    if work.is_dir():
        check_request(work, work / REQUEST_FILE, episode)
    work.mkdir(parents=True, exist_ok=True)
    (work / REQUEST_FILE).write_text(json.dumps(episode, indent=2), encoding="utf-8")
    kept = _collect(config, sim, lessons, work)
    dataset = _assemble(kept, work, simulator, config, sim)
    Starts(
        sim=sim.name,
        max_start_steps=config.max_start_steps,
        noise=config.noise,
        episodes=[
            DemoStart(task=each.lesson.task.name, told=each.lesson.told.name, seed=each.seed(config.seed))
            for each in kept
        ],
    ).save(dataset)
    (dataset / "meta" / REQUEST_FILE).write_text(json.dumps(request, indent=2), encoding="utf-8")
    dataset.replace(root)
    shutil.rmtree(work)
    log.info("%d demonstrations of %d tasks are in %s", len(kept), len(simulator.tasks()), root)
    return root


def describe_request(config: CollectConfig, sim: SimConfig, tasks: list[Task]) -> dict[str, Any]:
    """Return everything that decides how the demonstrations come out, as flat JSON: option name to value."""
    request: dict[str, Any] = {f"collect.{key}": value for key, value in asdict(config).items()}
    del request["collect.enabled"], request["collect.num_workers"]
    request |= {f"sim.{key}": value for key, value in asdict(sim).items()}
    del request["sim.episodes"], request["sim.seed"]  # of evaluations
    request["sim.tasks"] = [task.name for task in tasks]
    return request | {"instructions": [task.instruction for task in tasks], "version": VERSION}


def describe_episode(request: dict[str, Any], config: CollectConfig, sim: SimConfig) -> dict[str, Any]:
    """Return what of a request decides how a single episode comes out."""
    selection = {"instructions", *(f"collect.{name}" for name in fields_that_keep(config, DEMO))}
    selection |= {f"sim.{name}" for name in fields_that_keep(sim, DEMO)}
    return {key: value for key, value in request.items() if key not in selection}


def check_request(folder: Path, file: Path, request: dict[str, Any]) -> None:
    """Refuse a folder that was not made by this request.

    Raises:
        UserError: names every option that differs, with both values.
    """
    advice = f"Choose another data.root, or delete {folder}."
    if not file.is_file():
        raise UserError(f"{folder} exists and is not a collection of demonstrations ({file.name} is missing). {advice}")
    made = json.loads(file.read_text(encoding="utf-8"))
    keys = [key for key in made | request if made.get(key) != request.get(key)]
    if keys:
        differences = "; ".join(f"{key} is {made.get(key)} there, {request.get(key)} here" for key in keys)
        raise UserError(f"{folder} holds other demonstrations than asked for: {differences}. {advice}")


def _collect(config: CollectConfig, sim: SimConfig, lessons: dict[Lesson, int], work: Path) -> list[Attempt]:
    """Return the first successful attempts of every lesson, as many as wanted, in a fixed order.

    Each round tries exactly as often as demonstrations are missing, so outcomes alone decide which attempts are made.
    """
    attempts: dict[Lesson, list[Attempt]] = {lesson: [] for lesson in lessons}
    pool = Pool[Attempt, bool](partial(_expert, config, sim, work), config.num_workers, "collect.num_workers")
    with pool, Progress("collecting", sum(lessons.values()), "demonstration") as progress:
        while True:
            kept = [attempt for made in attempts.values() for attempt in made if succeeded(attempt.path(work))]
            missing = [
                Attempt(lesson, number)
                for lesson, wanted in lessons.items()
                for number in next_attempts(attempts[lesson], wanted, config, work)
            ]
            if not missing:
                return kept
            for attempt in missing:
                attempts[attempt.lesson].append(attempt)
            for _, success in pool.run(missing):
                progress.update(int(success))


def next_attempts(made: list[Attempt], wanted: int, config: CollectConfig, work: Path) -> range:
    """Number the attempts that a lesson still needs, as many as demonstrations are missing.

    Raises:
        UserError: the expert mostly failed so far.
    """
    successes = sum(succeeded(attempt.path(work)) for attempt in made)
    if len(made) >= MIN_ATTEMPTS and successes < MIN_SUCCESS_RATE * len(made):
        raise UserError(
            f"the expert of {made[0].lesson.name} solved {successes} of {len(made)} episodes: lower collect.noise="
            f"{config.noise}, raise sim.max_steps, or leave the task out of sim.tasks (or collect.contrast_tasks)."
        )
    return range(len(made), len(made) + wanted - successes)


@contextmanager
def _expert(config: CollectConfig, sim: SimConfig, work: Path) -> Iterator[Callable[[Attempt], bool]]:
    """Build a simulator, and yield what makes an attempt in it, unless an earlier run did, and tells of success."""
    simulator: Simulator = SIMULATORS.get(sim.name)(sim)

    def make(attempt: Attempt) -> bool:
        path = attempt.path(work)
        if not path.is_file():
            seed = attempt.seed(config.seed)
            save_demo(path, record_demo(simulator, attempt.lesson, seed, config))
        return succeeded(path)

    try:
        yield make
    finally:
        simulator.close()


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
        for attempt in track(kept, "writing", len(kept), "demonstration"):
            demo = load_demo(attempt.path(work))
            writer.add_episode(demo.frames, demo.actions, demo.proprio, attempt.lesson.told.instruction)
    return folder

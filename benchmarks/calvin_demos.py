"""Demonstrations in CALVIN's own layout by the scripted experts of sim=calvin, for runs without CALVIN's data sets.

    CALVIN_ROOT=/path/to/calvin python benchmarks/calvin_demos.py demos [--demos 15] [--tasks open_drawer ...]

Writes demos/training and demos/validation, one npz file a frame, which data=calvin reads. Starts are official initial
conditions with blocks moved, so none of those that an evaluation plays; the hand first moves up to 8 steps in a random
direction. Instructions are the sentences of CALVIN's training data. About 0.1 s a frame, 35 frames a demonstration.
"""

from __future__ import annotations

import argparse
from itertools import count
from pathlib import Path

import numpy as np

from robovlms.config.closed_loop import CollectConfig
from robovlms.progress import Progress
from robovlms.sims.base import Task
from robovlms.sims.calvin.schema import CalvinSimConfig
from robovlms.sims.calvin.simulator import CAMERA_KEYS, Calvin
from robovlms.sims.demos import Demo, Lesson, record_demo

TASKS = ["open_drawer", "close_drawer", "move_slider_left", "move_slider_right", "turn_on_lightbulb", "turn_on_led"]
FIRST_SEEDS = {"training": 1_000, "validation": 1_000_000}  # beyond the official starts
MOTION = CollectConfig(max_start_steps=8, noise=0.1)


def write_frames(folder: Path, first: int, demo: Demo) -> tuple[int, int]:
    """Write a demonstration's frames and, as CALVIN has it, one more that is only padding; return first and last."""
    length = len(demo.actions)
    for step in range(length + 1):
        now = min(step, length - 1)
        arrays = {key: demo.frames[view][now] for view, key in CAMERA_KEYS.items()}
        numbers = {
            "rel_actions": demo.actions[now].astype(np.float64),
            "robot_obs": demo.proprio[now].astype(np.float64),
        }
        np.savez(folder / f"episode_{first + step:07d}.npz", **arrays, **numbers)
    return first, first + length


def record(simulator: Calvin, folder: Path, demos: int, first_seed: int) -> None:
    """Record `demos` successes of every task of the simulator, and write the folder's annotations."""
    (folder / "lang_annotations").mkdir(parents=True)
    plan = [(task, number) for task in simulator.tasks() for number in range(demos)]
    segments: list[tuple[int, int]] = []
    with Progress(f"recording {folder.name}", len(plan), "demonstration") as progress:
        for task, number in plan:
            demo = succeed(simulator, task, first_seed + 1_000 * number)
            segments.append(write_frames(folder, segments[-1][1] + 1 if segments else 0, demo))
            progress.update(note=task.name)
    language = {
        "ann": [task.paraphrases[number % len(task.paraphrases)] for task, number in plan],
        "task": [task.name for task, _ in plan],
    }
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", {"language": language, "info": {"indx": segments}})
    np.save(folder / "ep_start_end_ids.npy", np.array(segments))


def succeed(simulator: Calvin, task: Task, first_seed: int) -> Demo:
    """Return the first successful attempt at a task."""
    attempts = (record_demo(simulator, Lesson(task, task), seed, MOTION) for seed in count(first_seed))
    return next(demo for demo in attempts if demo is not None)


def main() -> None:
    """Record both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="a new folder")
    parser.add_argument("--demos", type=int, default=15, help="of every task, for training")
    parser.add_argument("--validation", type=int, default=3, help="of every task, for validation")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    options = parser.parse_args()
    simulator = Calvin(CalvinSimConfig(name="calvin", tasks=options.tasks, episodes=1, max_steps=120))
    for split, demos in (("training", options.demos), ("validation", options.validation)):
        record(simulator, options.root / split, demos, FIRST_SEEDS[split])
    simulator.close()


if __name__ == "__main__":
    main()

"""What one process of a launch does: its share of an evaluation of the line world, at a policy's leisure.

Arguments: the evaluation's folder, the seconds that every episode takes, the episodes of each task.
"""

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import line_world

from robovlms.config.choices import Language
from robovlms.config.closed_loop import EvaluationConfig
from robovlms.evaluation.episodes import plan_episodes
from robovlms.evaluation.rollouts import run_episodes
from robovlms.evaluation.share import share_of_launch


class Slow(line_world.Obedient):
    """Thinks before every episode."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def reset(self) -> None:
        time.sleep(self.seconds)


def plan(episodes: int):
    world = line_world.world()
    world.config = replace(world.config, episodes=episodes)
    config = EvaluationConfig(language=[Language.opposite], language_episodes=1, videos_per_task=0)
    return plan_episodes(world, config)


def start(seconds: float):
    return Slow(seconds), line_world.world()


def main(folder: str, seconds: str, episodes: str, lost_s: str = "120") -> None:
    Path(folder).mkdir(exist_ok=True)
    with share_of_launch(lost_s=float(lost_s)) as share:
        results = run_episodes(
            partial(start, float(seconds)),
            plan(int(episodes)),
            folder=Path(folder),
            conditions={"checkpoint": "a"},
            share=share,
        )
        sys.stdout.write(f"{share.name} has {len(results)} results\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

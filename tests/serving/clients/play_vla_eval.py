"""Let vla-eval's runner play three episodes of a benchmark in this process against a server; print what it got."""

import json
import sys

import anyio
import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.connection import Connection
from vla_eval.runners.sync_runner import SyncEpisodeRunner
from vla_eval.specs import GRIPPER_CLOSE_NEG, IMAGE_RGB, LANGUAGE, POSITION_DELTA, ROTATION_EULER, DimSpec, check_specs


class Pictures(StepBenchmark):
    """Shows pictures, whatever is done."""

    def __init__(self):
        super().__init__()
        self.actions = []

    def get_tasks(self):
        return [{"name": f"task {number}"} for number in range(3)]

    def reset(self, task):
        self.step_number, self.episode = 0, []
        self.actions.append(self.episode)
        return self.step_number

    def step(self, action):
        self.episode.append(np.asarray(action["actions"]).tolist())
        self.step_number += 1
        return StepResult(obs=self.step_number, reward=0.0, done=self.step_number == 4, info={})

    def make_obs(self, raw_obs, task):
        generator = np.random.default_rng(raw_obs)
        side, wrist = (generator.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(2))
        return {"images": {"agentview": side, "wrist": wrist}, "task_description": "open the drawer"}

    def check_done(self, step_result):
        return step_result.done

    def get_step_result(self, step_result):
        return {"success": step_result.done}

    def get_action_spec(self):
        return {"position": POSITION_DELTA, "rotation": ROTATION_EULER, "gripper": GRIPPER_CLOSE_NEG}

    def get_observation_spec(self):
        return {"image": IMAGE_RGB, "language": LANGUAGE}


async def main():
    benchmark, runner = Pictures(), SyncEpisodeRunner()
    async with Connection(sys.argv[1]) as connection:
        results = [
            await runner.run_episode(benchmark, task, connection, max_steps=10) for task in benchmark.get_tasks()
        ]
        said = [
            {key: DimSpec.from_dict(value) for key, value in connection.server_info[name].items()}
            for name in ("action_spec", "observation_spec")
        ]
    mismatches = check_specs(said[0], benchmark.get_action_spec(), said[1], benchmark.get_observation_spec())
    print(json.dumps({"episodes": len(results), "mismatches": mismatches, "actions": benchmark.actions}))


anyio.run(main)

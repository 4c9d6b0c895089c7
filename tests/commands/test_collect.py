import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from line_simulator import BACK, GO, Line

from robovlms.config.closed_loop import CollectConfig, SimConfig
from robovlms.sims.base import Task
from robovlms.sims.schemas.metaworld import MetaWorldSimConfig

pytest.importorskip("metaworld", reason='pip install -e ".[metaworld]"')

from robovlms.commands.collect_demos import (
    REQUEST_FILE,
    check_request,
    collect_demos,
    describe_episode,
    describe_request,
    list_lessons,
    next_attempts,
)
from robovlms.sims.demos import HOLD_STEPS, Attempt, Demo, Lesson, load_demo, record_demo, save_demo, succeeded
from robovlms.sims.metaworld import MetaWorld

CONFIG = CollectConfig(demos_per_task=2, noise=0.1, seed=7, num_workers=1)
SIM = MetaWorldSimConfig(
    name="metaworld", tasks=["coffee-button"], episodes=1, image_size=16, control_hz=20.0, max_steps=125
)
BUTTON = Task(name="coffee-button", instruction="press the button of the coffee machine")
PRESS = Lesson(BUTTON, BUTTON)


def line(max_steps=50):
    return Line(SimConfig(name="line", episodes=1, max_steps=max_steps))


def record(sim, told=GO, task=GO, noise=0.0, start=0):
    config = CollectConfig(noise=noise, max_start_steps=start)
    return record_demo(sim, Lesson(task, told), seed=0, config=config)


def request(config=CONFIG, sim=SIM):
    return describe_request(config, sim, [BUTTON])


def pretend(work: Path, outcomes: list[Demo | None]) -> None:
    """Leave behind what an interrupted collection leaves: finished attempts."""
    work.mkdir()
    episode = describe_episode(request(), CONFIG, SIM)
    (work / REQUEST_FILE).write_text(json.dumps(episode))
    for number, demo in enumerate(outcomes):
        save_demo(Attempt(PRESS, number).path(work), demo)


def made_up_demo(length: int) -> Demo:
    frames = {view: np.full((length, 16, 16, 3), 9, np.uint8) for view in ("side", "wrist")}
    return Demo(frames=frames, actions=np.ones((length, 7), np.float32), proprio=np.ones((length, 4), np.float32))


def within_seconds(limit: float, condition: Callable[[], bool]) -> bool:
    """Wait until the condition holds; tell whether it ever did."""
    deadline = time.monotonic() + limit
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def is_alive(group: int) -> bool:
    """Tell whether a process group has members."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_episode_ends_a_few_steps_after_success():
    demo = record(line())
    assert len(demo.actions) == 4 + HOLD_STEPS
    assert demo.proprio[:5, 0].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert demo.frames["side"].shape == (9, 2, 2, 3)


def test_noise_moves_the_arm_but_neither_the_recorded_action_nor_the_gripper():
    sim = line()
    demo = record(sim, noise=0.2)
    executed = np.array(sim.executed)
    assert np.array_equal(demo.actions, np.tile(np.float32([0.25, 1]), (len(executed), 1)))
    assert np.array_equal(executed[:, 1], demo.actions[:, 1])
    assert 0.05 < np.abs(executed[:, 0] - 0.25).mean() < 0.4
    record(sim, noise=0.2)
    assert np.array_equal(executed, np.array(sim.executed))


def test_the_hand_starts_somewhere_else_and_the_way_there_is_not_recorded():
    sim, starts, lengths = line(), [], []
    for seed in range(20):
        config = CollectConfig(noise=0.0, max_start_steps=2)
        demo = record_demo(sim, Lesson(GO, GO), seed=seed, config=config)
        starts.append(float(demo.proprio[0, 0]))
        lengths.append(len(sim.executed) - len(demo.actions))
        assert (demo.actions == np.float32([0.25, 1])).all()
    assert set(lengths) == {0, 1, 2}
    assert min(starts) < -0.5
    assert max(starts) > 0.5
    assert starts.count(0.0) == lengths.count(0)


def test_a_failed_episode_gives_nothing(tmp_path):
    demo = record(line(max_steps=3))
    assert demo is None
    save_demo(tmp_path / "go" / "00000.npz", demo)
    assert not succeeded(tmp_path / "go" / "00000.npz")


def test_a_contrast_shows_the_opposites_expert_told_the_opposite():
    sim = line(max_steps=12)
    demo = record(sim, told=BACK)
    assert demo.actions[:, 0].tolist() == [-0.25] * 6
    assert sim.instruction == "back"


def test_a_contrast_that_solves_the_scenes_own_task_gives_nothing():
    assert record(line(), task=BACK) is None


def test_goals_are_the_tasks_and_then_their_contrasts():
    config = CollectConfig(demos_per_task=5, contrast_tasks=["back"], contrast_demos_per_task=2)
    assert list_lessons([GO, BACK], config) == {Lesson(GO, GO): 5, Lesson(BACK, BACK): 5, Lesson(BACK, GO): 2}


@pytest.mark.parametrize("tasks", [[BUTTON], [BACK], [GO]])
def test_a_contrast_task_needs_its_opposite_in_the_suite(tasks):
    with pytest.raises(ValueError, match=r"collect\.contrast_tasks has 'go': it and its opposite must be in"):
        list_lessons(tasks, CollectConfig(contrast_tasks=["go"]))


def test_a_saved_demonstration_reads_back(tmp_path):
    demo = record(line(), noise=0.1)
    save_demo(tmp_path / "00000.npz", demo)
    back = load_demo(tmp_path / "00000.npz")
    assert np.array_equal(back.actions, demo.actions)
    assert np.array_equal(back.proprio, demo.proprio)
    assert np.array_equal(back.frames["side"], demo.frames["side"])
    assert [path.name for path in tmp_path.iterdir()] == ["00000.npz"]


def test_seeds_differ_between_attempts_tasks_and_configs():
    goals = (PRESS, Lesson(GO, GO), Lesson(GO, BACK), Lesson(BACK, GO))
    seeds = {Attempt(goal, number).seed(base) for goal in goals for number in (0, 1) for base in (0, 1)}
    assert len(seeds) == 16


def test_an_expert_that_mostly_fails_is_given_up(tmp_path):
    pretend(tmp_path / "work", [made_up_demo(1)] * 3 + [None] * 17)
    made = [Attempt(PRESS, number) for number in range(20)]
    assert next_attempts(made[:19], 10, CONFIG, tmp_path / "work") == range(19, 26)
    with pytest.raises(ValueError, match=r"coffee-button solved 3 of 20 episodes: lower collect.noise=0.1"):
        next_attempts(made, 10, CONFIG, tmp_path / "work")


def test_an_interrupted_collection_continues_and_its_result_does_not_depend_on_the_workers(tmp_path):
    root = tmp_path / "demos"
    pretend(tmp_path / "demos.partial", [made_up_demo(3), None])  # so attempt 2 is the second success
    assert collect_demos(CONFIG, SIM, root) == root
    assert [path.name for path in tmp_path.iterdir()] == ["demos"]
    sim = MetaWorld(SIM)
    expected = record_demo(sim, PRESS, Attempt(PRESS, 2).seed(7), CONFIG)
    sim.close()
    table = pq.read_table(next((root / "data").rglob("*.parquet")), columns=["episode_index", "action"])
    episodes, actions = np.array(table["episode_index"]), np.array(table["action"].to_pylist(), np.float32)
    assert np.array_equal(actions[episodes == 0], np.ones((3, 7)))
    assert np.array_equal(actions[episodes == 1], expected.actions)
    modified = (root / "meta" / "info.json").stat().st_mtime_ns
    assert collect_demos(dataclasses.replace(CONFIG, num_workers=2, enabled=True), SIM, root) == root
    assert (root / "meta" / "info.json").stat().st_mtime_ns == modified
    with pytest.raises(ValueError, match=r"collect.noise is 0.1 there, 0.2 here.*[Cc]hoose another data.root"):
        collect_demos(dataclasses.replace(CONFIG, noise=0.2), SIM, root)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(ValueError, match=r"is not a collection of demonstrations.*delete"):
        collect_demos(CONFIG, SIM, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "chapter 1"


def test_every_difference_is_named(tmp_path):
    file = tmp_path / REQUEST_FILE
    file.write_text(json.dumps(request()))
    check_request(tmp_path, file, request())
    other = request(dataclasses.replace(CONFIG, seed=8), dataclasses.replace(SIM, image_size=32))
    with pytest.raises(ValueError, match=r"collect.seed is 7 there, 8 here; sim.image_size is 16 there, 32 here"):
        check_request(tmp_path, file, other)


@pytest.mark.slow
def test_an_interrupt_keeps_finished_episodes_and_leaves_no_process(tmp_path):
    code = (
        "from pathlib import Path; from robovlms.commands.collect_demos import collect_demos;"
        "from robovlms.config.closed_loop import CollectConfig;"
        "from robovlms.sims.schemas.metaworld import MetaWorldSimConfig;"
        "sim = MetaWorldSimConfig(name='metaworld', tasks=['coffee-button'], episodes=1, image_size=16,"
        " control_hz=20.0, max_steps=125);"
        f"collect_demos(CollectConfig(demos_per_task=500, num_workers=1), sim, Path({str(tmp_path / 'demos')!r}))"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # who tests in the background may ignore it
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
    work = tmp_path / "demos.partial"
    assert within_seconds(60, lambda: any(work.rglob("*.npz")))
    os.killpg(started.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    assert started.wait(timeout=30) != 0
    assert within_seconds(10, lambda: not is_alive(started.pid))  # multiprocessing's own helper goes last
    assert all(succeeded(path) for path in work.rglob("*.npz"))
    assert not (tmp_path / "demos").exists()

import dataclasses
import json
import multiprocessing

import av
import line_world
import pytest
from line_world import LEFT, RIGHT, STAY

from robovlms.config.closed_loop import EvaluationConfig
from robovlms.evaluation.episodes import Episode, plan_episodes
from robovlms.evaluation.rollout import rollout
from robovlms.evaluation.rollouts import run_episodes

CONFIG = EvaluationConfig(episodes_per_task=2, opposite_episodes_per_task=1, seed=100, videos_per_task=1)
PLAN = plan_episodes([LEFT, RIGHT], CONFIG)
HERE = {"checkpoint": "a"}


def outcome(results):
    return [dataclasses.replace(result, seconds=0.0) for result in results]


def test_the_plan_repeats_seeds_for_both_kinds_and_records_the_first_of_each():
    assert [(e.task.name, e.seed, e.instruction, e.opposite, e.record) for e in PLAN] == [
        ("go-left", 100, "go left", False, True),
        ("go-left", 101, "go left", False, False),
        ("go-left", 100, "go right", True, True),
        ("go-right", 100, "go right", False, True),
        ("go-right", 101, "go right", False, False),
        ("go-right", 100, "go left", True, True),
    ]


def test_a_plan_without_opposites_or_episodes_says_which_option_to_change():
    with pytest.raises(ValueError, match=r"none of the tasks stay has an opposite: set it to 0"):
        plan_episodes([STAY], CONFIG)
    with pytest.raises(ValueError, match=r"'go-right', the opposite of 'go-left': add it to sim\.tasks"):
        plan_episodes([LEFT, STAY], CONFIG)
    with pytest.raises(ValueError, match=r"episodes_per_task=0"):
        plan_episodes([LEFT], EvaluationConfig(episodes_per_task=0))


def test_a_rollout_stops_at_success_and_otherwise_at_the_step_limit():
    episode = Episode(task=RIGHT, seed=5, instruction="go right", record=True)
    result, frames = rollout(line_world.Obedient(), line_world.world(), episode)
    assert (result.success, result.steps) == (True, 4)  # 0 + 4 * 0.3 > 1
    assert len(frames) == 5
    result, frames = rollout(
        line_world.Stubborn(), line_world.world(), Episode(task=LEFT, seed=5, instruction="go left")
    )
    assert (result.success, result.steps, frames) == (False, 12, None)


def test_obeying_the_opposite_instruction_misses_the_goal_and_ignoring_it_reaches_it(tmp_path):
    plan = [episode for episode in PLAN if episode.opposite]
    obedient = run_episodes(line_world.start_obedient, plan, folder=tmp_path / "a", conditions=HERE)
    stubborn = run_episodes(line_world.start_stubborn, plan, folder=tmp_path / "b", conditions=HERE)
    assert [result.success for result in obedient] == [False, False]
    assert [(result.task, result.success) for result in stubborn] == [("go-left", False), ("go-right", True)]


def test_two_workers_give_the_results_of_one_in_the_order_of_the_plan_with_videos(tmp_path):
    one = run_episodes(line_world.start_obedient, PLAN, folder=tmp_path / "one", conditions=HERE)
    two = run_episodes(line_world.start_obedient, PLAN, folder=tmp_path / "two", conditions=HERE, num_workers=2)
    assert outcome(one) == outcome(two)
    assert [result.key for result in two] == [episode.key for episode in PLAN]
    videos = sorted(path.name for path in (tmp_path / "two" / "videos").iterdir())
    assert videos == ["go-left_100.mp4", "go-left_100_opposite.mp4", "go-right_100.mp4", "go-right_100_opposite.mp4"]
    with av.open(str(tmp_path / "two" / "videos" / "go-right_100.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 4 + 10  # before the end, and the end for a second at 10 Hz
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_names_its_episode_and_the_evaluation_goes_on_where_it_stopped(tmp_path, num_workers):
    plan = [episode for episode in PLAN if not episode.opposite]
    with pytest.raises(RuntimeError, match=r"(?s)go-right, seed 10\d, 'go right' failed.*the wheel came off"):
        run_episodes(line_world.start_breaking, plan, folder=tmp_path, conditions=HERE, num_workers=num_workers)
    assert not multiprocessing.active_children()
    lines = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()[1:]]
    kept = {(line["task"], line["seed"]): line["seconds"] for line in lines if line["error"] is None}
    assert {("go-left", 100), ("go-left", 101)} <= kept.keys()
    results = run_episodes(line_world.start_obedient, plan, folder=tmp_path, conditions=HERE)
    assert [result.success for result in results] == [True] * 4
    assert (
        kept.items() <= {(result.task, result.seed): result.seconds for result in results}.items()
    )  # not played again


def test_a_finished_evaluation_is_read_without_starting_anything(tmp_path):
    first = run_episodes(line_world.start_obedient, PLAN, folder=tmp_path, conditions=HERE)
    assert run_episodes(line_world.start_nothing, PLAN, folder=tmp_path, conditions=HERE) == first


def test_a_line_that_a_killed_process_left_unfinished_is_played_again(tmp_path):
    first = run_episodes(line_world.start_obedient, PLAN, folder=tmp_path, conditions=HERE)
    journal = tmp_path / "episodes.jsonl"
    journal.write_text(journal.read_text()[:-20])
    assert outcome(run_episodes(line_world.start_obedient, PLAN, folder=tmp_path, conditions=HERE)) == outcome(first)
    assert len(journal.read_text().splitlines()) == 1 + len(PLAN)


@pytest.mark.parametrize(("field", "value"), [("steps", "<b>4</b>"), ("success", "yes"), ("seed", None), ("task", 3)])
def test_a_line_with_a_value_of_another_type_is_refused(tmp_path, field, value):
    run_episodes(line_world.start_obedient, PLAN, folder=tmp_path, conditions=HERE)
    journal = tmp_path / "episodes.jsonl"
    *lines, last = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines, json.dumps(json.loads(last) | {field: value})]) + "\n")
    with pytest.raises(ValueError, match="is not a file of evaluation results"):
        run_episodes(line_world.start_obedient, PLAN, folder=tmp_path, conditions=HERE)


def test_results_of_another_checkpoint_or_plan_are_never_mixed_in(tmp_path):
    run_episodes(line_world.start_obedient, PLAN, folder=tmp_path, conditions=HERE)
    with pytest.raises(ValueError, match=r"checkpoint was 'a', is 'b'\. Set overwrite=true"):
        run_episodes(line_world.start_obedient, PLAN, folder=tmp_path, conditions={"checkpoint": "b"})
    with pytest.raises(ValueError, match="1 episodes outside this plan"):
        run_episodes(line_world.start_obedient, PLAN[:-1], folder=tmp_path, conditions=HERE)


def test_more_episodes_can_be_added_to_a_finished_evaluation(tmp_path):
    first = run_episodes(line_world.start_obedient, PLAN[:3], folder=tmp_path, conditions=HERE)
    assert run_episodes(line_world.start_obedient, PLAN, folder=tmp_path, conditions=HERE)[:3] == first


@pytest.mark.slow  # spawned workers load torch
def test_workers_that_die_or_cannot_start_are_reported(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)seed 10\d.*process \d+ ended with status 7, while"):
        run_episodes(line_world.start_dying, PLAN, folder=tmp_path / "a", conditions=HERE, num_workers=2)
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        run_episodes(line_world.start_nothing, PLAN, folder=tmp_path / "b", conditions=HERE, num_workers=2)
    assert not multiprocessing.active_children()


def test_what_workers_warn_of_cannot_steer_the_terminal(tmp_path, capfd):
    run_episodes(line_world.start_warning, PLAN[:2], folder=tmp_path, conditions=HERE, num_workers=2)
    told = capfd.readouterr().err
    assert "WARNING task \\x1b[31m" in told
    assert "\x1b[31m" not in told

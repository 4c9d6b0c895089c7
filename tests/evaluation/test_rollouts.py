import json
import multiprocessing
from dataclasses import replace

import av
import line_world
import pytest

from robovlms.config.choices import Language
from robovlms.config.closed_loop import EvaluationConfig
from robovlms.errors import UserError
from robovlms.evaluation.episodes import plan_episodes
from robovlms.evaluation.rollout import rollout
from robovlms.evaluation.rollouts import run_episodes

CONFIG = EvaluationConfig(language=[Language.opposite], language_episodes=1, videos_per_task=1)
PLAN = plan_episodes(line_world.world(), CONFIG)
OWN = [episode for episode in PLAN if episode.language is Language.own]
OPPOSITE = [episode for episode in PLAN if episode.language is Language.opposite]
HERE = {"checkpoint": "a"}


def outcome(results):
    return [replace(result, seconds=0.0) for result in results]


def test_the_plan_repeats_seeds_for_both_kinds_and_records_the_first_of_each():
    assert [(e.scene, e.seed, e.goals[0].instruction, e.language, e.record) for e in PLAN] == [
        ("go-left", 100, "go left", "own", True),
        ("go-left", 101, "go left", "own", False),
        ("go-right", 100, "go right", "own", True),
        ("go-right", 101, "go right", "own", False),
        ("go-left", 100, "go right", "opposite", True),
        ("go-right", 100, "go left", "opposite", True),
    ]


def test_instructions_are_changed_in_the_ways_that_are_asked_for():
    kinds = [Language.empty, Language.paraphrase, Language.spelling]
    plan = plan_episodes(line_world.world(), EvaluationConfig(language=kinds, language_episodes=3))
    told = {kind: [e.goals[0].instruction for e in plan if e.language is kind] for kind in kinds}
    assert told == {
        "empty": [""] * 4,
        "paraphrase": ["to the left", "leftwards"],
        "spelling": ["GO LEFT.", "GO LEFT.", "GO RIGHT.", "GO RIGHT."],
    }
    assert {e.goals[0].task for e in plan} == {"go-left", "go-right"}


@pytest.mark.parametrize(("kind", "why"), [(Language.opposite, "an opposite"), (Language.paraphrase, "a paraphrase")])
def test_a_plan_without_such_instructions_says_which_option_to_change(kind, why):
    with pytest.raises(UserError, match=rf"evaluation\.language has {kind}, but no task of stay .*none has {why}"):
        plan_episodes(line_world.world("stay"), EvaluationConfig(language=[kind]))


def test_a_rollout_stops_at_success_and_otherwise_at_the_step_limit():
    world = line_world.world()
    left, right = world.tasks()
    result, frames = rollout(line_world.Obedient(), world, replace(world.episode(right, 5), record=True))
    assert (result.success, result.steps, result.goal_steps) == (True, 4, (4,))  # 0 + 4 * 0.3 > 1
    assert len(frames) == 5
    result, frames = rollout(line_world.Stubborn(), world, world.episode(left, 5))
    assert (result.success, result.steps, frames) == (False, 12, None)


def test_a_chain_goes_on_where_its_last_goal_was_reached_and_ends_at_the_first_that_is_missed():
    world = line_world.world(kind=line_world.Forgetful)
    first = world.episodes()[0]
    result, _ = rollout(line_world.Obedient(), world, first)
    assert (result.reached, result.goal_steps, result.steps) == (2, (4, 8), 12)  # -0.05 to 1.15, then to -1.25
    result, _ = rollout(line_world.Stubborn(), world, first)
    assert (result.reached, result.goal_steps, result.steps) == (1, (4,), 16)


def test_the_memory_is_reset_at_a_new_goal_where_the_benchmark_says_so():
    for kind, resets in [(line_world.Forgetful, 3), (line_world.LineWorld, 1)]:
        world, policy = line_world.world(kind=kind), line_world.Counting()
        rollout(policy, world, line_world.world(kind=line_world.Forgetful).episodes()[0])
        assert policy.resets == resets


def test_obeying_the_opposite_instruction_misses_the_goal_and_ignoring_it_reaches_it(tmp_path):
    obedient = run_episodes(line_world.start_obedient, OPPOSITE, folder=tmp_path / "a", conditions=HERE)
    stubborn = run_episodes(line_world.start_stubborn, OPPOSITE, folder=tmp_path / "b", conditions=HERE)
    assert [result.success for result in obedient] == [False, False]
    assert [result.as_wanted for result in obedient] == [True, True]
    assert [(result.episode.scene, result.success) for result in stubborn] == [("go-left", False), ("go-right", True)]


@pytest.mark.slow
def test_two_workers_give_the_results_of_one_in_the_order_of_the_plan_with_videos(tmp_path):
    one = run_episodes(line_world.start_obedient, PLAN, folder=tmp_path / "one", conditions=HERE)
    two = run_episodes(line_world.start_obedient, PLAN, folder=tmp_path / "two", conditions=HERE, num_workers=2)
    assert outcome(one) == outcome(two)
    assert [result.episode for result in two] == PLAN
    videos = sorted(path.name for path in (tmp_path / "two" / "videos").iterdir())
    assert videos == ["go-left_100.mp4", "go-left_100_opposite.mp4", "go-right_100.mp4", "go-right_100_opposite.mp4"]
    with av.open(str(tmp_path / "two" / "videos" / "go-right_100.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 4 + 10  # before the end, and the end for a second at 10 Hz
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_error_names_its_episode_and_the_evaluation_goes_on_where_it_stopped(tmp_path, num_workers):
    with pytest.raises(RuntimeError, match=r"(?s)go-right, seed 10\d: 'go right' failed.*the wheel came off"):
        run_episodes(line_world.start_breaking, OWN, folder=tmp_path, conditions=HERE, num_workers=num_workers)
    assert not multiprocessing.active_children()
    lines = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()[1:]]
    kept = {(line["scene"], line["seed"]): line["seconds"] for line in lines if line["error"] is None}
    assert {("go-left", 100), ("go-left", 101)} <= kept.keys()
    results = run_episodes(line_world.start_obedient, OWN, folder=tmp_path, conditions=HERE)
    assert [result.success for result in results] == [True] * 4
    assert (
        kept.items() <= {(result.episode.scene, result.episode.seed): result.seconds for result in results}.items()
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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", "<b>4</b>"),
        ("goal_steps", ["4"]),
        ("goal_steps", [1, 1]),
        ("seed", None),
        ("seed", True),
        ("scene", 3),
        ("goals", [{"task": 1, "instruction": "go"}]),
        ("language", "shouted"),
        ("extra", 1),
    ],
)
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
    with pytest.raises(UserError, match=r"process \d+ ended with status 7, while it worked on go-"):
        run_episodes(line_world.start_dying, PLAN, folder=tmp_path / "a", conditions=HERE, num_workers=2)
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        run_episodes(line_world.start_nothing, PLAN, folder=tmp_path / "b", conditions=HERE, num_workers=2)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_what_workers_warn_of_cannot_steer_the_terminal(tmp_path, capfd):
    run_episodes(line_world.start_warning, PLAN[:2], folder=tmp_path, conditions=HERE, num_workers=2)
    told = capfd.readouterr().err
    assert "WARNING task \\x1b[31m" in told
    assert "\x1b[31m" not in told

import json

import pytest

from robovlms.config.choices import Language
from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.results import environment_versions, format_table, summarize, write_results
from robovlms.sims.base import Episode, Goal


def result(task, seed, success, steps, language="own", error=None):
    goal = Goal(task=task, instruction=task)
    return EpisodeResult(
        episode=Episode(scene=task, seed=seed, goals=(goal,), max_steps=500, language=Language(language)),
        goal_steps=(steps,) if success else (),
        steps=steps,
        seconds=1.0,
        error=error,
    )


def chain(number, *goal_steps):
    goals = tuple(Goal(task=f"task {i}", instruction=f"do {i}") for i in range(3))
    episode = Episode(scene="chain", seed=number, goals=goals, max_steps=100, group="D", variant=f"light {number % 2}")
    return EpisodeResult(episode=episode, goal_steps=goal_steps, steps=sum(goal_steps) + 100, seconds=1.0)


EPISODES = [
    *(result("open", i, i < 8, 10 + i) for i in range(10)),
    result("close", 0, False, None, error="timeout"),
    result("close", 1, True, 41),
    *(result("open", i, i == 0, 20, language="opposite") for i in range(4)),
]


def test_rates_are_counted_per_task_overall_and_for_opposite_instructions():
    results = summarize(EPISODES, config={}, versions={})
    assert {task: (row["successes"], row["trials"]) for task, row in results["language"]["own"]["tasks"].items()} == {
        "open": (8, 10),
        "close": (1, 2),
    }
    assert results["language"]["own"]["overall"]["mean"] == 9 / 12
    assert results["language"]["own"]["tasks"]["open"]["low"] == pytest.approx(0.490, abs=5e-4)
    assert results["language"]["own"]["tasks"]["open"]["steps_to_success"] == 13.5  # 10 .. 17
    assert results["language"]["opposite"]["overall"]["mean"] == 0.25


def test_chains_are_counted_goal_by_goal_and_by_how_far_they_came():
    chains = [chain(0), chain(1, 10), chain(2, 10, 20), chain(3, 10, 20, 30)]
    rates = summarize(chains, config={}, versions={})["language"]["own"]
    assert [row["successes"] for row in rates["chains"]["rates"]] == [3, 2, 1]
    assert rates["chains"]["average_length"] == 6 / 4
    assert rates["chains"]["low"] == pytest.approx(0.5, abs=0.01)  # a mean of four of 0, 1, 2, 3
    assert rates["chains"]["high"] == pytest.approx(2.5, abs=0.01)
    assert {task: (row["successes"], row["trials"]) for task, row in rates["tasks"].items()} == {
        "task 0": (3, 4),
        "task 1": (2, 3),
        "task 2": (1, 2),
    }
    assert rates["tasks"]["task 1"]["steps_to_success"] == 20
    assert {name: (row["successes"], row["trials"]) for name, row in rates["groups"].items()} == {
        "D": (1, 4),
        "light 0": (0, 2),
        "light 1": (1, 2),
    }


def test_what_is_written_of_an_episode_is_read_as_it_was():
    for each in [*EPISODES, chain(3, 10, 20, 30)]:
        assert EpisodeResult.from_json(json.loads(json.dumps(each.to_json()))) == each


def test_an_episode_that_ended_in_an_error_counts_as_a_failure_and_is_shown():
    row = summarize(EPISODES, config={}, versions={})["language"]["own"]["tasks"]["close"]
    assert (row["successes"], row["trials"], row["errors"], row["steps_to_success"]) == (1, 2, 1, 41)


def test_nothing_but_opposite_instructions_is_no_evaluation():
    with pytest.raises(ValueError, match="0 successes of 0 trials"):
        summarize(EPISODES[-4:], config={}, versions={})


def test_the_table_is_aligned():
    assert format_table(summarize(EPISODES, config={}, versions={})).splitlines() == [
        "task               success   mean   95 % interval  steps to success",
        "",
        "own instruction",
        "  open                8/10  80.0%  49.0% .. 94.3%                14",
        "  close     1/2 (1 errors)  50.0%   9.5% .. 90.5%                41",
        "  overall  9/12 (1 errors)  75.0%  46.8% .. 91.1%                17",
        "",
        "opposite instruction (success counts against the policy)",
        "  open                 1/4  25.0%   4.6% .. 69.9%                20",
        "  overall              1/4  25.0%   4.6% .. 69.9%                20",
        "",
        "Whether the policy follows its instructions is not decided: on 4 starts it reached the scene's goal 4 times "
        "with its own instruction and 1 times with the opposite instruction (difference -11% to +95%, p = 0.25). "
        "Raise evaluation.language_episodes.",
        "With the opposite instruction instead of its own, on 4 starts: 0.25 instead of 1.00 goals reached (difference "
        "+0.75, 95 % interval -0.11 to +0.95, p = 0.25).",
    ]


def test_a_task_name_cannot_steer_the_terminal_or_fake_a_line():
    table = format_table(summarize([result("open\x1b[2J\n  close  9/9", 0, True, 3)], config={}, versions={}))
    assert "\x1b" not in table
    assert "  open\\x1b[2J\\n  close  9/9" in table


def test_results_are_json_and_name_versions_of_what_took_part(tmp_path):
    versions = environment_versions(["numpy", "no-such-simulator"])
    results = summarize(EPISODES, config={"seed": 3}, versions=versions)
    write_results(tmp_path / "results.json", results)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert "numpy" in versions
    assert "no-such-simulator" not in versions


@pytest.mark.parametrize("suite", ["spatial", "object", "goal", "10"])
def test_published_libero_episodes_give_the_published_rates(shared_data, suite):
    folder = shared_data / "eval_results" / "libero_per_episode"
    for path in sorted(folder.glob(f"*/merged_libero_{suite}.json")):
        published = json.loads(path.read_text())
        episodes = [
            result(task["task"], i, episode["success"], episode.get("steps"), error=episode.get("failure_reason"))
            for task in published["tasks"]
            for i, episode in enumerate(task["episodes"])
        ]
        results = summarize(episodes, config={}, versions={})
        assert results["language"]["own"]["overall"]["trials"] == 500
        assert results["language"]["own"]["overall"]["mean"] == pytest.approx(published["overall_success_rate"])
        for task in published["tasks"]:
            assert results["language"]["own"]["tasks"][task["task"]]["mean"] == pytest.approx(task["success_rate"])

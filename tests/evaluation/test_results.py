import json

import pytest

from robovlms.evaluation.episodes import EpisodeResult
from robovlms.evaluation.results import environment_versions, format_table, summarize, write_results


def result(task, seed, success, steps, opposite=False, error=None):
    return EpisodeResult(
        task=task,
        seed=seed,
        instruction=task,
        opposite=opposite,
        success=success,
        steps=steps,
        seconds=1.0,
        error=error,
    )


EPISODES = [
    *(result("open", i, i < 8, 10 + i) for i in range(10)),
    result("close", 0, False, None, error="timeout"),
    result("close", 1, True, 41),
    *(result("open", i, i == 0, 20, opposite=True) for i in range(4)),
]


def test_rates_are_counted_per_task_overall_and_for_opposite_instructions():
    results = summarize(EPISODES, config={}, versions={})
    assert {task: (row["successes"], row["trials"]) for task, row in results["own"]["tasks"].items()} == {
        "open": (8, 10),
        "close": (1, 2),
    }
    assert results["own"]["overall"]["mean"] == 9 / 12
    assert results["own"]["tasks"]["open"]["low"] == pytest.approx(0.490, abs=5e-4)
    assert results["own"]["tasks"]["open"]["steps_to_success"] == 13.5  # 10 .. 17
    assert results["opposite"]["overall"]["mean"] == 0.25


def test_an_episode_that_ended_in_an_error_counts_as_a_failure_and_is_shown():
    row = summarize(EPISODES, config={}, versions={})["own"]["tasks"]["close"]
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
        assert results["own"]["overall"]["trials"] == 500
        assert results["own"]["overall"]["mean"] == pytest.approx(published["overall_success_rate"])
        for task in published["tasks"]:
            assert results["own"]["tasks"][task["task"]]["mean"] == pytest.approx(task["success_rate"])

import json

import line_world
import pytest
from test_results import EPISODES

from robovlms.errors import UserError
from robovlms.evaluation.analysis.certificate import certify
from robovlms.evaluation.analysis.reading import read_evaluation
from robovlms.evaluation.results import summarize, write_results
from robovlms.evaluation.rollouts import run_episodes

SIM = {"name": "line", "tasks": [], "episodes": 2, "seed": 0, "max_steps": 500, "size": 20}


def finished(folder, episodes=EPISODES):
    results = summarize(episodes, config={"sim": SIM}, versions={"python": "3"})
    write_results(folder / "results.json", results)
    return results


@pytest.mark.parametrize("name", ["", "results.json"])
def test_a_finished_evaluation_is_read_from_its_folder_or_its_file(tmp_path, name):
    finished(tmp_path)
    run = read_evaluation(tmp_path / name, "a")
    assert (run.name, run.simulator, run.results) == ("a", "line", tuple(EPISODES))
    assert run.conditions == {"sim.size": "20", "the version of python": "3"}


def test_one_that_still_runs_is_read_where_that_is_asked_for(tmp_path):
    world = line_world.world()
    conditions = {"sim": {"name": "line"}, "renderer": "numpy"}
    played = run_episodes(line_world.start_obedient, world.episodes()[:3], folder=tmp_path, conditions=conditions)
    journal = tmp_path / "episodes.jsonl"
    (tmp_path / "episodes.rank1.jsonl").write_text("".join(journal.read_text().splitlines(keepends=True)[:1]))
    journal.write_text(journal.read_text() + '{"scene": "half a li')
    run = read_evaluation(tmp_path, "a", with_running=True)
    assert list(run.results) == played
    assert run.conditions == {"renderer": "numpy"}
    with pytest.raises(UserError, match=r"has not finished: repeat the command .* or .* sequential=true"):
        read_evaluation(tmp_path, "a")


def test_results_of_the_first_version_are_read(tmp_path):
    old = {
        "task": "open", "seed": 3, "instruction": "open it", "opposite": False, "success": True, "steps": 41,
        "seconds": 2.0, "error": None,
    }  # fmt: skip
    rows = [old, old | {"opposite": True, "instruction": "close it", "success": False, "steps": 500}]
    (tmp_path / "results.json").write_text(json.dumps({"own": {}, "config": {"sim": SIM}, "episodes": rows}))
    own, opposite = read_evaluation(tmp_path, "a").results
    assert str(own.episode) == "open, seed 3: 'open it'"
    assert (own.goal_steps, own.episode.max_steps) == ((41,), 500)
    assert str(opposite.episode) == "open, seed 3: 'close it' (opposite instruction)"
    assert opposite.as_wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "of an evaluation"),
        ('{"language": {}}', "no list of episodes"),
        ('{"episodes": [{"seed": 1}]}', r"an episode that cannot be read \(KeyError"),
        ('{"episodes": [3]}', "no list of episodes"),
    ],
)
def test_a_file_that_is_no_results_is_named(tmp_path, text, message):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=rf"results\.json.*{message}"):
        read_evaluation(tmp_path, "a")


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(UserError, match="is no evaluation: there is neither"):
        read_evaluation(tmp_path, "a")
    with pytest.raises(UserError, match=r"there is no .*gone\.json"):
        read_evaluation(tmp_path / "gone.json", "a")


def test_a_file_that_was_changed_after_it_was_written_is_refused(tmp_path):
    results = certify(
        finished(tmp_path), checkpoint=tmp_path, checkpoint_digest="", renderer="egl", device="cpu", argv=["run"]
    )
    write_results(tmp_path / "results.json", results)
    assert read_evaluation(tmp_path, "a").results == tuple(EPISODES)
    results["episodes"][0]["goal_steps"] = []
    write_results(tmp_path / "results.json", results)
    with pytest.raises(UserError, match="changed after it was written: its digest does not fit"):
        read_evaluation(tmp_path, "a")

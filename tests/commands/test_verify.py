"""Whether results hold: what is found by reading them, and what by playing a share of them again."""

import copy
import json
import re
from pathlib import Path

import line_world
import pytest
from composing import completed, composed
from miniatures import make_miniature

from robovlms.cli.main import _evaluate
from robovlms.commands.evaluate import evaluate
from robovlms.commands.train import train
from robovlms.commands.verify import content_faults, replay, verify
from robovlms.config.choices import Execution, Language
from robovlms.config.closed_loop import EvaluationConfig
from robovlms.config.commands import EvaluateConfig
from robovlms.errors import UserError
from robovlms.evaluation.analysis.certificate import certify, machine_name, seal
from robovlms.evaluation.episodes import plan_episodes
from robovlms.evaluation.policies.checkpoint import ways_of_execution
from robovlms.evaluation.results import environment_versions, summarize
from robovlms.evaluation.rollouts import run_episodes
from robovlms.files import read_json_lines

HERE = {"renderer": "", "machine": machine_name("cpu"), **environment_versions([])}


@pytest.fixture
def again(tmp_path):
    """What plays a share of results again, by a policy that `start` builds."""

    def play(results, share, start=line_world.start_obedient, here=HERE):
        return replay(results, share, lambda some: run_episodes(start, some, folder=tmp_path, conditions={}), here)

    return play


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """An evaluation of the obedient policy: all own goals are reached, no opposite ones."""
    folder = tmp_path_factory.mktemp("evaluation")
    plan = plan_episodes(line_world.world(), EvaluationConfig(language=[Language.opposite], videos_per_task=0))
    played = run_episodes(line_world.start_obedient, plan, folder=folder, conditions={})
    whole = summarize(played, config={"sim": {"name": "line"}}, versions=environment_versions([]))
    certified = certify(
        whole, checkpoint=folder, checkpoint_digest="0", renderer="", device="cpu", argv=["evaluate.py", "a b=1"]
    )
    return json.loads(json.dumps(certified))


@pytest.mark.slow
def test_a_certificate_names_what_the_results_were_made_with(results):
    certificate = results["certificate"]
    assert certificate["command"] == "evaluate.py 'a b=1'"
    assert certificate["seeds"] == [100, 101]
    assert certificate["machine"].endswith("cpu")
    assert re.fullmatch("[0-9a-f]{64}", certificate["content_digest"])


@pytest.mark.slow
def test_what_was_written_holds_when_it_is_read_and_when_all_of_it_is_played_again(results, again):
    assert content_faults(results) == []
    verdict = again(results, 1.0)
    assert verdict.holds
    assert verdict.checked == ["8 of 8 episodes, played again, step by step"]
    assert str(verdict).endswith("the results hold")


def numbers(value, place=()):
    """List the places of all numbers in a JSON value."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, inner in items for found in numbers(inner, (*place, key))]
    return [place] if type(value) in (int, float) else []


@pytest.mark.slow
def test_any_number_that_is_changed_is_found(results):
    places = numbers(results)
    assert len(places) > 80
    for *path, last in places:
        changed = copy.deepcopy(results)
        inside = changed
        for key in path:
            inside = inside[key]
        inside[last] += 1
        assert content_faults(changed), (*path, last)


@pytest.mark.slow
def test_whoever_mends_the_digest_is_found_by_rates_that_do_not_fit_the_episodes(results):
    changed = copy.deepcopy(results)
    changed["language"]["opposite"]["overall"]["successes"] += 1
    faults = content_faults(json.loads(json.dumps(seal(changed))))
    assert faults == ["language.opposite.overall.successes is not what the episodes give"]


def invented(results):
    """Return results whose first own episode was reached a step sooner, with rates and digest that fit."""
    changed = copy.deepcopy(results)
    row = changed["episodes"][0]
    row["steps"], row["goal_steps"] = row["steps"] - 1, [row["goal_steps"][0] - 1]
    return changed


@pytest.mark.slow
def test_whoever_invents_an_episode_is_found_by_playing_it(results, again):
    (fault,) = again(invented(results), 1.0).faults
    assert fault == "go-left, seed 100: 'go left' reached 1 goals in 3 steps, now 1 in 4"


@pytest.mark.slow
@pytest.mark.parametrize(("share", "count"), [(0.001, 1), (0.5, 4), (1.0, 8)])
def test_a_share_is_at_least_one_episode(results, again, share, count):
    assert again(results, share).checked[0].startswith(f"{count} of 8 episodes")


@pytest.mark.slow
def test_another_machine_is_held_against_a_test_of_the_successes_alone(results, again):
    elsewhere = copy.deepcopy(results)
    elsewhere["certificate"]["machine"] = "a calculator"
    verdict = again(invented(elsewhere), 1.0)
    assert verdict.holds
    assert "by a test of their successes, as machine was a calculator, is " in verdict.checked[0]
    many = copy.deepcopy(elsewhere)
    for seed in range(20):
        many["episodes"].append({**many["episodes"][0], "seed": 1000 + seed})
    (fault,) = again(many, 1.0, line_world.start_contrary).faults
    assert "(exact sign test, p = " in fault


@pytest.mark.slow
def test_results_without_a_certificate_or_a_checkpoint_say_what_to_do(results, tmp_path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps({key: value for key, value in results.items() if key != "certificate"}))
    with pytest.raises(UserError, match="has no certificate"):
        verify(file, 0.1)
    file.write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"the checkpoint .*gone is not there: say where it is now, checkpoint="):
        verify(tmp_path, 0.1, str(tmp_path / "gone"))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The folder of an evaluation of a tiny run in Meta-World."""
    pytest.importorskip("metaworld", reason='pip install -e ".[metaworld]"')
    folder = tmp_path_factory.mktemp("run")
    demos = make_miniature(completed(composed("experiment=quickstart")).data, folder / "data").root
    sim = ["sim.tasks=[drawer-open]", "sim.episodes=2", "sim.image_size=32", "sim.max_steps=3"]
    config = completed(
        composed(
            "experiment=quickstart", "backbone.size=tiny", "collect.enabled=false", "evaluation.enabled=false",
            "evaluation.language=[empty]", "evaluation.execution=chunk", "evaluation.latency=[0,2]",
            "evaluation.shuffle=true", "evaluation.num_workers=1",
            "head.hidden_dim=16", f"data.root={demos}", f"output_dir={folder / 'run'}", "batch_size=4",
            "device_batch_size=4", "schedule.warmup=1 step", "schedule.total=2 step", "trainer.validate_every=null",
            "trainer.save_every=2 step", *sim,
        )
    )  # fmt: skip
    train(config)
    asked = EvaluateConfig(
        checkpoint=str(folder / "run"), output_dir=str(folder / "evaluation"), evaluation=config.evaluation
    )
    return evaluate(asked).parent


@pytest.mark.slow
def test_an_evaluation_is_verified_from_its_file_alone_and_says_so_by_its_exit_status(evaluated, capsys):
    asked = EvaluateConfig(verify=str(evaluated / "results.json"), share=1.0, evaluation=EvaluationConfig())
    with pytest.raises(SystemExit) as end:
        _evaluate(asked)
    assert end.value.code == 0
    assert "4 of 4 episodes, played again, step by step" in capsys.readouterr().out


@pytest.mark.slow
def test_another_checkpoint_or_a_changed_file_does_not_hold(evaluated, tmp_path):
    content = json.loads((evaluated / "results.json").read_text())
    content["episodes"][0]["steps"] += 1
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert "changed after it was written" in str(verify(tmp_path, 1.0))
    other = Path(__file__).parents[1] / "old_checkpoints" / "single" / "checkpoints" / "step_000002"
    assert "is another checkpoint" in str(verify(evaluated, 1.0, str(other)))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "is damaged" in str(verify(evaluated, 1.0, str(tmp_path)))


@pytest.mark.slow
def test_episodes_are_played_in_a_random_order_and_reported_in_that_of_the_plan(evaluated):
    rows = [(row["seed"], row["language"]) for row in json.loads((evaluated / "results.json").read_text())["episodes"]]
    played = [(row["seed"], row["language"]) for row in read_json_lines(evaluated / "episodes.jsonl")[1:]]
    assert rows == sorted(rows, key=lambda row: row[1] == "empty")
    assert sorted(played) == sorted(rows)
    assert played != rows


@pytest.mark.slow
def test_success_is_measured_under_every_latency_and_way_of_execution(evaluated):
    points = json.loads((evaluated / "results.json").read_text())["latency"]
    assert [(point["execution"], point["latency"], point["episodes"]) for point in points] == [
        ("chunk", 0, 2), ("chunk", 2, 2), ("ensemble", 0, 2), ("ensemble", 2, 2),
    ]  # fmt: skip
    folders = {path.name for path in (evaluated / "latency").iterdir()}
    assert folders == {"chunk_2", "ensemble_0", "ensemble_2", "latency.png"}  # chunk at 0 is the evaluation itself
    assert "Success against latency" in (evaluated / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"latency": [0, 11]}, r"evaluation\.latency\[1\]=11 must be at most 10, the policy's chunk_size"),
        ({"decision_steps": 99}, r"evaluation\.decision_steps=99 must be at most 10"),
        ({"executions": [Execution.real_time]}, r"evaluation\.executions has real_time, which head=mlp cannot do"),
    ],
)
def test_latencies_that_a_policy_cannot_act_under_are_refused_before_anything_is_played(
    evaluated, tmp_path, asked, message
):
    trained = completed(composed("experiment=quickstart"))
    assert ways_of_execution(EvaluationConfig(latency=[10]), trained) == [Execution.chunk, Execution.ensemble]
    with pytest.raises(UserError, match=message):
        ways_of_execution(EvaluationConfig(**asked), trained)
    run = json.loads((evaluated / "results.json").read_text())["certificate"]["checkpoint"]
    with pytest.raises(UserError, match=message):
        evaluate(EvaluateConfig(checkpoint=run, output_dir=str(tmp_path), evaluation=EvaluationConfig(**asked)))
    assert not list(tmp_path.iterdir())

"""Runs of a sweep, from the command line to one table and one picture."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from calvin_folder import make_calvin_folder, tiny_run
from test_results import result

from robovlms.commands.compare import compare
from robovlms.errors import UserError
from robovlms.evaluation.results import summarize, write_results

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two structures x two heads, of which one goes with neither; and what was printed."""
    folder = tmp_path_factory.mktemp("sweep")
    data = make_calvin_folder(folder / "data")
    arguments = [arg for arg in tiny_run(data, folder / "runs") if not arg.startswith(("head.", "output_dir"))]
    sweep = ["structure=one_step,interleaved", "head=mlp,lstm", "head.hidden_dim=16", f"output_dir={folder / 'runs'}"]
    last = ["experiment=vla_structure", "schedule.total=2 step", "trainer.save_every=2 step"]
    command = [sys.executable, "train.py", "--multirun", *arguments, *last, *sweep]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done, folder / "runs"


@pytest.mark.slow
def test_what_is_not_allowed_is_skipped_with_its_reason_and_the_rest_runs(sweep):
    done, _ = sweep
    assert done.returncode == 0, done.stderr
    skipped = re.findall(r"skipped: (structure=\w+ with head=\w+)", done.stdout + done.stderr)
    assert skipped == ["structure=one_step with head=lstm", "structure=interleaved with head=lstm"]


@pytest.mark.slow
def test_finished_runs_become_one_table_and_one_page(sweep):
    _, folder = sweep
    run = next(folder.glob("*one_step*"))
    row = {"successes": 3, "trials": 4, "mean": 0.75, "low": 0.3, "high": 0.95, "steps_to_success": 9, "errors": 0}
    (run / "evaluation" / "x").mkdir(parents=True)
    results = {"language": {"own": {"overall": row, "tasks": {}}}}
    (run / "evaluation" / "x" / "results.json").write_text(json.dumps(results))
    table, page = compare([str(folder)], latency_steps=2)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert [row[:4] for row in rows[2:]] == [
        ["nano, one_step, mlp", "3/4", "30% to 95%", "-"],
        ["nano, interleaved, mlp", "-", "-", "-"],
    ]
    assert all(float(cell) > 0 for row in rows[2:] for cell in row[4:] if cell != "-")
    assert (folder / "comparison.png").stat().st_size > 5000
    assert "nano, interleaved, mlp" in page.read_text()
    assert (folder / "comparison.md").read_text() == table + "\n"


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="hold no run with a checkpoint"):
        compare([str(tmp_path)], 1)


def test_a_mixture_is_compared_and_a_damaged_run_is_left_out_with_the_reason(tmp_path, caplog):
    runs = Path(__file__).parents[1] / "old_checkpoints"
    for name in ("single", "mixture"):
        shutil.copytree(runs / name, tmp_path / name)
        checkpoint = next((tmp_path / name / "checkpoints").iterdir())
        shutil.copy(checkpoint / "config.yaml", tmp_path / name)
    shutil.copytree(tmp_path / "single", tmp_path / "damaged")
    next((tmp_path / "damaged" / "checkpoints").iterdir()).joinpath("action_stats.json").write_text("{")
    table, _ = compare([str(tmp_path)], latency_steps=1)
    assert len(table.splitlines()) == 4
    assert "left out" in caplog.text
    assert "action_stats.json" in caplog.text


def evaluation(folder, successes):
    """Write an evaluation whose episode i succeeds where `successes` has a 1 at i."""
    folder.mkdir(parents=True)
    played = [result("open", seed, mark == "1", 10) for seed, mark in enumerate(successes)]
    write_results(folder / "results.json", summarize(played, config={"sim": {"name": "line"}}, versions={}))
    return folder


def rows_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


def test_evaluations_without_their_runs_are_compared_pair_by_pair(tmp_path):
    good, bad = evaluation(tmp_path / "good", "11111111"), evaluation(tmp_path / "bad", "00000001")
    text, page = compare([str(bad / "results.json"), str(good)], 20, output_dir=str(tmp_path / "out"))
    rows = rows_of(text)
    assert ["good", "8/8", "68% to 100%", "-", "-", "-", "-", "-", "-"] in rows
    assert ["good", "100.0 %", "67.6 % to 100.0 %", "yes"] in rows
    assert ["good - bad", "7 : 0", "+87.5 %", "+26.7 % to +97.8 %", "0.016", "0.016", "good"] in rows
    assert "The best is good." in text
    assert page == tmp_path / "out" / "comparison.html"
    assert "The best is good." in page.read_text()
    assert page.read_text().count("data:image/png;base64,") == 2
    assert (tmp_path / "out" / "comparison.md").read_text() == text + "\n"


def test_evaluations_are_found_below_a_folder_and_told_apart_by_their_places(tmp_path):
    for run in "ab":
        evaluation(tmp_path / run / "line_step_1", "1100")
        evaluation(tmp_path / run / "line_step_1" / "latency" / "chunk_2", "0000")  # belongs to the one above
    text, _ = compare([str(tmp_path)], 0)
    assert [row[0] for row in rows_of(text)[2:4]] == [str(tmp_path / run / "line_step_1") for run in "ab"]
    assert len(rows_of(text)) == 2 + 2 + 2 + 2 + 2 + 1
    assert "No run is shown to be better than another" in text


def test_runs_without_a_common_episode_are_refused_and_a_damaged_one_is_left_out(tmp_path, caplog):
    a, b = evaluation(tmp_path / "a", "11"), evaluation(tmp_path / "b", "11")
    (b / "results.json").write_text((b / "results.json").read_text().replace('"seed": ', '"seed": 7'))
    with pytest.raises(UserError, match="a and b have no episode in common"):
        compare([str(a), str(b)], 0)
    (b / "results.json").write_text("{")
    text, _ = compare([str(a), str(b)], 0)
    assert len(rows_of(text)) == 3
    assert "left out" in caplog.text


def test_runs_that_are_not_timed_are_not_loaded(tmp_path):
    shutil.copytree(Path(__file__).parents[1] / "old_checkpoints" / "single", tmp_path / "run")
    checkpoint = next((tmp_path / "run" / "checkpoints").iterdir())
    shutil.copy(checkpoint / "config.yaml", tmp_path / "run")
    evaluation(tmp_path / "run" / "evaluation" / "line_step_900", "0")
    evaluation(tmp_path / "run" / "evaluation" / "line_step_1000", "1")
    (checkpoint / "model.safetensors").unlink()
    text, _ = compare([str(tmp_path)], latency_steps=0)
    assert rows_of(text)[2][1:] == ["1/1", "21% to 100%", "-", "-", "-", "-", "-", "-"]


def test_evaluations_that_still_run_say_whether_to_go_on(tmp_path):
    for name, mark, count in [("a", "1", 6), ("b", "0", 5)]:
        played = [result("open", seed, mark == "1", 10).to_json() for seed in range(count)]
        (tmp_path / name).mkdir()
        lines = [{"conditions": {"sim": {"name": "line"}}}, *played]
        (tmp_path / name / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(FileNotFoundError, match=r"no results\.json that can be read"):
        compare([str(tmp_path)], 0)
    text, _ = compare([str(tmp_path)], 0, sequential=True)
    assert "Go on: about 3 more episodes will decide" in text
    assert rows_of(text)[-1][-2:] == ["not decided", "8"]
    whole = evaluation(tmp_path / "b whole", "0" * 12), evaluation(tmp_path / "a whole", "1" * 12)
    text, _ = compare([str(folder) for folder in whole], 0, sequential=True)
    assert "Stop" in text

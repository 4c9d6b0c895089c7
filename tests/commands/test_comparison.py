"""Runs of a sweep, from the command line to one table and one picture."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from calvin_folder import make_calvin_folder, tiny_run

from robovlms.commands.compare import compare

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


def test_what_is_not_allowed_is_skipped_with_its_reason_and_the_rest_runs(sweep):
    done, _ = sweep
    assert done.returncode == 0, done.stderr
    skipped = re.findall(r"skipped: (structure=\w+ with head=\w+)", done.stdout + done.stderr)
    assert skipped == ["structure=one_step with head=lstm", "structure=interleaved with head=lstm"]


def test_finished_runs_become_one_table_and_one_picture(sweep):
    _, folder = sweep
    run = next(folder.glob("*one_step*"))
    row = {"successes": 3, "trials": 4, "mean": 0.75, "low": 0.3, "high": 0.95, "steps_to_success": 9, "errors": 0}
    (run / "evaluation" / "x").mkdir(parents=True)
    results = {"language": {"own": {"overall": row, "tasks": {}}}}
    (run / "evaluation" / "x" / "results.json").write_text(json.dumps(results))
    table, picture = compare([str(folder)], latency_steps=2)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert [row[:4] for row in rows[2:]] == [
        ["nano, one_step, mlp", "3/4", "30% to 95%", "-"],
        ["nano, interleaved, mlp", "-", "-", "-"],
    ]
    assert all(float(cell) > 0 for row in rows[2:] for cell in row[4:] if cell != "-")
    assert picture.stat().st_size > 5000
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

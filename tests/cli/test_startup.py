"""Asking costs less than a second, and nothing heavy is imported before a config has been checked."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPORT_HEAVY_IMPORTS = """
import runpy, sys
heavy = {"torch", "transformers", "accelerate", "peft", "wandb", "numpy", "matplotlib", "mujoco"}
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", REPORT_HEAVY_IMPORTS, str(ROOT / arguments[0]), *arguments[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["train.py", "--help"], 0),
        (["train.py", "--cfg", "job", "experiment=calvin_perform"], 0),
        (["train.py", "optimizer.lrr=1"], 2),
        (["scripts/inspect_data.py", "--help"], 0),
        (["scripts/inspect_data.py", "data.root=/data", "view.views=[top]"], 2),
        (["train.py", "experiment=calvin_perform"], 2),  # data.root is asked for
        (["train.py", "data.root=/data", "structure=one_step"], 2),  # does not fit the window
        (["train.py", "data.root=/data", "cluster=a100_4x8"], 2),  # launched once, not 32 times
        (["train.py", "data.root=/data", "optimizer.lr=-1", "head.dropout=2", "seed=-1"], 2),
        (["train.py", "data.root=/data", "head.num_heads=3", "head=gpt"], 2),
    ],
)
def test_a_question_or_a_mistake_is_answered_in_a_second_without_heavy_imports_or_files(
    arguments: list[str], status: int, tmp_path: Path
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = run(*arguments, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == status, result.stderr
    assert "imported: []" in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0  # 0.1 to 0.6 s on an idle core


def test_a_python_without_the_project_is_told_which_environment_to_use(tmp_path):
    command = [sys.executable, "-S", str(ROOT / "train.py"), "--cfg", "job"]  # -S: no site-packages
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sys.executable} has no hydra")  # and no traceback before it
    assert ".venv/bin/activate" in done.stderr

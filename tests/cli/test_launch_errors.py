"""What a launch by torchrun says when it fails: the cause, once for all processes, and as the last line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, sys, time
from robovlms.cli.output import report
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError

rank = int(os.environ["RANK"])
if "{kind}" == "everywhere":
    error = UserError("output_dir exists")
elif rank == 1:
    time.sleep(1)
    error = UserError("episode_7.mp4 is damaged")
else:
    error = RuntimeError("Connection closed by peer")
sys.exit(report(error, TrainConfig)[0])
"""


def launch(script: Path, to: Path | None = None) -> list[str]:
    """Run a script in two processes, and return the lines of its stderr, from a pipe or from a file."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "0",
        str(script),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # else torchrun speaks first
    if to is None:
        done = subprocess.run(command, stderr=subprocess.PIPE, env=environment, text=True, timeout=120)
        text = done.stderr
    else:
        with to.open("w") as log:
            done = subprocess.run(command, stderr=log, env=environment, timeout=120)
        text = to.read_text()
    assert done.returncode != 0
    return text.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "cause"), [("everywhere", "output_dir exists"), ("one", "episode_7.mp4 is damaged")])
@pytest.mark.parametrize("is_file", [False, True])
def test_the_cause_is_told_by_one_process_and_is_the_last_line(tmp_path, kind, cause, is_file):
    script = tmp_path / "job.py"
    script.write_text(SCRIPT.replace("{kind}", kind))
    lines = launch(script, tmp_path / "log" if is_file else None)
    assert lines[-1] == f"error: {cause}"
    assert lines.count(f"error: {cause}") == 2  # at once, and behind torchrun's summary
    assert not any("Connection closed" in line for line in lines)
    assert lines[0] == f"error: {cause}"

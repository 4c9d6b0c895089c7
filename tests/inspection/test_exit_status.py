"""`scripts/inspect_data.py` as other programs use it: its exit status says whether the data can be trained on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lerobot_folder import write_v2

ROOT = Path(__file__).parents[2]
MEANING = "names:[dx,dy,gripper],representation:delta,frame:base,rotation:none,position_unit:0.01,control_hz:{hz}"


@pytest.mark.slow
@pytest.mark.parametrize(("hz", "status", "told"), [(10, 0, ""), (20, 2, "error: 1 of the findings above are errors")])
def test_the_exit_status_says_whether_a_finding_is_an_error(tmp_path, hz, status, told):
    root, pages = write_v2(tmp_path / "data"), tmp_path / "pages"
    command = [sys.executable, "scripts/inspect_data.py", "data=lerobot", f"data.root={root}", "view=side",
               "window=w1_c10", "window.chunk_size=2", f"data.contract={{{MEANING.format(hz=hz)}}}",
               "~data.views.wrist", "~data.shift.wrist", f"output_dir={pages}"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1:][0].startswith(told) if told else "error" not in done.stderr
    assert (pages / "index.html").is_file()

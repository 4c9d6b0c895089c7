"""Compiled training computes the same losses, with a few graphs for all lengths of text."""

import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import sys
from pathlib import Path
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from calvin_folder import losses, make_calvin_folder, tiny_run
from composing import completed, composed
from torch._dynamo.utils import counters
from robovlms.commands import train as command
from robovlms.policy.graphs import compiling
from robovlms.training.trainer import Trainer

torch.set_num_threads(1)
command.plot_run = lambda *_: {}
compiling.BACKEND = "eager"
root, mode, backbone = Path(sys.argv[2]), *sys.argv[3:]
folder = make_calvin_folder(root / "data")
path = folder / "training" / "lang_annotations" / "auto_lang_ann.npy"
annotations = np.load(path, allow_pickle=True).item()
annotations["language"]["ann"] = ["go", "reach it", "reach target 3", "reach the target number 4"]
np.save(path, annotations)
step, graphs = Trainer.train_step, []

def counted(self, *args):
    terms = step(self, *args)
    graphs.append(counters["stats"]["unique_graphs"])
    return terms

Trainer.train_step = counted
found = {}
for choice in ("off", mode):
    options = (f"backbone={backbone}", "backbone.size=tiny", f"trainer.compile={choice}", "window.window_size=2",
        "batch_size=4", "device_batch_size=4", "schedule.total=40 step", "trainer.validate_every=null",
        "trainer.save_every=40 step")
    command.train(completed(composed(*tiny_run(folder, root / choice, *options))))
    found[choice] = losses(root / choice)
assert found["off"] == found[mode], found
print("graphs", *(graphs[i] for i in (39, 40, 64, 79)))  # before, after one step, after an epoch, at the end
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "backbone"), [("layers", "qwen2_5_vl"), pytest.param("model", "nano", marks=pytest.mark.extended)]
)
def test_compiling_changes_no_loss_and_ends_after_the_first_batches(tmp_path, mode, backbone):
    here = Path(__file__).parents[1]  # a process of its own: dynamo cannot look through the shape checks of the others
    command = [sys.executable, "-c", RUN, str(here), str(tmp_path), mode, backbone]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    without, first, half, end = map(int, run.stdout.split("graphs ")[1].split())
    assert without == 0
    assert first > 0
    assert half == end <= 8

"""From a folder to 20 steps of training, by the two commands that the README names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lerobot_folder import write_v3
from own_folders import G1, paths_of, write_aloha, write_lerobot, write_robomimic

pytestmark = pytest.mark.slow
pytest.importorskip("h5py")

ROOT = Path(__file__).parents[2]
SMALL = [
    "backbone=nano", "head=mlp", "structure=one_step", "window=w1_c10", "precision=fp32", "schedule=constant_5k",
    "schedule.total='20 step'", "batch_size=4", "device_batch_size=4", "trainer.save_every='20 step'",
    "trainer.validate_every=null", "data.num_workers=0",
]  # fmt: skip


def write_g1(root: Path) -> None:
    write_lerobot(root, [G1], paths_of(26), robot="Unitree_G1", cameras=["observation.images.cam_left_high"])


def write_wrong_totals(root: Path) -> None:
    info = write_v3(root, lengths=[24, 24, 24], video=True) / "meta/info.json"
    totals = {"total_episodes": 99, "total_frames": 1, "total_tasks": 7}
    info.write_text(json.dumps(json.loads(info.read_text()) | totals))


def write_two_arms(root: Path) -> None:
    arm = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"]
    actions = paths_of(14)
    actions[:, [6, 13]] = np.linspace(1, 0, len(actions))[:, None]
    cameras = [f"observation.images.{name}" for name in ("cam_high", "cam_left_wrist", "cam_right_wrist")]
    write_lerobot(root, [f"{side}_{joint}" for side in ("left", "right") for joint in arm], actions, cameras=cameras)


FOLDERS = {
    "humanoid": (write_g1, []),
    "two arms": (write_two_arms, []),
    "wrong totals": (write_wrong_totals, ["data.contract.frame=base"]),
    "robosuite": (lambda root: (root.mkdir(), write_robomimic(root / "image.hdf5")), ["data.instruction='lift it'"]),
    "aloha": (lambda root: write_aloha(root), ["data.instruction='insert the peg'"]),
}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = str(ROOT / arguments[0])
    command = [sys.executable, script, *arguments[1:]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_trains_from_what_was_written_of_it(name, tmp_path):
    make, answers = FOLDERS[name]
    make(tmp_path / "recordings")
    wrote = run(tmp_path, "scripts/inspect_data.py", "data.root=recordings", "write=robot.yaml")
    assert wrote.returncode == 0, wrote.stderr
    trained = run(tmp_path, "train.py", "data=robot.yaml", "output_dir=run", *SMALL, *answers)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run/checkpoints/step_000020/model.safetensors").is_file()

"""A small CALVIN folder with something to learn in it: the target's position in the picture is the action to take."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from robovlms.config.choices import ReferenceFrame, Representation, Rotation
from robovlms.policy.checkpoint import checkpoints
from robovlms.training.checkpoints.state import TrainingState

CONTRACT = {
    "names": ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"],
    "representation": Representation.delta,
    "frame": ReferenceFrame.world,
    "rotation": Rotation.euler_increment,
    "position_unit": 0.02,
    "rotation_unit": 0.05,
    "control_hz": 30.0,
}  # of rel_actions
SEGMENTS = {"training": [(0, 24), (30, 54), (60, 84), (90, 114)], "validation": [(0, 24), (30, 54)]}


def make_calvin_folder(root: Path) -> Path:
    """Write 4 training and 2 validation segments of 25 frames."""
    generator = np.random.default_rng(0)
    for split, segments in SEGMENTS.items():
        folder = root / split
        (folder / "lang_annotations").mkdir(parents=True)
        for start, end in segments:
            for frame in range(start, end + 1):
                write_frame(folder, frame, generator)
        language = {"ann": [f"reach target {i}" for i in range(len(segments))], "task": ["reach"] * len(segments)}
        np.save(folder / "lang_annotations" / "auto_lang_ann.npy", {"language": language, "info": {"indx": segments}})
    return root


def write_frame(folder: Path, frame: int, generator: np.random.Generator) -> None:
    """Draw a bright square; the arm action points at it, the gripper closes when it is in the left half."""
    row, column = generator.integers(0, 24, 2)
    side = generator.integers(0, 30, (32, 32, 3)).astype(np.uint8)
    side[row : row + 8, column : column + 8] = 255
    action = np.zeros(7)
    action[:2] = (row - 12) / 20, (column - 12) / 20
    action[6] = -1 if column < 12 else 1
    arrays = {"rgb_static": side, "rgb_gripper": side[:16, :16], "rel_actions": action, "robot_obs": action[:2] + 1}
    np.savez(folder / f"episode_{frame:07d}.npz", **arrays)


def tiny_run(root: Path, output_dir: Path, *extra: str) -> list[str]:
    """Return the overrides of a run of a few seconds on that folder."""
    return [
        "experiment=calvin_perform",
        "backbone=nano",
        "backbone.size=tiny",
        "window=w4_c10",
        "window.chunk_size=3",
        "precision=fp32",
        "head.hidden_dim=16",
        "head.num_layers=1",
        f"data.root={root}",
        "data.num_workers=0",
        f"output_dir={output_dir}",
        "batch_size=8",
        "device_batch_size=4",
        "schedule.warmup=2 step",
        "schedule.total=4 step",
        "trainer.log_every=1 step",
        "trainer.validate_every=2 step",
        "trainer.save_every=2 step",
        "trainer.max_validation_batches=2",
        "tracking=console",
        *extra,
    ]


def losses(run: Path, name: str = "train/loss") -> list[float]:
    """Read the losses of a run, step by step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a run's newest checkpoint."""
    return load_file(checkpoints(run)[-1] / "model.safetensors")


def assert_same_state(left: Path, right: Path) -> None:
    """Compare weights, optimizer and random states of two runs' newest checkpoints, bit for bit."""
    ours, theirs = (TrainingState.load(checkpoints(path)[-1] / "training_state") for path in (left, right))
    assert ours.step == theirs.step
    assert ours.optimizer.shapes == theirs.optimizer.shapes
    for key in ours.optimizer.shapes:
        assert torch.equal(ours.optimizer.read(key), theirs.optimizer.read(key)), key
    for mine, other in zip(ours.rng, theirs.rng, strict=True):
        # beartype, which checks shapes in tests, draws from python's generator itself.
        assert all(torch.equal(value, other[key]) for key, value in mine.items() if key != "python")
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)

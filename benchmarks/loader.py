"""Windows a second that one core prepares for the device, ours against the way RoboVLMs does it, on the same windows.

    python benchmarks/loader.py --root <CALVIN folder>

CPU time of one process, files in the page cache, sides interleaved, median of the repeats. Resize, shift and
normalisation of our default (`resize=device`) run on the accelerator and are not counted. Fails below 5 times as fast.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from robovlms.actions import ActionNormalizer, ActionStats
from robovlms.backbones.nano import Nano
from robovlms.choices import NormalizationMode, Resize
from robovlms.config import CalvinDataConfig, NanoBackboneConfig, NormalizationConfig, WindowConfig
from robovlms.data.calvin import CalvinDataset
from robovlms.data.calvin_segments import Segment, read_segments
from robovlms.data.loader import Collator
from robovlms.data.sampler import Draw
from robovlms.processor import Processor
from robovlms.types import Batch

SHARED = Path(os.environ.get("ROBOVLMS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
WINDOW, CHUNK, SIZE, BOUND = 16, 10, 224, 0.65
VIEWS = {"side": "rgb_static", "wrist": "rgb_gripper"}
SHIFT = {"side": 10, "wrist": 4}
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
TARGET = 5.0


class Reference:
    """The reading path of RoboVLMs, text left out: the same calls in the same order.

    All w + k files of a window are opened, also those of its padding, and all their images are resized, normalised and
    shifted, though the model sees w of them; the others go into chunks for an unused head.
    Source: RoboVLMs data/calvin_dataset.py, __getitem__, _load_episode, RandomShiftsAug.forward_traj, collater.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.windows = [w for segment in read_segments(folder) for w in self._windows(segment)]

    def __call__(self, indices: list[int]) -> dict[str, Tensor]:
        samples = [self._sample(*self.windows[index]) for index in indices]
        batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
        actions, mask = batch.pop("actions")[:, :-1], batch.pop("mask")
        for view in VIEWS:
            images = batch[view]
            batch[f"fwd_{view}"] = images.unfold(1, CHUNK, 1).permute(0, 1, 5, 2, 3, 4)[:, 1:]
            batch[view] = images[:, :WINDOW]
        batch["fwd_mask"] = mask.unfold(1, CHUNK, 1)[:, 1:]
        batch["actions"] = actions.unfold(1, CHUNK, 1).permute(0, 1, 3, 2)
        batch["action_mask"] = mask[:, :-1].unfold(1, CHUNK, 1)
        return batch

    @staticmethod
    def _windows(segment: Segment) -> list[tuple[int, int]]:
        return [(first, segment.end) for first in range(segment.start, segment.end + 1 - WINDOW)]

    def _sample(self, first: int, end: int) -> dict[str, Tensor]:
        frames = np.arange(first, first + WINDOW + CHUNK)
        files = [np.load(self.folder / f"episode_{frame:07d}.npz") for frame in np.minimum(frames, end)]
        keys = [*VIEWS.values(), "robot_obs", "rel_actions", "scene_obs"]
        episode = {key: np.stack([file[key] for file in files]) for key in keys}
        for file in files:
            file.close()
        actions = episode["rel_actions"].astype(np.float32)
        actions[:, :6] = np.clip(actions[:, :6], -BOUND, BOUND) / BOUND
        views = {view: self._images(episode[key], SHIFT[view]) for view, key in VIEWS.items()}
        return {**views, "actions": torch.from_numpy(actions), "mask": torch.from_numpy(frames < end)}

    def _images(self, frames: np.ndarray, pad: int) -> Tensor:
        images = [Image.fromarray(frame).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for frame in frames]
        tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255 for image in images]
        return self._shift(torch.stack([(tensor - MEAN) / STD for tensor in tensors]), pad)

    @staticmethod
    def _shift(x: Tensor, pad: int) -> Tensor:
        x = F.pad(x, (pad,) * 4, "replicate")
        eps = 1.0 / (SIZE + 2 * pad)
        line = torch.linspace(-1.0 + eps, 1.0 - eps, SIZE + 2 * pad)[:SIZE].unsqueeze(0).repeat(SIZE, 1).unsqueeze(2)
        grid = torch.cat([line, line.transpose(1, 0)], dim=2).unsqueeze(0).repeat(len(x), 1, 1, 1)
        shift = torch.randint(1, 2 * pad + 1, (len(x), 1, 1, 2)).float() * (2.0 / (SIZE + 2 * pad))
        return F.grid_sample(x, grid + shift, padding_mode="zeros", align_corners=False)


class Ours:
    """The project's own data set and collator."""

    def __init__(self, root: Path, split: str, resize: Resize) -> None:
        config = CalvinDataConfig(root=str(root), views=VIEWS, train_split=split)
        backbone = Nano(
            NanoBackboneConfig(image_size=SIZE, hidden_dim=32, num_layers=1, num_heads=1, max_text_tokens=64)
        )
        stats = ActionStats(**dict.fromkeys(("mean", "std", "min", "max", "q01", "q99"), [0.0] * 7), num_rows=1)
        bounds = NormalizationConfig(mode=NormalizationMode.bounds, low=-BOUND, high=BOUND)
        self.dataset = CalvinDataset(config, "train", views=list(VIEWS), window_size=WINDOW, chunk_size=CHUNK)
        self.collate = Collator(
            Processor(backbone, list(VIEWS), max_text_tokens=64, resize=resize),
            ActionNormalizer(bounds, stats),
            WindowConfig(window_size=WINDOW, chunk_size=CHUNK),
            SHIFT,
            seed=0,
        )

    def __call__(self, indices: list[int]) -> Batch:
        return self.collate([(self.dataset[index], Draw(index, index)) for index in indices])


def num_bytes(batch: Batch | dict[str, Tensor]) -> int:
    """Count what `.to(device)` copies; a strided view is copied in full."""
    values = list(vars(batch).values()) if isinstance(batch, Batch) else list(batch.values())
    tensors = [tensor for value in values for tensor in (value.values() if isinstance(value, dict) else [value])]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def check_same_windows(reference: Reference, ours: Ours, indices: list[int]) -> None:
    """Refuse to compare unless both sides enumerate and teach the same."""
    theirs, mine = reference(indices), ours(indices)
    torch.testing.assert_close(mine.actions, theirs["actions"])
    torch.testing.assert_close(mine.action_mask, theirs["action_mask"])
    assert len(reference.windows) == len(ours.dataset)


def cpu_seconds(side: Reference | Ours, batches: list[list[int]]) -> float:
    """Give the processor time of this process for all batches."""
    start = time.process_time()
    for indices in batches:
        side(indices)
    return time.process_time() - start


def main() -> int:
    """Measure, print the table and give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=SHARED / "calvin_mini")
    parser.add_argument("--split", default="training")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2, help="batches in one repeat")
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)

    default = Ours(args.root, args.split, Resize.device)
    reference = Reference(args.root / args.split)
    sides: dict[str, Reference | Ours] = {
        "RoboVLMs' way": reference,
        "ours": default,
        "ours, resize=host": Ours(args.root, args.split, Resize.host),
    }
    count = args.batches * args.batch_size
    indices = (
        np.random.default_rng(0).choice(len(default.dataset), count, replace=False).reshape(args.batches, -1).tolist()
    )
    check_same_windows(reference, default, indices[0])

    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.repeats + 1):  # the first round warms up
        for name, side in sides.items():
            seconds[name].append(cpu_seconds(side, indices))
    rates = {name: count / median(values[1:]) for name, values in seconds.items()}

    print(f"{args.root / args.split}: window {WINDOW}, chunk {CHUNK}, {args.repeats} repeats of {count} windows")
    print(f"{'':20}{'windows/s per core':>20}{'(slowest, fastest)':>22}{'MB to device/window':>22}{'ratio':>9}")
    for name, side in sides.items():
        low, high = count / max(seconds[name][1:]), count / min(seconds[name][1:])
        megabytes = num_bytes(side(indices[0])) / len(indices[0]) / 1e6
        ratio = rates[name] / rates["RoboVLMs' way"]
        print(f"{name:20}{rates[name]:20.1f}{f'({low:.1f}, {high:.1f})':>22}{megabytes:22.2f}{ratio:9.1f}")
    return 0 if rates["ours"] >= TARGET * rates["RoboVLMs' way"] else 1


if __name__ == "__main__":
    sys.exit(main())

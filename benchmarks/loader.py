"""Windows a second that one core prepares for the device, ours against the way RoboVLMs does it, on the same windows.

    python benchmarks/loader.py --root <CALVIN folder> [--json FILE]

CPU time of all processes that take part, files in the page cache, sides interleaved, median of the repeats. Resize,
shift and normalisation of our default (`resize=device`) run on the accelerator and are not counted. Through a loader
process the receiving side touches every page of a batch, as copying it to the device would. The packed copies are made
here, in a temporary folder, which is also where they are timed from. Exit status 1 where a row misses its target.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.plan import Source
from robovlms.actions.statistics import Statistics
from robovlms.backbones.families.nano import Nano
from robovlms.backbones.schemas.nano import NanoBackboneConfig
from robovlms.commands.convert_data import convert_data
from robovlms.config.choices import (
    CacheMode,
    ImageFormat,
    NormalizationMode,
    ReferenceFrame,
    Representation,
    Resize,
    Rotation,
)
from robovlms.config.commands import ConvertDataConfig, PackConfig
from robovlms.config.data import ActionContract, DataConfig, NormalizationConfig
from robovlms.config.policy import ViewConfig, WindowConfig
from robovlms.data.calvin.schema import CalvinDataConfig
from robovlms.data.calvin.segments import Segment, read_segments
from robovlms.data.loading.loader import Collator, training_loader
from robovlms.data.loading.sampler import Draw
from robovlms.data.opening import open_reader
from robovlms.data.windows import WindowDataset
from robovlms.images.draws import Augmentation
from robovlms.images.processor import Processor
from robovlms.types import Batch

SHARED = Path(os.environ.get("ROBOVLMS_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
WINDOW, CHUNK, SIZE, BOUND = 16, 10, 224, 0.65
VIEWS = {"side": "rgb_static", "wrist": "rgb_gripper"}
SHIFT = {"side": 10, "wrist": 4}
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
CONTRACT = ActionContract(
    names=["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"],
    representation=Representation.delta,
    frame=ReferenceFrame.world,
    rotation=Rotation.euler_increment,
    position_unit=0.02,
    rotation_unit=0.05,
    control_hz=30.0,
)
MAX_MEGABYTES = 2.5  # to the device per window
WARM_UP = 12  # batches, more than a loader process prepares ahead


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

    def __init__(self, config: DataConfig, resize: Resize = Resize.device) -> None:
        backbone = Nano(
            NanoBackboneConfig(image_size=SIZE, hidden_dim=32, num_layers=1, num_heads=1, max_text_tokens=64)
        )
        reader = open_reader(config, "train", list(VIEWS))
        self.dataset = WindowDataset(reader, Source.of(config), window_size=WINDOW, chunk_size=CHUNK)
        processor = Processor(backbone, list(VIEWS), max_text_tokens=64, resize=resize)
        statistics = Statistics.compute(self.dataset.rows(100).actions)
        self.collate = Collator(
            processor,
            [ActionNormalizer(config.normalization, statistics, CONTRACT.names, CONTRACT.binary)],
            WindowConfig(window_size=WINDOW, chunk_size=CHUNK),
            Augmentation(config, processor, WINDOW, seed=0),
        )

    def __call__(self, indices: list[int]) -> Batch:
        return self.collate([(self.dataset[index], Draw(index, index)) for index in indices])


@dataclass(kw_only=True)
class Row:
    """A way to read, and what was measured of it."""

    side: Reference | Ours
    target: float | None = None  # times as fast as the reference
    passes: int = 1  # times as many batches in one repeat as the slowest way: fast ones need more to be timed
    workers: int = 0
    cpu: list[float]  # seconds per window, by repeat
    wall: list[float]

    def measure(self, batches: list[list[int]], count: int) -> None:
        """Time one repeat over the first `passes * count` batches."""
        mine = batches[: self.passes * count]
        cpu, wall = self._through_workers(mine) if self.workers else self._in_process(mine)
        self.cpu.append(cpu / sum(map(len, mine)))
        self.wall.append(wall / sum(map(len, mine)))

    def _in_process(self, batches: list[list[int]]) -> tuple[float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        for indices in batches:
            self.side(indices)
        return time.process_time() - cpu, time.perf_counter() - wall

    def _through_workers(self, batches: list[list[int]]) -> tuple[float, float]:
        assert isinstance(self.side, Ours)
        draws = [[Draw(index, index) for index in indices] for indices in batches]
        endless = [draws[i % len(draws)] for i in range(len(draws) + 2 * WARM_UP)]
        loader = training_loader(
            self.side.dataset,
            self.side.collate,
            endless,  # type: ignore[arg-type]
            num_workers=self.workers,
            pin_memory=False,
        )
        iterator = iter(loader)
        take(iterator, WARM_UP)
        workers = [worker.pid for worker in iterator._workers]
        cpu, wall = cpu_clock(workers), time.perf_counter()
        take(iterator, len(draws))
        return cpu_clock(workers) - cpu, time.perf_counter() - wall


def take(iterator: Iterator[Batch], count: int) -> None:
    """Receive batches, and touch every page of their pictures."""
    for _ in range(count):
        for frames in next(iterator).frames.values():
            frames.view(-1)[::4096].sum()


def cpu_clock(pids: list[int]) -> float:
    """Return the processor time that this process and others have used so far, exactly (a Linux clock per process)."""
    return time.process_time() + sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def num_bytes(batch: Batch | dict[str, Tensor]) -> int:
    """Count what `.to(device)` copies; a strided view is copied in full."""
    values = list(vars(batch).values()) if isinstance(batch, Batch) else list(batch.values())
    tensors = [tensor for value in values for tensor in (value.values() if isinstance(value, dict) else [value])]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def check_same_windows(reference: Reference, ours: Ours, indices: list[int]) -> None:
    """Refuse to compare unless both sides enumerate and teach the same; what is masked is nobody's business."""
    theirs, mine = reference(indices), ours(indices)
    torch.testing.assert_close(mine.action_mask, theirs["action_mask"])
    real = theirs["action_mask"].unsqueeze(-1)
    torch.testing.assert_close(mine.actions * real, theirs["actions"] * real)
    assert len(reference.windows) == len(ours.dataset)


def check_same_frames(rows: dict[str, Row], indices: list[int]) -> None:
    """Refuse to compare unless packed pixels are those of the files: raw exactly, JPEG nearly."""
    native = rows["native npz"].side(indices)
    for name, row in rows.items():
        if name.startswith("packed"):
            for view, frames in row.side(indices).frames.items():
                error = (frames.float() - native.frames[view].float()).abs().mean()
                assert error <= (2.0 if "JPEG" in name else 0.0), f"{name}, {view}: mean error {error}"


def make_rows(root: Path, split: str, cache: str) -> dict[str, Row]:
    """Pack the data set twice, and give all ways to read it."""
    config = CalvinDataConfig(
        name="calvin",
        root=str(root),
        views=VIEWS,
        train_split=split,
        contract=CONTRACT,
        shift=SHIFT,
        normalization=NormalizationConfig(mode=NormalizationMode.bounds, low=-BOUND, high=BOUND),
    )
    packed = {}
    for image_format in ImageFormat:
        packed[image_format] = replace(config, cache=CacheMode.packed, cache_dir=f"{cache}/{image_format}")
        pack = PackConfig(image_format=image_format, splits=["train"])
        data = replace(packed[image_format], cache=CacheMode.native)
        for summary in convert_data(ConvertDataConfig(data=data, view=ViewConfig(views=list(VIEWS)), pack=pack)):
            print(summary)
    raw, jpeg = Ours(packed[ImageFormat.raw]), Ours(packed[ImageFormat.jpeg])
    return {
        "RoboVLMs' way": Row(side=Reference(root / split), cpu=[], wall=[]),
        "native npz": Row(side=Ours(config), target=5, passes=2, cpu=[], wall=[]),
        "native npz, resize=host": Row(side=Ours(config, Resize.host), cpu=[], wall=[]),
        "packed JPEG": Row(side=jpeg, target=12, passes=4, cpu=[], wall=[]),
        "packed raw, one worker": Row(side=raw, target=45, passes=30, workers=1, cpu=[], wall=[]),
        "packed raw, in process": Row(side=raw, target=300, passes=60, cpu=[], wall=[]),
    }


def main() -> int:
    """Measure, print the table and give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=SHARED / "calvin_mini")
    parser.add_argument("--split", default="training")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2, help="batches in one repeat of the slowest way")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        return compare(make_rows(args.root, args.split, cache), args)


def compare(rows: dict[str, Row], args: argparse.Namespace) -> int:
    """Time the rows and report."""
    reference, native = rows["RoboVLMs' way"], rows["native npz"]
    count = args.batches * args.batch_size
    generator, total = np.random.default_rng(0), len(native.side.dataset)
    wanted = count * max(row.passes for row in rows.values())
    order = np.concatenate([generator.permutation(total) for _ in range(-(-wanted // total))])
    indices = order[:wanted].reshape(-1, args.batch_size).tolist()
    check_same_windows(reference.side, native.side, indices[0])
    check_same_frames(rows, indices[0])
    for _ in range(args.repeats + 1):  # the first round warms up
        for row in rows.values():
            row.measure(indices, args.batches)

    print(
        f"{args.root / args.split}: window {WINDOW}, chunk {CHUNK}, {args.repeats} repeats of {count} windows or more"
    )
    print(f"{'':26}{'CPU ms/window':>14}{'(least, most)':>18}{'wall ms':>9}{'MB/window':>11}{'ratio':>8}{'target':>8}")
    missed, figures = [], {}
    for name, row in rows.items():
        cpu, low, high = (1000 * f(row.cpu[1:]) for f in (median, min, max))
        ratio = median(reference.cpu[1:]) / median(row.cpu[1:])
        megabytes = num_bytes(row.side(indices[0])) / args.batch_size / 1e6
        target = f"{row.target:.0f}" if row.target else ""
        wall = 1000 * median(row.wall[1:])
        print(
            f"{name:26}{cpu:14.3f}{f'({low:.3f}, {high:.3f})':>18}{wall:9.3f}{megabytes:11.2f}{ratio:8.1f}{target:>8}"
        )
        figures[name] = {
            "cpu_ms": cpu, "cpu_ms_least": low, "cpu_ms_most": high, "wall_ms": wall, "megabytes": megabytes,
            "ratio": ratio, "target": row.target,
        }  # fmt: skip
        if row.target is not None and (ratio < row.target or megabytes > MAX_MEGABYTES):
            missed.append(name)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Samples to batches, in loader processes: tokens, uint8 images, normalised action chunks, masks, random shifts."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robovlms.actions import ActionNormalizer, chunk_actions
from robovlms.config import WindowConfig
from robovlms.data.base import RobotDataset
from robovlms.data.sampler import Draw, StepSampler
from robovlms.processor import REFERENCE_PX, Processor
from robovlms.types import Batch, Sample


class Collator:
    """Turn samples into a batch.

    Args:
        shift: largest random shift per view in px at 224 x 224, scaled to the model's image size; empty: none.
        seed: with a sample's number in the run it decides the shifts, so they do not depend on ranks or workers.

    Every frame is shifted on its own, as upstream does; offsets are drawn from [-p, p].
    Source: DrQ random shift, arXiv:2004.13649, RoboVLMs data/calvin_dataset.py (which never draws one end).
    """

    def __init__(
        self, processor: Processor, normalizer: ActionNormalizer, window: WindowConfig, shift: dict[str, int], seed: int
    ) -> None:
        self.processor, self.normalizer, self.window, self.seed = processor, normalizer, window, seed
        scale = processor.image_spec.size / REFERENCE_PX
        self._shift_px = {view: round(px * scale) for view, px in shift.items() if view in processor.views}
        self._shift_px = {view: px for view, px in self._shift_px.items() if px}

    def __call__(self, samples: Sequence[tuple[Sample, Draw]]) -> Batch:
        rows = [sample for sample, _ in samples]
        draws = [draw for _, draw in samples]
        actions = torch.from_numpy(np.stack([row.actions for row in rows]))
        mask = torch.from_numpy(np.stack([row.action_mask for row in rows]))
        chunks, chunk_mask = chunk_actions(
            self.normalizer.normalize(actions), mask, self.window.window_size, self.window.chunk_size
        )
        text_ids, text_mask = self.processor.text([row.instruction for row in rows])
        proprio = [row.proprio for row in rows if row.proprio is not None]
        return Batch(
            frames={view: self._stack([row.frames[view] for row in rows]) for view in self.processor.views},
            text_ids=text_ids,
            text_mask=text_mask,
            actions=chunks.contiguous(),
            action_mask=chunk_mask.contiguous(),
            proprio=torch.from_numpy(np.stack(proprio)) if proprio else None,
            shifts=self._shifts(draws) or None,
            index=torch.tensor([draw.window for draw in draws]),
        )

    def _stack(self, frames: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([self.processor.host_frames(frame) for frame in frames]))

    def _shifts(self, draws: list[Draw]) -> dict[str, Int64[Tensor, "b w 2"]]:
        """Draw this batch's shifts; a view's stream does not depend on which other views are shifted."""
        return {
            view: torch.stack([self._draw_shift(draw.number, view, px) for draw in draws])
            for view, px in self._shift_px.items()
        }

    def _draw_shift(self, number: int, view: str, px: int) -> Int64[Tensor, "w 2"]:
        stream = int.from_bytes(view.encode()[:8], "little")
        generator = np.random.Generator(np.random.Philox(key=[self.seed, number], counter=[stream, 0, 0, 0]))
        return torch.from_numpy(generator.integers(-px, px + 1, (self.window.window_size, 2)))


class _Drawn(Dataset[tuple[Sample, Draw]]):
    """A data set addressed by draws, so that the collator learns each sample's number."""

    def __init__(self, dataset: RobotDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> tuple[Sample, Draw]:
        return self.dataset[draw.window], draw


def training_loader(
    dataset: RobotDataset, collator: Collator, sampler: StepSampler, *, num_workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """Give an endless loader of this rank's micro-batches, from the sampler's start step on."""
    return _loader(dataset, collator, sampler, num_workers, pin_memory)


def validation_loader(
    dataset: RobotDataset,
    collator: Collator,
    *,
    batch_size: int,
    max_batches: int | None,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Give this rank's share of an evenly spread selection of windows, the same at every call.

    Raises:
        ValueError: fewer windows than processes.
    """
    if len(dataset) < world_size:
        raise ValueError(
            f"the validation split has {len(dataset)} windows for {world_size} processes: use fewer processes."
        )
    count = len(dataset) if max_batches is None else min(len(dataset), max_batches * batch_size * world_size)
    indices = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    mine = [Draw(index, number) for number, index in enumerate(indices)][rank::world_size]
    batches = [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]
    return _loader(dataset, collator, batches, num_workers, pin_memory)


def _loader(
    dataset: RobotDataset,
    collator: Collator,
    batches: StepSampler | list[list[Draw]],
    num_workers: int,
    pin_memory: bool,
) -> DataLoader[Batch]:
    return DataLoader(
        _Drawn(dataset),  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # its own: making an iterator must not disturb the run's random state
    )


def _start_worker(worker: int) -> None:
    """One thread per loader process; signals to the whole group are the training process's to handle."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

"""Samples to batches, in loader processes: tokens, uint8 images, normalised action chunks, masks, augmentation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from robovlms.actions.normalizer import ActionNormalizer, chunk_actions
from robovlms.config.policy import WindowConfig
from robovlms.data.base import RobotDataset
from robovlms.data.loading import processes
from robovlms.data.loading.processes import Guarded, Loader, Samples
from robovlms.data.loading.ring import Ring
from robovlms.data.loading.sampler import Draw, StepSampler, sample_seeds
from robovlms.errors import UserError
from robovlms.images.draws import Augmentation, Drawn
from robovlms.images.processor import Processor
from robovlms.types import Batch, Encoder, Sample


class Collator:
    """Turn samples into a batch.

    Args:
        normalizers: by the number of a sample's source.
        augmentation: draws the random changes of the samples' images; None: none, as validation needs.
        seed: of what a head draws at random, together with the samples' numbers.
        encoder: of a head that learns chunks as tokens.
    """

    def __init__(
        self,
        processor: Processor,
        normalizers: Sequence[ActionNormalizer],
        window: WindowConfig,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        encoder: Encoder | None = None,
    ) -> None:
        self.processor, self.normalizers, self.window, self.augmentation = processor, normalizers, window, augmentation
        self.seed, self.encoder = seed, encoder

    def __call__(self, samples: Sequence[tuple[Sample, Draw]]) -> Batch:
        rows = [sample for sample, _ in samples]
        draws = [draw for _, draw in samples]
        chunks, chunk_mask = self._chunks(rows)
        text_ids, text_mask = self.processor.text([row.instruction for row in rows])
        proprio = [row.proprio for row in rows if row.proprio is not None]
        numbers = [draw.number for draw in draws]
        action_dims = self._action_dims(rows)
        drawn = self.augmentation.draw(numbers) if self.augmentation else Drawn()
        return Batch(
            frames={view: self._frames(rows, view) for view in self.processor.views},
            text_ids=text_ids,
            text_mask=text_mask,
            actions=chunks.contiguous(),
            action_mask=chunk_mask.contiguous(),
            action_dims=action_dims,
            target_ids=self.encoder(chunks, chunk_mask, action_dims) if self.encoder else None,
            view_mask=self._seen(rows),
            proprio=torch.from_numpy(np.stack(proprio)) if proprio else None,
            source=torch.tensor([row.source for row in rows]),
            seeds=torch.from_numpy(sample_seeds(self.seed, numbers)),
            index=torch.tensor([draw.window for draw in draws]),
            **drawn._asdict(),
        )

    def _chunks(self, rows: list[Sample]) -> tuple[Float32[Tensor, "b w k a"], Bool[Tensor, "b w k"]]:
        """Return the chunk of every frame, each row normalised as its source is, and the mask of its real steps."""
        actions = torch.from_numpy(np.stack([row.actions for row in rows]))
        mask = torch.from_numpy(np.stack([row.action_mask for row in rows]))
        window = self.window.window_size, self.window.chunk_size
        if not any(normalizer.is_relative for normalizer in self.normalizers):
            return chunk_actions(self._normalize(actions, rows), mask, *window)
        chunks, chunk_mask = chunk_actions(actions, mask, *window)  # of which each has a state of its own
        return self._normalize(chunks, rows), chunk_mask

    def _normalize(self, actions: Float32[Tensor, "b *n a"], rows: list[Sample]) -> Float32[Tensor, "b *n a"]:
        if len(self.normalizers) == 1 and not self.normalizers[0].is_relative:
            return self.normalizers[0].normalize(actions)
        states = [None if row.state is None else torch.from_numpy(row.state) for row in rows]
        return torch.stack(
            [
                self.normalizers[row.source].normalize(each, state)
                for row, each, state in zip(rows, actions, states, strict=True)
            ]
        )

    @staticmethod
    def _action_dims(rows: list[Sample]) -> Bool[Tensor, "b a"] | None:
        if all(row.action_dims is None for row in rows):
            return None
        whole = np.ones(rows[0].actions.shape[1], bool)
        return torch.from_numpy(np.stack([whole if row.action_dims is None else row.action_dims for row in rows]))

    def _seen(self, rows: list[Sample]) -> Bool[Tensor, "b v"] | None:
        view_mask = torch.tensor([[view in row.frames for view in self.processor.views] for row in rows])
        return None if view_mask.all() else view_mask

    def _frames(self, rows: list[Sample], view: str) -> UInt8[Tensor, "b w h x c"]:
        """Stack a view; rows without it are black, and masked.

        Raises:
            UserError: frames of different sizes.
        """
        frames = [self.processor.host_frames(row.frames[view]) if view in row.frames else None for row in rows]
        shapes = {frame.shape for frame in frames if frame is not None}
        if len(shapes) > 1:
            raise UserError(
                f"view '{view}' has frames of different sizes in one batch, {sorted(s[1:3] for s in shapes)}: set "
                "data.resize=host, which resizes them in the loader."
            )
        size = self.processor.image_spec.size
        shape = shapes.pop() if shapes else (self.window.window_size, size, size, 3)
        batch = torch.empty(
            (len(rows), *shape), dtype=torch.uint8
        )  # torch gets it without new pages, np.stack does not
        for row, f in zip(batch.numpy(), frames, strict=True):
            row[...] = 0 if f is None else f
        return batch


def training_loader(
    dataset: RobotDataset, collator: Collator, sampler: StepSampler, *, num_workers: int, pin_memory: bool
) -> Loader[Batch]:
    """Return an endless loader of this rank's micro-batches, from the sampler's start step on."""
    return make_loader(dataset, _ringed(collator, num_workers), sampler, num_workers, pin_memory)


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
) -> Loader[Batch]:
    """Return this rank's share of an evenly spread selection of windows, the same at every call.

    A window's number is its place in the data set, so a head draws the same for it whatever ranks and batch sizes are.

    Raises:
        UserError: fewer windows than processes.
    """
    if len(dataset) < world_size:
        raise UserError(
            f"the validation split has {len(dataset)} windows for {world_size} processes: use fewer processes."
        )
    count = len(dataset) if max_batches is None else min(len(dataset), max_batches * batch_size * world_size)
    indices = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    mine = [Draw(index, index) for index in indices][rank::world_size]
    batches = [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]
    return make_loader(dataset, _ringed(collator, num_workers), batches, num_workers, pin_memory)


def _ringed(collator: Collator, num_workers: int) -> Collator | Ring:
    return Ring(collator, num_workers) if num_workers and sys.platform == "linux" else collator


def make_loader(
    dataset: Any,
    collate: Callable[[Any], Any],
    batches: StepSampler | list[list[Draw]],
    num_workers: int,
    pin_memory: bool,
    option: str = "data.num_workers",
) -> Loader[Any]:
    """Return a loader of the drawn numbers of `dataset`; `collate` gets pairs of what was read and its draw.

    `option` is what sets `num_workers`.
    """
    if num_workers:
        processes.stop_at_exit()
    loader = DataLoader(
        Samples(dataset),
        batch_sampler=batches,
        collate_fn=Guarded(collate),
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=processes.start,
        multiprocessing_context=processes.context() if num_workers else None,
        generator=torch.Generator(),  # its own: making an iterator must not disturb the run's random state
    )
    return Loader(loader, option)

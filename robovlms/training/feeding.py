"""What a run is fed with: the order of samples, the loaders of windows and conversations, and records of the data."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.plan import DataPlan
from robovlms.actions.statistics import Statistics
from robovlms.config.run import TrainConfig
from robovlms.data.base import RobotDataset
from robovlms.data.loading.conversations import conversation_loader
from robovlms.data.loading.loader import Collator, training_loader, validation_loader
from robovlms.data.loading.processes import Loader
from robovlms.data.loading.sampler import StepSampler
from robovlms.images.draws import Augmentation
from robovlms.policy.policy import VLAPolicy
from robovlms.types import Batch, Conversations

PROBED = 8  # windows whose numbers and instruction tell whether a data set is still the same


@dataclass(frozen=True, kw_only=True)
class Feed:
    """The share of one process in the batches, and in the validation windows."""

    sampler: StepSampler
    validation: Loader[Batch] | None  # where there is data for it
    windows: Iterable[Batch]
    conversations: Iterable[Conversations]
    repeats: bool  # the first step's batches at every step

    def steps(self) -> Iterator[tuple[list[Batch], list[Conversations]]]:
        """Yield the micro-batches of one step after another, with the conversations beside them, forever."""
        windows, conversations = iter(self.windows), iter(self.conversations)
        count = self.sampler.accumulation
        while True:
            step = [next(windows) for _ in range(count)], list(itertools.islice(conversations, count))
            yield step
            while self.repeats:
                yield step


def make_feed(
    config: TrainConfig,
    policy: VLAPolicy,
    normalizers: Sequence[ActionNormalizer],
    train_set: RobotDataset,
    validation_set: RobotDataset | None,
    *,
    start_step: int,
    rank: tuple[int, int],
    pin_memory: bool,
) -> Feed:
    """Return the loaders of a run that goes on from `start_step`; `rank`: of this process, and how many there are.

    Raises:
        UserError: batch size, processes and data set do not fit together.
    """
    data, processor = config.data, policy.processor
    place = {"rank": rank[0], "world_size": rank[1]}
    sampler = StepSampler(
        train_set.sizes,
        weights=train_set.weights,
        batch_size=config.batch_size,
        device_batch_size=config.device_batch_size,
        seed=config.seed,
        start_step=0 if config.debug.overfit else start_step,
        **place,
    )
    augmentation = Augmentation(data, processor, config.window.window_size, config.seed)
    encoder = policy.head.encoder()
    collator = Collator(processor, normalizers, config.window, augmentation, config.seed, encoder)
    validation: Loader[Batch] | None = None
    if validation_set is not None:
        validation = validation_loader(
            validation_set,
            Collator(processor, normalizers, config.window, encoder=encoder),
            batch_size=config.device_batch_size,
            max_batches=config.trainer.max_validation_batches,
            num_workers=data.num_workers,
            pin_memory=pin_memory,
            **place,
        )
    conversations: Iterable[Conversations] = ()
    if config.cotrain is not None:
        conversations = conversation_loader(
            config.cotrain, policy.backbone.tokenize, processor, sampler, pin_memory=pin_memory
        )
    windows = training_loader(train_set, collator, sampler, num_workers=data.num_workers, pin_memory=pin_memory)
    return Feed(
        sampler=sampler,
        windows=windows,
        validation=validation,
        conversations=conversations,
        repeats=config.debug.overfit,
    )


def record_data(data: RobotDataset, names: Sequence[str]) -> dict[str, Any]:
    """Return what tells whether a data set is the one a checkpoint was trained on, wherever it lies.

    `windows` counts those of every source; `sample` is a digest of actions and instructions of a few of them.
    """
    found = hashlib.sha256()
    for index in np.linspace(0, len(data) - 1, min(PROBED, len(data))).round().astype(int).tolist():
        sample = data[index]
        found.update(sample.actions.tobytes() + sample.instruction.encode())
    return {"windows": dict(zip(names, data.sizes, strict=True)), "sample": found.hexdigest()}


def mean_actions(
    plan: DataPlan, normalizers: Sequence[ActionNormalizer], stats: dict[str, Statistics]
) -> Float[Tensor, "n e"]:
    """Return each source's mean action in the training set, normalised and without binary grippers: what validation
    compares a policy with.
    """
    size = len(plan.action_names)
    means = [torch.tensor(stats[source.name].scatter(source.action_dims, size).mean) for source in plan.sources]
    normal = [normalizer.normalize(mean[None])[0] for normalizer, mean in zip(normalizers, means, strict=True)]
    return torch.stack(normal)[:, [i for i in range(size) if i not in plan.binary]]

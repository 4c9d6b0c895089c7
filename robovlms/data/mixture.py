"""Several data sets as one, their actions and proprioception in the mixture's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float32

from robovlms.actions.plan import DataPlan, Source
from robovlms.config.data import MixtureDataConfig
from robovlms.data.base import RobotDataset
from robovlms.types import Sample


class MixtureDataset(RobotDataset):
    """The windows of all sources, one behind another; `StepSampler` draws them by `weights`.

    An action entry that a source does not record is 0 and masked, an entry of proprioception NaN, a view absent.
    """

    def __init__(self, plan: DataPlan, datasets: Sequence[RobotDataset]) -> None:
        assert isinstance(plan.config, MixtureDataConfig)
        self._sources, self._datasets = plan.sources, datasets
        self._action_dim, self._proprio_dim = len(plan.action_names), len(plan.proprio_names)
        self.sizes, by_size = [len(dataset) for dataset in datasets], plan.config.weigh_by_size
        self.weights = [
            source.config.weight * (size if by_size else 1)
            for source, size in zip(plan.sources, self.sizes, strict=True)
        ]
        self._ends = np.cumsum(self.sizes)
        self._supervised = [self._action_dims(source) for source in plan.sources]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        source, inner = self._locate(index)
        sample, layout = self._datasets[source][inner], self._sources[source]
        actions = np.zeros((len(sample.actions), self._action_dim), np.float32)
        actions[:, layout.action_dims] = sample.actions
        supervised = self._supervised[source]
        if sample.action_dims is not None:
            supervised = supervised.copy()
            supervised[layout.action_dims] &= sample.action_dims
        return replace(
            sample, actions=actions, action_dims=supervised, proprio=self._proprio(sample, layout), source=source
        )

    def _proprio(self, sample: Sample, layout: Source) -> Float32[np.ndarray, "w p"] | None:
        if not self._proprio_dim:
            return None
        steps = len(next(iter(sample.frames.values())))
        proprio = np.full((steps, self._proprio_dim), np.nan, np.float32)
        if sample.proprio is not None:
            proprio[:, layout.proprio_dims] = sample.proprio
        return proprio

    def _action_dims(self, source: Source) -> Bool[np.ndarray, "a"]:
        supervised = np.zeros(self._action_dim, bool)
        supervised[source.action_dims] = True
        return supervised

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        source = int(np.searchsorted(self._ends, index, side="right"))
        return source, index - (int(self._ends[source - 1]) if source else 0)

    def location(self, index: int) -> str:
        """Name the source, its file and frames."""
        source, inner = self._locate(index)
        return f"{self._sources[source].name}: {self._datasets[source].location(inner)}"

    def summary(self) -> str:
        """Describe the sources, a line each, with their share of the samples."""
        total = sum(self.weights)
        lines = [
            f"  {source.name} ({weight / total:.1%} of the samples): {dataset.summary()}"
            for source, dataset, weight in zip(self._sources, self._datasets, self.weights, strict=True)
        ]
        return f"mixture of {len(self._sources)}, {len(self)} windows\n" + "\n".join(lines)

"""Several data sets as one, their actions and proprioception in the mixture's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float32

from robovlms.actions.plan import Source
from robovlms.data.base import RobotDataset
from robovlms.types import Sample


class MixtureDataset(RobotDataset):
    """The windows of all parts, one part behind another; `StepSampler` draws them by `weights`.

    An action entry that a part does not record is 0 and never taught, an entry of proprioception NaN, a view absent.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        datasets: Sequence[RobotDataset],
        *,
        action_dim: int,
        proprio_dim: int,
        by_size: bool,
    ) -> None:
        self._sources, self._datasets = sources, datasets
        self._action_dim, self._proprio_dim = action_dim, proprio_dim
        self.sizes = [len(dataset) for dataset in datasets]
        self.weights = [
            source.data.weight * (size if by_size else 1) for source, size in zip(sources, self.sizes, strict=True)
        ]
        self._ends = np.cumsum(self.sizes)
        self._taught = [self._action_dims(source) for source in sources]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        source, inner = self._locate(index)
        sample, layout = self._datasets[source][inner], self._sources[source]
        actions = np.zeros((len(sample.actions), self._action_dim), np.float32)
        actions[:, layout.action_dims] = sample.actions
        taught = self._taught[source]
        if sample.action_dims is not None:
            taught = taught.copy()
            taught[layout.action_dims] &= sample.action_dims
        return replace(
            sample, actions=actions, action_dims=taught, proprio=self._proprio(sample, layout), source=source
        )

    def _proprio(self, sample: Sample, layout: Source) -> Float32[np.ndarray, "w p"] | None:
        if not self._proprio_dim:
            return None
        steps = len(next(iter(sample.frames.values())))
        proprio = np.full((steps, self._proprio_dim), np.nan, np.float32)
        if sample.proprio is not None:
            proprio[:, layout.proprio] = sample.proprio
        return proprio

    def _action_dims(self, source: Source) -> Bool[np.ndarray, "a"]:
        taught = np.zeros(self._action_dim, bool)
        taught[source.action_dims] = True
        return taught

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        source = int(np.searchsorted(self._ends, index, side="right"))
        return source, index - (int(self._ends[source - 1]) if source else 0)

    def location(self, index: int) -> str:
        """Name the part, its file and frames."""
        source, inner = self._locate(index)
        return f"{self._sources[source].name}: {self._datasets[source].location(inner)}"

    def summary(self) -> str:
        """Describe the parts, a line each, with their share of the samples."""
        total = sum(self.weights)
        lines = [
            f"  {source.name} ({weight / total:.1%} of the samples): {dataset.summary()}"
            for source, dataset, weight in zip(self._sources, self._datasets, self.weights, strict=True)
        ]
        return f"mixture of {len(self._sources)}, {len(self)} windows\n" + "\n".join(lines)

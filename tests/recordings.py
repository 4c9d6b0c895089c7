"""A reader of episodes that lie in memory, to put faults into."""

from __future__ import annotations

import numpy as np

from robovlms.actions.plan import Source
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation, Rotation
from robovlms.config.data import ActionContract, DataConfig, NormalizationConfig
from robovlms.data.base import EpisodeInfo, Numbers, Reader
from robovlms.data.windows import WindowDataset

NAMES = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]


class MemoryReader(Reader):
    """Episodes of `lengths` frames: small random moves, a gripper that starts open and closes, noise as pictures."""

    def __init__(self, lengths: list[int], instructions: list[str] | None = None) -> None:
        generator = np.random.default_rng(0)
        told = instructions or ["pick up the cup"] * len(lengths)
        self.episodes = [EpisodeInfo(length, text) for length, text in zip(lengths, told, strict=True)]
        self.actions = [generator.uniform(-0.01, 0.01, (length, 7)).astype(np.float32) for length in lengths]
        for actions in self.actions:
            actions[:, -1] = np.where(np.arange(len(actions)) < len(actions) // 2, 1, -1)
        self.pictures = {
            view: [generator.integers(0, 255, (length, *size, 3), dtype=np.uint8) for length in lengths]
            for view, size in {"side": (40, 48), "wrist": (32, 32)}.items()
        }
        self.unreadable: set[tuple[int, int]] = set()

    def frames(self, episode, steps):
        for step in steps.tolist():
            if (episode, step) in self.unreadable:
                raise ValueError(f"picture {step} of episode {episode} is damaged")
        return {view: pictures[episode][steps] for view, pictures in self.pictures.items()}

    def numbers(self, episode, steps):
        return Numbers(self.actions[episode][steps], None)

    def location(self, episode, first, last):
        return f"memory: episode {episode}, frames {first}-{last}"

    def summary(self):
        return f"memory: {len(self.episodes)} episodes"

    def fingerprint(self):
        return "memory"


def make_contract(**changes) -> ActionContract:
    values = {
        "names": NAMES, "representation": Representation.delta, "frame": ReferenceFrame.base,
        "rotation": Rotation.euler,
        "position_unit": 1.0, "control_hz": 10.0,
    }  # fmt: skip
    return ActionContract(**{**values, **changes})


def make_dataset(reader: Reader, *, window_size: int = 3, chunk_size: int = 4, **changes) -> WindowDataset:
    values = {
        "name": "memory", "root": "/nowhere", "views": {"side": "a", "wrist": "b"}, "contract": make_contract(),
        "normalization": NormalizationConfig(mode=NormalizationMode.quantile),
    }  # fmt: skip
    config = DataConfig(**{**values, **changes})
    return WindowDataset(reader, Source.of(config), window_size=window_size, chunk_size=chunk_size)

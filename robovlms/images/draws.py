"""Random numbers of image augmentation, drawn on the host: the same for a sample wherever it is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from robovlms.config.data import DataConfig
from robovlms.images.processor import REFERENCE_PX, Processor

SHIFT, CROP, COLOR, HUE = range(4)  # part of a draw's address: a new number is a new stream


class Drawn(NamedTuple):
    """What is drawn for a batch, by view; the fields of `types.Batch` of the same names. None: nothing."""

    shifts: dict[str, Int64[Tensor, "b w 2"]] | None = None
    crops: dict[str, Float32[Tensor, "b w 3"]] | None = None
    colors: dict[str, Float32[Tensor, "b w 3"]] | None = None
    hues: dict[str, Float32[Tensor, "b w 1"]] | None = None


class Augmentation:
    """Draw how the frames of a sample are changed.

    A draw depends on (seed, number of the sample in the run, view, kind) alone: not on ranks, loader processes, batch
    sizes or resuming, nor on which other views and kinds are augmented, nor, frame by frame, on the window's length.

    Sources: random shift, DrQ arXiv:2004.13649 and RoboVLMs data/calvin_dataset.py (which never draws one end; here
    offsets are from [-p, p]). Crop, dlimp augmentations.py, which OpenVLA uses: uniform area, then uniform place
    (dlimp's shared seed puts every crop on the diagonal; here top and left are drawn apart).
    """

    def __init__(self, data: DataConfig, processor: Processor, window_size: int, seed: int) -> None:
        self.config, self.window_size, self.seed = data.augmentation, window_size, seed
        views, jittered = processor.views, data.augmentation.views or processor.views
        self._random = np.random.Generator(np.random.Philox(key=[seed, 0]))
        self._state: Any = self._random.bit_generator.state  # of a generator that has drawn nothing
        scale = processor.image_spec.size / REFERENCE_PX
        self._shift_px = {view: round(px * scale) for view, px in data.shift.items() if view in views}
        self._shift_px = {view: px for view, px in self._shift_px.items() if px}
        self._crop = {view: area for view, area in self.config.crop.items() if view in views and area < 1}
        self._amounts = np.array([self.config.brightness, self.config.contrast, self.config.saturation])
        self._color_views = [view for view in views if view in jittered and self._amounts.any()]
        self._hue_views = [view for view in views if view in jittered and self.config.hue]

    def draw(self, numbers: Sequence[int]) -> Drawn:
        """Draw for the samples of these numbers, a row each."""
        return Drawn(
            shifts=self._by_view(numbers, list(self._shift_px), self._shift),
            crops=self._by_view(numbers, list(self._crop), self._crop_of),
            colors=self._by_view(numbers, self._color_views, self._color),
            hues=self._by_view(numbers, self._hue_views, self._hue),
        )

    def _by_view(
        self, numbers: Sequence[int], views: list[str], draw: Callable[[int, str, int], np.ndarray]
    ) -> dict[str, Tensor] | None:
        rows = 1 if not self.config.per_frame else self.window_size
        drawn = {view: np.stack([draw(number, view, rows) for number in numbers]) for view in views}
        shape = (len(numbers), self.window_size, -1)
        return {view: torch.from_numpy(d).expand(*shape).contiguous() for view, d in drawn.items()} or None

    def _shift(self, number: int, view: str, rows: int) -> Int64[np.ndarray, "n 2"]:
        px = self._shift_px[view]
        return self._generator(number, view, SHIFT).integers(-px, px + 1, (rows, 2))

    def _crop_of(self, number: int, view: str, rows: int) -> Float32[np.ndarray, "n 3"]:
        smallest, largest = self._crop[view], self.config.largest_crop
        shares = self._generator(number, view, CROP).random((rows, 3))
        side = np.sqrt(smallest + (largest - smallest) * shares[:, :1])
        return np.concatenate([side, (1 - side) * shares[:, 1:]], axis=1).astype(np.float32)

    def _color(self, number: int, view: str, rows: int) -> Float32[np.ndarray, "n 3"]:
        places = self._generator(number, view, COLOR).uniform(-1, 1, (rows, 3))
        return (1 + self._amounts * places).astype(np.float32)

    def _hue(self, number: int, view: str, rows: int) -> Float32[np.ndarray, "n 1"]:
        return (self.config.hue * self._generator(number, view, HUE).uniform(-1, 1, (rows, 1))).astype(np.float32)

    def _generator(self, number: int, view: str, kind: int) -> np.random.Generator:
        """Return the random numbers of one address.

        Shifts know a view by its first eight letters, as they always did, so that old runs can be repeated.
        """
        if kind == SHIFT:
            counter = [int.from_bytes(view.encode()[:8], "little"), 0, 0, 0]
        else:
            name = blake2b(view.encode(), digest_size=16).digest()
            counter = [0, kind, int.from_bytes(name[:8], "little"), int.from_bytes(name[8:], "little")]
        self._state["state"]["key"][:], self._state["state"]["counter"][:] = (self.seed, number), counter
        self._random.bit_generator.state = self._state  # a tenth of the cost of another Philox(key=..., counter=...)
        return self._random

"""What travels through the program, and the one legend of its shapes.

Letters, used verbatim in annotations and einops patterns:
b batch, w window (observed steps), v views, k chunk (predicted steps), s = w + k - 1 actions of one sample,
a action entries: e numbers (of the arm, and opening widths) and o grippers that are open or closed,
p proprioception entries, l text tokens, q queries, d hidden, n sequences, t frames in one sequence, m tokens of one
image, h x c image height, width, channels, r tokens of a reply, y of them supervised. A leading underscore (`_h`)
marks a size that differs between views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from PIL.Image import Resampling
from torch import Tensor

Losses: TypeAlias = dict[str, Tensor]
"""Scalars by name, each a mean over the real (unmasked) steps; the entry "loss" is the one that is minimised."""

Encoder: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Normalised chunks "b w k a", their mask "b w k" and which entries are recorded "b a", to token ids "b w q": what a
head that writes chunks learns. It travels to loader processes."""


@dataclass(kw_only=True)
class Sample:
    """One window as it lies on disk: raw units, recorded pixels, numpy.

    Action i belongs to frame i, and the window needs k - 1 actions beyond its last frame, so s = w + k - 1.
    """

    frames: dict[str, UInt8[np.ndarray, "w _h _x c"]]
    actions: Float32[np.ndarray, "s a"]
    action_mask: Bool[np.ndarray, "s"]  # True = a real action, False = padding past the end of the segment
    instruction: str
    action_dims: Bool[np.ndarray, "a"] | None = (
        None  # False = an entry that this data set does not record; None: all real
    )
    proprio: Float32[np.ndarray, "w p"] | None = None  # NaN = an entry that this data set does not record
    # of every frame, in the source's order, not the policy's: what chunks are relative to; None: to nothing
    state: Float32[np.ndarray, "w n"] | None = None
    source: int = 0  # of a mixture


class Tensors:
    """A dataclass of tensors, and of tensors by name, that travels to a device as one."""

    def to(self, device: torch.device | str) -> Any:
        """Return the same on `device`; copies overlap with work already queued there."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Any:
        """Return it in page-locked memory (called by the DataLoader when it pins)."""
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self, function: Callable[[Tensor], Tensor]) -> Any:
        """Return the same with a function of each tensor in its place."""

        def apply(value: object) -> object:
            if isinstance(value, Tensor):
                return function(value)
            return {key: function(tensor) for key, tensor in value.items()} if isinstance(value, dict) else value

        return type(self)(**{field.name: apply(getattr(self, field.name)) for field in fields(self)})  # type: ignore[arg-type]


@dataclass(kw_only=True)
class Batch(Tensors):
    """Several windows, ready for the device. Pixels are still uint8 and, unless resized on the host, of recorded
    size.
    """

    frames: dict[str, UInt8[Tensor, "b w _h _x c"]]
    text_ids: Int64[Tensor, "b l"]
    text_mask: Bool[Tensor, "b l"]
    actions: Float32[Tensor, "b w k a"] | None = (
        None  # numbers normalised to [-1, 1]; binary grippers -1 closed, +1 open
    )
    action_mask: Bool[Tensor, "b w k"] | None = None
    action_dims: Bool[Tensor, "b a"] | None = None  # False = an action entry that is no target; None: all are
    target_ids: Int64[Tensor, "b w q"] | None = None  # a chunk as tokens, for heads that write it so; -1 = padding
    view_mask: Bool[Tensor, "b v"] | None = (
        None  # False = a view that the sample lacks, in the order of Processor.views
    )
    frame_mask: Bool[Tensor, "b w"] | None = None  # False = padding behind the newest frame; None: no row has any
    proprio: Float32[Tensor, "b w p"] | None = None
    shifts: dict[str, Int64[Tensor, "b w 2"]] | None = None  # random shift (down, right), model pixels, may be negative
    crops: dict[str, Float32[Tensor, "b w 3"]] | None = None  # side, top, left of a crop as shares of the frame's sides
    colors: dict[str, Float32[Tensor, "b w 3"]] | None = None  # factors of brightness, contrast, saturation
    hues: dict[str, Float32[Tensor, "b w 1"]] | None = None  # turns
    source: Int64[Tensor, "b"] | None = None  # of a mixture, by number
    seeds: Int64[Tensor, "b"] | None = None  # of what a head draws at random for each sample
    index: Int64[Tensor, "b"] | None = None  # dataset indices, to name the source of a bad sample

    def __len__(self) -> int:
        return len(self.text_ids)


@dataclass(kw_only=True)
class Conversations(Tensors):
    """Several conversations, each about at most one image, which has the model's size."""

    images: UInt8[Tensor, "b h x c"]
    view_mask: Bool[Tensor, "b 1"]  # False = there is no image
    text_ids: Int64[Tensor, "b l"]  # up to where the first answer begins
    text_mask: Bool[Tensor, "b l"]
    reply_ids: Int64[Tensor, "b r"]  # all that follows: answers and further questions
    supervised: Int64[Tensor, "y"]  # which of these, counted row by row, are an answer's

    def __len__(self) -> int:
        return len(self.text_ids)


@dataclass(frozen=True, kw_only=True)
class ActionPrefix:
    """What a robot has decided already of the chunk that it asks for."""

    actions: Any  # numbers "n a" in its units, n <= k: what its last chunk has from the observation's step on
    delay: Any = 0  # of them, that will have been executed before the answer arrives


@dataclass(kw_only=True)
class Observation:
    """What a robot or simulator shows the policy at one control step.

    Simulators give the types named here; what else robots may send is read by `policy/observations.py`.
    """

    frames: dict[str, Any]  # by camera: uint8 "h x c", RGB
    instruction: Any  # text
    proprio: Any = None  # float32 "p"
    earlier: Sequence[Observation] = ()  # of the control steps before, that the policy has not been shown, oldest first
    prefix: ActionPrefix | None = None  # for a robot that executes chunks itself


@dataclass(frozen=True, kw_only=True)
class SimulatorState:
    """What a recording holds of the simulator that it was made in, at an episode's first action."""

    values: Float64[np.ndarray, "_n"]  # MuJoCo's time, positions and velocities; CALVIN's robot_obs and scene_obs
    model: str | None = None  # the scene, as MuJoCo's XML
    solved: bool | None = None  # whether the task was solved in the end; None: the recording does not say


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """How a vision tower wants its pixels: square `size`, then (value / 255 - mean) / std per RGB channel."""

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: Resampling = Resampling.BICUBIC  # how the checkpoint's own image processor resizes

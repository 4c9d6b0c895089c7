"""What a session keeps of an episode, so that every frame costs as little as it can: values that hold no policy.

Nothing is computed when a frame arrives; `robovlms/policy/acting.py` reads what is needed when a chunk is wanted, for
many sessions at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robovlms.backbones.layout import Kept
from robovlms.config.choices import FrameCache, Structure
from robovlms.errors import UserError
from robovlms.policy.policy import VLAPolicy
from robovlms.types import Batch


@dataclass
class Frame:
    """One observation, and what has been computed of it."""

    step: Batch  # b = w = 1, on the host; its pixels are dropped once nothing needs them
    image: Tensor | None = None  # "1 v m e"; None: not encoded, or not kept
    features: Tensor | None = None  # "q d", where frames are read alone; None: not read
    # "z g", of a head that carries one: after the newest frame it has read, having begun with this one
    state: Tensor | None = None


class Memory:
    """The newest frames, at most `window_size`, the oldest first.

    A window is read as in training, with one instruction: that of its newest frame.
    """

    def __init__(self, window_size: int) -> None:
        self.window_size = window_size
        self.frames: deque[Frame] = deque(maxlen=window_size)

    def observe(self, step: Batch) -> None:
        """Take the newest frame (b = w = 1)."""
        if self.frames and not torch.equal(self.frames[-1].step.text_ids, step.text_ids):
            self._reread(step)
        self.add(Frame(step))

    def add(self, frame: Frame) -> None:
        """Put a frame behind the others."""
        self.frames.append(frame)

    def clear(self) -> None:
        """Forget all frames."""
        self.frames.clear()

    def _reread(self, step: Batch) -> None:
        """Have seen all frames with the instruction of another step."""
        again = [
            Frame(replace(frame.step, text_ids=step.text_ids, text_mask=step.text_mask), frame.image)
            for frame in self.frames
        ]
        self.clear()
        for frame in again:
            self.add(frame)


@dataclass
class Stream:
    """Frames of one sequence, read one behind the other."""

    num_frames: int = 0  # that belong to it, read or not
    features: list[Tensor] = field(default_factory=list)  # "q d", of those that are read
    kept: Kept | None = None  # by the decoder

    def unread(self, frames: Collection[Frame]) -> list[Frame]:
        """Return which of a memory's frames have yet to be read."""
        return list(frames)[len(frames) - self.num_frames + len(self.features) :]


class StreamMemory(Memory):
    """For `interleaved`: the frames of a window are read behind the earlier ones while it grows.

    A sequence cannot forget its oldest frame, which later ones have attended to. Once the window is full, `exact` has
    no stream, and the window is read again from its encoded images. `staggered` reads every frame into two sequences
    that start half a window apart, and acts on the longer, of w / 2 + 1 to w frames: an approximation, at two frames a
    step.
    """

    def __init__(self, window_size: int, cache: FrameCache) -> None:
        super().__init__(window_size)
        self.is_staggered = cache is FrameCache.staggered
        self.streams: list[Stream] = []  # the longest first

    def add(self, frame: Frame) -> None:
        """Put a frame behind the others, and into the streams."""
        super().add(frame)
        is_first = len(self.frames) == 1
        if self.streams and self.streams[0].num_frames == self.window_size:
            self.streams.pop(0)
            if not self.is_staggered:
                return
        newest = self.streams[-1].num_frames if self.streams else 0
        if is_first or (self.is_staggered and len(self.streams) < 2 and newest >= self.window_size // 2):
            self.streams.append(Stream())
        for stream in self.streams:
            stream.num_frames += 1

    def clear(self) -> None:
        """Forget all frames."""
        super().clear()
        self.streams.clear()


def start_memory(policy: VLAPolicy, window_size: int, cache: FrameCache = FrameCache.exact) -> Memory:
    """Return an empty memory for one episode of this policy.

    Raises:
        UserError: `cache` does not fit the backbone.
    """
    if policy.structure is not Structure.interleaved:
        return Memory(1 if policy.structure is Structure.one_step else window_size)
    if policy.backbone.new_cache() is not None:
        return StreamMemory(window_size, cache)
    if cache is FrameCache.staggered:
        raise UserError("structure.cache=staggered does not fit this backbone, which keeps nothing: use exact.")
    return Memory(window_size)

"""What a policy keeps of an episode, structure by structure, so that every frame costs as little as it can."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robovlms.config.choices import FrameCache, Structure
from robovlms.errors import UserError
from robovlms.heads.base import Prefix
from robovlms.policy.policy import FeatureReader, VLAPolicy
from robovlms.types import Batch


class Memory(ABC):
    """Frames go in one by one (`observe`), the newest one's chunk comes out (`act`), as often as it is wanted."""

    @abstractmethod
    def observe(self, step: Batch) -> None:
        """Take the newest frame (w = 1) of every row."""

    @abstractmethod
    def act(self, prefix: Prefix | None = None) -> Float[Tensor, "b k a"]:
        """Return the normalised chunk for the newest frame, behind a prefix if there is one."""


def start_memory(policy: VLAPolicy, window_size: int, cache: FrameCache = FrameCache.exact) -> Memory:
    """Return an empty memory: one episode for every row of the batches it will see."""
    if policy.structure is Structure.one_step:
        return FrameMemory(policy)
    if policy.structure is Structure.policy_head:
        return FeatureMemory(policy, window_size)
    return WindowMemory(policy, window_size, cache)


class FrameMemory(Memory):
    """`one_step`: the newest frame, which the head may ask about as often as it needs."""

    def __init__(self, policy: VLAPolicy) -> None:
        self.policy = policy
        self.step: Batch | None = None
        self.image: Tensor | None = None  # "b 1 v m e"; None: not yet encoded

    @torch.no_grad()
    def observe(self, step: Batch) -> None:
        """Keep it; most frames of a chunk that is executed are never read."""
        self.step, self.image = step, None

    @torch.no_grad()
    def act(self, prefix: Prefix | None = None) -> Float[Tensor, "b k a"]:
        """Encode its images, at the first call, and ask about the frame."""
        step = self.step
        assert step is not None
        if self.image is None:
            self.image = self.policy.encode(step)
        reader = FeatureReader(self.policy, self.image, step)
        return self.policy.head.act(reader, len(step), 1, prefix, step.action_dims)


class FeatureMemory(Memory):
    """`policy_head`: every frame is read once, when it arrives, and its features are kept for `window_size` steps."""

    def __init__(self, policy: VLAPolicy, window_size: int) -> None:
        self.policy = policy
        self.features: deque[Tensor] = deque(maxlen=window_size)  # "b 1 q d", oldest first
        self.action_dims: Tensor | None = None  # "b a", that the rows' robots have

    @torch.no_grad()
    def observe(self, step: Batch) -> None:
        """Read the frame."""
        self.action_dims = step.action_dims
        self.features.append(self.policy.read(step, self.policy.head.queries(len(step), 1)))

    @torch.no_grad()
    def act(self, prefix: Prefix | None = None) -> Float[Tensor, "b k a"]:
        """Let the head fuse the features."""
        return act_on(self.policy, list(self.features), prefix, self.action_dims)


class Stream:
    """Frames of one sequence, read one behind the other."""

    def __init__(self, policy: VLAPolicy) -> None:
        self.policy, self.kv_cache = policy, policy.backbone.new_cache()
        self.features: list[Tensor] = []  # "b 1 q d"

    def read(self, image: Tensor, step: Batch) -> None:
        """Read the next frame."""
        queries = self.policy.head.queries(len(step), 1)
        self.features.append(self.policy.ask(image, step, queries, self.kv_cache))


class WindowMemory(Memory):
    """`interleaved`: images are encoded once, and read behind the earlier frames while the window grows.

    A sequence cannot forget its oldest frame, which later ones have attended to. Once the window is full, `exact` reads
    it again from the kept images. `staggered` reads every frame into two sequences that start half a window apart, and
    acts on the longer, of w / 2 + 1 to w frames: an approximation, at two frames a step.
    """

    def __init__(self, policy: VLAPolicy, window_size: int, cache: FrameCache) -> None:
        self.policy, self.window_size, self.cache = policy, window_size, cache
        self.frames: deque[tuple[Tensor, Batch]] = deque(maxlen=window_size)
        self.streams: list[Stream] = []  # the longest first
        if cache is FrameCache.staggered and policy.backbone.new_cache() is None:
            raise UserError("structure.cache=staggered does not fit this backbone, which keeps nothing: use exact.")

    @torch.no_grad()
    def observe(self, step: Batch) -> None:
        """Encode the frame's images and read it behind the others."""
        image = self.policy.encode(step)
        self.frames.append((image, step))
        is_staggered = self.cache is FrameCache.staggered
        if self.streams and len(self.streams[0].features) == self.window_size:
            self.streams.pop(0)
            if not is_staggered:
                return  # from now on `act` reads the window
        is_first = len(self.frames) == 1
        if is_first or (is_staggered and len(self.streams) < 2 and self._length() >= self.window_size // 2):
            self.streams.append(Stream(self.policy))
        for stream in self.streams:
            if stream.kv_cache is not None:
                stream.read(image, step)

    @torch.no_grad()
    def act(self, prefix: Prefix | None = None) -> Float[Tensor, "b k a"]:
        """Let the head decode the features of the frames in the window."""
        if self.streams and self.streams[0].kv_cache is not None:
            return act_on(self.policy, self.streams[0].features, prefix, self.frames[-1][1].action_dims)
        image = torch.cat([image for image, _ in self.frames], dim=1)
        steps = [step for _, step in self.frames]
        proprio = None
        if steps[0].proprio is not None:
            proprio = torch.cat([step.proprio for step in steps if step.proprio is not None], dim=1)
        batch = replace(steps[-1], frames={}, proprio=proprio)  # the images are encoded
        return self.policy.head.act(
            FeatureReader(self.policy, image, batch), len(batch), len(steps), prefix, batch.action_dims
        )

    def _length(self) -> int:
        return len(self.streams[-1].features) if self.streams else 0


def act_on(
    policy: VLAPolicy,
    features: list[Float[Tensor, "b 1 q d"]],
    prefix: Prefix | None,
    action_dims: Bool[Tensor, "b a"] | None,
) -> Float[Tensor, "b k a"]:
    """Let the head decode features that were read before."""
    whole = torch.cat(features, dim=1)
    b, w = whole.shape[:2]
    return policy.head.act(lambda queries: whole, b, w, prefix, action_dims)

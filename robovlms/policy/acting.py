"""From the memories of many sessions to their chunks, in as few forwards as the structure allows.

Rows may be of any age and length: shorter ones are padded behind their newest frame, where nothing reads. Every row
comes out as it would alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from robovlms.backbones.layout import KVCache
from robovlms.config.choices import Structure
from robovlms.heads.base import Prefix
from robovlms.policy.graphs.cuda import Function, Graphs, Input
from robovlms.policy.memory import Frame, Memory, Stream, StreamMemory
from robovlms.policy.policy import FeatureReader, VLAPolicy
from robovlms.types import Batch

T = TypeVar("T")


class BatchedPolicy:
    """A policy that acts on many memories at once."""

    def __init__(
        self,
        policy: VLAPolicy,
        max_batch_size: int,
        encode: Callable[[Tensor], Tensor] | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        """Take what acts.

        Args:
            policy: in evaluation.
            max_batch_size: rows in one forward, of images as of sequences.
            encode: the backbone's `encode`, perhaps compiled.
            graphs: what calls all that can be captured; None: it is called as it is.
        """
        self.policy, self.max_batch_size, self.graphs = policy, max_batch_size, graphs
        self.encode = encode or policy.backbone.encode
        self.device = next(policy.parameters()).device

    @torch.no_grad()
    def act(
        self, memories: Sequence[Memory], prefixes: Sequence[Prefix | None] | None = None
    ) -> list[Float[Tensor, "k a"]]:
        """Return, on the host, the normalised chunk for the newest frame of every memory, which keeps what was computed
        of its frames. The host waits for the device once a forward, not once a row.

        Args:
            memories: of this policy, each with a frame at least; none twice.
            prefixes: of each, what is already decided of its chunk (b = 1).
        """
        chunks: dict[int, Tensor] = {}
        for rows in self._pieces(range(len(memories))):
            self._read([memories[row] for row in rows])
            for is_read in (True, False):
                if some := [row for row in rows if (features_of(memories[row]) is not None) == is_read]:
                    decide = self._decode if is_read else self._read_and_decode
                    prefix = stack_prefixes([prefixes[row] for row in some], self.device) if prefixes else None
                    made = decide([memories[row] for row in some], prefix).cpu()
                    chunks |= dict(zip(some, made, strict=True))
        return [chunks[row] for row in range(len(memories))]

    def _call(self, function: Function, *inputs: Input) -> Tensor:
        """Call what can be captured."""
        return function(*inputs) if self.graphs is None else self.graphs(function, *inputs)

    def _pieces(self, items: Sequence[T]) -> Iterator[Sequence[T]]:
        size = self.max_batch_size
        return (items[first : first + size] for first in range(0, len(items), size))

    def _read(self, memories: Sequence[Memory]) -> None:
        """Read what can be read before the head asks, and encode the images that it will ask about."""
        frames = [frame for memory in memories for frame in memory.frames]
        if self.policy.structure is Structure.policy_head:
            for some in self._pieces([frame for frame in frames if frame.features is None]):
                self._read_alone(some)
            return
        for some in self._pieces([frame for frame in frames if frame.image is None]):
            for frame, image in zip(some, self._call(self.encode, self._images(some)), strict=True):
                frame.image, frame.step = image.clone(), replace(frame.step, frames={})  # not the whole batch's
        for unread in self._pieces([each for memory in memories for each in unread_of(memory)]):
            self._read_behind(unread)

    def _images(self, frames: Sequence[Frame]) -> Float[Tensor, "n 1 v c h x"]:
        """Return the images of frames, whose cameras may be of different sizes."""
        views, sizes = self.policy.processor.views, dict[tuple[torch.Size, ...], list[int]]()
        for i, frame in enumerate(frames):
            sizes.setdefault(tuple(frame.step.frames[view].shape for view in views), []).append(i)
        images: dict[int, Tensor] = {}
        for places in sizes.values():
            pixels = {view: torch.cat([frames[i].step.frames[view] for i in places]) for view in views}
            none = torch.zeros(len(places), 0, dtype=torch.long)
            batch = Batch(frames=pixels, text_ids=none, text_mask=none.bool()).to(self.device)
            images |= dict(zip(places, self.policy.processor.images(batch), strict=True))
        return torch.stack([images[i] for i in range(len(frames))])

    def _read_alone(self, frames: Sequence[Frame]) -> None:
        """Read each frame on its own. Its pixels are kept for an instruction that changes, its image tokens are not."""
        batch = stack_windows([[frame] for frame in frames]).to(self.device)
        features = self._call(self._encode_and_ask, self._images(frames), batch)
        for frame, row in zip(frames, features, strict=True):
            frame.features = row[0].clone()

    def _encode_and_ask(self, images: Float[Tensor, "n 1 v c h x"], batch: Batch) -> Float[Tensor, "n 1 q d"]:
        return self.policy.ask(self.encode(images), batch, self.policy.head.queries(len(images), 1))

    def _read_behind(self, unread: Sequence[tuple[Stream, list[Frame]]]) -> None:
        """Read frames behind what their streams have read."""
        windows = [frames for _, frames in unread]
        batch, image = stack_windows(windows).to(self.device), stack_images(windows)
        kv_cache = KVCache.of([stream.kept for stream, _ in unread])
        features = self.policy.ask(image, batch, self.policy.head.queries(*image.shape[:2]), kv_cache)
        for (stream, frames), row, kept in zip(unread, features, kv_cache.rows(), strict=True):
            stream.features = [*stream.features, *row[: len(frames)].clone()]
            stream.kept = kept

    def _decode(self, memories: Sequence[Memory], prefix: Prefix | None) -> Float[Tensor, "b k a"]:
        """Let the head decode features that were read before."""
        if self.policy.head.carries_state:
            self._advance(memories)
            oldest = [memory.frames[0].state for memory in memories]
            newest = stack_windows([[memory.frames[-1]] for memory in memories]).to(self.device)
            states = torch.stack([state for state in oldest if state is not None])
            return self._call(self.policy.head.act_on, states, newest.source)
        rows = [features_of(memory) or [] for memory in memories]
        counts = [len(row) for row in rows]
        lengths = torch.tensor(counts)
        read = torch.stack([features for row in rows for features in row])  # at once: a call for each would cost more
        features = pad_sequence(list(torch.split(read, counts)), batch_first=True)
        newest = stack_windows([[memory.frames[-1]] for memory in memories]).to(self.device)
        given = (features, lengths.to(self.device), newest.action_dims, newest.source, *(prefix or (None, None)))
        return self._call(self._decode_features, *given)

    def _decode_features(
        self,
        features: Float[Tensor, "b w q d"],
        lengths: Int64[Tensor, "b"],
        action_dims: Bool[Tensor, "b a"] | None,
        source: Int64[Tensor, "b"] | None,
        actions: Float[Tensor, "b k a"] | None,
        weight: Float[Tensor, "b k"] | None,
    ) -> Float[Tensor, "b k a"]:
        (b, w), prefix = features.shape[:2], prefix_of(actions, weight)
        return self.policy.head.act(lambda queries: features, b, w, prefix, action_dims, lengths, source)

    def _advance(self, memories: Sequence[Memory]) -> None:
        """Let the head go on by the frames that it has not read, from every frame that a window may begin with."""
        head = self.policy.head
        while unread := [frames for memory in memories if (frames := up_to_next(memory))]:
            begun = [(first, frames[-1]) for frames in unread for first in frames]
            features = torch.stack([each.features for _, each in begun if each.features is not None])
            states = torch.stack([head.new_state() if first.state is None else first.state for first, _ in begun])
            advanced = torch.split(self._call(head.advance, features, states), [len(frames) for frames in unread])
            for frames, rows in zip(unread, advanced, strict=True):
                for first, state in zip(frames, rows.clone(), strict=True):  # its own memory, not the whole batch's
                    first.state = state

    def _read_and_decode(self, memories: Sequence[Memory], prefix: Prefix | None) -> Float[Tensor, "b k a"]:
        """Let the head ask about whole windows, of encoded images."""
        windows = [list(memory.frames) for memory in memories]
        given = (stack_images(windows), stack_windows(windows).to(self.device), *(prefix or (None, None)))
        if self.policy.head.acts_on_host:
            return self._ask_and_decode(*given)
        return self._call(self._ask_and_decode, *given)

    def _ask_and_decode(
        self,
        image: Float[Tensor, "b w v m e"],
        batch: Batch,
        actions: Float[Tensor, "b k a"] | None,
        weight: Float[Tensor, "b k"] | None,
    ) -> Float[Tensor, "b k a"]:
        return FeatureReader(self.policy, image, batch).act(prefix_of(actions, weight))


class CompiledForSizes:
    """A function of a batch that torch compiles for few sizes: rows are added up to the next power of two.

    On a GPU it is recorded as a CUDA graph for each of them, so that its kernels start at once.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size
        self._compiled = torch.compile(function, mode="reduce-overhead", dynamic=False)

    def __call__(self, batch: Float[Tensor, "n *rest"]) -> Float[Tensor, "n *out"]:
        """Return the function's rows for these."""
        n = len(batch)
        size = min(1 << (n - 1).bit_length(), self._max_batch_size)
        padded = torch.cat([batch, batch[-1:].expand(size - n, *batch.shape[1:])])
        return self._compiled(padded)[:n].clone()  # a graph's next run overwrites its output


def unread_of(memory: Memory) -> list[tuple[Stream, list[Frame]]]:
    """Return a memory's streams with the frames that have yet to be read into each."""
    if not isinstance(memory, StreamMemory):
        return []
    return [(stream, frames) for stream in memory.streams if (frames := stream.unread(memory.frames))]


def features_of(memory: Memory) -> list[Float[Tensor, "q d"]] | None:
    """Return the features of the frames to act on; None: the head has to ask for them."""
    if isinstance(memory, StreamMemory):
        return memory.streams[0].features if memory.streams else None
    features = [frame.features for frame in memory.frames if frame.features is not None]
    return features or None


def up_to_next(memory: Memory) -> list[Frame]:
    """Return a memory's frames up to the first that a head's state has not taken in; none: it has all of them."""
    frames = list(memory.frames)
    known = sum(frame.state is not None for frame in frames)
    return frames[: known + 1] if known < len(frames) else []


def stack_windows(windows: Sequence[Sequence[Frame]]) -> Batch:
    """Return the rows of a batch without pixels, each with the instruction of its newest frame."""
    newest = [frames[-1].step for frames in windows]
    proprio = [[f.step.proprio[0] for f in frames if f.step.proprio is not None] for frames in windows]
    source = [step.source for step in newest if step.source is not None]
    return Batch(
        frames={},
        text_ids=pad_sequence([step.text_ids[0] for step in newest], batch_first=True),
        text_mask=pad_sequence([step.text_mask[0] for step in newest], batch_first=True),
        action_dims=stack_masks([step.action_dims for step in newest]),
        view_mask=stack_masks([step.view_mask for step in newest]),
        frame_mask=mask_of([len(frames) for frames in windows]),
        proprio=pad_sequence([torch.cat(row) for row in proprio], batch_first=True) if proprio[0] else None,
        source=torch.cat(source) if source else None,
    )


def stack_images(windows: Sequence[Sequence[Frame]]) -> Float[Tensor, "b w v m e"]:
    """Return the images of encoded frames."""
    rows = [torch.cat([frame.image for frame in frames if frame.image is not None]) for frames in windows]
    return pad_sequence(rows, batch_first=True)


def stack_masks(masks: Sequence[Bool[Tensor, "1 n"] | None]) -> Bool[Tensor, "b n"] | None:
    """Return masks as one; None: all True."""
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    return torch.cat([torch.ones_like(given[0]) if mask is None else mask for mask in masks])


def mask_of(lengths: Sequence[int]) -> Bool[Tensor, "b w"] | None:
    """Return which frames of the longest row every row has; None: all."""
    if len(set(lengths)) == 1:
        return None
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def prefix_of(actions: Float[Tensor, "b k a"] | None, weight: Float[Tensor, "b k"] | None) -> Prefix | None:
    """Return a prefix of its tensors; None: there is none."""
    return None if actions is None or weight is None else Prefix(actions, weight)


def stack_prefixes(prefixes: Sequence[Prefix | None], device: torch.device) -> Prefix | None:
    """Return prefixes as one, on `device`; a row without one is free throughout."""
    given = [prefix for prefix in prefixes if prefix is not None]
    if not given:
        return None
    free = Prefix(*(torch.zeros_like(each) for each in given[0]))
    actions, weights = zip(*(prefix or free for prefix in prefixes), strict=True)
    return Prefix(torch.cat(actions).to(device), torch.cat(weights).to(device))

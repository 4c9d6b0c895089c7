"""CUDA graphs of what a control step computes.

A step of a small batch is bound by the host, which launches its kernels one by one. A function of tensors of fixed
shapes can be captured once, and is then launched as a whole: it reads and writes buffers that stay where they are, so
inputs are copied in and its output is copied out.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor

from robovlms.types import Batch

log = logging.getLogger(__name__)

MAX_GRAPHS = 32  # the one that was not used for longest is forgotten

Input: TypeAlias = Batch | Tensor | None
Function: TypeAlias = Callable[..., Tensor]
Capture: TypeAlias = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Runs a function, and returns what runs it again without Python, and the tensor that its result is put into."""


class Graphs:
    """Calls functions, by a graph of their own for every combination of shapes that was met before.

    Functions take batches, tensors, or None, and return a tensor. Rows, in the first dimension of all of these, must
    not depend on each other: buffers have room for 1, 2, 4, 8, ... of them, so that few graphs are enough for all
    numbers of rows. What is met for the first time is computed as it is; so is what cannot be captured, and a warning
    says so.
    """

    def __init__(self, capture: Capture, max_graphs: int = MAX_GRAPHS) -> None:
        self._capture, self._max_graphs = capture, max_graphs
        self._graphs: OrderedDict[tuple[object, ...], Graph | None] = OrderedDict()  # None: met once
        self._refused: set[tuple[object, ...]] = set()

    def say_what_is_left_out(self, acts_on_host: bool, is_staggered: bool) -> None:
        """Log what of a policy no graph is made of, once and for all."""
        if is_staggered:
            log.info(
                "engine.cuda_graph=true: structure.cache=staggered reads behind a cache that grows, without graphs"
            )
        if acts_on_host:
            log.info("engine.cuda_graph=true: the head looks at what it writes, so it reads and decodes without graphs")

    def __len__(self) -> int:
        """Return how many graphs there are."""
        return sum(graph is not None for graph in self._graphs.values())

    def __call__(self, function: Function, *inputs: Input) -> Shaped[Tensor, "n *out"]:
        """Return the function's result, in memory of its own.

        Args:
            function: known by its name.
            inputs: on the device.
        """
        shapes = tuple(None if tensor is None else (tensor.shape[1:], tensor.dtype) for tensor in leaves(inputs))
        size = 1 << (num_rows(inputs) - 1).bit_length()
        key = (function.__name__, size, shapes)
        if key in self._refused:
            return function(*inputs)
        is_known, graph = key in self._graphs, self._graphs.pop(key, None)
        if is_known and graph is None:
            try:
                graph = Graph(function, inputs, size, self._capture)
            except RuntimeError as error:
                self._refuse(key, error)
                return function(*inputs)
        self._graphs[key] = graph
        if len(self._graphs) > self._max_graphs:
            self._graphs.popitem(last=False)
        return function(*inputs) if graph is None else graph(inputs)

    def _refuse(self, key: tuple[object, ...], error: RuntimeError) -> None:
        """Note that a function cannot be captured for some shapes; its first time is logged."""
        name, reason = str(key[0]).strip("_"), str(error).splitlines()[0]
        if not any(key[0] == other[0] for other in self._refused):
            log.warning("engine.cuda_graph: %s runs without where shapes are as now, since %s", name, reason)
        self._refused.add(key)


class Graph:
    """A function for inputs of the same shapes, and the buffers it reads and writes."""

    def __init__(self, function: Function, inputs: Sequence[Input], size: int, capture: Capture) -> None:
        """Capture it.

        Args:
            function: what is captured.
            inputs: an example.
            size: rows that there is room for.
            capture: how; may raise RuntimeError.
        """
        buffers = [with_room(each, size) for each in inputs]
        self._buffers = [buffer for buffer in leaves(buffers) if buffer is not None]
        self._replay, self._output = capture(partial(function, *buffers))

    def __call__(self, inputs: Sequence[Input]) -> Shaped[Tensor, "n *out"]:
        """Return the result for these; rows that there are no inputs for are computed of what they held before."""
        given = [tensor for tensor in leaves(inputs) if tensor is not None]
        for buffer, tensor in zip(self._buffers, given, strict=True):
            buffer[: len(tensor)].copy_(tensor)
        self._replay()
        return self._output[: num_rows(inputs)].clone()


def leaves(inputs: Sequence[Input]) -> list[Tensor | None]:
    """Return the tensors of inputs, in a fixed order, None where there may be one and is not."""
    found: list[Tensor | None] = []
    for each in inputs:
        if isinstance(each, Batch):
            values = [getattr(each, item.name) for item in fields(each)]
            for value in values:
                found += value.values() if isinstance(value, dict) else [value]
        else:
            found.append(each)
    return found


def num_rows(inputs: Sequence[Input]) -> int:
    """Return how many rows inputs have."""
    return next(len(tensor) for tensor in leaves(inputs) if tensor is not None)


def with_room(given: Input, size: int) -> Input:
    """Return inputs in memory of their own with more rows, the last one repeated."""

    def extend(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor[-1:].expand(size - len(tensor), *tensor.shape[1:])])

    if isinstance(given, Batch):
        return given.map(extend)
    return None if given is None else extend(given)


def cuda_capture(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Capture what a function launches on a GPU, as `Capture` says.

    It runs twice before: what libraries do in their first calls cannot be captured, and what waits for the GPU is found
    before a capture would fail. Memory comes from a pool that all graphs share: outputs stay alive, and no two graphs
    run at the same time. Weights that autocast rounds are rounded within the graph: those of outside are freed with it.

    Raises:
        RuntimeError: it waits for the GPU, or does something else that cannot be captured.
    """
    with torch.cuda.device(run().device):
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(side):
                run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        current.wait_stream(side)
        torch.clear_autocast_cache()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=shared_pool(), stream=side, capture_error_mode="thread_local"):
                output = run()
        finally:
            torch.cuda.set_stream(current)  # where capturing failed, torch does not
            torch.clear_autocast_cache()
    return graph.replay, output


@cache
def shared_pool() -> Any:
    """Return the memory pool of this process's graphs."""
    return torch.cuda.graph_pool_handle()


CAPTURES: dict[str, Capture] = {"cuda": cuda_capture}  # by type of device


def graphs_for(device: torch.device, is_wanted: bool) -> Graphs | None:
    """Return what captures the steps of an engine on a device; None: nothing does, and where that was wanted, the log
    says so.
    """
    if not is_wanted:
        return None
    if device.type in CAPTURES:
        return Graphs(CAPTURES[device.type])
    log.warning("engine.cuda_graph=true: %s has no CUDA graphs; control steps run without", device.type)
    return None

"""One micro-step of training, operation by operation, on tensors without memory: its work, its memory, its time.

Counted are operations as eager PyTorch issues them, on a CPU's kernels with a GPU's precision: what a compiler fuses
is not seen. Time is a roofline: every kernel takes what its arithmetic or its bytes take, whichever is longer.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from robovlms.actions.plan import DataPlan
from robovlms.config.choices import Precision
from robovlms.config.run import TrainConfig
from robovlms.planner.machines import Gpu
from robovlms.planner.model import make_batch, materialise, no_numbers, shapes_of
from robovlms.policy.policy import VLAPolicy
from robovlms.training.precision import compute_in_bf16

MATMUL, ATTENTION, ELEMENTWISE = "matmul", "attention", "elementwise"
MATMULS = {"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"}
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "detach", "lift_fresh", "arange", "alias"}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """An operation that reads or writes memory."""

    kind: str
    flops: int
    bytes: int
    is_backward: bool


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a micro-step of `windows` windows does."""

    windows: int
    parameters: int
    trained: int
    weight_bytes: int  # of parameters and buffers as they are kept
    gradient_bytes: int
    low_trained: int  # trained parameters that are bfloat16
    largest_layer_bytes: int  # of the weights of one layer, whole
    saved_bytes: int  # kept from the forward for the backward, weights apart
    peak_bytes: int  # most that lives at once, beside weights and gradients
    tokens: int  # that the decoder reads
    kernels: list[Kernel]

    @property
    def flops(self) -> int:
        """Multiplications and additions of forward and backward."""
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def forward_flops(self) -> int:
        """Those of the forward alone."""
        return sum(kernel.flops for kernel in self.kernels if not kernel.is_backward)

    def seconds(self, gpu: Gpu) -> dict[str, float]:
        """Return the roofline's time by kind of kernel."""
        total: defaultdict[str, float] = defaultdict(float)
        for kernel in self.kernels:
            total[kernel.kind] += gpu.kernel_seconds(kernel.flops, kernel.bytes, kernel.kind == ATTENTION)
        return dict(total)


def trace(config: TrainConfig, windows: int) -> Trace:
    """Trace a micro-step of a run; seconds of CPU, whatever the model's size, and no memory worth the name."""
    policy = shapes_of(config)
    action_dim = len(DataPlan.of(config.data, config.view.views).action_names)
    with no_numbers():
        is_bf16 = config.precision.name is Precision.bf16
        materialise(policy, rounds_backbone=is_bf16)
        if is_bf16:
            compute_in_bf16(policy)
        policy.train()
        for parameter in policy.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        return _step(config, policy, make_batch(config, policy, windows, action_dim), windows)


def _step(config: TrainConfig, policy: VLAPolicy, batch: Any, windows: int) -> Trace:
    recorder, saved, tokens = Recorder(), Saved(policy), Tokens(policy)
    autocast = config.precision.name is not Precision.fp32
    with as_on_gpu():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), saved.kept(), recorder:
            loss = policy(batch)["loss"]
        with recorder:
            recorder.is_backward = True
            loss.backward()
    parameters = list(policy.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return Trace(
        windows=windows,
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in trained),
        weight_bytes=sum(_bytes(t) for t in [*parameters, *policy.buffers()]),
        gradient_bytes=sum(_bytes(p) for p in trained),
        low_trained=sum(p.numel() for p in trained if p.dtype is torch.bfloat16),
        largest_layer_bytes=_largest_layer(policy),
        saved_bytes=sum(saved.bytes.values()),
        peak_bytes=recorder.peak,
        tokens=tokens.count,
        kernels=recorder.kernels,
    )


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the kernels that run inside, and the memory that lives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: list[Kernel] = []
        self.is_backward = False
        self.living = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        given = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        old = {_storage(tensor) for tensor in read}
        fresh = [tensor for tensor in given if _storage(tensor) not in old]
        for tensor in fresh:
            self._lives(tensor)
        name = func._schema.name.removeprefix("aten::")
        writes = fresh or (given if name.endswith("_") and not name.startswith("_") else [])
        if writes and name not in FREE:
            kind = ATTENTION if "scaled_dot_product" in name else MATMUL if name in MATMULS else ELEMENTWISE
            flops = _flops(func, args, kwargs or {}, out)
            moved = sum(_bytes(tensor) for tensor in {id(each): each for each in read}.values())
            moved += sum(_bytes(tensor) for tensor in writes)
            self.kernels.append(Kernel(kind=kind, flops=flops, bytes=moved, is_backward=self.is_backward))
        return out

    def _lives(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.living += storage.nbytes()
        self.peak = max(self.peak, self.living)
        weakref.finalize(storage, self._dies, storage.nbytes())

    def _dies(self, size: int) -> None:
        self.living -= size


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Do what a GPU does and a CPU does not: attention draws its dropout inside the kernel, dropout keeps a mask of
    bytes, and, under autocast, layer norms read and write float32.

    The functions themselves are replaced: a mode of torch's is not there while checkpointing computes once more.
    """
    attention, norm = F.scaled_dot_product_attention, F.layer_norm

    def fused_attention(*args: Any, **kwargs: Any) -> Any:
        return attention(*args[:4], **(kwargs | {"dropout_p": 0.0}))

    def byte_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(input, p, True)[0] if training and p else input

    def float_norm(input: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return norm(input, shape, weight, bias, eps)
        weight, bias = (None if each is None else each.float() for each in (weight, bias))
        return norm(input.float(), shape, weight, bias, eps)

    replaced = {"scaled_dot_product_attention": fused_attention, "dropout": byte_dropout, "layer_norm": float_norm}
    with ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(patch.object(F, name, function))
        yield


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Count by PyTorch's own formulas; the CPU's attention is not in its table."""
    name = func._schema.name
    if "scaled_dot_product" in name:
        is_backward = "backward" in name
        shapes = [tensor.shape for tensor in args[: 4 if is_backward else 3]]
        count: Any = sdpa_backward_flop_count if is_backward else sdpa_flop_count
        return int(count(*shapes))
    formula = flop_registry.get(func._overloadpacket)
    return int(formula(*args, **kwargs, out_val=out)) if formula else 0


class Saved:
    """The tensors that autograd keeps, by their memory; the model's own are no more than it has anyway."""

    def __init__(self, policy: VLAPolicy) -> None:
        self._own = {_storage(tensor) for tensor in [*policy.parameters(), *policy.buffers()]}
        self.bytes: dict[int, int] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Watch what is kept inside the block."""
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
            yield

    def _keep(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self._own:
            self.bytes[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor


class Tokens:
    """Counts what the backbone's decoder is given: sequences times their length."""

    def __init__(self, policy: VLAPolicy) -> None:
        self.count = 0
        backbone: Any = policy.backbone
        decode = getattr(backbone, "decode", None)
        if decode is None:
            return

        def counted(embeds: Tensor, *args: Any) -> Tensor:
            self.count += embeds.shape[0] * embeds.shape[1]
            decoded: Tensor = decode(embeds, *args)
            return decoded

        backbone.decode = counted


def _largest_layer(policy: VLAPolicy) -> int:
    lists = [module for module in policy.backbone.modules() if isinstance(module, nn.ModuleList)]
    return max((sum(_bytes(p) for p in layer.parameters()) for each in lists for layer in each), default=0)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    """Return what reading a tensor moves: what is expanded is read once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()

"""Weights, gradients and optimizer state are spread over processes: `torch.distributed.fsdp.fully_shard` (FSDP2)."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from robovlms.config.choices import Precision, ReduceDtype
from robovlms.config.run import TrainConfig
from robovlms.policy.policy import VLAPolicy
from robovlms.training.checkpoints.pieces import Piece
from robovlms.training.optimizer.precision import MasterWeights, compute_in_bf16, load_masters
from robovlms.training.parallel.base import Parallelism, Share, rows_of
from robovlms.training.schemas.parallel import FSDP2Config

POLICY_ENTRIES = ("encode", "ask", "read", "converse", "assess", "predict")  # that use weights, besides forward
BACKBONE_ENTRIES = ("encode", "read")


class Gathered(nn.Module):
    """A policy whose weights are whole while something of it is called, whatever that is.

    FSDP gathers a module's weights around its `forward`. A policy has other entries: each goes through this module,
    the outermost only, because one of them calls another.
    """

    def __init__(self, policy: VLAPolicy) -> None:
        super().__init__()
        self.policy = policy
        self._is_inside = False
        for module, names in ((policy, POLICY_ENTRIES), (policy.backbone, BACKBONE_ENTRIES)):
            for name in names:
                setattr(module, name, self._entry(getattr(module, name)))

    def _entry(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def enter(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs) if self._is_inside else self(*args, _method=method, **kwargs)

        return enter

    def forward(self, *args: Any, _method: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
        """Call the policy, or another of its methods, with whole weights."""
        backbone = self.policy.backbone
        assert isinstance(backbone, FSDPModule)
        backbone.unshard()  # not itself called, only its methods and layers are
        self._is_inside = True
        try:
            return (_method or self.policy)(*args, **kwargs)
        finally:
            self._is_inside = False


class Sharded(Parallelism):
    """Every process keeps a range of rows of every weight; subclasses say over which processes."""

    is_sharded = True

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        """Group the processes.

        Raises:
            UserError: they do not divide into groups.
        """
        super().__init__(config, accelerator)
        self.mesh()

    def mesh(self) -> DeviceMesh:
        """Return the processes: one dimension to shard over, or two, to replicate and to shard over."""
        raise NotImplementedError

    def prepare(self, policy: VLAPolicy, resume_from: Path | None) -> nn.Module:
        """Spread the policy's weights; each layer is gathered while it computes."""
        precision = self.config.precision.name
        load_masters(policy, precision, resume_from)
        self.masters = MasterWeights()  # the shards are float32 themselves
        if precision is Precision.bf16:
            compute_in_bf16(policy)
        options = self.config.parallel
        assert isinstance(options, FSDP2Config)
        self._model = shard(
            policy,
            self.mesh(),
            compute_dtype=torch.bfloat16 if precision is Precision.bf16 else None,
            reduce_dtype=torch.bfloat16 if options.reduce_dtype is ReduceDtype.bf16 else torch.float32,
            reshard_after_forward=options.reshard_after_forward,
        )
        policy.to(self.accelerator.device)
        self.shares = {
            name: share
            for name, parameter in policy.named_parameters()
            if parameter.requires_grad and (share := self._share(parameter)).weight.numel()
        }
        return self._model

    def _share(self, parameter: nn.Parameter) -> Share:
        local, start = local_rows(parameter)
        return Share(parameter=parameter, weight=nn.Parameter(local), start=start)

    def accumulating(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Keep whole gradients until the last micro-batch, and reduce once."""
        assert isinstance(model, FSDPModule)
        return _unsynchronised(model)

    def collect_gradients(self) -> None:
        """Look at this process's rows of the averaged gradients, and of the weights where they lie now.

        FSDP moves rows that do not divide evenly to another place at the first forward.
        """
        for share in self.shares.values():
            share.weight.data, _ = local_rows(share.parameter)
            gradient = share.parameter.grad
            if gradient is not None:
                assert isinstance(gradient, DTensor)
                share.weight.grad = gradient.to_local()

    def total_norm(self, norm: Tensor) -> Tensor:
        """Add up the squares of the processes that share the weights."""
        square, mesh = norm.square(), self.mesh()
        dist.all_reduce(square, group=mesh.get_group(mesh.ndim - 1))
        return square.sqrt()

    def spread_weights(self) -> None:
        """Drop what is gathered: it is gathered again when it computes."""
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def pieces(self, weights: Mapping[str, Tensor]) -> dict[str, Piece]:
        """Return this process's rows of all weights."""
        found = {}
        for name, value in weights.items():
            if isinstance(value, DTensor):
                local, start = local_rows(value)
                found[name] = Piece(local, start, tuple(value.shape))
        return found


def shard(
    policy: VLAPolicy,
    mesh: DeviceMesh,
    *,
    compute_dtype: torch.dtype | None = None,
    reduce_dtype: torch.dtype = torch.float32,
    reshard_after_forward: bool = True,
) -> Gathered:
    """Spread a policy's weights over the last dimension of `mesh`, and return what losses are computed by.

    Args:
        policy: its entries gather weights from now on, also when they are called directly.
        mesh: processes; over a first of two dimensions weights are equal.
        compute_dtype: what the backbone's weights are rounded to where they are gathered; None: not at all.
        reduce_dtype: of gradients on their way between processes.
        reshard_after_forward: whether a gathered layer is dropped until backward needs it again.
    """
    # True where somebody writes to what a layer returns, which nobody does: tests/training/test_sharded.py.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(.*\) returned a view tensor", UserWarning)
    rounded = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    for layer in layers_of(policy.backbone):
        fully_shard(layer, mesh=mesh, mp_policy=rounded, reshard_after_forward=reshard_after_forward)
    fully_shard(policy.backbone, mesh=mesh, mp_policy=rounded, reshard_after_forward=False)
    model = Gathered(policy)
    whole = MixedPrecisionPolicy(reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    fully_shard(model, mesh=mesh, mp_policy=whole)
    return model


@contextmanager
def _unsynchronised(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def local_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """Return this process's rows of a tensor that FSDP has spread, sharing memory with it, flat, and their start."""
    assert isinstance(tensor, DTensor)
    mesh = tensor.device_mesh
    rows = rows_of(tensor.shape[0], mesh.size(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1))
    spread = tensor.detach()
    assert isinstance(spread, DTensor)
    local: Tensor = spread.to_local()
    assert local.shape[0] == len(rows)
    return local, rows.start * (tensor.numel() // max(1, tensor.shape[0]))


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model that may be gathered one by one: members of its lists, called as modules.

    A layer whose weights are used elsewhere too (tied ones) is gathered with the whole.
    """
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    found: list[nn.Module] = []

    def walk(module: nn.Module) -> None:
        for child in module.children():
            is_layer = isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList)
            parameters = list(child.parameters())
            if is_layer and parameters and all(owners[id(parameter)] == 1 for parameter in parameters):
                found.append(child)
            else:
                walk(child)

    walk(model)
    return found

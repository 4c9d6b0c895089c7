"""Every process has all weights: DistributedDataParallel."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from robovlms.config.choices import ReduceDtype
from robovlms.policy.policy import VLAPolicy
from robovlms.training.parallel.base import Parallelism
from robovlms.training.schemas.parallel import DDPConfig

REDUCED = {ReduceDtype.fp32: torch.float32, ReduceDtype.bf16: torch.bfloat16}


class Replicated(Parallelism):
    """Gradients are averaged while backward computes them, in buckets."""

    _has_reduced = False

    def prepare(self, policy: VLAPolicy, resume_from: Path | None) -> nn.Module:
        """Wrap the policy."""
        super().prepare(policy, resume_from)
        options = self.config.parallel
        assert isinstance(options, DDPConfig)
        model = DistributedDataParallel(
            policy,
            device_ids=[self.accelerator.device] if self.accelerator.device.type == "cuda" else None,
            bucket_cap_mb=options.bucket_cap_mb,
            gradient_as_bucket_view=options.gradient_as_bucket_view,
            static_graph=options.static_graph,
        )
        dtype = REDUCED[options.reduce_dtype]
        if any(parameter.dtype != dtype for parameter in policy.parameters() if parameter.requires_grad):
            # Without annotations: torch looks at them, and refuses those that are text, as all of this module are.
            model.register_comm_hook(dtype, lambda dtype, bucket: _average(dtype, bucket))
        return model

    def accumulating(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Reduce nothing; with a static graph, whose first backward must reduce, all but that."""
        assert isinstance(model, DistributedDataParallel)
        if model.static_graph and not self._has_reduced:
            self._has_reduced = True
            return nullcontext()
        return model.no_sync()


def _average(dtype: torch.dtype, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket of gradients over all processes, rounded to `dtype` on the way."""
    gradients = bucket.buffer()
    sent = gradients.to(dtype) / dist.get_world_size()
    future = dist.all_reduce(sent, async_op=True).get_future()
    return future.then(lambda done: gradients.copy_(done.value()[0]))

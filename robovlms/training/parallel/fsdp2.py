"""`parallel=fsdp2`: weights, gradients and optimizer state are spread over all processes."""

from __future__ import annotations

from functools import cached_property

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from robovlms.registry import PARALLEL
from robovlms.training.parallel.sharded import Sharded


@PARALLEL.register("fsdp2")
class FSDP2(Sharded):
    """One group of all processes."""

    @cached_property
    def _mesh(self) -> DeviceMesh:
        return init_device_mesh(self.accelerator.device.type, (self.world_size,), mesh_dim_names=("shard",))

    def mesh(self) -> DeviceMesh:
        """Return all processes."""
        return self._mesh

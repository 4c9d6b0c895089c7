"""`parallel=hsdp`: weights are spread over the processes of a group, e.g. of one machine, and equal between groups."""

from __future__ import annotations

import os
from functools import cached_property

from accelerate import Accelerator
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.registry import PARALLEL
from robovlms.training.parallel.sharded import Sharded
from robovlms.training.schemas.parallel import HSDPConfig


@PARALLEL.register("hsdp")
class HSDP(Sharded):
    """Layers are gathered within a group; gradients are averaged within it, then between groups."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        """Group the processes; those of the first group write checkpoints."""
        super().__init__(config, accelerator)
        self.has_copy = self.mesh().get_local_rank("replicate") > 0

    @cached_property
    def _mesh(self) -> DeviceMesh:
        options = self.config.parallel
        assert isinstance(options, HSDPConfig)
        size = options.shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        if self.world_size % size:
            fitting = [count for count in range(1, self.world_size + 1) if self.world_size % count == 0]
            raise UserError(
                f"parallel.shard_size={options.shard_size} makes groups of {size}, but {self.world_size} processes "
                f"were launched, which do not divide into such groups: choose one of {fitting}."
            )
        shape = (self.world_size // size, size)
        return init_device_mesh(self.accelerator.device.type, shape, mesh_dim_names=("replicate", "shard"))

    def mesh(self) -> DeviceMesh:
        """Return the processes: groups that are equal, and in each those that share the weights."""
        return self._mesh

"""Options of `parallel=`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.fields import number
from robovlms.config.schemas import schema
from robovlms.config.training import ParallelConfig


@schema("parallel/ddp")
@dataclass(kw_only=True)
class DDPConfig(ParallelConfig):
    """Every process has all weights and the optimizer's whole state; gradients are averaged."""

    bucket_cap_mb: int = number(25, at_least=1)  # gradients that travel together; 100 and more suit several nodes
    gradient_as_bucket_view: bool = True
    static_graph: bool = False  # promise torch that every step uses the same weights: less bookkeeping


@schema("parallel/zero1")
@dataclass(kw_only=True)
class ZeRO1Config(DDPConfig):
    """As ddp, but every process keeps and changes an equal share of the optimizer's state."""


@schema("parallel/fsdp2")
@dataclass(kw_only=True)
class FSDP2Config(ParallelConfig):
    """Weights, gradients and optimizer state are spread over all processes; a layer is gathered while it computes."""

    reshard_after_forward: bool = True  # false keeps gathered layers until backward: more memory, less traffic

    @property
    def shares_weights(self) -> bool:
        """Say that every process keeps a part of the weights."""
        return True


@schema("parallel/hsdp")
@dataclass(kw_only=True)
class HSDPConfig(FSDP2Config):
    """As fsdp2 within groups of processes, as ddp between them."""

    # processes of a group; 0: those of one machine, as torchrun started them
    shard_size: int = number(0, at_least=0)

"""What a GPU holds during a step: states by the bytes of a parameter, activations as they were traced."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.choices import Moments, Precision
from robovlms.config.run import TrainConfig
from robovlms.config.training import Rounding
from robovlms.planner.trace import Trace
from robovlms.training.optimizer.adamw import PART_BYTES
from robovlms.training.schemas.parallel import HSDPConfig

RESERVE_GB = 1.0  # CUDA context, libraries' workspaces, batches on their way: assumed
FRAGMENTATION = 0.03  # of the activations, lost between the allocator's blocks: assumed
MOMENT_BYTES = {Moments.fp32: 8.0, Moments.bf16_stochastic: 4.0, Moments.int8: 2 * (1 + 4 / 256)}  # both, a parameter
MASTER_BYTES = {Rounding.masters: 4.0, Rounding.nearest: 0.0, Rounding.stochastic: 0.0, Rounding.kahan: 2.0}
SHARDED = ("fsdp2", "hsdp")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one GPU by what they hold, in 1e9."""

    weights: float
    gradients: float
    masters: float  # float32 weights behind bfloat16 ones, or what rounding left over
    moments: float
    average: float  # the exponential moving average of the weights
    gathered: float  # whole layers of a sharded model
    activations: float  # what lives beside all that at its most
    copies: float  # in the optimizer's step, when no activation lives: gradients in float32, parts of an update
    reserve: float

    @property
    def states(self) -> float:
        """What stays from step to step."""
        return self.weights + self.gradients + self.masters + self.moments + self.average

    @property
    def peak(self) -> float:
        """The most at once: in the backward, or in the optimizer's step."""
        return self.states + max(self.activations + self.gathered, self.copies) + self.reserve


def memory_of(config: TrainConfig, trace: Trace, windows: int) -> Memory:
    """Return what a GPU holds with so many windows in a micro-step.

    Args:
        config: the run.
        trace: of any number of windows; activations are taken to grow with it.
        windows: in a micro-step.
    """
    shards = num_shards(config)
    is_sharded, rounding = config.parallel.name in SHARDED, config.optimizer.rounding
    split = shards if is_sharded else 1
    low = trace.low_trained if config.precision.name is Precision.bf16 else 0
    gradients = 4 * low / split if rounding is Rounding.masters else 0
    is_fused = config.optimizer.moments is Moments.fp32 and rounding is Rounding.masters
    activations = trace.peak_bytes * windows / trace.windows
    return Memory(
        weights=trace.weight_bytes / split / 1e9,
        gradients=trace.gradient_bytes / split / 1e9,
        masters=MASTER_BYTES[rounding] * low / shards / 1e9,
        moments=MOMENT_BYTES[config.optimizer.moments] * trace.trained / shards / 1e9,
        average=0.0 if config.ema is None else 4 * trace.trained / shards / 1e9,
        gathered=2 * trace.largest_layer_bytes / 1e9 if is_sharded else 0.0,
        activations=activations * (1 + FRAGMENTATION) / 1e9,
        copies=(gradients + (0 if is_fused else PART_BYTES)) / 1e9,
        reserve=RESERVE_GB,
    )


def num_shards(config: TrainConfig) -> int:
    """Return how many processes share what the optimizer keeps."""
    name, processes = config.parallel.name, max(1, config.cluster.num_processes)
    if isinstance(config.parallel, HSDPConfig):
        return config.parallel.shard_size or min(processes, config.cluster.gpus_per_node)
    return 1 if name == "ddp" else processes

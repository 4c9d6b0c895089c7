"""Memory, time and data of a run on a cluster, counted and modelled before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.choices import Duration, ReduceDtype, Unit
from robovlms.config.run import TrainConfig
from robovlms.planner.machines import Gpu
from robovlms.planner.memory import SHARDED, Memory, memory_of, num_shards
from robovlms.planner.trace import Trace, trace
from robovlms.training.interval import Work

NODE_GB_S, NETWORK_GB_S = 200.0, 25.0  # a GPU's share of its machine's links, and of the network: assumed
HIDDEN = 0.9  # of the backward that communication can hide behind: assumed
OPTIMIZER_BYTES = 40  # that AdamW, the norm of the gradients and clipping move, a parameter: float32, fused
SAVED_GB_S = 0.5  # that one process writes and syncs of a checkpoint: measured on a CPU


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will need, and what of it was assumed."""

    config: TrainConfig
    gpu: Gpu
    trace: Trace
    windows: int | None  # of the data set; None: not known

    @property
    def processes(self) -> int:
        """GPUs."""
        return max(1, self.config.cluster.num_processes)

    @property
    def accumulation(self) -> int:
        """Micro-steps of a step."""
        return max(1, self.config.batch_size // (self.processes * self.config.device_batch_size))

    @property
    def memory(self) -> Memory:
        """What a GPU holds."""
        return memory_of(self.config, self.trace, self.config.device_batch_size)

    @property
    def limit_gb(self) -> float:
        """What of a GPU's memory a run may plan with."""
        return self.gpu.memory_gb * (1 - self.config.planner.margin)

    @property
    def fits(self) -> bool:
        """Tell whether the peak leaves the margin."""
        return self.memory.peak <= self.limit_gb

    @property
    def flops_a_window(self) -> float:
        """Forward and backward."""
        return self.trace.flops / self.trace.windows

    @property
    def micro_seconds(self) -> float:
        """Forward and backward of a micro-step, by the roofline."""
        return sum(self.trace.seconds(self.gpu).values()) * self.config.device_batch_size / self.trace.windows

    @property
    def optimizer_seconds(self) -> float:
        """Norm, clipping and AdamW."""
        return self.gpu.copy_seconds(OPTIMIZER_BYTES * self.trace.trained / num_shards(self.config))

    @property
    def exchanged_bytes(self) -> float:
        """What a GPU sends in a step: gradients; with zero1 its weights once, sharded twice a micro-step."""
        gradients = float(self.trace.gradient_bytes)
        if self.config.parallel.reduce_dtype is ReduceDtype.bf16:
            gradients = 2.0 * self.trace.trained
        sent = 2 * gradients
        if self.config.parallel.name == "zero1":
            sent += self.trace.weight_bytes
        elif self.config.parallel.name in SHARDED:
            sent = gradients + 2 * self.trace.weight_bytes * self.accumulation
        return sent * (self.processes - 1) / self.processes

    @property
    def exchange_seconds(self) -> float:
        """How long the exchange takes, if nothing hides it."""
        speed = NODE_GB_S if self.processes <= self.config.cluster.gpus_per_node else NETWORK_GB_S
        return self.exchanged_bytes / (speed * 1e9)

    @property
    def step_seconds(self) -> float:
        """A step, with what of the exchange the last backward does not hide."""
        shown = max(0.0, self.exchange_seconds - HIDDEN * self.micro_seconds * 2 / 3)
        return self.accumulation * self.micro_seconds + self.optimizer_seconds + shown

    @property
    def windows_a_second(self) -> float:
        """Of all GPUs."""
        return self.config.batch_size / self.step_seconds

    @property
    def mfu(self) -> float:
        """Share of what large bf16 matrix products reach on the GPU."""
        done = self.flops_a_window * self.config.batch_size / self.processes
        return done / self.step_seconds / (self.gpu.matmul_tflops * 1e12)

    @property
    def work(self) -> Work:
        """What MFU is reckoned with while the run trains."""
        return Work(
            flops=self.flops_a_window,
            tokens=self.trace.tokens / self.trace.windows,
            flops_a_second=self.gpu.matmul_tflops * 1e12 * self.processes,
            planned_gb=self.memory.peak,
        )

    @property
    def steps(self) -> int | None:
        """Of the whole run; None: it is given in epochs, and the data set's size is not known."""
        total = Duration.parse(self.config.schedule.total)
        if total.unit is Unit.step:
            return total.steps(1)
        return None if self.windows is None else total.steps(max(1, self.windows // self.config.batch_size))

    @property
    def hours(self) -> float | None:
        """Of the whole run."""
        return None if self.steps is None else self.steps * self.step_seconds / 3600

    @property
    def checkpoint_gb(self) -> float:
        """Weights, moments and, where there is one, the moving average."""
        memory = self.memory
        return (4 * self.trace.parameters) / 1e9 + (memory.moments + memory.average) * num_shards(self.config)


def make_plan(config: TrainConfig, gpu: Gpu, windows: int | None = None) -> Plan:
    """Return the plan of a run on a cluster of GPUs."""
    return Plan(config=config, gpu=gpu, trace=trace(config, config.device_batch_size), windows=windows)

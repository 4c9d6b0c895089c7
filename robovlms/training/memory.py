"""What to say when a run's memory runs out: how much was in use, and which option to change."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from robovlms.config.run import TrainConfig
from robovlms.errors import UserError

GB = 1e9
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


@contextmanager
def memory_explained(
    config: TrainConfig, num_processes: int, device: torch.device, planned_gb: float | None = None
) -> Iterator[None]:
    """Say what was planned, what was in use, and what to change, where memory runs out inside the block.

    Raises:
        UserError: instead of what torch raises.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        planned = "" if planned_gb is None else f", {planned_gb:.1f} GB were planned"
        raise UserError(
            f"memory ran out while training with device_batch_size={config.device_batch_size}, "
            f"parallel={config.parallel.name} on {num_processes} processes, precision={config.precision.name}: "
            f"{_used(device)}{planned} ({str(error).splitlines()[0].rstrip('.')}). {advice(config, num_processes)}"
        ) from error


def _used(device: torch.device) -> str:
    if device.type == "cuda":
        most, total = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
        return f"at most {most / GB:.1f} GB of the device's {total / GB:.1f} were in use"
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"at most {most / GB:.1f} GB were in use by this process"


def advice(config: TrainConfig, num_processes: int) -> str:
    """Return which option saves memory at the least cost, as it is to be written."""
    held = config.device_batch_size
    smaller = next((size for size in range(held // 2, 0, -1) if held % size == 0), None)
    if smaller is not None:
        return f"Set device_batch_size={smaller}: the global batch stays batch_size={config.batch_size}."
    if num_processes > 1 and config.parallel.name in ("ddp", "zero1"):
        return "Set parallel=fsdp2, which spreads weights, gradients and optimizer state over the processes."
    return (
        "Use more processes with parallel=fsdp2, a smaller window.window_size, or checkpointing of the backbone's "
        "activations (docs/clusters.md, Memory)."
    )

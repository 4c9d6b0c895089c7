"""GPUs by their published figures, and what of these training reaches."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from robovlms.config.choices import GpuName

# An H200 multiplies 8192-cubes in bf16 at 790 of its 989 TFLOP/s, a VLM's own shapes at 650, and copies at 4.0 of its
# 4.8 TB/s: measured. The same shares are assumed of the others.
MATMUL_SHARE, SHAPES_SHARE, ATTENTION_SHARE, BANDWIDTH_SHARE = 790 / 989, 650 / 989, 300 / 989, 4.0 / 4.8
SHORTEST_KERNEL_S = 3e-6


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A device that trains."""

    name: str
    memory_gb: float  # 1e9 bytes
    spec_tflops: float  # dense bf16, float32 sums
    spec_tb_s: float  # memory bandwidth

    @property
    def matmul_tflops(self) -> float:
        """What large products reach: what MFU is a share of, here."""
        return self.spec_tflops * MATMUL_SHARE

    def kernel_seconds(self, flops: int, moved: int, is_attention: bool) -> float:
        """Return how long a kernel takes that is as good as its arithmetic or its bytes allow."""
        share = ATTENTION_SHARE if is_attention else SHAPES_SHARE
        return max(flops / (self.spec_tflops * 1e12 * share), self.copy_seconds(float(moved)), SHORTEST_KERNEL_S)

    def copy_seconds(self, moved: float) -> float:
        """Return how long reading and writing so many bytes takes."""
        return moved / (self.spec_tb_s * 1e12 * BANDWIDTH_SHARE)


# Source: the makers' data sheets; RTX cards with float32 sums.
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(name=GpuName.rtx3090, memory_gb=24.0, spec_tflops=71.0, spec_tb_s=0.936),
        Gpu(name=GpuName.rtx4090, memory_gb=24.0, spec_tflops=165.0, spec_tb_s=1.008),
        Gpu(name=GpuName.l4, memory_gb=24.0, spec_tflops=121.0, spec_tb_s=0.300),
        Gpu(name=GpuName.rtx5090, memory_gb=32.0, spec_tflops=210.0, spec_tb_s=1.792),
        Gpu(name=GpuName.a100_40gb, memory_gb=40.0, spec_tflops=312.0, spec_tb_s=1.555),
        Gpu(name=GpuName.l40s, memory_gb=48.0, spec_tflops=362.0, spec_tb_s=0.864),
        Gpu(name=GpuName.a100_80gb, memory_gb=80.0, spec_tflops=312.0, spec_tb_s=2.039),
        Gpu(name=GpuName.h100, memory_gb=80.0, spec_tflops=989.0, spec_tb_s=3.35),
        Gpu(name=GpuName.h200, memory_gb=141.0, spec_tflops=989.0, spec_tb_s=4.8),
        Gpu(name=GpuName.b200, memory_gb=180.0, spec_tflops=2250.0, spec_tb_s=8.0),
    )
}


def this_machine(processes: int) -> Gpu:
    """Return the GPU of this machine, by its own memory; without one, what its `processes` have of the machine's.

    One that is not in the table has the figures of the one of nearest memory.
    """
    if not torch.cuda.is_available():
        memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / processes / 1e9
        # Its speeds are made up: they only put ways to fit in an order.
        return Gpu(name="this machine's CPU", memory_gb=memory_gb, spec_tflops=0.5, spec_tb_s=0.05)
    memory_gb = torch.cuda.get_device_properties(0).total_memory / 1e9
    label = torch.cuda.get_device_name(0).lower().replace(" ", "")
    alike = [gpu for name, gpu in GPUS.items() if name.split("_")[0] in label]
    like = min(alike or GPUS.values(), key=lambda gpu: abs(gpu.memory_gb - memory_gb))
    return replace(like, memory_gb=memory_gb)

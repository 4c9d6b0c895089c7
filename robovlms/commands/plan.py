"""What a run needs, before it starts."""

from __future__ import annotations

import torch

from robovlms.config.choices import GpuName
from robovlms.config.run import TrainConfig
from robovlms.planner.changes import Alternatives
from robovlms.planner.machines import GPUS, Gpu, this_machine
from robovlms.planner.plan import make_plan
from robovlms.planner.text import describe

SIZES = (GpuName.rtx4090, GpuName.a100_40gb, GpuName.a100_80gb, GpuName.h200)  # 24, 40, 80 and 141 GB


def plan(config: TrainConfig) -> tuple[str, bool]:
    """Return what a run needs, and whether it fits into the GPU that it is meant for."""
    found = make_plan(config, _gpu(config), config.planner.windows)
    names = dict.fromkeys([found.gpu.name, *SIZES])
    alternatives = Alternatives(found)
    sizes = [(name, alternatives.find(GPUS.get(name, found.gpu))) for name in names]
    return describe(found, sizes), found.fits


def _gpu(config: TrainConfig) -> Gpu:
    if config.cluster.gpu is not None:
        return GPUS[config.cluster.gpu]
    return this_machine(1) if torch.cuda.is_available() else GPUS[GpuName.a100_80gb]

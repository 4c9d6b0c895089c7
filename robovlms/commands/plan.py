"""What a run needs, before it starts: as a page of text, and as a refusal of what cannot fit."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import torch

from robovlms.config.choices import ModelSize
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.planner.changes import Alternatives
from robovlms.planner.machines import GPUS, Gpu, find_gpu, this_machine
from robovlms.planner.plan import Plan, make_plan
from robovlms.planner.text import describe, verdict
from robovlms.registry import BACKBONES

log = logging.getLogger(__name__)

SIZES = ("rtx4090", "a100_40gb", "a100_80gb", "h200")  # 24, 40, 80 and 141 GB


def plan(config: TrainConfig) -> tuple[str, bool]:
    """Return what a run needs, and whether it fits into the GPU that it is meant for."""
    logging.getLogger("robovlms.backbones").setLevel(logging.WARNING)  # every way that is tried would tell its sizes
    found = make_plan(config, _gpu(config), config.planner.windows)
    names = dict.fromkeys([found.gpu.name, *SIZES])
    alternatives = Alternatives(found)
    sizes = [(name, alternatives.find(GPUS.get(name, found.gpu))) for name in names]
    return describe(found, sizes), found.fits


def _gpu(config: TrainConfig) -> Gpu:
    if config.cluster.gpu is not None:
        return find_gpu(config.cluster.gpu)
    return this_machine(1) if torch.cuda.is_available() else find_gpu("a100_80gb")


def check_fits(config: TrainConfig) -> Plan | None:
    """Refuse a run that cannot fit into the memory that it is meant for, before anything of it is loaded.

    That is `cluster.gpu`'s, or this machine's: of its GPU or, for published backbones, of its CPU. The main process
    counts for all. None: not counted.

    Raises:
        UserError: the peak that was counted, the memory, and overrides that make it fit.
    """
    if not config.planner.enabled or int(os.environ.get("RANK", "0")):
        return None
    is_small = config.backbone.size is ModelSize.tiny or not BACKBONES.get(config.backbone.name).is_published
    if is_small and config.cluster.gpu is None and not torch.cuda.is_available():
        return None
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpu = this_machine(local) if config.cluster.gpu is None else find_gpu(config.cluster.gpu)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    config = replace(config, cluster=replace(config.cluster, num_processes=processes))
    found = make_plan(config, gpu, config.planner.windows)
    log.info("planner: %s", verdict(found))
    if not found.fits:
        raise UserError(f"{verdict(found)}. {_advice(found)} planner=off starts it all the same.")
    return found


def _advice(plan: Plan) -> str:
    fitting = Alternatives(plan).find(plan.gpu)
    if fitting is None:
        return "Nothing that leaves what is trained as it is makes it fit: set backbone.lora.rank=16, or freeze parts."
    return f"It fits with {' '.join(fitting.overrides)} ({fitting.plan.memory.peak:.1f} GB)."

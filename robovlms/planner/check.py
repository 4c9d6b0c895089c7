"""A run that cannot fit is refused before it starts."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import torch

from robovlms.config.choices import ModelSize
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.planner.changes import Alternatives
from robovlms.planner.machines import GPUS, this_machine
from robovlms.planner.plan import Plan, make_plan
from robovlms.planner.text import verdict
from robovlms.registry import BACKBONES
from robovlms.training.interval import Work

log = logging.getLogger(__name__)


def check_fits(config: TrainConfig) -> Work | None:
    """Refuse a run that cannot fit into the memory that it is meant for, before anything of it is loaded.

    That is this machine's GPU's; without one `cluster.gpu`'s or, for published backbones, the machine's own. The main
    process counts for all.

    Returns:
        What a window costs, where a GPU trains; None: not counted, or there is none.

    Raises:
        UserError: the peak that was counted, the memory, and overrides that make it fit.
    """
    if not config.planner.enabled or int(os.environ.get("RANK", "0")):
        return None
    is_on_gpu = torch.cuda.is_available()
    is_small = config.backbone.size is ModelSize.tiny or not BACKBONES.get(config.backbone.name).is_published
    if is_small and config.cluster.gpu is None and not is_on_gpu:
        return None
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpu = this_machine(local) if is_on_gpu or config.cluster.gpu is None else GPUS[config.cluster.gpu]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    config = replace(config, cluster=replace(config.cluster, num_processes=processes))
    found = make_plan(config, gpu, config.planner.windows)
    log.info("planner: %s", verdict(found))
    if not found.fits:
        raise UserError(f"{verdict(found)}. {_advice(found)} planner=off starts it all the same.")
    return found.work if is_on_gpu else None


def _advice(plan: Plan) -> str:
    fitting = Alternatives(plan).find(plan.gpu)
    if fitting is None:
        return (
            "Nothing makes it fit, not even adapters (LoRA) beside frozen weights in 4 bits: choose a smaller backbone."
        )
    less = ", which trains adapters in place of weights, or keeps frozen ones in 4 bits" if fitting.trains_less else ""
    return f"It fits with {' '.join(fitting.overrides)} ({fitting.plan.memory.peak:.1f} GB){less}."

"""From a config to a finished run: the only room that knows every room."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from robovlms.actions.plan import DataPlan
from robovlms.commands.evaluate import check_simulator, evaluate
from robovlms.config.commands import EvaluateConfig
from robovlms.config.run import TrainConfig
from robovlms.data.opening import join_sources, open_sources, open_validation
from robovlms.data.statistics import compute_statistics, proprio_rows, sample_chunks
from robovlms.data.windows import find_instructions
from robovlms.policy.checkpoint import init_weights, load_stats, resolve_checkpoint
from robovlms.policy.policy import VLAPolicy
from robovlms.registry import SIMULATORS
from robovlms.training.figures import plot_run
from robovlms.training.trainer import Trainer

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> Path:
    """Run a config from demonstrations to report, as far as it asks; give the final checkpoint folder."""
    plan = DataPlan.of(config.data, config.view.views)
    if config.sim is not None and (config.collect.enabled or config.evaluation.enabled):
        # A missing simulator, an unknown task or actions that mean something else are found before hours of work.
        source = plan.find(config.evaluation.source)
        check_simulator(SIMULATORS.get(config.sim.name)(config.sim), source, config)
    with Trainer(config, plan) as trainer:
        if config.collect.enabled and config.sim is not None:
            from robovlms.commands.collect_demos import collect_demos

            with trainer.main_process_first():
                collect_demos(config.collect, config.sim, Path(config.data.root))
        windows = open_sources(plan, config.window, "train")
        train_set = join_sources(plan, windows, "train")
        kept_out = open_validation(plan, config.window, config.trainer.validate_every)
        validation_set = None if kept_out is None else join_sources(plan, kept_out, "validation")
        resumed = trainer.resume_from
        stats = load_stats(resumed) if resumed else compute_statistics(plan, windows)
        policy = VLAPolicy.from_config(config, plan)
        policy.processor.check_instructions(find_instructions([*windows, *(kept_out or [])]))
        if config.trainer.init_from is not None and not resumed:
            init_weights(policy, config, resolve_checkpoint(Path(config.trainer.init_from)))
        elif not resumed:
            if policy.head.needs_chunks:
                policy.head.calibrate(sample_chunks(train_set, plan, config.window.chunk_size, stats))
            if policy.proprio is not None:
                policy.proprio.calibrate(torch.from_numpy(proprio_rows(plan, windows)))
        checkpoint = trainer.fit(policy, train_set, validation_set, stats)
        is_main = trainer.is_main
    if is_main:
        plot_run(Path(config.output_dir), plan.action_names if plan.has_gripper else plan.action_names[:-1])
        if config.evaluation.enabled and config.sim is not None:
            evaluate(EvaluateConfig(checkpoint=str(checkpoint), sim=config.sim, evaluation=config.evaluation))
    return checkpoint

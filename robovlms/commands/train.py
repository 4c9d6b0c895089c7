"""From a config to a finished run: the only room that knows every room."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from robovlms.actions.contract import check_contract
from robovlms.actions.plan import find_source, policy_names
from robovlms.commands.evaluate import evaluate
from robovlms.config.commands import EvaluateConfig
from robovlms.config.run import TrainConfig
from robovlms.data.opening import build_dataset, join_sources, open_sources
from robovlms.data.statistics import compute_statistics, proprio_rows, sample_chunks
from robovlms.policy.checkpoint import init_weights, load_stats, resolve_checkpoint
from robovlms.policy.policy import VLAPolicy
from robovlms.registry import SIMULATORS
from robovlms.training.figures import plot_run
from robovlms.training.trainer import Trainer

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> Path:
    """Run a config from demonstrations to report, as far as it asks; give the final checkpoint folder."""
    if config.sim is not None and (config.collect.enabled or config.evaluation.enabled):
        # A missing simulator, an unknown task or actions that mean something else are found before hours of work.
        source = find_source(config.data, config.evaluation.source)
        check_contract(source.contract, SIMULATORS.get(config.sim.name)(config.sim).contract, "the simulator")
    with Trainer(config) as trainer:
        if config.collect.enabled and config.sim is not None:
            from robovlms.commands.collect_demos import collect_demos

            with trainer.main_process_first():
                collect_demos(config.collect, config.sim, Path(config.data.root))
        windows = open_sources(config, "train")
        train_set, validation_set = join_sources(config, windows, "train"), build_dataset(config, "validation")
        resumed = trainer.resume_from
        stats = load_stats(resumed) if resumed else compute_statistics(config, windows)
        policy = VLAPolicy.from_config(config)
        if config.trainer.init_from is not None and not resumed:
            init_weights(policy, config, resolve_checkpoint(Path(config.trainer.init_from)))
        elif not resumed:
            if policy.head.needs_chunks:
                policy.head.calibrate(sample_chunks(train_set, config, stats))
            if policy.proprio is not None:
                policy.proprio.calibrate(torch.from_numpy(proprio_rows(config, windows)))
        checkpoint = trainer.fit(policy, train_set, validation_set, stats)
        is_main = trainer.is_main
    if is_main:
        plot_run(Path(config.output_dir), policy_names(config.data))
        if config.evaluation.enabled and config.sim is not None:
            evaluate(EvaluateConfig(checkpoint=str(checkpoint), sim=config.sim, evaluation=config.evaluation))
    return checkpoint

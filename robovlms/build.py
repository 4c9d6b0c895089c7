"""From a config to a finished run: the only room that knows every room."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64

from robovlms.actions import ActionNormalizer, ActionStats, check_contract
from robovlms.checkpoint import CONFIG, STATS, load_config, resolve_checkpoint
from robovlms.config import EvaluateConfig, EvaluationConfig, SimConfig, TrainConfig
from robovlms.data.base import RobotDataset
from robovlms.data.cache import CachedDataset
from robovlms.evaluation.episodes import plan_episodes
from robovlms.evaluation.report import write_report
from robovlms.evaluation.results import environment_versions, format_table, summarize, write_results
from robovlms.evaluation.rollouts import run_episodes
from robovlms.plots import plot_actions, plot_success, plot_training
from robovlms.policy import VLAPolicy
from robovlms.registry import DATASETS, SIMULATORS
from robovlms.runner import PolicyRunner
from robovlms.sims.base import Simulator
from robovlms.trainer import VALIDATION_ACTIONS, Trainer

log = logging.getLogger(__name__)

MAX_CHUNKS = 2000  # that a head's tokenizer is fitted to
MAX_STATS_ROWS = 50_000  # rows that statistics are computed from; larger data sets are sampled evenly


def build_dataset(config: TrainConfig, split: str) -> RobotDataset:
    """Give the `train` or `validation` windows of the configured data set."""
    dataset: RobotDataset = DATASETS.get(config.data.name)(
        config.data,
        split,
        views=config.view.views,
        window_size=config.window.window_size,
        chunk_size=config.window.chunk_size,
    )
    log.info("%s: %s", split, dataset.summary())
    return CachedDataset(dataset, config.data.cache_mb) if config.data.cache_mb else dataset


def train(config: TrainConfig) -> Path:
    """Run a config from demonstrations to report, as far as it asks; give the final checkpoint folder."""
    if config.sim is not None and (config.collect.enabled or config.evaluation.enabled):
        # A missing simulator, an unknown task or actions that mean something else are found before hours of work.
        check_contract(config.data.contract, SIMULATORS.get(config.sim.name)(config.sim).contract, "the simulator")
    with Trainer(config) as trainer:
        if config.collect.enabled and config.sim is not None:
            from robovlms.collect import collect_demos

            with trainer.main_process_first():
                collect_demos(config.collect, config.sim, Path(config.data.root))
        train_set, validation_set = build_dataset(config, "train"), build_dataset(config, "validation")
        if trainer.resume_from:
            stats = ActionStats.load(trainer.resume_from / STATS)
        else:
            stats = ActionStats.compute(train_set.actions(MAX_STATS_ROWS))
        policy = VLAPolicy.from_config(config)
        if policy.head.needs_chunks and not trainer.resume_from:
            policy.head.calibrate(sample_chunks(train_set, config, stats))
        if policy.proprio is not None:
            policy.proprio.calibrate(torch.from_numpy(train_set.proprio(MAX_STATS_ROWS)))
        checkpoint = trainer.fit(policy, train_set, validation_set, stats)
        is_main = trainer.is_main
    if is_main:
        plot_run(Path(config.output_dir), config.data.contract.names)
        if config.evaluation.enabled and config.sim is not None:
            evaluate(EvaluateConfig(checkpoint=str(checkpoint), sim=config.sim, evaluation=config.evaluation))
    return checkpoint


def sample_chunks(dataset: RobotDataset, config: TrainConfig, stats: ActionStats) -> Float64[np.ndarray, "n k a"]:
    """Give the normalised first chunks of up to MAX_CHUNKS windows, evenly spread; padding repeats the last action."""
    normalizer, k = ActionNormalizer(config.data.normalization, stats), config.window.chunk_size
    count = min(MAX_CHUNKS, len(dataset))
    chunks = []
    for i in range(count):
        sample = dataset[i * len(dataset) // count]
        last = max(int(sample.action_mask[:k].sum()) - 1, 0)
        chunks.append(sample.actions[np.minimum(np.arange(k), last)])
    return normalizer.normalize(torch.from_numpy(np.stack(chunks))).double().numpy()


def plot_run(run_folder: Path, action_names: list[str]) -> dict[str, list[Path]]:
    """Draw a run's curves and its predicted against its taught actions into `plots/`; give titles and files."""
    folder = run_folder / "plots"
    folder.mkdir(exist_ok=True)
    figures = {"Training": plot_training(run_folder / "metrics.jsonl", folder)}
    if (run_folder / VALIDATION_ACTIONS).is_file():
        with np.load(run_folder / VALIDATION_ACTIONS, allow_pickle=False) as file:
            path = plot_actions(file["predicted"], file["taught"], file["mask"], action_names, folder / "actions.png")
        figures["Predicted and taught actions, validation"] = [path]
    return figures


def evaluate(config: EvaluateConfig) -> Path:
    """Let a checkpoint act in a simulator; write results and report, log the table, give the report's path.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: the policy does not fit the simulator, or the folder holds another evaluation.
    """
    checkpoint = resolve_checkpoint(Path(config.checkpoint))
    run_folder = checkpoint.parents[1]
    trained = load_config(checkpoint / CONFIG)
    sim = config.sim or trained.sim
    if sim is None:
        raise ValueError(f"{checkpoint} was trained without a simulator: choose one, e.g. sim=metaworld.")
    default = run_folder / "evaluation" / f"{sim.name}_{checkpoint.name}"
    folder = Path(config.output_dir) if config.output_dir else default
    if config.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    simulator: Simulator = SIMULATORS.get(sim.name)(sim)
    check_contract(trained.data.contract, simulator.contract, f"sim={sim.name}")
    episodes = plan_episodes(simulator.tasks(), config.evaluation)
    simulator.close()
    start = partial(start_rollout, checkpoint, sim, config.evaluation)
    conditions = {
        "checkpoint": str(checkpoint.resolve()),
        "sim": asdict(sim),
        "execution": config.evaluation.execution.value,
        "execute_steps": config.evaluation.execute_steps,
    }
    workers = config.evaluation.num_workers
    played = run_episodes(start, episodes, folder=folder, conditions=conditions, num_workers=workers)
    results = summarize(
        played, config={"train": asdict(trained), **asdict(config), "sim": asdict(sim)}, versions=environment_versions()
    )
    write_results(folder / "results.json", results)
    log.info("%d episodes\n%s", len(played), format_table(results))
    figures = {"Success": [plot_success(results, folder / "success.png")]}
    if (run_folder / "metrics.jsonl").is_file():
        figures |= plot_run(run_folder, trained.data.contract.names)
    report = write_report(folder, results, name=f"{trained.name}, {sim.name}", figures=figures)
    log.info("report: %s", report)
    return report


def start_rollout(checkpoint: Path, sim: SimConfig, config: EvaluationConfig) -> tuple[PolicyRunner, Simulator]:
    """Load a policy and its simulator: what every evaluation process does first."""
    if config.num_workers > 1:
        torch.set_num_threads(1)  # the processes share the cores
    device = "cuda" if torch.cuda.is_available() else "cpu"
    simulator: Simulator = SIMULATORS.get(sim.name)(sim)
    runner = PolicyRunner.from_checkpoint(
        checkpoint,
        execution=config.execution,
        execute_steps=config.execute_steps,
        device=device,
        contract=simulator.contract,
    )
    return runner, simulator

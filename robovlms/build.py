"""From a config to a finished run: the only room that knows every room."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64

from robovlms.actions import GRIPPER, check_contract
from robovlms.checkpoint import CONFIG, STATS, VOCABULARY_HEAD, load_config, load_weights, resolve_checkpoint
from robovlms.config import EvaluateConfig, EvaluationConfig, MixtureDataConfig, SimConfig, TrainConfig
from robovlms.data.action_checks import Severity, numeric_findings
from robovlms.data.base import RobotDataset, spread
from robovlms.data.cache import CachedDataset
from robovlms.data.mixture import MixtureDataset
from robovlms.data.opening import open_reader
from robovlms.data.training_rows import load_rows
from robovlms.data.windows import WindowDataset
from robovlms.evaluation.episodes import plan_episodes
from robovlms.evaluation.report import write_report
from robovlms.evaluation.results import environment_versions, format_table, summarize, write_results
from robovlms.evaluation.rollouts import run_episodes
from robovlms.parts import Part, check_roots, find_part, make_normalizers, naming, parts_of, policy_names
from robovlms.plots import plot_actions, plot_success, plot_training
from robovlms.policy import VLAPolicy
from robovlms.registry import SIMULATORS
from robovlms.runner import PolicyRunner
from robovlms.sims.base import Simulator
from robovlms.statistics import Statistics, import_statistics, load_statistics
from robovlms.trainer import VALIDATION_ACTIONS, Trainer

log = logging.getLogger(__name__)

MAX_CHUNKS = 2000  # that a head's tokenizer is fitted to
MAX_STATS_ROWS = 50_000  # rows that statistics are computed from; larger data sets are sampled evenly


def build_dataset(config: TrainConfig, split: str) -> RobotDataset:
    """Give the `train` or `validation` windows of the configured data set, or of all parts of a mixture."""
    return join_parts(config, open_parts(config, split), split)


def open_parts(config: TrainConfig, split: str) -> list[WindowDataset]:
    """Open the reader of every part, in the order of their numbers: what costs time when a run starts."""
    check_roots(config.data)
    return [_open_part(part, config, split) for part in parts_of(config.data)]


def _open_part(part: Part, config: TrainConfig, split: str) -> WindowDataset:
    views = [view for view in config.view.views if view in part.data.views]
    if not views:
        raise ValueError(f"{part.name} has none of view.views={config.view.views}: map one in its views.")
    with naming(part, config.data):
        reader, window = open_reader(part.data, split, views), config.window
        return WindowDataset(reader, part.data, window_size=window.window_size, chunk_size=window.chunk_size)


def join_parts(config: TrainConfig, windows: list[WindowDataset], split: str) -> RobotDataset:
    """Make one data set of the parts' windows."""
    parts = parts_of(config.data)
    datasets: list[RobotDataset] = [
        CachedDataset(dataset, part.data.cache_mb) if part.data.cache_mb else dataset
        for part, dataset in zip(parts, windows, strict=True)
    ]
    dataset = datasets[0]
    if isinstance(config.data, MixtureDataConfig):
        dataset = MixtureDataset(
            parts,
            datasets,
            action_dim=len(policy_names(config.data)),
            proprio_dim=len(config.data.seen_names),
            by_size=config.data.weigh_by_size,
        )
    log.info("%s: %s", split, dataset.summary())
    return dataset


def compute_statistics(config: TrainConfig, windows: list[WindowDataset]) -> dict[str, Statistics]:
    """Give the action statistics of every part's training windows, computed or from `statistics_file`, by its name."""
    found = {}
    for part, dataset in zip(parts_of(config.data), windows, strict=True):
        normalization = part.data.normalization
        if normalization.statistics_file is not None:
            path = Path(normalization.statistics_file).expanduser()
            found[part.name] = import_statistics(path, normalization.statistics_key, len(part.contract.names))
        else:
            rows, origin = load_rows(dataset, MAX_STATS_ROWS)
            check_numbers(part, rows.actions)
            found[part.name] = stats = Statistics.compute(rows.actions)
            log.info("%s: statistics of %s, %s", part.name, _share(stats, dataset.num_steps), origin)
    return found


def _share(stats: Statistics, num_steps: int) -> str:
    if stats.num_rows == num_steps:
        return f"all {num_steps} steps"
    error = f"standard error of q01 and q99: {stats.quantile_error:.2%} of the rows"
    return f"{stats.num_rows} of {num_steps} steps, evenly spread ({error})"


def check_numbers(part: Part, rows: Float32[np.ndarray, "r a"]) -> None:
    """Hold a part's actions against its contract; what only looks wrong is a warning.

    Raises:
        ValueError: they cannot mean what the contract says.
    """
    taught = part.contract.names if GRIPPER in part.data.contract.names else part.contract.names[:-1]
    findings = numeric_findings(rows[:, : len(taught)], part.contract, taught)
    for finding in findings:
        log.warning("%s: %s", part.name, finding)
    if wrong := [str(finding) for finding in findings if finding.severity is Severity.error]:
        raise ValueError(
            f"the actions of {part.name} are not what data.contract says:\n  " + "\n  ".join(wrong) + "\n"
            "Look at them with scripts/inspect_data.py."
        )


def proprio_rows(config: TrainConfig, windows: list[WindowDataset]) -> Float32[np.ndarray, "r p"]:
    """Give rows of the proprioception that the policy sees, as many of every part; NaN: not recorded."""
    parts = [part for part in parts_of(config.data) if part.proprio]
    rows = [load_rows(windows[part.number], MAX_STATS_ROWS)[0].proprio for part in parts]
    count = min(len(part_rows) for part_rows in rows)
    whole = np.full((len(parts), count, len(config.data.seen_names)), np.nan, np.float32)
    for i, (part, part_rows) in enumerate(zip(parts, rows, strict=True)):
        whole[i][:, part.proprio] = part_rows[spread(len(part_rows), count)]
    return whole.reshape(-1, whole.shape[-1])


def train(config: TrainConfig) -> Path:
    """Run a config from demonstrations to report, as far as it asks; give the final checkpoint folder."""
    if config.sim is not None and (config.collect.enabled or config.evaluation.enabled):
        # A missing simulator, an unknown task or actions that mean something else are found before hours of work.
        part = find_part(config.data, config.evaluation.part)
        check_contract(part.contract, SIMULATORS.get(config.sim.name)(config.sim).contract, "the simulator")
    with Trainer(config) as trainer:
        if config.collect.enabled and config.sim is not None:
            from robovlms.collect import collect_demos

            with trainer.main_process_first():
                collect_demos(config.collect, config.sim, Path(config.data.root))
        windows = open_parts(config, "train")
        train_set, validation_set = join_parts(config, windows, "train"), build_dataset(config, "validation")
        resumed = trainer.resume_from
        stats = load_statistics(resumed / STATS) if resumed else compute_statistics(config, windows)
        policy = VLAPolicy.from_config(config)
        if config.trainer.init_from is not None and not resumed:
            load_weights(policy, resolve_checkpoint(Path(config.trainer.init_from)), optional=VOCABULARY_HEAD)
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


def sample_chunks(
    dataset: RobotDataset, config: TrainConfig, stats: dict[str, Statistics]
) -> Float64[np.ndarray, "n k a"]:
    """Give the normalised first chunks of up to MAX_CHUNKS windows, evenly spread; padding repeats the last action."""
    normalizers, k = make_normalizers(config.data, stats), config.window.chunk_size
    count = min(MAX_CHUNKS, len(dataset))
    chunks = []
    for i in range(count):
        sample = dataset[i * len(dataset) // count]
        last = max(int(sample.action_mask[:k].sum()) - 1, 0)
        chunk = torch.from_numpy(sample.actions[np.minimum(np.arange(k), last)])
        chunks.append(normalizers[sample.part].normalize(chunk))
    return torch.stack(chunks).double().numpy()


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
    part = find_part(trained.data, config.evaluation.part)
    check_contract(part.contract, simulator.contract, f"sim={sim.name}")
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
        figures |= plot_run(run_folder, policy_names(trained.data))
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
        part=config.part,
    )
    return runner, simulator

"""From a config to a finished run: the only room that knows every room."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch

from robovlms.actions.plan import DataPlan
from robovlms.commands.evaluate import evaluate
from robovlms.commands.open_loop import open_loop
from robovlms.config.closed_loop import OpenLoopConfig
from robovlms.config.commands import EvaluateConfig
from robovlms.config.run import TrainConfig
from robovlms.data.opening import join_sources, open_sources, open_validation
from robovlms.data.remote import fetch, pin
from robovlms.data.statistics import compute_statistics, proprio_rows, sample_chunks
from robovlms.data.windows import find_instructions
from robovlms.errors import UserError
from robovlms.evaluation.policies.checkpoint import check_simulator
from robovlms.planner.check import check_fits
from robovlms.policy.checkpoint import load_stats, resolve_checkpoint
from robovlms.policy.policy import VLAPolicy
from robovlms.registry import SIMULATORS
from robovlms.sims.base import Simulator
from robovlms.terminal import set_up_logging
from robovlms.training.checkpoints.state import resumed_data
from robovlms.training.figures import plot_run
from robovlms.training.launch import end_with_parent
from robovlms.training.trainer import Trainer
from robovlms.training.warm_start import init_weights
from robovlms.workers import death

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> Path:
    """Run a config from demonstrations to report, as far as it asks; give the final checkpoint folder."""
    config = replace(config, data=pin(config.data, resumed_data(config)))
    plan = DataPlan.of(config.data, config.view.views)
    beside = EvaluationBeside(config) if config.evaluation.during_training else None
    if config.sim is not None and (config.collect.enabled or config.evaluation.enabled or beside):
        # A missing simulator, an unknown task or actions that mean something else are found before hours of work.
        simulator: Simulator = SIMULATORS.get(config.sim.name)(config.sim)
        check_simulator(simulator, plan.find(config.evaluation.source, simulator.contract))
    plan = DataPlan.of(fetch(config.data, config.view.views), config.view.views)
    checkpoint, is_main, is_validated = _fit(config, plan, beside)
    if is_main:
        plot_run(Path(config.output_dir), plan)
        if is_validated and config.trainer.open_loop_episodes:
            open_loop(OpenLoopConfig(checkpoint=str(checkpoint), episodes=config.trainer.open_loop_episodes))
        if beside is not None:
            beside.wait()
        if config.evaluation.enabled and config.sim is not None:
            evaluate(EvaluateConfig(checkpoint=config.output_dir, sim=config.sim, evaluation=config.evaluation))
    return checkpoint


def _fit(config: TrainConfig, plan: DataPlan, beside: EvaluationBeside | None) -> tuple[Path, bool, bool]:
    """Train, and free the memory that it took; return the final checkpoint folder, whether this is the main process,
    and whether there is data for validation.
    """
    with Trainer(config, plan) as trainer:
        if config.collect.enabled and config.sim is not None:
            from robovlms.commands.collect_demos import collect_demos

            with trainer.main_process_first():
                collect_demos(config.collect, config.sim, Path(config.data.root))
        windows = open_sources(plan, config.window, "train")
        train_set = join_sources(plan, windows, "train")
        kept_out = open_validation(plan, config.window, config.trainer.validate_every)
        validation_set = None if kept_out is None else join_sources(plan, kept_out, "validation")
        work = check_fits(config)
        resumed = trainer.resume_from
        stats = load_stats(resumed) if resumed else compute_statistics(plan, windows)
        policy = VLAPolicy.from_config(config, plan)
        policy.processor.check_instructions(find_instructions([*windows, *(kept_out or [])]))
        fresh = {"head", "proprio"} if not resumed else set()
        if config.trainer.init_from is not None and not resumed:
            fresh = init_weights(policy, config, resolve_checkpoint(Path(config.trainer.init_from)))
        if "head" in fresh and policy.head.needs_chunks:
            policy.head.calibrate(sample_chunks(train_set, plan, config.window.chunk_size, stats))
        if "proprio" in fresh and policy.proprio is not None:
            policy.proprio.calibrate(torch.from_numpy(proprio_rows(plan, windows)))
        checkpoint = trainer.fit(
            policy,
            train_set,
            validation_set,
            stats,
            beside=beside,
            work=work,
        )
        return checkpoint, trainer.is_main, validation_set is not None


class EvaluationBeside:
    """Evaluates the checkpoints of a run as they appear, in a process of its own, while the block trains.

    It ends by itself when the run has ended and its last checkpoint is evaluated (`wait`), and with this process,
    however that ends; a block that fails or is stopped ends it at once.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._asked = EvaluateConfig(
            checkpoint=config.output_dir, watch=True, sim=config.sim, evaluation=config.evaluation
        )
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_evaluate_beside, args=(self._asked,))

    def __enter__(self) -> None:
        if torch.cuda.is_available() and self._asked.evaluation.engine.device == "auto":
            log.warning("the evaluation shares a GPU with training: give it evaluation.engine.device=cuda:1, or cpu")
        self._process.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.terminate()
            self._process.join()

    def wait(self) -> None:
        """Wait for the evaluation of what the run has left.

        Raises:
            UserError: it failed; says how it is resumed.
        """
        log.info("training has ended; its last checkpoints are being evaluated")
        try:
            self._process.join()
        finally:
            self._process.terminate()
        if self._process.exitcode:
            raise UserError(
                f"the evaluation beside the training failed: {death(self._process)}, after what it says above. The "
                "training is complete; its command with trainer.resume=auto resumes the evaluation alone."
            )


def _evaluate_beside(config: EvaluateConfig) -> None:
    """Be the process that evaluates."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the training ends this process
    end_with_parent()
    training = multiprocessing.parent_process()
    if training is None or not training.is_alive():  # it was killed while this process started
        return
    set_up_logging(logging.INFO)
    torch.set_num_threads(1)
    try:
        evaluate(config)
    except UserError as error:
        log.error("%s", error)
        raise SystemExit(2) from None

"""The training loop on Accelerate: one CPU process or many GPUs, the same numbers.

The loss is the mean over all real action steps of the *global* batch: every micro-batch is weighed by its share of
them, so neither the number of processes nor accumulation changes a gradient. The host waits for the device only to log.
"""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import torch
from accelerate.utils import gather_object, set_seed
from torch import Tensor

from robovlms.actions.plan import DataPlan
from robovlms.actions.statistics import STATS, Statistics, save_statistics
from robovlms.config.run import TrainConfig
from robovlms.data.base import RobotDataset
from robovlms.policy.checkpoint import CONFIG, STATE, Trained, save_config
from robovlms.policy.compiling import compile_policy
from robovlms.policy.policy import VLAPolicy, named_tensors
from robovlms.training.checkpoints import run_folder as files
from robovlms.training.checkpoints.run_folder import RunFolder, check_init_from
from robovlms.training.checkpoints.saving import CheckpointWriter, Snapshot
from robovlms.training.checkpoints.state import TrainingState, find_resume, optimizer_pieces, rng_state, set_rng_state
from robovlms.training.feeding import make_feed, mean_actions, record_data
from robovlms.training.figures import draw_first_batch
from robovlms.training.interval import Interval, Work, profiled
from robovlms.training.launch import StopSignals, end, launched, logged, on_main
from robovlms.training.memory import memory_explained
from robovlms.training.optimizer.ema import MovingAverage
from robovlms.training.optimizer.optimization import Steps, learning_rate, make_optimizer, trained_parameters
from robovlms.training.parallel.choosing import make_parallelism
from robovlms.training.symptoms import find_symptoms
from robovlms.training.tracking import Tracker, check_trackers
from robovlms.training.validation import save_examples, validate
from robovlms.types import Batch, Conversations

log = logging.getLogger(__name__)


class Trainer:
    """Train a policy; a context manager, because processes, run folder and Accelerate's global state end with it.

    Entering checks and claims the run folder; `resume_from` is the checkpoint to continue from, if any. Nothing in the
    folder changes before `fit` has checked everything else.
    """

    def __init__(self, config: TrainConfig, plan: DataPlan) -> None:
        self.config, self.plan, self.folder = config, plan, Path(config.output_dir)
        self.run = RunFolder(config)
        self.step = self.saved_step = 0

    def __enter__(self) -> Trainer:
        with ExitStack() as stack:
            self.accelerator = stack.enter_context(launched(self.config))
            self.world_size, self.device = self.accelerator.num_processes, self.accelerator.device
            self.rank, self.is_main = self.accelerator.process_index, self.accelerator.is_main_process
            self.parallel = make_parallelism(self.config, self.accelerator)
            stack.callback(self.run.release)
            self.resume_from = on_main(self.accelerator, self._claim)
            set_seed(self.config.seed)
            self._stack = stack.pop_all()
        return self

    def _claim(self) -> Path | None:
        self.run.claim()
        check_trackers(self.config.tracking)
        check_init_from(self.config)
        return find_resume(self.config)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What outlives its process group frees it, holding the interpreter's lock, and waits for threads that want it.
        for name in ("model", "parallel"):
            vars(self).pop(name, None)
        gc.collect()
        self._stack.__exit__(kind, error, trace)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Let the main process go through a block before the others."""
        with self.accelerator.main_process_first():
            yield

    def fit(
        self,
        policy: VLAPolicy,
        train_set: RobotDataset,
        validation_set: RobotDataset | None,
        stats: dict[str, Statistics],
        *,
        beside: AbstractContextManager[object] | None = None,
        work: Work | None = None,
    ) -> Path:
        """Train to the configured length, validating where there is data for it; return the final checkpoint folder.

        Args:
            policy, train_set, validation_set: what is trained, on which windows, and what it is measured on.
            stats: of every source's actions.
            beside: what goes on while the main process trains: entered once the run folder is its own.
            work: what a window costs, for MFU.

        Raises:
            UserError: the loss became non-finite (names step, terms and samples); the data are not those that the
                resumed run was trained on; or batch size, processes and data set do not fit together.
        """
        self.policy, self.stats, self.train_set, self.work = policy, stats, train_set, work
        state = TrainingState.load(self.resume_from / STATE) if self.resume_from else None
        self.step = self.saved_step = state.step if state else 0
        names = [source.name for source in self.plan.sources]
        self.data = on_main(self.accelerator, lambda: record_data(train_set, names))
        if state:
            state.check_data(self.data)
        compile_policy(policy, self.config.trainer.compile)
        self.model = self.parallel.prepare(policy, self.resume_from)
        self._feed(validation_set)  # of the policy as it is now: what a head encodes targets with is loaded, too
        self.optimizer = make_optimizer(policy, self.config.optimizer, self.parallel.weight_of(), self.config.seed)
        self.ema = MovingAverage(self.config.ema, self.parallel.shares) if self.config.ema else None
        if state and self.resume_from:
            state.restore(self.optimizer, self._trained(), self.parallel.shares)
            if self.ema:
                self.ema.restore(self.resume_from, self._trained())
        set_seed(self.config.seed + 1 + self.rank)
        if state and self.rank < len(state.rng):
            set_rng_state(state.rng[self.rank])
        on_main(self.accelerator, self._start_folder)
        save = {"is_sharded": self.parallel.is_sharded, "is_async": self.config.trainer.async_save}
        self.writer = CheckpointWriter(self.accelerator, self.run.kept, **save)
        with ExitStack() as stack:
            stack.enter_context(logged(self.folder, self.accelerator))
            stack.enter_context(self._tracker())
            stack.enter_context(beside if beside and self.is_main else nullcontext())
            stack.enter_context(self.writer)
            planned_gb = None if work is None else work.planned_gb
            stack.enter_context(memory_explained(self.config, self.world_size, self.device, planned_gb))
            self._loop()
        return self._checkpoint(self.step)

    def _feed(self, validation_set: RobotDataset | None) -> None:
        """Make the loaders, and turn epochs into steps now that the size of the data set is known."""
        config, normalizers = self.config, self.plan.normalizers(self.stats)
        means = mean_actions(self.plan, normalizers, self.stats, config.window.chunk_size)
        self.mean_actions = means.to(self.device)
        self.feed = make_feed(
            config,
            self.policy,
            normalizers,
            self.train_set,
            validation_set,
            start_step=self.step,
            rank=(self.rank, self.world_size),
            pin_memory=self.device.type == "cuda",
        )
        self.rounds = max(gather_object([0 if self.feed.validation is None else len(self.feed.validation)]))
        self.steps = Steps.resolve(config.schedule, config.trainer, self.feed.sampler.steps_per_epoch)

    def _start_folder(self) -> None:
        """Write down what is run, now that everything has been checked."""
        sampler = self.feed.sampler
        self.run.start(self.step)
        save_config(self.config, self.folder / CONFIG)
        save_statistics(self.folder / STATS, self.stats)
        resolved = {**asdict(self.steps), "windows": sum(sampler.sizes), "steps_per_epoch": sampler.steps_per_epoch}
        resolved |= {"accumulation": sampler.accumulation, "num_processes": self.world_size}
        (self.folder / files.DURATIONS).write_text(json.dumps(resolved, indent=2) + "\n", encoding="utf-8")
        trained = sum(p.numel() for p in self.policy.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in self.policy.parameters()) - trained
        log.info("%d windows, %d steps an epoch: %s", sum(sampler.sizes), sampler.steps_per_epoch, asdict(self.steps))
        log.info("%.2f M trainable parameters, %.2f M frozen", trained / 1e6, frozen / 1e6)
        layout = (sampler.batch_size, self.world_size, sampler.device_batch_size, sampler.accumulation, self.device)
        log.info("batch of %d windows = %d processes x %d x %d accumulated, on %s", *layout)
        if self.step:
            log.info("resuming from %s at step %d", self.resume_from, self.step)

    @contextmanager
    def _tracker(self) -> Iterator[None]:
        self.tracker: Tracker | None = None
        if self.is_main:
            span = {"start_step": self.step, "total_steps": self.steps.total}
            self.tracker = Tracker(self.config.tracking, self.folder, asdict(self.config), **span)
        try:
            yield
        finally:
            if self.tracker:
                self.tracker.close()

    def _trained(self) -> list[str]:
        """Name the trained parameters, in the optimizer's order."""
        return [name for group in trained_parameters(self.policy) for name in group]

    def _loop(self) -> None:
        interval = Interval(self.config.batch_size, self._sum, self.train_set.location, self.work)
        signals, feed, profile_steps = StopSignals(self.accelerator), self.feed.steps(), self.config.debug.profile_steps
        with (
            signals.handled(),
            profiled(profile_steps if self.is_main else 0, self.folder / files.PROFILE) as profiler_step,
        ):
            start, first = time.perf_counter(), self.step
            while self.step < self.steps.total:
                with interval.waiting():
                    micro_batches, said = next(feed)
                if self.step == first and self.is_main:
                    with interval.paused():
                        self._draw(micro_batches[0])
                interval.add(micro_batches, self.train_step(micro_batches, said))
                self.step += 1
                profiler_step()
                is_last, is_log_line = self.step == self.steps.total, self.step % self.steps.log_every == 0
                stop = signals.agreed(is_log_line)
                saves = is_last or stop is not None or self.step % self.steps.save_every == 0
                if saves or is_log_line:  # a loss that is not finite is noticed here, before it is saved
                    metrics = interval.metrics(self.step)
                    seconds_a_step = (time.perf_counter() - start) / (self.step - first)
                    self._log(metrics, eta_s=seconds_a_step * (self.steps.total - self.step))
                with interval.paused():
                    if saves:
                        self.save()
                    if stop is not None:
                        self.writer.finish()
                        end(stop, self.step)
                    if is_last or self.step % self.steps.validate_every == 0:
                        self.validate()

    def _log(self, metrics: dict[str, float], eta_s: float) -> None:
        if self.tracker:
            place = {"train/lr": self._lr(self.step - 1), "train/epoch": self.step / self.feed.sampler.steps_per_epoch}
            self.tracker.log(self.step, metrics | place, eta_s=eta_s)

    def _draw(self, batch: Batch) -> None:
        """Show what the model is given, changes of augmentation included."""
        assert batch.index is not None
        instructions = [self.train_set[index].instruction for index in batch.index.tolist()]
        names, file = self.plan.action_names, self.folder / files.FIRST_BATCH
        try:
            draw_first_batch(self.policy.processor, batch.to(self.device), instructions, names, file)
        except OSError as error:
            log.warning("%s is not drawn: %s", file, error)

    def _lr(self, step: int) -> float:
        return learning_rate(step, self.config.schedule, self.config.optimizer.lr, self.steps)

    def _sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks."""
        return self.accelerator.reduce(tensor, "sum")

    def train_step(self, micro_batches: list[Batch], said: Sequence[Conversations] = ()) -> dict[str, Tensor]:
        """Take one optimizer step, conversations beside the windows; give this rank's share of terms, on the device.

        A loss or gradient that is not finite changes no weight: the optimizer's kernel leaves the step out, so that
        nobody waits for the device, and the next log line or save stops the run.
        """
        counts = [batch.action_mask.sum() for batch in micro_batches if batch.action_mask is not None]
        shares, word_shares = self._shares(counts), self._shares([torch.tensor(len(each.supervised)) for each in said])
        terms: dict[str, Tensor] = {}
        for number, (batch, share) in enumerate(zip(micro_batches, shares, strict=True)):
            is_last = number == len(micro_batches) - 1
            with nullcontext() if is_last else self.parallel.accumulating(self.model):
                beside = [each.to(self.device) for each in said[number : number + 1]]
                with self.accelerator.autocast():
                    losses = {name: value.float() for name, value in self.model(batch.to(self.device), *beside).items()}
                for name in losses:
                    losses[name] = losses[name] * (word_shares[number] if name.startswith("text_loss") else share)
                if self.config.cotrain is not None:
                    losses["loss"] = losses["loss"] + self.config.cotrain.weight * losses["text_loss"]
                (losses["loss"] * self.world_size).backward()  # gradients are averaged over ranks
            for name, value in losses.items():
                terms[name] = terms.get(name, 0) + value.detach()
        norm = self._step_optimizer(terms["loss"])
        return {**terms, "grad_norm": norm / self.world_size}  # summed over ranks like the others

    def _step_optimizer(self, loss: Tensor) -> Tensor:
        """Change the weights by the gradients, unless one of them or the loss is not finite; return the norm."""
        self.parallel.collect_gradients()
        norm = self.parallel.clip(self.config.optimizer.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"], group["number"] = self._lr(self.step), self.step
        self.optimizer.found_inf = (~(norm + loss).isfinite()).float()  # type: ignore[attr-defined]
        self.writer.before_change()
        self.optimizer.step()
        self.parallel.spread_weights()
        if self.ema:
            self.ema.update(self.step)
        self.parallel.forget_gradients()
        return norm

    def _shares(self, counts: list[Tensor]) -> Sequence[Tensor]:
        """Return the share of each micro-batch in what all ranks' have."""
        if not counts:
            return ()
        mine = torch.stack(counts).to(self.device, torch.float32, non_blocking=True)
        return (mine / self._sum(mine.sum())).unbind()

    def validate(self) -> dict[str, float]:
        """Measure the open-loop metrics of `validation` and keep the examples for plots; a failure loses no step."""
        if self.feed.validation is None:
            return {}
        sources, rng = [source.name for source in self.plan.sources], rng_state()
        self.writer.before_change()  # `averaged` swaps weights
        try:
            averaged = self.ema.for_validation(self.parallel.spread_weights) if self.ema else nullcontext()
            with averaged, self.accelerator.autocast():
                metrics, examples = validate(
                    self.policy, self.feed.validation, self.mean_actions, sources, self._sum, self.rounds
                )
                metrics |= self.feed.probe.measure(self.policy) if self.feed.probe else {}
        except Exception:
            if self.is_main and self.saved_step < self.step and not self.parallel.is_sharded:
                log.warning("validation failed at step %d: what was trained is saved first", self.step)
                self.writer.save_alone(self._snapshot([rng]))
            raise
        if self.tracker:
            self.tracker.log_validation(self.step, metrics)
            if self.feed.probe:
                self.tracker.warn(find_symptoms(metrics, examples, self.plan, f"validation at step {self.step}"))
            save_examples(self.folder, examples)
        return metrics

    def save(self) -> None:
        """Write a checkpoint, or begin to (`trainer.async_save`); every process hands over its random state."""
        rng = gather_object([rng_state()])
        self.writer.save(lambda: self._snapshot(rng))
        self.saved_step = self.step

    def _snapshot(self, rng: list[dict[str, Tensor]]) -> Snapshot:
        """Return what this process has of the state; other processes than the main one, what only they have."""
        weights = named_tensors(self.policy)
        pieces, optimizer = self.parallel.pieces(weights), optimizer_pieces(self.optimizer, self.parallel.shares)
        return Snapshot(
            target=self._checkpoint(self.step),
            trained=Trained(self.config, self.policy, self.stats, self.plan),
            state=TrainingState(step=self.step, parameters=self._trained(), rng=rng, data=self.data),
            weights={name: value for name, value in weights.items() if self.is_main and name not in pieces},
            pieces={} if self.parallel.has_copy else pieces,
            optimizer={} if self.parallel.has_copy else optimizer,
            averages=self.ema.pieces() if self.ema and not self.parallel.has_copy else {},
        )

    def _checkpoint(self, step: int) -> Path:
        return self.folder / files.CHECKPOINTS / f"step_{step:06d}"

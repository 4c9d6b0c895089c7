"""The training loop on Accelerate: one CPU process or many GPUs, the same numbers.

The loss is the mean over all real action steps of the *global* batch: every micro-batch is weighed by its share of
them, so neither the number of processes nor accumulation changes a gradient. The host waits for the device only to log.
"""

from __future__ import annotations

import itertools
import json
import logging
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import gather_object, set_seed
from torch import Tensor

from robovlms.actions.plan import DataPlan, Source
from robovlms.actions.statistics import Statistics, save_statistics
from robovlms.config.choices import Parallel, Precision
from robovlms.config.run import TrainConfig
from robovlms.data.base import RobotDataset
from robovlms.data.loading.conversations import conversation_loader
from robovlms.data.loading.loader import Collator, training_loader, validation_loader
from robovlms.data.loading.sampler import StepSampler
from robovlms.files import atomic_folder
from robovlms.images.draws import Augmentation
from robovlms.policy.checkpoint import CONFIG, STATE, STATS, Trained, load_weights, save_config, save_policy
from robovlms.policy.policy import VLAPolicy
from robovlms.training.interval import Interval
from robovlms.training.optimization import Steps, learning_rate, make_optimizer
from robovlms.training.run_folder import find_resume, prepare_run_folder
from robovlms.training.state import TrainingState, keep_newest, rng_state, set_rng_state
from robovlms.training.tracking import Tracker, duration
from robovlms.training.validation import VALIDATION_ACTIONS, validate
from robovlms.types import Batch, Conversations

log = logging.getLogger(__name__)


class Trainer:
    """Train a policy; a context manager, because Accelerate's state is global to the process.

    Entering checks and prepares the run folder; `resume_from` is the checkpoint to continue from, if any.
    """

    def __init__(self, config: TrainConfig, plan: DataPlan) -> None:
        self.config, self.plan, self.folder = config, plan, Path(config.output_dir)
        self.step = 0
        self.stop_requested = False

    def __enter__(self) -> Trainer:
        config = self.config
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.precision.tf32
        if config.trainer.num_threads:
            torch.set_num_threads(config.trainer.num_threads)
        wrappers = {Parallel.ddp: DistributedDataParallelKwargs}
        spread = wrappers[config.parallel.name](
            bucket_cap_mb=config.parallel.bucket_cap_mb, gradient_as_bucket_view=config.parallel.gradient_as_bucket_view
        )
        mixed = {Precision.fp32: "no", Precision.bf16: "bf16"}[config.precision.name]
        self.accelerator = Accelerator(
            mixed_precision=mixed,
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[spread],
            step_scheduler_with_optimizer=False,
        )
        self.world_size, self.device = self.accelerator.num_processes, self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        config.cluster.check_launch(self.world_size)
        if self.is_main:
            prepare_run_folder(config)
        self.accelerator.wait_for_everyone()
        self.resume_from = find_resume(config)
        set_seed(config.seed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.accelerator.wait_for_everyone()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()

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
    ) -> Path:
        """Train to the configured length, validating where there is data for it; return the final checkpoint folder.

        Raises:
            FloatingPointError: the loss became non-finite; names step, terms and the samples.
            UserError: batch size, processes and data set do not fit together.
        """
        self.policy, self.stats = policy, stats
        self._make_data(train_set, validation_set)
        self._resolve_durations()
        policy.to(self.device)
        optimizer = make_optimizer(policy, self.config.optimizer)
        state = self._load(policy, optimizer) if self.resume_from else None
        self.model, self.optimizer = self.accelerator.prepare(policy, optimizer)
        self.parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        set_seed(self.config.seed + 1 + self.accelerator.process_index)
        if state is not None and self.accelerator.process_index < len(state.rng):
            set_rng_state(state.rng[self.accelerator.process_index])
        self._describe()
        with self._tracker(), self._signals():
            self._loop()
        return self.folder / "checkpoints" / f"step_{self.step:06d}"

    def _make_data(self, train_set: RobotDataset, validation_set: RobotDataset | None) -> None:
        config, data = self.config, self.config.data
        self.train_set = train_set
        self.normalizers = self.plan.normalizers(self.stats)
        means = [self._normal_mean(source) for source in self.plan.sources]
        self.mean_actions = torch.stack(means)[:, :-1].to(self.device)
        if self.resume_from:
            self.step = json.loads((self.resume_from / STATE / "state.json").read_text(encoding="utf-8"))["step"]
        rank = {"rank": self.accelerator.process_index, "world_size": self.world_size}
        self.sampler = StepSampler(
            train_set.sizes,
            weights=train_set.weights,
            batch_size=config.batch_size,
            device_batch_size=config.device_batch_size,
            seed=config.seed,
            start_step=self.step,
            **rank,
        )
        loading = {"num_workers": data.num_workers, "pin_memory": self.device.type == "cuda"}
        processor = self.policy.processor
        augmentation = Augmentation(data, processor, config.window.window_size, config.seed)
        collator = Collator(processor, self.normalizers, config.window, augmentation, config.seed)
        self.train_loader = training_loader(train_set, collator, self.sampler, **loading)  # type: ignore[arg-type]
        self.validation_loader: Iterable[Batch] | None = None
        if validation_set is not None:
            self.validation_loader = validation_loader(
                validation_set,
                Collator(processor, self.normalizers, config.window),
                batch_size=config.device_batch_size,
                max_batches=config.trainer.max_validation_batches,
                **rank,
                **loading,  # type: ignore[arg-type]
            )
        self.conversation_loader: Iterable[Conversations] = ()
        if config.cotrain is not None:
            said = (config.cotrain, self.policy.backbone, processor, self.sampler)
            self.conversation_loader = conversation_loader(*said, pin_memory=bool(loading["pin_memory"]))

    def _normal_mean(self, source: Source) -> Tensor:
        statistics = self.stats[source.name].scatter(source.action_dims, len(self.plan.action_names))
        return self.normalizers[source.number].normalize(torch.tensor(statistics.mean)[None])[0]

    def _resolve_durations(self) -> None:
        """Turn epochs into steps, now that the size of the data set is known, and keep the result beside the config."""
        config, per_epoch = self.config, self.sampler.steps_per_epoch
        self.steps = Steps.resolve(config.schedule, config.trainer, per_epoch)
        if self.is_main:
            save_config(config, self.folder / CONFIG)
            save_statistics(self.folder / STATS, self.stats)
            resolved = {**asdict(self.steps), "windows": sum(self.sampler.sizes), "steps_per_epoch": per_epoch}
            resolved |= {"accumulation": self.sampler.accumulation, "num_processes": self.world_size}
            (self.folder / "durations.json").write_text(json.dumps(resolved, indent=2) + "\n", encoding="utf-8")
            log.info("%d windows, %d steps an epoch: %s", sum(self.sampler.sizes), per_epoch, asdict(self.steps))

    def _describe(self) -> None:
        trained = sum(p.numel() for p in self.parameters)
        frozen = sum(p.numel() for p in self.policy.parameters()) - trained
        log.info("%.2f M trainable parameters, %.2f M frozen", trained / 1e6, frozen / 1e6)
        log.info(
            "batch of %d windows = %d processes x %d x %d accumulated, on %s",
            self.sampler.batch_size,
            self.world_size,
            self.sampler.device_batch_size,
            self.sampler.accumulation,
            self.device,
        )
        if self.step:
            log.info("resuming from %s at step %d", self.resume_from, self.step)

    @contextmanager
    def _tracker(self) -> Iterator[None]:
        self.tracker: Tracker | None = None
        if self.is_main:
            self.tracker = Tracker(
                self.config.tracking,
                self.folder,
                asdict(self.config),
                start_step=self.step,
                total_steps=self.steps.total,
            )
        try:
            yield
        finally:
            if self.tracker:
                self.tracker.close()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGTERM (a cluster's way to say time is up) end the run after the current step, with a checkpoint."""

        def on_sigterm(number: int, frame: FrameType | None) -> None:
            self.stop_requested = True

        previous = signal.signal(signal.SIGTERM, on_sigterm)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _loop(self) -> None:
        batches, conversations = iter(self.train_loader), iter(self.conversation_loader)
        interval = Interval(self.config.batch_size, self._sum, self.train_set.location)
        start, first = time.perf_counter(), self.step
        while self.step < self.steps.total:
            with interval.waiting():
                micro_batches = [next(batches) for _ in range(self.sampler.accumulation)]
                said = list(itertools.islice(conversations, self.sampler.accumulation))
            interval.add(micro_batches, self.train_step(micro_batches, said))
            self.step += 1
            is_last, stops = self.step == self.steps.total, self._should_stop()
            saves = is_last or stops or self.step % self.steps.save_every == 0
            if saves or self.step % self.steps.log_every == 0:
                metrics = interval.metrics(self.step)
                metrics |= {
                    "train/lr": self._lr(self.step - 1),
                    "train/epoch": self.step / self.sampler.steps_per_epoch,
                }
                eta = (time.perf_counter() - start) / (self.step - first) * (self.steps.total - self.step)
                if self.tracker:
                    self.tracker.log(self.step, metrics, eta_s=eta)
            with interval.paused():
                if is_last or self.step % self.steps.validate_every == 0:
                    self.validate()
                if saves:
                    self.save()
            if stops:
                log.info("stopped by SIGTERM at step %d; continue with trainer.resume=auto", self.step)
                raise SystemExit(0)

    def _lr(self, step: int) -> float:
        return learning_rate(step, self.config.schedule, self.config.optimizer.lr, self.steps)

    def _sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks."""
        return self.accelerator.reduce(tensor, "sum")

    def train_step(self, micro_batches: list[Batch], said: Sequence[Conversations] = ()) -> dict[str, Tensor]:
        """Take one optimizer step, conversations beside the windows; give this rank's share of terms, on the device."""
        counts = [batch.action_mask.sum() for batch in micro_batches if batch.action_mask is not None]
        shares, word_shares = self._shares(counts), self._shares([torch.tensor(len(each.supervised)) for each in said])
        terms: dict[str, Tensor] = {}
        for number, (batch, share) in enumerate(zip(micro_batches, shares, strict=True)):
            is_last = number == len(micro_batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                beside = [each.to(self.device) for each in said[number : number + 1]]
                losses = self.model(batch.to(self.device), *beside)
                for name in losses:
                    losses[name] = losses[name] * (word_shares[number] if name.startswith("text_loss") else share)
                if self.config.cotrain is not None:
                    losses["loss"] = losses["loss"] + self.config.cotrain.weight * losses["text_loss"]
                self.accelerator.backward(losses["loss"] * self.world_size)  # DDP averages over ranks
            for name, value in losses.items():
                terms[name] = terms.get(name, 0) + value.detach()
        max_norm = self.config.optimizer.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.parameters, float("inf") if max_norm is None else max_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**terms, "grad_norm": norm / self.world_size}  # summed over ranks like the others

    def _shares(self, counts: list[Tensor]) -> Sequence[Tensor]:
        """Return the share of each micro-batch in what all ranks' have."""
        if not counts:
            return ()
        mine = torch.stack(counts).to(self.device, torch.float32, non_blocking=True)
        return (mine / self._sum(mine.sum())).unbind()

    def _should_stop(self) -> bool:
        """Agree between ranks on whether one of them was told to stop; several ranks ask only at log lines."""
        if self.world_size == 1:
            return self.stop_requested
        if self.step % self.steps.log_every:
            return False
        flag = torch.tensor(float(self.stop_requested), device=self.device)
        return bool(self._sum(flag).item())

    def validate(self) -> dict[str, float]:
        """Measure the open-loop metrics of `training.validation` and keep the examples for plots; none without data."""
        if self.validation_loader is None:
            return {}
        sources = [source.name for source in self.plan.sources]
        with self.accelerator.autocast():
            metrics, examples = validate(self.policy, self.validation_loader, self.mean_actions, sources, self._sum)
        if self.tracker:
            self.tracker.log_validation(self.step, metrics)
            np.savez(self.folder / VALIDATION_ACTIONS, **examples)  # type: ignore[arg-type]
        return metrics

    def save(self) -> None:
        """Write a checkpoint, atomically, from the main process; other ranks hand over their random states."""
        rng = gather_object([rng_state()])
        if self.is_main:
            state = TrainingState(step=self.step, optimizer=self.optimizer.optimizer.state_dict(), rng=rng)
            started = time.perf_counter()
            target = self.folder / "checkpoints" / f"step_{self.step:06d}"
            with atomic_folder(target) as partial:
                save_policy(partial, Trained(self.config, self.policy, self.stats, self.plan))
                state.save(partial / STATE)
            keep_newest(self.folder, self.config.trainer.keep_last)
            log.info("saved %s in %s", target, duration(time.perf_counter() - started))
        self.accelerator.wait_for_everyone()

    def _load(self, policy: VLAPolicy, optimizer: torch.optim.Optimizer) -> TrainingState:
        assert self.resume_from is not None
        load_weights(policy, self.resume_from)
        state = TrainingState.load(self.resume_from / STATE)
        optimizer.load_state_dict(state.optimizer)
        self.step = state.step
        return state

"""One policy on one device answers many sessions."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from robovlms.actions.contract import check_contract
from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.plan import Source, find_source
from robovlms.config.choices import (
    ActingWeights,
    CompileMode,
    EngineDtype,
    Execution,
    FrameCache,
)
from robovlms.config.closed_loop import EngineConfig
from robovlms.config.data import ActionContract
from robovlms.errors import UserError
from robovlms.heads.base import Prefix
from robovlms.policy.acting import BatchedPolicy, CompiledForSizes
from robovlms.policy.checkpoint import EMA, load_policy
from robovlms.policy.execution import ChunkExecutor, check_execute_steps
from robovlms.policy.graphs.compiling import compile_policy
from robovlms.policy.graphs.cuda import graphs_for
from robovlms.policy.memory import start_memory
from robovlms.policy.policy import VLAPolicy, load_average
from robovlms.policy.quantization.change import EPISODES, action_change, synthetic_observations
from robovlms.policy.quantization.int8 import quantize_linears
from robovlms.policy.sessions import Session
from robovlms.types import Observation

T = TypeVar("T")
Request: TypeAlias = tuple[Session, Observation]


class PolicyEngine:
    """Sessions of any age, of any source of a mixture, with any instruction, in one forward.

    All state of an episode is in its session; sessions come, reset and go at any time. Every row is what it would be
    alone, but for the last digits (1e-5 in fp32). One caller at a time.
    """

    def __init__(
        self,
        policy: VLAPolicy,
        sources: Sequence[tuple[Source, ActionNormalizer]],
        *,
        window_size: int,
        cache: FrameCache = FrameCache.exact,
        config: EngineConfig | None = None,
    ) -> None:
        """Take a policy and say how it computes.

        Args:
            policy: in any state; it is set to evaluation and moved to the device, and where the arithmetic is bf16 or
                `quantize` is set, its backbone's matrices are rounded.
            sources: the data that it was trained on, with what its actions are normalised by.
            window_size: frames that a session remembers.
            cache: of interleaved streaming.
            config: how it computes.

        Raises:
            UserError: a weight is not finite, named; or quantisation changes actions more than it may.
        """
        config = config or EngineConfig()
        check_weights(policy)
        self.device, self.dtype = device_of(config), dtype_of(config)
        self.policy, self.window_size = policy.to(self.device).eval(), window_size
        self._normalizers = {source.name: normalizer for source, normalizer in sources}
        self._sources = [source for source, _ in sources]
        self._start_memory = partial(start_memory, policy, window_size, cache)
        self._start_memory()  # refuses a cache that does not fit
        self._numbers = count(1)
        self._batched = BatchedPolicy(policy, config.max_batch_size)
        self._store_weights(config)
        encode, self.graphs = None, graphs_for(self.device, config.cuda_graph)
        if self.graphs is not None:
            self.graphs.say_what_is_left_out(policy.head.acts_on_host, cache is FrameCache.staggered)
        if config.compile is CompileMode.model:
            encode = CompiledForSizes(policy.backbone.encode, config.max_batch_size)
        elif config.compile is CompileMode.layers:
            compile_policy(policy, CompileMode.layers)
        self._batched = BatchedPolicy(policy, config.max_batch_size, encode, self.graphs)

    @classmethod
    def from_checkpoint(cls, folder: Path, config: EngineConfig | None = None) -> PolicyEngine:
        """Load a checkpoint folder (`checkpoints/step_<number>`)."""
        trained = load_policy(folder)
        if config is not None and config.weights is ActingWeights.ema:
            load_average(trained.policy, folder / EMA)
        return cls(
            trained.policy,
            list(zip(trained.plan.sources, trained.plan.normalizers(trained.statistics), strict=True)),
            window_size=trained.config.window.window_size,
            cache=trained.config.structure.cache,
            config=config,
        )

    def open(
        self,
        source: str | None = None,
        *,
        execution: Execution = Execution.chunk,
        execute_steps: int = 1,
        contract: ActionContract | None = None,
        clock: Callable[[], float] | None = None,
        latency: int = 0,
        may_be_silent: bool = False,
        name: str | None = None,
    ) -> Session:
        """Return a session at the beginning of an episode.

        Args:
            source: of a mixture, the one whose actions are wanted; the control_hz of its contract is the rate of
                `clock`.
            execution: how chunks become actions.
            execute_steps: actions of a chunk executed before the policy is asked again, at most chunk_size.
            contract: what the robot or simulator expects of actions; a policy that means something else is refused.
            clock: seconds, e.g. time.monotonic, for a robot that does not wait for the policy: the action that is
                returned is the one due when it is returned. Without one every call of `step` is one control step.
            latency: control steps that a decision is made to take, as in `ChunkExecutor`; without a clock.
            may_be_silent: whether an empty instruction is read as it is; it is refused otherwise.
            name: for messages.

        Raises:
            UserError: no such source, the contracts differ, execute_steps is out of range, the head cannot do what
                `execution` asks, or the action statistics are not finite.
        """
        chosen, chunk_size = find_source(self._sources, source), self.policy.head.chunk_size
        if contract is not None:
            check_contract(chosen.contract, contract, "the environment")
        check_execute_steps(execute_steps, chunk_size)
        if execution is Execution.real_time and not self.policy.head.supports_prefix:
            raise UserError("evaluation.execution=real_time needs a head that goes on from a chunk: flow, diffusion.")
        return Session(
            name or f"session {next(self._numbers)}",
            self.policy,
            chosen,
            self._normalizers[chosen.name],
            start_memory=self._start_memory,
            start_executor=partial(
                ChunkExecutor,
                execution,
                execute_steps,
                chosen.contract,
                latency=latency,
            ),
            clock=clock,
            may_be_silent=may_be_silent,
        )

    def step(self, requests: Sequence[Request]) -> list[Float32[np.ndarray, "_a"] | Exception]:
        """Return for every session the action that is due, in environment units, with the entries of
        `source.contract`; a binary gripper is exactly -1 (close) or +1 (open).

        Where an answer is an exception, it belongs to that session alone; whoever owns the session raises it:
        UserError for an observation that cannot be read (the session is as it was), FloatingPointError for actions that
        are not finite, TimeoutError where, with a clock, the policy took longer than its chunks last.

        Raises:
            UserError: a session is asked twice, or is another engine's.
        """
        steps = self._observe(requests)
        asking = {
            session: step
            for (session, _), step in zip(requests, steps, strict=True)
            if isinstance(step, int) and session.executor.wants(step)
        }
        prefixes = [session.prefix(step) for session, step in asking.items()]
        chunks = dict(zip(asking, self._act(list(asking), prefixes), strict=True))

        def finish(session: Session, step: int | Exception) -> Float32[np.ndarray, "_a"]:
            made = unwrap(step)
            if session in chunks:
                session.execute(unwrap(chunks[session]), made)
            return session.action()

        return [attempt(finish, session, step) for (session, _), step in zip(requests, steps, strict=True)]

    def predict(self, requests: Sequence[Request]) -> list[Float32[np.ndarray, "k _a"] | Exception]:
        """Return for every session a fresh chunk, in environment units; errors are as in `step`.

        For a caller that executes chunks itself, and may say what it has decided of the coming one
        (`Observation.prefix`): a session is either stepped or predicted.
        """
        steps = self._observe(requests)
        asking = {session: step for (session, _), step in zip(requests, steps, strict=True) if isinstance(step, int)}
        prefixes = [session.prefix(step) for session, step in asking.items()]
        chunks = dict(zip(asking, self._act(list(asking), prefixes), strict=True))

        def finish(session: Session, step: int | Exception) -> Float32[np.ndarray, "k _a"]:
            made = unwrap(step)
            return session.denormalize(unwrap(chunks[session]), made)

        return [attempt(finish, session, step) for (session, _), step in zip(requests, steps, strict=True)]

    def _store_weights(self, config: EngineConfig) -> None:
        """Round the backbone's matrices as the config says.

        Raises:
            UserError: quantisation changes actions more than it may; says by how much.
        """
        allowed = config.max_action_change
        before = None if allowed is None else self.act_on_reference()
        if config.quantize is not None:
            quantize_linears(self.policy.backbone)
        if self.dtype is not torch.float32:
            round_matrices(self.policy.backbone, self.dtype)
        if before is None or allowed is None:
            return
        change = action_change(before, self.act_on_reference(), self.policy.head.split)
        if change.largest > allowed:
            raise UserError(
                f"engine.quantize={config.quantize} changes {change}: more than "
                f"engine.max_action_change={allowed}. Leave engine.quantize out, or allow {change.largest:.3g}."
            )

    def act_on_reference(self) -> Float[Tensor, "n k a"]:
        """Return the normalised chunks of every source for synthetic observations, the same at every call."""
        chunks: list[Tensor] = []
        for source in self._sources:
            episodes = [synthetic_observations(self.policy, source, seed) for seed in range(EPISODES)]
            sessions = [self.open(source.name) for _ in episodes]
            for seen in zip(*episodes, strict=True):
                self._observe(list(zip(sessions, seen, strict=True)))
                chunks += [unwrap(chunk) for chunk in self._act(sessions, [None] * len(sessions))]
        return torch.stack(chunks)

    def _observe(self, requests: Sequence[Request]) -> list[int | Exception]:
        """Show every session its observation; return the control steps."""
        names = [session.name for session, _ in requests]
        if foreign := [session.name for session, _ in requests if session.policy is not self.policy]:
            raise UserError(f"{', '.join(foreign)}: opened by another engine; ask that one.")
        if len({id(session) for session, _ in requests}) < len(requests):
            twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
            raise UserError(f"{', '.join(twice)}: asked twice in one batch; send a session's observations in turn.")
        return [attempt(session.observe, observation) for session, observation in requests]

    def _act(self, sessions: Sequence[Session], prefixes: Sequence[Prefix | None]) -> list[Tensor | Exception]:
        """Return normalised chunks. What the policy refuses is one session's fault, so each is then asked alone."""
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype is torch.bfloat16):
                return list(self._batched.act([session.memory for session in sessions], prefixes))
        except UserError as error:
            if len(sessions) == 1:
                return [error]
            return [self._act([session], [prefix])[0] for session, prefix in zip(sessions, prefixes, strict=True)]


def attempt(function: Callable[..., T], *args: Any) -> T | Exception:
    """Return what a function returns or raises."""
    try:
        return function(*args)
    except Exception as error:
        return error


def unwrap(answer: T | Exception) -> T:
    """Return an answer, or raise it."""
    if isinstance(answer, Exception):
        raise answer
    return answer


def device_of(config: EngineConfig) -> torch.device:
    """Return where the policy runs; auto: the processes of a launch share the GPUs of a machine evenly.

    Raises:
        UserError: there is no such device.
    """
    if config.device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        return torch.zeros(0, device=config.device).device
    except (RuntimeError, AssertionError) as error:  # also what torch built without CUDA raises
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"engine.device={config.device}: {reason}. Use auto, cpu, or a GPU that is there.") from error


def device_name(device: torch.device) -> str:
    """Return what a policy runs on: the name of the GPU, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def dtype_of(config: EngineConfig) -> torch.dtype:
    """Return the arithmetic: bfloat16 is what `precision=bf16` trains in."""
    is_gpu = device_of(config).type == "cuda"
    is_low = config.dtype is EngineDtype.bf16 or (config.dtype is EngineDtype.auto and is_gpu)
    return torch.bfloat16 if is_low else torch.float32


def arithmetic_of(config: EngineConfig) -> str:
    """Return in a word how a policy computes: what its actions depend on beside its weights."""
    name = str(dtype_of(config)).removeprefix("torch.")
    return name if config.quantize is None else f"{name}, {config.quantize} weights"


def round_matrices(backbone: nn.Module, dtype: torch.dtype) -> None:
    """Store matrices in a lower precision, as autocast rounds them for every product in training.

    Norms, biases and tables that are computed (positions) stay as they are: they are small, and their digits count.
    """
    for parameter in backbone.parameters():
        if parameter.ndim > 1 and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def check_weights(policy: VLAPolicy) -> None:
    """Refuse a policy whose numbers would reach a robot as NaN or infinity.

    Raises:
        UserError: names a weight.
    """
    tensors = policy.state_dict().items()
    if wrong := [name for name, tensor in tensors if tensor.is_floating_point() and not tensor.isfinite().all()]:
        raise UserError(
            f"{len(wrong)} of the policy's weights are not finite, e.g. {wrong[0]}: the checkpoint is damaged, or its "
            "training diverged. Use an earlier one."
        )

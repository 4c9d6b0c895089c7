"""The runner: observations in, environment actions out, the history in `memory`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from robovlms.actions.contract import check_contract
from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.plan import Source
from robovlms.config.choices import Execution, FrameCache
from robovlms.config.data import ActionContract
from robovlms.errors import UserError
from robovlms.heads.base import Prefix
from robovlms.policy.checkpoint import load_policy
from robovlms.policy.execution import Chunk, ChunkExecutor, continuity
from robovlms.policy.memory import start_memory
from robovlms.policy.observations import read_instruction, read_picture, read_proprio
from robovlms.policy.policy import VLAPolicy
from robovlms.types import Batch, Observation


class PolicyRunner:
    """Drive one robot with one policy.

    Every frame goes into the memory; the executor says when a chunk is asked for, and which of its actions is due.
    """

    def __init__(
        self,
        policy: VLAPolicy,
        normalizer: ActionNormalizer,
        source: Source,
        *,
        window_size: int,
        execution: Execution = Execution.chunk,
        execute_steps: int = 1,
        cache: FrameCache = FrameCache.exact,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Take a policy and say how it acts.

        Args:
            policy: in any state; it is set to evaluation.
            normalizer: of its actions.
            source: the data whose actions are wanted; the control_hz of its contract is the rate of `clock`.
            window_size: frames that it remembers.
            execution: how chunks become actions.
            execute_steps: actions of a chunk executed before the policy is asked again.
            cache: of interleaved streaming.
            clock: seconds, e.g. time.monotonic, for a robot that does not wait for the policy: the action that is
                returned is the one due when it is returned. Without one every call of `step` is one control step.

        Raises:
            UserError: the head cannot do what `execution` asks; a weight or a statistic is not finite, named.
        """
        check_finite(policy, normalizer, source)
        if execution is Execution.real_time and not policy.head.supports_prefix:
            raise UserError("evaluation.execution=real_time needs a head that goes on from a chunk: flow, diffusion.")
        self.policy, self.normalizer, self.source = policy.eval(), normalizer, source
        self.window_size = window_size
        self._start = partial(start_memory, policy, window_size, cache)
        self._start_executor = partial(ChunkExecutor, execution, execute_steps, has_gripper=source.has_gripper)
        self._clock, self._device = clock, next(policy.parameters()).device
        self.reset()

    @classmethod
    def from_checkpoint(
        cls,
        folder: Path,
        *,
        execution: Execution = Execution.chunk,
        execute_steps: int = 1,
        device: str = "cpu",
        contract: ActionContract | None = None,
        clock: Callable[[], float] | None = None,
        source: str | None = None,
    ) -> PolicyRunner:
        """Load a checkpoint folder.

        Args:
            folder: a `checkpoints/step_<number>` folder.
            execution: as in the class.
            execute_steps: as in the class.
            device: where the policy runs.
            contract: what the robot or simulator expects of actions; a policy that means something else is refused.
            clock: as in the class.
            source: of a mixture, the one whose actions are wanted.

        Raises:
            UserError: the contracts differ, execute_steps exceeds the chunk, or the head cannot do what is asked.
        """
        trained = load_policy(folder)
        config, chosen = trained.config, trained.plan.find(source)
        if contract is not None:
            check_contract(chosen.interface, contract, "the environment")
        if not 1 <= execute_steps <= config.window.chunk_size:
            raise UserError(
                f"evaluation.execute_steps={execute_steps} must lie in 1..{config.window.chunk_size}, "
                "the policy's chunk_size."
            )
        return cls(
            trained.policy.to(device),
            trained.plan.normalizers(trained.statistics)[chosen.number],
            chosen,
            window_size=config.window.window_size,
            execution=execution,
            execute_steps=execute_steps,
            cache=config.structure.cache,
            clock=clock,
        )

    def reset(self) -> None:
        """Forget the episode."""
        self.memory, self.executor = self._start(), self._start_executor()
        self.delay = 0  # control steps that the last chunk took to arrive
        self._last: tuple[int, Tensor] | None = None  # the last chunk, normalised, and when it was made
        self._calls = 0
        self._started = self._clock() if self._clock else 0.0

    def step(self, observation: Observation) -> Float32[np.ndarray, "a"]:
        """Return the action that is due, in environment units, with the entries of `source.interface`; a gripper is
        exactly -1 (close) or +1 (open).

        Raises:
            UserError: the observation lacks a view or the proprioception the policy was trained with, or holds
                something that cannot be read (`robovlms.policy.observations`).
            FloatingPointError: the policy predicts an action that is not finite; names its entries.
            TimeoutError: with a clock, the policy took longer than its chunks last.
        """
        seen = self._now()
        self.memory.observe(self._batch(observation))
        if self.executor.wants(seen):
            chunk = self.memory.act(self._prefix(seen))
            self._last = seen, chunk
            actions = self.normalizer.denormalize(chunk.cpu())[0][:, self.source.interface_dims]
            self._check_finite(actions, seen)
            self.executor.add(Chunk(seen, actions.numpy()))
            self.delay = self._now() - seen
        action = self.executor.action(self._now())
        self._calls += 1
        return action

    def _check_finite(self, actions: Float32[Tensor, "k a"], step: int) -> None:
        """Refuse a chunk that no robot should get."""
        finite = actions.isfinite().all(0).tolist()
        if wrong := [name for name, is_good in zip(self.source.interface.names, finite, strict=True) if not is_good]:
            raise FloatingPointError(
                f"the policy predicts actions that are not finite at step {step}, in {', '.join(wrong)}: nothing was "
                "sent to the robot."
            )

    def _now(self) -> int:
        """Return the number of the control step."""
        if self._clock is None:
            return self._calls
        return int((self._clock() - self._started) * self.source.contract.control_hz + 1e-6)

    def _prefix(self, step: int) -> Prefix | None:
        """Return what is already decided of the next chunk; None: nothing."""
        if self.executor.mode is not Execution.real_time or self._last is None:
            return None
        made, chunk = self._last
        arm, passed = chunk[..., :-1], step - made
        if passed >= arm.shape[1]:
            return None
        rest = torch.cat([arm[:, passed:], torch.zeros_like(arm[:, :passed])], dim=1)
        return Prefix(rest, arm.new_tensor(continuity(arm.shape[1], passed, self.delay)))

    def _batch(self, observation: Observation) -> Batch:
        processor = self.policy.processor
        if missing := [view for view in processor.views if view not in observation.frames]:
            raise UserError(f"the policy needs the views {missing}; the observation has {list(observation.frames)}.")
        pictures = {view: read_picture(observation.frames[view], view) for view in processor.views}
        text_ids, text_mask = processor.text([read_instruction(observation.instruction)])
        frames = {view: processor.host_frames(picture[None]) for view, picture in pictures.items()}
        batch = Batch(
            frames={view: torch.from_numpy(frame)[None] for view, frame in frames.items()},
            text_ids=text_ids,
            text_mask=text_mask,
            action_dims=self._recorded(),
            proprio=self._proprio(observation),
        )
        return batch.to(self._device)

    def _recorded(self) -> Bool[Tensor, "1 a"] | None:
        """Return which of the policy's action entries were in training for this source; None: all."""
        recorded = torch.zeros(1, self.normalizer.action_dim, dtype=torch.bool)
        recorded[:, self.source.interface_dims] = True
        return None if recorded.all() else recorded

    def _proprio(self, observation: Observation) -> Float32[Tensor, "1 1 p"] | None:
        if self.policy.proprio is None:
            return None
        whole = torch.full((len(self.policy.proprio.mean),), torch.nan)
        whole[self.source.proprio_dims] = torch.from_numpy(read_proprio(observation.proprio, self.source.proprio_names))
        return whole[None, None]


def check_finite(policy: VLAPolicy, normalizer: ActionNormalizer, source: Source) -> None:
    """Refuse a policy whose numbers would reach a robot as NaN or infinity.

    Raises:
        UserError: names the weights, or the entries of the statistics.
    """
    tensors = policy.state_dict().items()
    if wrong := [name for name, tensor in tensors if tensor.is_floating_point() and not tensor.isfinite().all()]:
        raise UserError(
            f"{len(wrong)} of the policy's weights are not finite, e.g. {wrong[0]}: the checkpoint is damaged, or its "
            "training diverged. Use an earlier one."
        )
    ends = torch.tensor([[-1.0], [1.0]]).expand(2, normalizer.action_dim)
    finite = normalizer.denormalize(ends).isfinite().all(0)[source.interface_dims].tolist()
    if lost := [name for name, is_good in zip(source.interface.names, finite, strict=True) if not is_good]:
        raise UserError(
            f"the action statistics of {', '.join(lost)} are not finite: action_stats.json of the checkpoint is "
            "damaged, or the data it was computed from."
        )

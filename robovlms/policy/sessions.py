"""A session is one episode of one robot: what has been seen, what is being executed, and the time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.plan import Source
from robovlms.config.choices import Execution
from robovlms.errors import UserError
from robovlms.heads.base import Prefix
from robovlms.policy.execution import Chunk, ChunkExecutor, continuity
from robovlms.policy.memory import Memory
from robovlms.policy.observations import read_instruction, read_picture, read_prefix, read_proprio
from robovlms.policy.policy import VLAPolicy
from robovlms.types import ActionPrefix, Batch, Observation


class Session:
    """All that a policy's next action depends on besides its weights and the next observation.

    Opened by `PolicyEngine.open`, which says what the arguments mean. `memory` and `executor` are those of the running
    episode; `delay` is the number of control steps that its last chunk took to arrive.
    """

    def __init__(
        self,
        name: str,
        policy: VLAPolicy,
        source: Source,
        normalizer: ActionNormalizer,
        *,
        start_memory: Callable[[], Memory],
        start_executor: Callable[[], ChunkExecutor],
        clock: Callable[[], float] | None = None,
        may_be_silent: bool = False,
    ) -> None:
        """Begin an episode.

        Raises:
            UserError: the action statistics are not finite; names the entries.
        """
        check_statistics(normalizer, source)
        self.name, self.source = name, source
        self.policy, self._normalizer, self._clock = policy, normalizer, clock
        self._may_be_silent = may_be_silent
        self._start_memory, self._start_executor = start_memory, start_executor
        dims, views, size = source.action_dims, policy.processor.views, policy.processor.image_spec.size
        self._action_dims = masked([i in dims for i in range(normalizer.action_dim)])
        self._view_mask = masked([view in source.views for view in views])
        black = torch.zeros(1, size, size, 3, dtype=torch.uint8)
        self._black = {view: black for view in views if view not in source.views}
        self.reset()

    def __str__(self) -> str:
        return self.name

    def reset(self) -> None:
        """Forget the episode."""
        self.memory, self.executor = self._start_memory(), self._start_executor()
        self.delay = 0
        self._given: Prefix | None = None  # of the chunk that is asked for, by a robot that executes chunks itself
        self._last: tuple[int, Tensor] | None = None  # the last chunk, normalised, "k a", and the step it is made from
        self._num_actions = 0
        self._started = self._clock() if self._clock else 0.0

    def observe(self, observation: Observation) -> int:
        """Take the newest observation and return the number of the control step it is of.

        Of `earlier` as many are read as the memory holds beside the newest.

        Raises:
            UserError: it lacks something that the policy was trained with, or holds something that cannot be read, or
                a prefix that the head cannot continue; the session is as it was.
        """
        step, prefix = self.now(), self.read_prefix(observation.prefix)
        num_forgotten = max(0, len(observation.earlier) + 1 - self.memory.window_size)
        for batch in [self.read(each) for each in (*observation.earlier[num_forgotten:], observation)]:
            self.memory.observe(batch)
        self._given = prefix
        return step

    def prefix(self, step: int) -> Prefix | None:
        """Return what is already decided (b = 1) of a chunk made at `step`; None: nothing."""
        if self._given is not None or self.executor.mode is not Execution.real_time or self._last is None:
            return self._given
        made, chunk = self._last
        return prefix_of(chunk[step - made :], len(chunk), self.delay)

    def read_prefix(self, given: ActionPrefix | None) -> Prefix | None:
        """Return, normalised, what a robot has decided of the coming chunk; None: nothing.

        Raises:
            UserError: the head cannot continue a chunk, or these are not up to k actions as the policy gives them.
        """
        if given is None:
            return None
        if not self.policy.head.supports_prefix:
            raise UserError("a prefix of actions needs a head that goes on from a chunk: flow, diffusion.")
        chunk_size = self.policy.head.chunk_size
        actions, delay = read_prefix(given, self.source.contract.names, chunk_size)
        whole = torch.zeros(len(actions), self._normalizer.action_dim)
        whole[:, self.source.action_dims] = torch.from_numpy(actions)
        return prefix_of(self._normalizer.normalize(whole), chunk_size, delay)

    def denormalize(self, chunk: Float[Tensor, "k _a"], step: int) -> Float32[np.ndarray, "k _b"]:
        """Return a chunk in environment units, with the entries of `source.contract`.

        Raises:
            FloatingPointError: it is not finite; names the entries.
        """
        actions = self._normalizer.denormalize(chunk).numpy()[:, self.source.action_dims]
        if not (finite := np.isfinite(actions)).all():
            names = zip(self.source.contract.names, finite.all(0), strict=True)
            wrong = [name for name, is_good in names if not is_good]
            raise FloatingPointError(
                f"the policy predicts actions that are not finite at step {step}, in {', '.join(wrong)}: nothing was "
                "sent to the robot."
            )
        return actions

    def execute(self, chunk: Float[Tensor, "k a"], step: int) -> None:
        """Take the chunk that was made from the observation of `step`.

        Raises:
            FloatingPointError: it is not finite; the session goes on without it.
        """
        self.executor.add(Chunk(step, self.denormalize(chunk, step)))
        self._last = step, chunk
        self.delay = max(self.now() - step, self.executor.latency)

    def action(self) -> Float32[np.ndarray, "_a"]:
        """Return the action that is due now, and go on to the next control step.

        Raises:
            TimeoutError: no chunk reaches as far.
        """
        action = self.executor.action(self.now())
        self._num_actions += 1
        return action

    def now(self) -> int:
        """Return the number of the control step."""
        if self._clock is None:
            return self._num_actions
        return int((self._clock() - self._started) * self.source.contract.control_hz + 1e-6)

    def read(self, observation: Observation) -> Batch:
        """Return an observation as one row of a batch, on the host; views that the source does not have are masked.

        Raises:
            UserError: as in `observe`.
        """
        processor, needed = self.policy.processor, self.source.views
        if missing := [view for view in processor.views if view in needed and view not in observation.frames]:
            raise UserError(f"the policy needs the views {missing}; the observation has {list(observation.frames)}.")
        frames = self._black | {
            view: torch.from_numpy(processor.host_frames(read_picture(observation.frames[view], view)[None]))
            for view in needed
        }
        instruction = read_instruction(observation.instruction, may_be_empty=self._may_be_silent)
        text_ids, text_mask = processor.text([instruction])
        return Batch(
            frames={view: frames[view][None] for view in processor.views},
            text_ids=text_ids,
            text_mask=text_mask,
            action_dims=self._action_dims,
            view_mask=self._view_mask,
            proprio=self._proprio(observation),
        )

    def _proprio(self, observation: Observation) -> Float32[Tensor, "1 1 p"] | None:
        if self.policy.proprio is None:
            return None
        whole = torch.full((len(self.policy.proprio.mean),), torch.nan)
        whole[self.source.proprio_dims] = torch.from_numpy(read_proprio(observation.proprio, self.source.proprio_names))
        return whole[None, None]


def prefix_of(rest: Float[Tensor, "n a"], chunk_size: int, delay: int) -> Prefix | None:
    """Return what a chunk must keep of the last one (b = 1); None: nothing.

    Args:
        rest: what the last one has of the steps of the new one.
        chunk_size: actions of the new one, k.
        delay: control steps that the new one takes to arrive.
    """
    if not len(rest):
        return None
    passed = chunk_size - len(rest)
    actions = torch.cat([rest, rest.new_zeros(passed, rest.shape[1])])
    return Prefix(actions[None], actions.new_tensor(continuity(chunk_size, passed, delay))[None])


def masked(is_there: list[bool]) -> Bool[Tensor, "1 n"] | None:
    """Return a mask of one row; None: all is there."""
    return None if all(is_there) else torch.tensor([is_there])


def check_statistics(normalizer: ActionNormalizer, source: Source) -> None:
    """Refuse statistics that would reach a robot as NaN or infinity.

    Raises:
        UserError: names the entries.
    """
    ends = torch.tensor([[-1.0], [1.0]]).expand(2, normalizer.action_dim)
    finite = normalizer.denormalize(ends).isfinite().all(0)[source.action_dims].tolist()
    if lost := [name for name, is_good in zip(source.contract.names, finite, strict=True) if not is_good]:
        raise UserError(
            f"the action statistics of {', '.join(lost)} are not finite: action_stats.json of the checkpoint is "
            "damaged, or the data it was computed from."
        )

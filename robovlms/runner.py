"""A policy at the wheel: observations in, environment actions out, history in plain sight."""

from __future__ import annotations

from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from robovlms.actions import ActionNormalizer, check_contract
from robovlms.checkpoint import load_policy
from robovlms.choices import FrameCache
from robovlms.config import ActionContract
from robovlms.memory import start_memory
from robovlms.policy import VLAPolicy
from robovlms.types import Batch, Observation


class PolicyRunner:
    """Drive one robot with one policy.

    Every frame goes into the memory; a chunk is asked for every `execute_steps` steps and executed in order. `memory`
    and `queue` are the whole state.
    """

    def __init__(
        self,
        policy: VLAPolicy,
        normalizer: ActionNormalizer,
        contract: ActionContract,
        *,
        window_size: int,
        execute_steps: int = 1,
        cache: FrameCache = FrameCache.exact,
    ) -> None:
        self.policy, self.normalizer, self.contract = policy.eval(), normalizer, contract
        self.execute_steps, self.window_size = execute_steps, window_size
        self._start = partial(start_memory, policy, window_size, cache)
        self.memory = self._start()
        self.queue: deque[Float32[np.ndarray, "a"]] = deque()  # actions of the current chunk still to be executed
        self._device = next(policy.parameters()).device

    @classmethod
    def from_checkpoint(
        cls, folder: Path, *, execute_steps: int = 1, device: str = "cpu", contract: ActionContract | None = None
    ) -> PolicyRunner:
        """Load a checkpoint folder.

        Args:
            folder: a `checkpoints/step_<number>` folder.
            execute_steps: actions of a chunk executed before the policy is asked again.
            device: where the policy runs.
            contract: what the robot or simulator expects of actions; a policy that means something else is refused.
        Raises:
            ValueError: the contracts differ, or execute_steps exceeds the chunk.
        """
        config, policy, stats = load_policy(folder)
        if contract is not None:
            check_contract(config.data.contract, contract, "the environment")
        if not 1 <= execute_steps <= config.window.chunk_size:
            raise ValueError(
                f"evaluation.execute_steps={execute_steps} must lie in 1..{config.window.chunk_size}, "
                "the policy's chunk_size."
            )
        normalizer = ActionNormalizer(config.data.normalization, stats)
        return cls(
            policy.to(device),
            normalizer,
            config.data.contract,
            window_size=config.window.window_size,
            execute_steps=execute_steps,
            cache=config.structure.cache,
        )

    def reset(self) -> None:
        """Forget the episode."""
        self.memory = self._start()
        self.queue.clear()

    def step(self, observation: Observation) -> Float32[np.ndarray, "a"]:
        """Give the next action in environment units; the gripper is exactly -1 (close) or +1 (open).

        Raises:
            ValueError: the observation lacks a view or the proprioception the policy was trained with.
        """
        self.memory.observe(self._batch(observation))
        if not self.queue:
            chunk = self.normalizer.denormalize(self.memory.act().cpu())[0]
            self.queue.extend(chunk[: self.execute_steps].numpy())
        return self.queue.popleft()

    def _batch(self, observation: Observation) -> Batch:
        processor = self.policy.processor
        if missing := [view for view in processor.views if view not in observation.frames]:
            raise ValueError(f"the policy needs the views {missing}; the observation has {list(observation.frames)}.")
        text_ids, text_mask = processor.text([observation.instruction])
        frames = {view: processor.host_frames(observation.frames[view][None]) for view in processor.views}
        batch = Batch(
            frames={view: torch.from_numpy(frame)[None] for view, frame in frames.items()},
            text_ids=text_ids,
            text_mask=text_mask,
            proprio=self._proprio(observation),
        )
        return batch.to(self._device)

    def _proprio(self, observation: Observation) -> Float32[Tensor, "1 1 p"] | None:
        if self.policy.proprio is None:
            return None
        expected, proprio = len(self.policy.proprio.mean), observation.proprio
        if proprio is None or len(proprio) != expected:
            found = "none" if proprio is None else f"{len(proprio)} entries"
            raise ValueError(f"the policy needs proprioception of {expected} entries; the observation has {found}.")
        return torch.from_numpy(proprio)[None, None]

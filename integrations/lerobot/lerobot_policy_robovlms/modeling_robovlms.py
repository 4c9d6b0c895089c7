"""lerobot's policy interface over robovlms' engine: every row of a batch is a session with a memory of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_robovlms.configuration_robovlms import TRAIN, RobovlmsConfig
from robovlms.actions.contract import write_grippers
from robovlms.config.choices import Execution
from robovlms.config.closed_loop import EngineConfig
from robovlms.errors import UserError
from robovlms.policy.checkpoint import resolve_checkpoint
from robovlms.policy.engine import PolicyEngine, unwrap
from robovlms.policy.sessions import Session
from robovlms.types import Observation

CAMERA, STATE, TASK, ACTION = "observation.images.", "observation.state", "task", "action"


class RobovlmsPolicy(PreTrainedPolicy):
    """A checkpoint of robovlms that acts for lerobot."""

    config_class = RobovlmsConfig
    name = "robovlms"

    def __init__(self, config: RobovlmsConfig, **_: Any) -> None:
        """Load the checkpoint that the config names.

        Raises:
            FileNotFoundError: there is none.
            UserError: it does not do what the config or the environment asks.
        """
        super().__init__(config)
        config.check()
        folder = resolve_checkpoint(Path(config.checkpoint).expanduser())
        self._engine = PolicyEngine.from_checkpoint(folder, EngineConfig(device=config.device or "auto"))
        self.model = self._engine.policy
        self.source = self._open().source
        recorded = self.source.config.contract
        closed, opened = config.gripper_closed, config.gripper_open
        self._contract = replace(
            self.source.contract,
            gripper_closed=recorded.gripper_closed if closed is None else closed,
            gripper_open=recorded.gripper_open if opened is None else opened,
        )
        self._asked: Callable[..., Any] | None = None
        self.reset()
        self._check_actions()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path | None = None, *, config: RobovlmsConfig | None = None, **_: Any
    ) -> RobovlmsPolicy:
        """Return the policy of a config, or of a folder into which one was saved; weights are the checkpoint's."""
        return cls(config or PreTrainedConfig.from_pretrained(pretrained_name_or_path)).eval()

    def _save_pretrained(self, save_directory: Path, **_: Any) -> None:
        self.config._save_pretrained(save_directory)

    def _check_actions(self) -> None:
        names, feature = self.source.contract.names, (self.config.output_features or {}).get(ACTION)
        if feature is not None and tuple(feature.shape) != (len(names),):
            raise UserError(
                f"policy.checkpoint={self.config.checkpoint} gives {len(names)} numbers an action "
                f"({', '.join(names)}), and this robot or environment takes {list(feature.shape)}: choose another "
                "checkpoint, or policy.source of a mixture."
            )

    def _open(self) -> Session:
        config = self.config
        return self._engine.open(
            config.source, execution=Execution(config.execution), execute_steps=config.execute_steps
        )

    def reset(self) -> None:
        """Begin new episodes in every row."""
        self._sessions: list[Session] = []
        self._asked = None

    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Return the action that is due in every row (b, a), in the units of the checkpoint's contract; grippers are as
        the robot has them.
        """
        return self._ask(self._engine.step, batch)

    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Return a fresh chunk for every row (b, k, a); until the next reset no single actions are asked for."""
        return self._ask(self._engine.predict, batch)

    def _ask(self, ask: Callable[..., Any], batch: dict[str, Any]) -> Tensor:
        observations = self.observations(batch)
        if self._asked not in (None, ask) or len(self._sessions) not in (0, len(observations)):
            raise UserError("reset() is needed between select_action and predict_action_chunk, and for other rows.")
        self._asked = ask
        self._sessions = self._sessions or [self._open() for _ in observations]
        answers = [unwrap(answer) for answer in ask(list(zip(self._sessions, observations, strict=True)))]
        rows = np.stack(answers)
        actions = write_grippers(rows.reshape(-1, rows.shape[-1]), self._contract).reshape(rows.shape)
        return torch.from_numpy(actions).to(self.config.device)

    def observations(self, batch: dict[str, Any]) -> list[Observation]:
        """Return what each row sees.

        Raises:
            UserError: a camera, the state or the instruction is missing; names it and what there is.
        """
        keys = {view: self.config.views.get(view, f"{CAMERA}{view}") for view in self.source.views}
        wanted = [*keys.values(), *([STATE] if self.source.proprio_names else []), TASK]
        if missing := [key for key in wanted if batch.get(key) is None]:
            there = ", ".join(key for key, value in batch.items() if value is not None)
            raise UserError(
                f"the observation has no {', '.join(missing)}, only {there}: name cameras with "
                "--policy.views='{<view>: <key>}'."
            )
        frames = {view: pixels(batch[key]) for view, key in keys.items()}
        count = len(next(iter(frames.values())))
        tasks = [batch[TASK]] * count if isinstance(batch[TASK], str) else list(batch[TASK])
        states: Sequence[Any] = [None] * count
        if self.source.proprio_names:
            states = self._states(batch[STATE].reshape(count, -1).float().cpu().numpy())
        return [
            Observation(frames={view: each[row] for view, each in frames.items()}, instruction=task, proprio=state)
            for row, task, state in zip(range(count), tasks, states, strict=True)
        ]

    def _states(self, states: np.ndarray) -> np.ndarray:
        """Return the entries that the policy needs, of those or of all that its training data recorded."""
        recorded = self.source.config.proprio_names
        if states.shape[1] != len(recorded):
            return states
        return states[:, [recorded.index(name) for name in self.source.proprio_names]]

    def get_optim_params(self) -> dict[str, Any]:
        """Refuse to be trained.

        Raises:
            UserError: always.
        """
        raise UserError(TRAIN)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        """Refuse to be trained.

        Raises:
            UserError: always.
        """
        raise UserError(TRAIN)


def pixels(images: Tensor) -> np.ndarray:
    """Return uint8 pictures (b, h, w, c) from lerobot's: (b, c, h, w), floats in [0, 1] or uint8."""
    if images.ndim == 3:
        images = images[None]
    if images.is_floating_point():
        images = (images * 255).round().clamp(0, 255)
    return images.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()

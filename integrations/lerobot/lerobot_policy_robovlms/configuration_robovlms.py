"""`--policy.type=robovlms`: which checkpoint acts, and how."""

from dataclasses import dataclass, field

from lerobot.configs.policies import PreTrainedConfig

from robovlms.config.choices import Execution
from robovlms.errors import UserError

TRAIN = "a checkpoint of robovlms is trained by robovlms-train, not by lerobot-train."


@PreTrainedConfig.register_subclass("robovlms")
@dataclass
class RobovlmsConfig(PreTrainedConfig):
    """A checkpoint of robovlms that acts."""

    checkpoint: str = ""  # run, checkpoint or hf://<owner>/<name>[@<revision>]
    source: str | None = None  # of a mixture: whose actions are given
    execution: str = "chunk"  # chunk, ensemble, real_time, first
    execute_steps: int = 1  # actions of a chunk before the policy is asked again
    views: dict[str, str] = field(default_factory=dict)  # our view's name to lerobot's key
    gripper_closed: float | None = None  # what a closed gripper is to the robot; None: as the training data record it
    gripper_open: float | None = None

    def validate_features(self) -> None:
        """Refuse what cannot act."""
        self.check()

    def check(self) -> None:
        """Refuse a config without a checkpoint, with a way of execution that there is not, or half a gripper.

        Raises:
            UserError: names the option.
        """
        if not self.checkpoint:
            raise UserError("policy.checkpoint: not set. Say e.g. --policy.checkpoint=runs/lift_cup")
        if self.execution not in list(Execution):
            raise UserError(f"policy.execution={self.execution} must be one of {', '.join(Execution)}.")
        if (self.gripper_closed is None) != (self.gripper_open is None):
            raise UserError("policy.gripper_closed and policy.gripper_open go together: set both, or neither.")
        if self.gripper_closed is not None and self.gripper_closed == self.gripper_open:
            raise UserError("policy.gripper_closed and policy.gripper_open are equal: say which value means what.")

    @property
    def observation_delta_indices(self) -> None:
        """Only the newest observation: history is the session's."""
        return

    @property
    def action_delta_indices(self) -> None:
        """None: nothing is trained here."""
        return

    @property
    def reward_delta_indices(self) -> None:
        """None: nothing is trained here."""
        return

    def get_optimizer_preset(self) -> None:
        """Refuse to be trained.

        Raises:
            UserError: always.
        """
        raise UserError(TRAIN)

    def get_scheduler_preset(self) -> None:
        """Return None: nothing is trained here."""
        return

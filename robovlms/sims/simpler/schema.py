"""Options of `sim=simpler`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum, auto

from robovlms.config.choices import MISSING
from robovlms.config.closed_loop import SimConfig
from robovlms.config.schemas import schema
from robovlms.errors import UserError


class Robot(StrEnum):
    """Whose tasks are played."""

    widowx = auto()  # the arm of BridgeData V2, 5 Hz
    google_robot = auto()  # of RT-1 (Fractal), 3 Hz


class Protocol(StrEnum):
    """How simulation is brought close to reality."""

    visual_matching = auto()  # a photograph behind the simulated robot and objects
    variant_aggregation = auto()  # a mean over backgrounds, lights, distractors and tables; Google robot
    camera_orientations = auto()  # two more cameras, which the published means leave out; Google robot


class SuccessRule(StrEnum):
    """When success is judged."""

    truncation = auto()  # at the last step alone: SimplerEnv's own
    early_stop = auto()  # at every step, the first success ends the episode


class Wrapper(StrEnum):
    """Whose habits stand between a policy's actions and the robot's."""

    simpler_env = auto()  # of SimplerEnv's own policies: a gripper motion of the Google robot lasts 15 steps
    robovlms = auto()  # 2 steps; WidowX opens a step late; an open drawer brings the next instruction at once


@schema("sim/simpler")
@dataclass(kw_only=True)
class SimplerSimConfig(SimConfig):
    """SimplerEnv (arXiv:2405.05941)."""

    robot: Robot = MISSING
    protocols: list[Protocol] = field(default_factory=list)
    success: SuccessRule = SuccessRule.truncation
    wrapper: Wrapper = Wrapper.simpler_env

    def check(self, option: str) -> None:
        """Refuse a protocol that the robot does not have, and none at all."""
        has = list(Protocol) if self.robot is Robot.google_robot else [Protocol.visual_matching]
        wrong = [protocol for protocol in self.protocols if protocol not in has]
        if wrong or not self.protocols:
            raise UserError(
                f"{option}.protocols={[str(protocol) for protocol in self.protocols]}: {option}.robot={self.robot} has "
                f"{', '.join(has)}; name at least one of them."
            )

"""Options of `sim=metaworld`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.closed_loop import SimConfig
from robovlms.config.fields import number
from robovlms.config.schemas import schema
from robovlms.errors import UserError

STEPS_PER_SECOND = 80  # of the simulation
MAX_STEPS = 500  # simulation steps, Meta-World's own horizon


@schema("sim/metaworld")
@dataclass(kw_only=True)
class MetaWorldSimConfig(SimConfig):
    """Meta-World (MT50)."""

    image_size: int = number(at_least=1, at_most=8192)  # px, square, both views
    control_hz: float = number(above=0, at_most=10_000)  # actions a second

    @property
    def repeat(self) -> int:
        """Simulation steps of an action."""
        return round(STEPS_PER_SECOND / self.control_hz)

    def check(self, option: str) -> None:
        """Refuse rates that do not divide the simulation's, and episodes beyond its horizon."""
        if STEPS_PER_SECOND % self.control_hz:
            raise UserError(
                f"{option}.control_hz={self.control_hz:g} must divide {STEPS_PER_SECOND}, Meta-World's simulation rate."
            )
        if self.max_steps is not None and self.max_steps > MAX_STEPS // self.repeat:
            raise UserError(
                f"{option}.max_steps={self.max_steps} must be 1 to {MAX_STEPS // self.repeat}: Meta-World's own "
                f"horizon is {MAX_STEPS} simulation steps, {self.repeat} for every action."
            )

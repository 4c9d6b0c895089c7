"""Options of `sim=libero`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.closed_loop import SimConfig
from robovlms.config.fields import DEMO, marked, number
from robovlms.config.schemas import schema
from robovlms.errors import UserError


@schema("sim/libero")
@dataclass(kw_only=True)
class LiberoSimConfig(SimConfig):
    """LIBERO and LIBERO-PRO."""

    suites: list[str] = marked(keeps=DEMO)  # e.g. [libero_spatial, libero_spatial_lan]
    image_size: int = number(at_least=1, at_most=8192)  # px, square, both views
    settle_steps: int = number(at_least=0, at_most=1000)  # control steps without motion before the policy is asked
    shadows: bool = True  # also reflections and multisampling, as the benchmark draws them; false: 2 to 3 times faster
    flip: bool = True  # turn pictures by 180 degrees, as OpenVLA and openpi do; false: as the benchmark gives them

    def check(self, option: str) -> None:
        """Refuse an evaluation of nothing."""
        if not self.suites:
            raise UserError(f"{option}.suites is empty: name suites, e.g. {option}.suites=[libero_spatial].")

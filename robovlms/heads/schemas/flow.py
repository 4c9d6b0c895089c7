"""Options of `head=flow`."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.config.choices import (
    FlowSolver,
)
from robovlms.config.schemas import schema
from robovlms.heads.schemas.denoising import DenoisingHeadConfig


@schema("head/flow")
@dataclass(kw_only=True)
class FlowHeadConfig(DenoisingHeadConfig):
    """Flow matching over the chunk."""

    solver: FlowSolver = FlowSolver.euler

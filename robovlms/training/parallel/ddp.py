"""`parallel=ddp`: every process has all weights and the optimizer's whole state."""

from __future__ import annotations

from robovlms.registry import PARALLEL
from robovlms.training.parallel.replicated import Replicated


@PARALLEL.register("ddp")
class DDP(Replicated):
    """All processes take the same optimizer step."""

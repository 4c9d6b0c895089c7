"""Options of `protocol=openpi`."""

from __future__ import annotations

from dataclasses import dataclass, field

from robovlms.config.choices import MISSING
from robovlms.config.closed_loop import ProtocolConfig
from robovlms.config.schemas import schema


@schema("protocol/openpi")
@dataclass(kw_only=True)
class OpenPIConfig(ProtocolConfig):
    """openpi's websocket."""

    proprio: list[str] = field(default_factory=list)  # keys of proprioception, whose entries are joined
    instruction: str = MISSING  # key of the instruction

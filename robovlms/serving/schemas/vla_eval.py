"""Options of `protocol=vla_eval`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from robovlms.config.closed_loop import ProtocolConfig
from robovlms.config.schemas import schema


@schema("protocol/vla_eval")
@dataclass(kw_only=True)
class VLAEvalConfig(ProtocolConfig):
    """vla-eval's websocket."""

    takes_chunks: ClassVar[bool] = False

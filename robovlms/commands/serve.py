"""A checkpoint acts for whoever asks over the wire."""

from __future__ import annotations

import asyncio

from robovlms.config.commands import ServeConfig
from robovlms.policy.spec import PolicySpec
from robovlms.serving.server import load_service
from robovlms.serving.server import serve as serve_clients
from robovlms.terminal import show


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        FileNotFoundError: no checkpoint there.
        UserError: an option does not fit the policy.
    """
    service = load_service(config)

    def announce(address: str) -> None:
        show(f"ready: {address} ({config.protocol.name}) {summary(service.spec, config.source)}")

    asyncio.run(serve_clients(service, announce=announce))


def summary(spec: PolicySpec, source: str | None) -> str:
    """Return in a line what a policy sees and says."""
    chosen = spec.find(source)
    views = ", ".join(f"{view} {size} px" for view, size in spec.views.items())
    proprio = f"; proprioception {', '.join(chosen.proprio_names)}" if chosen.proprio_names else ""
    return (
        f"{spec.name}: sees {views}{proprio}, remembers {spec.window_size}; gives {spec.chunk_size} actions of "
        f"{', '.join(chosen.contract.names)} at {chosen.contract.control_hz:g} Hz"
    )

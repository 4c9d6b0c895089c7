"""From a checkpoint to a server: load, warm up, listen, and end when the system says so."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from robovlms.config.commands import ServeConfig
from robovlms.policy.checkpoint import load_policy, resolve_checkpoint
from robovlms.policy.engine import PolicyEngine
from robovlms.policy.manifest import checkpoint_digest
from robovlms.policy.spec import SPEC, PolicySpec
from robovlms.registry import PROTOCOLS
from robovlms.serving.base import Protocol
from robovlms.serving.service import Service

log = logging.getLogger(__name__)


def load_service(config: ServeConfig) -> Service:
    """Load what a config names.

    Raises:
        FileNotFoundError: no checkpoint there.
        UserError: an option does not fit the policy.
    """
    folder = resolve_checkpoint(Path(config.checkpoint))
    engine = PolicyEngine.from_checkpoint(folder, config.engine)
    return Service(engine, spec_of(folder), config, checkpoint_digest(folder))


def spec_of(folder: Path) -> PolicySpec:
    """Return what a checkpoint says of itself, also one from before there was a `spec.json`."""
    return PolicySpec.load(folder / SPEC) if (folder / SPEC).is_file() else load_policy(folder).spec


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[str]:
    """Serve clients until the block ends, then take nothing new and finish what is under way; return the address."""
    protocol: Protocol = PROTOCOLS.get(service.config.protocol.name)(service.config.protocol, service)
    async with service.running(), protocol.listening() as address:
        yield address


async def serve(service: Service, *, announce: Callable[[str], None]) -> None:
    """Serve clients until SIGTERM or Ctrl-C.

    Args:
        service: what answers.
        announce: called with the address when clients may connect.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(service) as address:
        announce(address)
        await stop.wait()
        log.info("ending: requests under way are finished")

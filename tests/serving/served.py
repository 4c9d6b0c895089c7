"""A server in this process, and what its answers are held against."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from composing import completed, composed

from robovlms.config.commands import ServeConfig
from robovlms.policy.engine import PolicyEngine
from robovlms.serving.server import load_service, serving
from robovlms.serving.service import Service
from robovlms.types import Observation

CHECKPOINTS = Path(__file__).parents[1] / "old_checkpoints"
SINGLE, MIXTURE = CHECKPOINTS / "single", CHECKPOINTS / "mixture"  # window 4, chunk 3, views side and wrist
PATIENCE_S = 30.0


def config_of(checkpoint: Path = SINGLE, *overrides: str) -> ServeConfig:
    """Compose what a command line says; any free port."""
    given = [f"checkpoint={checkpoint}", "port=0", "engine.device=cpu", *overrides]
    return completed(composed(*given, config_name="serve"), schema=ServeConfig)


@contextmanager
def served(config: ServeConfig, service: Service | None = None) -> Iterator[tuple[str, Service]]:
    """Serve in a thread what the config names, or a service; return the address, and the service to look into."""
    service, loop, stop = service or load_service(config), asyncio.new_event_loop(), asyncio.Event()
    ready, found = threading.Event(), []

    async def main() -> None:
        async with serving(service) as address:
            found.append(address)
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            loop.run_until_complete(main())
        except Exception as error:
            found.append(error)
            ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(PATIENCE_S)
    if isinstance(found[0], Exception):
        raise found[0]
    try:
        yield found[0], service
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the server does not end"


def observation(step: int, instruction: str = "open the drawer", size: int = 40) -> Observation:
    """Return what a robot sees at a step."""
    generator = np.random.default_rng(step)
    frames = {view: generator.integers(0, 256, (size, size, 3), np.uint8) for view in ("side", "wrist")}
    return Observation(frames=frames, instruction=instruction)


def chunks(config: ServeConfig, steps: list[int]) -> list[np.ndarray]:
    """Return what a session that is alone predicts for these steps, one after the other."""
    engine = PolicyEngine.from_checkpoint(next((Path(config.checkpoint) / "checkpoints").iterdir()), config.engine)
    session = engine.open(config.source)
    return [engine.predict([(session, observation(step))])[0] for step in steps]


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Hold actions against those of a session that is alone."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def client_python() -> str:
    """Return the interpreter that other projects' clients are installed in, or skip."""
    found = os.environ.get("ROBOVLMS_CLIENTS_PYTHON", "")
    if not Path(found).is_file():
        pytest.skip("ROBOVLMS_CLIENTS_PYTHON names no Python with openpi-client and vla-eval: see docs/serving.md")
    return found


def run_client(script: str, *arguments: str) -> str:
    """Run a script with other projects' clients; return what it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        [client_python(), str(Path(__file__).parent / "clients" / script), *arguments],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout

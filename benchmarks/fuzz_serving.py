"""What is fuzzed of the server: a valid message of every protocol, and its way through codec, protocol and policy."""

from __future__ import annotations

import asyncio
import atexit
import io
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from lerobot_messages import RemotePolicyConfig, TimedObservation, of_lerobot
from PIL import Image
from served import SINGLE, config_of, observation

from robovlms.registry import PROTOCOLS
from robovlms.serving.codecs import GROOT, GROOT_ND, OPENPI, VLA_EVAL, WireError
from robovlms.serving.protocols.lerobot import MESSAGES, Robot
from robovlms.serving.server import load_service
from robovlms.serving.service import Service

SEEN = observation(0, size=8)
CAMERAS = {"front": SEEN.frames["side"], "wrist": SEEN.frames["wrist"]}
NAMED = dict(zip(("agentview", "wrist"), SEEN.frames.values(), strict=True))  # as vla-eval does
VIDEO = {name: frame[None, None] for name, frame in zip(("image", "wrist_image"), SEEN.frames.values(), strict=True)}
GROOT_OBSERVATION = {"video": VIDEO, "state": {}, "language": {"task": [[SEEN.instruction]]}}
FEATURES = {f"observation.images.{name}": {"dtype": "image", "shape": [8, 8, 3]} for name in CAMERAS}
FEATURES["observation.state"] = {"dtype": "float32", "shape": [1], "names": ["shoulder.pos"]}
HELLO = VLA_EVAL.pack({"type": "hello", "payload": {"protocol_version": 1}, "seq": 0, "timestamp": 0.0})


def png(frame: np.ndarray) -> dict[str, Any]:
    """Return a picture as vla-eval sends it."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return {"__image__": True, "format": "png", "data": buffer.getvalue(), "shape": list(frame.shape)}


def of_vla_eval(pictures: dict[str, Any], kind: str = "observation", **more: Any) -> bytes:
    """Return a message of vla-eval's."""
    payload = {"images": pictures, "task_description": SEEN.instruction, "states": np.zeros(8)} | more
    return VLA_EVAL.pack({"type": kind, "payload": payload, "seq": 1, "timestamp": 0.5})


OPENPI_MESSAGE = {**SEEN.frames, "prompt": SEEN.instruction, "observation/state": np.zeros(8, np.float32)}
VALID: dict[str, list[bytes]] = {
    "openpi": [
        OPENPI.pack(OPENPI_MESSAGE),
        OPENPI.pack(OPENPI_MESSAGE | {"reset": True, "environment": {"control_hz": 30.0, "views": ["side", "wrist"]}}),
    ],
    "vla_eval": [
        of_vla_eval(NAMED, episode_restart=True),
        of_vla_eval({name: png(frame) for name, frame in NAMED.items()}),
    ],
    "starvla": [
        OPENPI.pack(
            {
                "type": "infer",
                "request_id": "7",
                "payload": {"examples": [{"image": list(CAMERAS.values()), "lang": "open it"}] * 2, "unnorm_key": None},
            }
        )
    ],
    "groot": [
        codec.pack({"endpoint": "get_action", "data": {"observation": GROOT_OBSERVATION, "options": None}})
        for codec in (GROOT, GROOT_ND)
    ],
    "lerobot": [
        *(of_lerobot(TimedObservation({**CAMERAS, "shoulder.pos": 0.5, "task": "open it"}), i) for i in (4, 5)),
        of_lerobot(RemotePolicyConfig(FEATURES)),
    ],
}


class Rig:
    """A service of every protocol with one client, on a loop that runs while a message is answered."""

    def __init__(self) -> None:
        self._loop, self._stack = asyncio.new_event_loop(), AsyncExitStack()
        self._shown: dict[Path, bytes] = {}
        first = load_service(config_of(SINGLE))
        self._answers: dict[str, Callable[[bytes], Awaitable[bytes | str | None]]] = {}
        for name in PROTOCOLS.names():
            service = Service(first.engine, first.spec, config_of(SINGLE, f"protocol={name}"))
            self._loop.run_until_complete(self._stack.enter_async_context(service.running()))
            self._answers[name] = self._way(name, service)
        self._loop.run_until_complete(self._answers["vla_eval"](HELLO))
        atexit.register(lambda: self._loop.run_until_complete(self._stack.aclose()))

    def _way(self, name: str, service: Service) -> Callable[[bytes], Awaitable[bytes | str | None]]:
        protocol: Any = PROTOCOLS.get(name)(service.config.protocol, service)
        if name == "groot":
            return lambda message: protocol.answer(message, b"1")
        client = service.connect("fuzz")
        if name != "lerobot":
            return lambda message: protocol.answer(message, client)
        robot = Robot(client)

        async def answer(message: bytes) -> bytes:
            if b"RemotePolicyConfig" in message:
                await protocol._set_up(MESSAGES["PolicySetup"](data=message), robot)
                return b""

            async def pieces() -> Any:
                yield MESSAGES["Observation"](state=3, data=message)

            await protocol._observe(pieces(), robot)
            return (await protocol._act(None, robot)).data

        self._loop.run_until_complete(answer(VALID["lerobot"][-1]))
        return answer

    def show(self, path: Path) -> None:
        """Have a message answered if it has changed, and then a valid one.

        Raises:
            WireError: it is refused.
            AssertionError: a fault of ours, or the client is not answered any more.
        """
        data, name = path.read_bytes(), path.name.split(".")[0]
        if self._shown.get(path) == data:
            return
        self._shown[path] = data
        try:
            self._refuse(self._loop.run_until_complete(self._answers[name](data)))
        finally:
            try:
                for message in VALID[name][-1:] * (name == "lerobot") + VALID[name][:1]:  # its setup may be another now
                    self._refuse(self._loop.run_until_complete(self._answers[name](message)))
            except WireError as error:
                raise AssertionError("a valid message is refused afterwards") from error

    def _refuse(self, answer: bytes | str | None) -> None:
        text = answer if isinstance(answer, str) else (answer or b"").decode(errors="replace")
        if "internal error" in text:
            raise AssertionError(text)
        if isinstance(answer, str) or "error" in text:
            raise WireError(text)


rig_of = cache(lambda process: Rig())  # a fork has no threads of its parent


def make(names: list[str]) -> Callable[[Path], list[Path]]:
    """Return what writes the valid messages of some protocols."""

    def write(folder: Path) -> list[Path]:
        for name in names:
            for number, message in enumerate(VALID[name]):
                (folder / f"{name}.{number}.message").write_bytes(message)
        return sorted(folder.iterdir())

    return write


def read(folder: Path) -> None:
    """Have every message answered that has changed."""
    refused = []
    for path in sorted(folder.iterdir()):
        try:
            rig_of(os.getpid()).show(path)
        except WireError as error:
            refused.append(error)
    for error in refused:
        raise error


PICKLED = ["lerobot"]
PACKED = [name for name in VALID if name not in PICKLED]

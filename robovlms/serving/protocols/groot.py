"""GR00T's ZMQ: one request and one answer at a time, several robots in a request.

Source: Isaac-GR00T, gr00t/policy/server_client.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zmq
import zmq.asyncio

from robovlms.config.closed_loop import ProtocolConfig
from robovlms.config.commands import is_loopback
from robovlms.errors import UserError
from robovlms.registry import PROTOCOLS
from robovlms.serving.base import Protocol
from robovlms.serving.codecs import BUSY, GROOT, GROOT_ND, WireError
from robovlms.serving.dispatcher import BusyError
from robovlms.serving.service import Client, Service
from robovlms.serving.websocket import pages_beside
from robovlms.types import Observation

NEW_ARRAY = b"\xc4\x02nd"  # in a message with arrays of N1.7
PING = {"status": "ok", "message": "Server is running"}
ENDPOINTS = ("ping", "get_modality_config", "get_action", "reset")  # `kill` is for whoever runs the server
UNAUTHORIZED = "Unauthorized: Invalid API token"
INSTRUCTIONS = ("annotation.human.task_description", "task", "annotation.human.action.task_description")


@dataclass
class Peer:
    """A client by its ZMQ identity, which is all that tells clients apart."""

    client: Client
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    last_seen: float = 0.0


@PROTOCOLS.register("groot")
class GR00T(Protocol):
    """Requests are maps of endpoint, data and api_token; an error is a map of error."""

    def __init__(self, config: ProtocolConfig, service: Service) -> None:
        """Take the options of the protocol's schema and what answers."""
        super().__init__(config, service)
        self._peers: dict[bytes, Peer] = {}

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Serve clients until the block ends."""
        config = self.service.config
        if config.tls_certificate is not None:
            raise UserError("protocol=groot has no TLS: unset tls_certificate and tls_key, and tunnel the port.")
        context = zmq.asyncio.Context()
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.MAXMSGSIZE, int(config.max_message_mb * 2**20))
        socket.setsockopt(zmq.RCVHWM, 4)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.setsockopt(zmq.IPV6, ":" in config.host)
        host = "127.0.0.1" if config.host == "localhost" and is_loopback(config.host) else config.host
        try:
            socket.bind(f"tcp://{f'[{host}]' if ':' in host else host}:{self.port or '*'}")
        except zmq.ZMQError as error:
            context.destroy(linger=0)
            raise OSError(f"host={config.host} port={self.port}: {error}") from error
        tasks = [asyncio.create_task(self._receive(socket)), asyncio.create_task(self._expire())]
        try:
            async with pages_beside(self.service):
                yield socket.getsockopt_string(zmq.LAST_ENDPOINT)
                await self.service.drain()
        finally:
            for task in tasks:
                task.cancel()
            context.destroy(linger=1000)

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        answering = set[asyncio.Task[None]]()
        while True:
            identity, *_, message = await socket.recv_multipart()
            if not self.service.is_ready or len(answering) >= self.service.config.max_waiting:
                error = BusyError(f"{BUSY} (max_waiting), or about to end. Ask again later.")
                text = self.service.refuse(f"groot {identity.hex()}", error)
                await send(socket, identity, GROOT.pack({"error": text}))
                continue
            task = asyncio.create_task(self._respond(socket, identity, message))
            answering.add(task)
            task.add_done_callback(answering.discard)

    async def _respond(self, socket: zmq.asyncio.Socket, identity: bytes, message: bytes) -> None:
        """Answer a message."""
        with self.service.working():
            await send(socket, identity, await self.answer(message, identity))

    async def answer(self, message: bytes, identity: bytes) -> bytes:
        """Return the answer to a message, errors included, with arrays as the message has them."""
        is_new = NEW_ARRAY in message and b"__ndarray_class__" not in message
        codec, name = GROOT_ND if is_new else GROOT, f"groot {identity.hex()}"
        try:
            return codec.pack(await self._answer(await codec.receive(message), identity, name))
        except Exception as error:
            return codec.pack({"error": self.service.refuse(name, error)})

    async def _answer(self, request: Any, identity: bytes, name: str) -> Any:
        if not isinstance(request, dict):
            raise WireError(f"a request must be a map, not {type(request).__name__}.")
        token = request.get("api_token")
        if not self.service.admits(token if isinstance(token, str) else None):
            raise UserError(UNAUTHORIZED)
        endpoint, data = request.get("endpoint", "get_action"), request.get("data") or {}
        if endpoint == "ping":
            return PING
        if endpoint == "get_modality_config":
            return self.modalities()
        if endpoint not in ("get_action", "reset"):
            raise UserError(
                f"Unknown endpoint: {endpoint!r:.100}. There are ping, get_modality_config, get_action, reset."
            )
        if not isinstance(data, dict):
            raise WireError("data must be a map.")
        peer = self._peer(identity, name)
        async with peer.turn:
            if endpoint == "reset":
                peer.client.reset()
                return {}
            return await self._act(data.get("observation"), peer.client)

    def _peer(self, identity: bytes, name: str) -> Peer:
        """Return who asks, with a client of its own from its first request on."""
        if identity not in self._peers:
            self._peers[identity] = Peer(self.service.connect(name))
        peer = self._peers[identity]
        peer.last_seen = asyncio.get_running_loop().time()
        return peer

    async def _expire(self) -> None:
        """Let silent clients go; ZMQ does not tell who has left."""
        patience = self.service.config.idle_timeout_s
        while True:
            await asyncio.sleep(min(patience / 4, 10))
            now = asyncio.get_running_loop().time()
            for identity, peer in list(self._peers.items()):
                if now - peer.last_seen > patience and not peer.turn.locked():
                    del self._peers[identity]
                    peer.client.close()

    def modalities(self) -> dict[str, Any]:
        """Return what the policy sees and says in GR00T's words, and as `PolicySpec`."""
        spec, source = self.service.spec, self.service.source
        keys = {
            "video": [self.config.views.get(view, view).split("|")[0] for view in self.service.views],
            "state": list(source.proprio_names),
            "language": [INSTRUCTIONS[0]],
        }
        found: dict[str, Any] = {name: modality(names, 1) for name, names in keys.items() if names}
        found["action"] = modality(list(self.service.contract.names), self.service.chunk_size)
        return {**found, "policy_spec": spec.to_json()}

    async def _act(self, observation: Any, client: Client) -> list[dict[str, Any]]:
        if not isinstance(observation, dict):
            raise WireError("observation must be a map of video, state and language.")
        actions = np.stack(await client.act(self._rows(observation)))
        return [{name: actions[..., i : i + 1] for i, name in enumerate(self.service.contract.names)}, {}]

    def _rows(self, observation: dict[str, Any]) -> list[Observation]:
        """Return the newest observation of every robot."""
        video = {key: rows_of(value, 5, f"video.{key}") for key, value in nested(observation, "video").items()}
        state = {key: rows_of(value, 3, f"state.{key}") for key, value in nested(observation, "state").items()}
        frames, names = self.frames(video), self.service.source.proprio_names
        if missing := [name for name in names if name not in state]:
            raise WireError(
                f"state has no {', '.join(missing)}: the policy needs {', '.join(names)}, it has {list(state)}."
            )
        if not frames:
            raise WireError(f"video has none of the policy's views, {', '.join(self.service.views)}: {list(video)}.")
        sizes = {len(rows) for rows in (*frames.values(), *(state[name] for name in names))}
        if len(sizes) != 1:
            raise WireError(f"video, state and language must be of as many robots each, not {sorted(sizes)}.")
        texts = instructions(observation, sizes.pop())
        return [
            Observation(
                frames={view: rows[i] for view, rows in frames.items()},
                instruction=text,
                proprio=np.concatenate([state[name][i].reshape(-1) for name in names]) if names else None,
            )
            for i, text in enumerate(texts)
        ]


def nested(observation: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return a group's entries: of a map of its own, or of flat keys as `video.front`."""
    inner = observation.get(group)
    found = dict(inner) if isinstance(inner, dict) else {}
    start = f"{group}."
    flat = {key.removeprefix(start): value for key, value in observation.items() if str(key).startswith(start)}
    return {str(key): value for key, value in (found | flat).items()}


def rows_of(value: Any, num_axes: int, key: str) -> np.ndarray:
    """Return the newest step of every robot, "b ..."; without an axis of robots there is one.

    Raises:
        WireError: it is no array of robots and steps.
    """
    if not isinstance(value, np.ndarray) or value.ndim not in (num_axes, num_axes - 1) or 0 in value.shape:
        raise WireError(f"{key} must be an array of {num_axes} axes: robots, steps, ...")
    return value[:, -1] if value.ndim == num_axes else value[None, -1]


def instructions(observation: Mapping[str, Any], count: int) -> list[Any]:
    """Return the instruction of every robot.

    Raises:
        WireError: there is none, or not one for each.
    """
    language = nested(observation, "language") | {key: observation[key] for key in INSTRUCTIONS if key in observation}
    key = next((key for key in INSTRUCTIONS if key in language), next(iter(language), None))
    if key is None:
        raise WireError(f"the observation has no language: send {INSTRUCTIONS[0]}.")
    texts = language[key]
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or len(texts) != count:
        raise WireError(f"language.{key} must be a list of {count} instructions.")
    return [text[-1] if isinstance(text, list) and text else text for text in texts]


def modality(names: list[str], num_steps: int) -> dict[str, Any]:
    """Return a ModalityConfig."""
    return {
        "__ModalityConfig_class__": True,
        "as_json": {"delta_indices": list(range(num_steps)), "modality_keys": names},
    }


async def send(socket: zmq.asyncio.Socket, identity: bytes, answer: bytes) -> None:
    """Send an answer; whoever asked may be gone."""
    with suppress(zmq.ZMQError):
        await socket.send_multipart([identity, b"", answer])

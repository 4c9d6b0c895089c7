"""lerobot's asynchronous inference: gRPC, in which messages are pickles.

Source: lerobot 0.4.4, src/lerobot/transport/services.proto and src/lerobot/async_inference/{policy_server,helpers}.py.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from robovlms.errors import UserError
from robovlms.registry import PROTOCOLS
from robovlms.serving.base import Protocol
from robovlms.serving.codecs import WireError
from robovlms.serving.dispatcher import Actions, BusyError
from robovlms.serving.pickles import HELPERS, Loaded, load
from robovlms.serving.service import Client
from robovlms.serving.websocket import pages_beside
from robovlms.types import Observation

CAMERA, STATE = "observation.images.", "observation.state"
BEGIN, END = 1, 3  # states of a transfer in pieces
LAYOUT = {"Empty": (), "Observation": ("state", "data"), "Actions": ("data",), "PolicySetup": ("data",)}
END_S = 5.0


class TokenError(UserError):
    """A call without the token, or with a wrong one."""


CODES = {  # the first that an error is one of
    BusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TokenError: grpc.StatusCode.UNAUTHENTICATED,
    UserError: grpc.StatusCode.INVALID_ARGUMENT,
}


class TimedAction:
    """lerobot's, by its name where it is unpickled."""

    def __init__(self, timestamp: float, timestep: int, action: torch.Tensor) -> None:
        self.timestamp, self.timestep, self.action = timestamp, timestep, action


def messages() -> dict[str, Any]:
    """Return the classes of lerobot's protobuf messages."""
    file = descriptor_pb2.FileDescriptorProto(name="robovlms/transport.proto", package="transport", syntax="proto3")
    types = descriptor_pb2.FieldDescriptorProto.TYPE_INT32, descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
    kinds = dict(zip(("state", "data"), types, strict=True))
    for name, entries in LAYOUT.items():
        message = file.message_type.add(name=name)
        for number, entry in enumerate(entries, 1):
            message.field.add(name=entry, number=number, type=kinds[entry], label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"transport.{name}")) for name in LAYOUT}


MESSAGES = messages()


class Robot:
    """A client of lerobot: a connection, its features, and the newest observation that it has not been answered."""

    def __init__(self, client: Client) -> None:
        self.client, self.turn = client, asyncio.Lock()
        self.state_names: list[str] = []
        self.actions_per_chunk: int | None = None
        self.newest: Loaded | None = None
        self.last_seen = time.monotonic()


@PROTOCOLS.register("lerobot")
class LeRobot(Protocol):
    """A robot sends what it sees when it likes; asked for actions, the policy answers to the newest of it."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Serve clients until the block ends."""
        config, self._robots = self.service.config, dict[str, Robot]()
        size = int(config.max_message_mb * 2**20)
        server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size),
                     ("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=config.max_waiting,
        )  # fmt: skip
        server.add_generic_rpc_handlers([self._handlers()])
        address = f"{f'[{config.host}]' if ':' in config.host else config.host}:{self.port}"
        credentials = self._credentials()
        try:
            port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"host={config.host} port={self.port}: {error}") from error
        await server.start()
        expiring = asyncio.create_task(self._expire())
        try:
            async with pages_beside(self.service):
                yield f"grpc://{address.rpartition(':')[0]}:{port}"
                await self.service.drain()
        finally:
            expiring.cancel()
            await server.stop(END_S)

    def _credentials(self) -> grpc.ServerCredentials | None:
        config = self.service.config
        if self.service.tls() is None or config.tls_key is None or config.tls_certificate is None:
            return None
        return grpc.ssl_server_credentials(
            [tuple(Path(name).read_bytes() for name in (config.tls_key, config.tls_certificate))]
        )

    def _handlers(self) -> grpc.GenericRpcHandler:
        calls = {
            "Ready": (grpc.unary_unary_rpc_method_handler, self._ready, "Empty", "Empty"),
            "SendPolicyInstructions": (grpc.unary_unary_rpc_method_handler, self._set_up, "PolicySetup", "Empty"),
            "SendObservations": (grpc.stream_unary_rpc_method_handler, self._observe, "Observation", "Empty"),
            "GetActions": (grpc.unary_unary_rpc_method_handler, self._act, "Empty", "Actions"),
        }
        return grpc.method_handlers_generic_handler(
            "transport.AsyncInference",
            {
                name: make(self._guarded(call), MESSAGES[taken].FromString, MESSAGES[given].SerializeToString)
                for name, (make, call, taken, given) in calls.items()
            },
        )

    def _guarded(self, call: Any) -> Any:
        """Return a call that answers errors in gRPC's form."""

        async def guarded(request: Any, context: Any) -> Any:
            name = context.peer()
            try:
                with self.service.working():
                    self._check_token(context)
                    return await call(request, self._robot(name))
            except Exception as error:
                code = next((each for kind, each in CODES.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
                await context.abort(code, self.service.refuse(name, error))

        return guarded

    def _check_token(self, context: Any) -> None:
        said = dict(context.invocation_metadata() or ()).get("authorization", "")
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        if not self.service.admits(text.removeprefix("Bearer ").strip()):
            raise TokenError("a token is needed in the metadata: authorization: Bearer <token>.")

    def _robot(self, name: str) -> Robot:
        if name not in self._robots:
            self._robots[name] = Robot(self.service.connect(name))
        robot = self._robots[name]
        robot.last_seen = time.monotonic()
        return robot

    async def _expire(self) -> None:
        """Let silent robots go; a handler is not told who has left."""
        patience = self.service.config.idle_timeout_s
        while True:
            await asyncio.sleep(min(patience / 4, 10))
            for name, robot in list(self._robots.items()):
                if time.monotonic() - robot.last_seen > patience and not robot.turn.locked():
                    del self._robots[name]
                    robot.client.close()

    async def _ready(self, _: Any, robot: Robot) -> Any:
        """Begin an episode."""
        async with robot.turn:
            robot.client.reset()
            robot.newest = None
        return MESSAGES["Empty"]()

    async def _set_up(self, request: Any, robot: Robot) -> Any:
        """Hold a robot's features against the policy."""
        setup = await asyncio.to_thread(load, request.data)
        if setup.kind != "RemotePolicyConfig":
            raise WireError(f"SendPolicyInstructions takes a RemotePolicyConfig, not a {setup.kind}.")
        features, count = setup.fields.get("lerobot_features"), setup.fields.get("actions_per_chunk")
        if not isinstance(features, dict) or type(count) is not int or count < 1:
            raise WireError("RemotePolicyConfig needs lerobot_features, a map, and actions_per_chunk of at least 1.")
        cameras = {str(key).removeprefix(CAMERA): None for key in features if str(key).startswith(CAMERA)}
        state = features.get(STATE)
        names = state.get("names") if isinstance(state, dict) else None
        robot.state_names = [str(name) for name in names] if isinstance(names, list) else []
        robot.client.declare({"views": list(self.frames(cameras)) if cameras else []})
        needed = self.config.proprio_names or self.service.source.proprio_names
        if self.service.source.proprio_names and len(robot.state_names) != len(needed):
            raise UserError(
                f"the policy needs proprioception of {', '.join(needed)}; {robot.client.name} has "
                f"{', '.join(robot.state_names) or 'none'}: say in protocol.proprio_names what these are, in order."
            )
        robot.actions_per_chunk = count
        return MESSAGES["Empty"]()

    async def _observe(self, pieces: AsyncIterator[Any], robot: Robot) -> Any:
        """Take an observation; it replaces one that is not answered yet."""
        limit, data = int(self.service.config.max_message_mb * 2**20), bytearray()
        async for piece in pieces:
            if piece.state == BEGIN:
                data.clear()
            data += piece.data
            if len(data) > limit:
                raise WireError(f"an observation is larger than max_message_mb={self.service.config.max_message_mb:g}.")
            if piece.state == END:
                break
        found = await asyncio.to_thread(load, bytes(data))
        if found.kind != "TimedObservation":
            raise WireError(f"SendObservations takes a TimedObservation, not a {found.kind}.")
        robot.newest = found
        return MESSAGES["Empty"]()

    async def _act(self, _: Any, robot: Robot) -> Any:
        """Return the chunk for the newest observation; nothing where there is no new one."""
        async with robot.turn:
            found, robot.newest = robot.newest, None
            if robot.actions_per_chunk is None:
                raise UserError("no SendPolicyInstructions has come: its lerobot_features are needed.")
            if found is None:
                return MESSAGES["Actions"]()
            (actions,) = await robot.client.act([self._read(found, robot)])
        timestamp, timestep = found.fields.get("timestamp"), found.fields.get("timestep")
        if not isinstance(timestamp, float | int) or type(timestep) is not int:
            raise WireError("a TimedObservation needs timestamp and timestep.")
        period = 1 / self.service.contract.control_hz
        return MESSAGES["Actions"](data=dump(actions[: robot.actions_per_chunk], timestamp, timestep, period))

    def _read(self, found: Loaded, robot: Robot) -> Observation:
        seen = found.fields.get("observation")
        if not isinstance(seen, dict):
            raise WireError("a TimedObservation needs an observation, a map.")
        if missing := [name for name in robot.state_names if name not in seen]:
            raise WireError(f"the observation has no {', '.join(missing)}, which lerobot_features names.")
        needs = self.service.source.proprio_names
        proprio = [seen[name] for name in robot.state_names] if needs else None
        return Observation(frames=self.frames(seen), instruction=seen.get("task"), proprio=proprio)


def dump(actions: Actions, timestamp: float | int, timestep: int, period: float) -> bytes:
    """Return actions as lerobot unpickles them: a list of its TimedAction, with tensors.

    Its class is not installed here. Protocol 2 names classes as plain lines, so that ours is renamed in place.
    """
    chunk = [
        TimedAction(timestamp + i * period, timestep + i, torch.from_numpy(action.copy()))
        for i, action in enumerate(actions)
    ]
    ours, theirs = f"c{TimedAction.__module__}\nTimedAction\n", f"c{HELPERS}\nTimedAction\n"
    return pickle.dumps(chunk, protocol=2).replace(ours.encode(), theirs.encode())

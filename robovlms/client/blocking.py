"""A policy on a server, asked by a robot that waits for the answers."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from robovlms.errors import UserError
from robovlms.serving.codecs import BUSY, OPENPI, WireError

MAX_ANSWER_BYTES = 2**26
CLOSE_S = 1.0  # that a server may take to say goodbye


class RefusedError(UserError):
    """What the server has against a client or an observation, in its words; the connection stays."""


class BusyError(RefusedError):
    """The server has as much to do as it takes: the same may be asked again later."""


class PolicyClient:
    """A session of a policy that `robovlms-serve` serves with `protocol=openpi`; a context manager.

    Example:
        with PolicyClient("ws://gpu:8000", environment={"control_hz": 20, "views": ["side", "wrist"]}) as policy:
            chunk = policy.act({"side": frame, "wrist": other, "instruction": "open the drawer"})
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        environment: Mapping[str, Any] | None = None,
        timeout_s: float = 30.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Connect.

        Args:
            address: ws://host:port, or wss:// with TLS.
            token: that the server demands.
            environment: what the robot is: fields of an action contract as far as they are known (`control_hz`,
                `rotation`, ...), `views` and `proprio_names`. A policy that means something else is refused. With
                `may_be_silent` an empty instruction is meant so, and is not refused.
            timeout_s: that connecting and every answer may take.
            tls: of wss://; None: what the system trusts.

        Raises:
            ConnectionError: nobody listens there, or the token is not the right one.
            RefusedError: the policy does not fit `environment`; lists both sides.
            BusyError: there are too many clients.
        """
        headers = {"Authorization": f"Bearer {token}"} if token else None
        self.address, self._timeout_s = address, timeout_s
        try:
            self._socket: ClientConnection = connect(
                address,
                additional_headers=headers,
                compression=None,
                max_size=MAX_ANSWER_BYTES,
                open_timeout=timeout_s,
                close_timeout=CLOSE_S,
                ssl=tls,
            )
        except (OSError, InvalidHandshake) as error:
            why = f" ({error.__cause__})" if error.__cause__ else ""
            raise ConnectionError(f"{address}: {error}{why}") from error
        give_up_sending(self._socket.socket, timeout_s)
        try:
            self.metadata = self._receive()
            if environment is not None:
                self._ask({"environment": dict(environment)})
        except (RefusedError, ConnectionError):
            self.close()
            raise

    @property
    def spec(self) -> dict[str, Any]:
        """What the policy sees, says and how often: its `spec.json`."""
        return dict(self.metadata["policy_spec"])

    @property
    def chunk_size(self) -> int:
        """Actions in an answer."""
        return int(self.metadata["chunk_size"])

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return a chunk of actions, "k a", in the units and at the rate of `metadata["action"]`.

        Args:
            observation: a picture, uint8 "h x 3", by our name of every view; `instruction`; `proprio`, where the policy
                needs it.

        Raises:
            RefusedError: the observation is not what the policy needs. BusyError: the server has too much to do.
            ConnectionError: the server is gone.
            TimeoutError: no answer within `timeout_s`; the connection is closed, for the next answer would be to this
                observation.
        """
        return np.asarray(self._ask(observation)["actions"])

    def reset(self) -> None:
        """Begin another episode."""
        self._ask({"reset": True})

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, values: Mapping[str, Any]) -> dict[str, Any]:
        self.send(values)
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        try:
            return self.receive(self._timeout_s)
        except TimeoutError:
            self.close()
            raise

    def send(self, values: Mapping[str, Any]) -> None:
        """Send a message whose answer `receive` returns.

        Raises:
            ConnectionError: the server is gone.
        """
        try:
            self._socket.send(OPENPI.pack(dict(values)))
        except ConnectionClosed as error:
            raise ConnectionError(f"{self.address}: the connection is closed: {error}") from error

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Return the next message of the server, which may be the answer to an earlier one than the last.

        Raises:
            RefusedError: it is an error's text.
            ConnectionError: the server is gone, or does not speak openpi's protocol.
            TimeoutError: there is none within `timeout_s`.
        """
        try:
            answer = self._socket.recv(timeout=timeout_s)
        except TimeoutError as error:
            raise TimeoutError(f"{self.address} gave no answer within {timeout_s:g} s.") from error
        except ConnectionClosed as error:
            raise ConnectionError(f"{self.address}: the connection is closed: {error}") from error
        if isinstance(answer, str):
            raise (BusyError if answer.startswith(BUSY) else RefusedError)(answer)
        try:
            found = OPENPI.unpack(answer)
        except WireError as error:
            raise ConnectionError(f"{self.address} does not speak openpi's protocol: {error}") from error
        if not isinstance(found, dict):
            raise ConnectionError(f"{self.address} does not speak openpi's protocol.")
        return found


def give_up_sending(connection: socket.socket, timeout_s: float) -> None:
    """Let what is sent fail where the other side takes nothing for so long, as a robot out of reach does not."""
    seconds, rest = divmod(timeout_s, 1)
    limit = struct.pack("@ll", int(seconds), int(1e6 * rest))
    with suppress(OSError):  # closed already, by a server that is busy: what it said is still there to be read
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

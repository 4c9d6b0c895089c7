"""openpi's websocket: a client sends an observation and gets a chunk of actions.

Source: openpi, packages/openpi-client/src/openpi_client/websocket_client_policy.py and
src/openpi/serving/websocket_policy_server.py.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from robovlms import __version__
from robovlms.policy.engine import device_name
from robovlms.registry import PROTOCOLS
from robovlms.serving.codecs import OPENPI, WireError, numbers_of
from robovlms.serving.dispatcher import BusyError
from robovlms.serving.schemas.openpi import OpenPIConfig
from robovlms.serving.service import ANSWERED, Client
from robovlms.serving.websocket import WebSocketProtocol
from robovlms.types import ActionPrefix, Observation

RESET, ENVIRONMENT, REQUEST = "reset", "environment", "request"  # ours: openpi's clients have no words for them
PROPRIO, INSTRUCTION = "proprio", "instruction"  # our own names, beside those of views


@PROTOCOLS.register("openpi")
class OpenPI(WebSocketProtocol):
    """Messages are maps from names to arrays; an error is a text, after which the connection stays.

    A map may also say `reset: true`, before the first observation of an episode, and `environment: {...}`, which is
    held against the policy; a map of these alone gets the metadata. For clients that do not wait there is
    `request: {number, prefix, delay, earlier}`: the answer, also an error, is then a map with this number; `prefix` and
    `delay` are those of an `ActionPrefix`, `earlier` is a list of observations before this one.
    """

    config: OpenPIConfig

    def greeting(self) -> bytes:
        """Return the metadata, with the `PolicySpec`."""
        return OPENPI.pack(self.metadata())

    def metadata(self) -> dict[str, Any]:
        """Return what a client is told."""
        return {
            "policy_spec": self.service.spec.to_json(),
            "action": asdict(self.service.contract),
            "keys": {"views": self.config.views, PROPRIO: self.config.proprio, INSTRUCTION: self.config.instruction},
            "chunk_size": self.service.chunk_size,
            "server": self.identity(),
            "joins": self.service.joins,
            "max_message_mb": self.service.config.max_message_mb,
        }

    def identity(self) -> dict[str, Any]:
        """Return who answers and how, for clients that write down what they were played by."""
        service, engine = self.service, self.service.engine
        return {
            "checkpoint_digest": service.digest,
            "source": service.config.source or next(iter(service.spec.sources)),
            "views": service.views,
            "proprio_names": self.config.proprio_names or service.source.proprio_names,
            "execution": service.execution,
            "execute_steps": service.config.execute_steps,
            "device": device_name(engine.device),
            "dtype": str(engine.dtype).removeprefix("torch."),
            "versions": {"robovlms": __version__, "torch": torch.__version__},
        }

    async def answer(self, message: bytes, client: Client) -> bytes | str:
        """Return actions, or an error's text."""
        started, number = time.perf_counter(), None
        try:
            values = await OPENPI.receive(message)
            if not isinstance(values, dict):
                raise WireError(f"an observation must be a map, not {type(values).__name__}.")
            number = request_number(values)
            if ENVIRONMENT in values:
                client.declare(values[ENVIRONMENT])
            if values.get(RESET) is True:
                client.reset()
            if values.keys() <= {ENVIRONMENT, RESET}:
                return self.greeting()
            (actions,) = await client.act([self.read(values)])
        except ANSWERED as error:
            text = self.service.refuse(client.name, error)
            if number is None:
                return self.error(text)
            return OPENPI.pack({"number": number, "error": text, "is_busy": isinstance(error, BusyError)})
        spent = {"infer_ms": 1000 * (time.perf_counter() - started)}
        answer = {"actions": actions, "policy_timing": spent, "server_timing": spent}
        return OPENPI.pack(answer if number is None else {"number": number, **answer})

    def error(self, text: str) -> str:
        """Return an error: a text."""
        return text

    def read(self, values: dict[Any, Any]) -> Observation:
        """Return an observation from a message.

        Raises:
            WireError: proprioception is not what it should be; names the key. Or `request` is not.
        """
        request = values.get(REQUEST) or {}
        earlier = request.get("earlier", [])
        if not isinstance(earlier, list) or not all(isinstance(each, dict) for each in earlier):
            raise WireError("request.earlier must be a list of observations.")
        prefix = ActionPrefix(actions=request["prefix"], delay=request.get("delay", 0)) if "prefix" in request else None
        return replace(self._observation(values), earlier=list(map(self._observation, earlier)), prefix=prefix)

    def _observation(self, values: dict[Any, Any]) -> Observation:
        return Observation(
            frames=self.frames(values),
            instruction=values.get(self.config.instruction, values.get(INSTRUCTION)),
            proprio=self._proprio(values),
        )

    def _proprio(self, values: dict[Any, Any]) -> Any:
        keys = self.config.proprio
        if not keys or not self.service.source.proprio_names or not all(key in values for key in keys):
            return values.get(PROPRIO)
        return np.concatenate([numbers_of(values[key], key) for key in keys])


def request_number(values: dict[Any, Any]) -> int | None:
    """Return the number that a client gives its request; None: it gives none.

    Raises:
        WireError: it is none.
    """
    request = values.get(REQUEST)
    if request is None:
        return None
    if not isinstance(request, dict) or type(request.get("number")) is not int:
        raise WireError("request must be a map with a number.")
    return int(request["number"])

"""The websocket of starVLA and LoongForge: requests in an envelope, a row of a batch for every example.

Source: starVLA, deployment/model_server/tools/websocket_policy_server.py and policy_wrapper.py; LoongForge adds
`protocol_version`. Arrays are openpi's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from robovlms.errors import UserError
from robovlms.registry import PROTOCOLS
from robovlms.serving.codecs import OPENPI, WireError
from robovlms.serving.service import ANSWERED, Client
from robovlms.serving.websocket import WebSocketProtocol
from robovlms.types import Observation

VERSION = "1.0"  # LoongForge's
INFER = ("infer", "predict_action")


@PROTOCOLS.register("starvla")
class StarVLA(WebSocketProtocol):
    """A request has type, request_id and payload, or its payload's entries beside these; so has an answer."""

    def greeting(self) -> bytes:
        """Return the metadata, with the `PolicySpec`."""
        spec, source = self.service.spec, self.service.source
        return OPENPI.pack(
            {
                "env": "robovlms",
                "protocol_version": VERSION,
                "policy_spec": spec.to_json(),
                "action_chunk_size": self.service.chunk_size,
                "available_unnorm_keys": list(spec.sources),
                "default_unnorm_key": self.source_name,
                "action_keys": list(source.contract.names),
                "state_keys": list(source.proprio_names),
                "training_obs_image_size": [next(iter(spec.views.values()))] * 2,
                "model_action_dim": len(source.contract.names),
                "model_state_dim": len(source.proprio_names),
            }
        )

    @property
    def source_name(self) -> str:
        """The source whose actions are given."""
        return self.service.config.source or next(iter(self.service.spec.sources))

    async def answer(self, message: bytes, client: Client) -> bytes:
        """Return what a request asks for, or an error in its envelope."""
        kind, request_id = "unknown", "default"
        try:
            values = await OPENPI.receive(message)
            if not isinstance(values, dict):
                raise WireError(f"a request must be a map, not {type(values).__name__}.")
            kind, request_id = values.get("type", "infer"), values.get("request_id", request_id)
            if kind == "ping":
                return reply(kind, request_id, ok=True)
            if kind == "reset":
                client.reset()
                return reply(kind, request_id, ok=True)
            if kind not in INFER:
                raise WireError(f"type {kind!r:.100} is none of ping, reset, infer.")
            data = {"actions": await self._infer(values.get("payload", values), client)}
        except ANSWERED as error:
            text = self.service.refuse(client.name, error)
            return reply(kind if isinstance(kind, str) else "unknown", request_id, ok=False, error=text)
        return reply("inference_result", request_id, ok=True, data=data)

    def error(self, text: str) -> bytes:
        """Return an error that belongs to no request."""
        return reply("unknown", "default", ok=False, error=text)

    async def _infer(self, payload: Any, client: Client) -> np.ndarray:
        examples = payload.get("examples") if isinstance(payload, dict) else None
        if not isinstance(examples, list) or not examples or not all(isinstance(each, dict) for each in examples):
            raise WireError("examples must be a list of maps of image, lang and state, one a robot.")
        key = payload.get("unnorm_key")
        if key not in (None, self.source_name):
            raise UserError(f"unnorm_key={key!r:.100}: this server gives actions of source={self.source_name}.")
        return np.stack(await client.act([self._read(each) for each in examples]))

    def _read(self, example: dict[Any, Any]) -> Observation:
        pictures = example.get("image")
        if not isinstance(pictures, list):
            pictures = [pictures]
        frames = self.frames({str(number): picture for number, picture in enumerate(pictures)})
        return Observation(frames=frames, instruction=example.get("lang"), proprio=example.get("state"))


def reply(kind: str, request_id: Any, *, ok: bool, data: Any = None, error: str | None = None) -> bytes:
    """Return an answer in its envelope."""
    envelope: dict[str, Any] = {"status": "ok" if ok else "error", "ok": ok, "type": kind, "request_id": request_id}
    if data is not None:
        envelope["data"] = data
    if error is not None:
        envelope["error"] = {"message": error}
    return OPENPI.pack(envelope)

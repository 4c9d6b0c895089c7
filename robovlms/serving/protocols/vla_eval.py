"""vla-eval's websocket: hello, then episodes of observations, each answered by one action.

Source: vla-eval 0.8.0, vla_eval/protocol/messages.py, vla_eval/model_servers/serve.py and vla_eval/specs.py; protocol
version 1.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from robovlms import __version__
from robovlms.actions.contract import ROTATION_NAMES, arms, position_entries
from robovlms.config.choices import Representation, Rotation
from robovlms.config.data import ActionContract
from robovlms.errors import UserError
from robovlms.registry import PROTOCOLS
from robovlms.serving.codecs import VLA_EVAL, WireError
from robovlms.serving.service import ANSWERED, Client
from robovlms.serving.websocket import Pages, WebSocketProtocol
from robovlms.types import Observation

VERSION = 1
ROTATIONS = {
    Rotation.euler: "euler_xyz",
    Rotation.euler_increment: "euler_xyz",
    Rotation.axis_angle: "axis_angle",
    Rotation.quaternion: "quaternion_xyzw",
    Rotation.rotation_6d: "rot6d_columns",  # vla-eval's own is interleaved
}
GRIPPERS = {  # (closed, open)
    (1.0, -1.0): "binary_close_positive",
    (-1.0, 1.0): "binary_close_negative",
    (1.0, 0.0): "binary_close_01",
}
STATES = {
    ("x", "y", "z", "rx", "ry", "rz"): "eef_pos3_axisangle3_gripper2",
    ("x", "y", "z", "roll", "pitch", "yaw"): "eef_pos3_euler3_gripper2",
    ("x", "y", "z", "qx", "qy", "qz", "qw"): "eef_pos3_quat4_gripper1",
}

log = logging.getLogger(__name__)


@PROTOCOLS.register("vla_eval")
class VLAEval(WebSocketProtocol):
    """Messages are maps of type, payload, seq and timestamp; an error has the type error and the seq of its cause."""

    def greeting(self) -> None:
        """Return nothing: the client says hello first."""

    def pages(self) -> Pages:
        """Return what is served over HTTP, with the harness's own page."""
        pages = super().pages()
        pages.texts["/config"] = self._batching
        return pages

    def _batching(self) -> str:
        engine = self.service.config.engine
        config = {"max_batch_size": engine.max_batch_size, "max_wait_time": engine.max_wait_ms / 1000}
        return json.dumps({"applied": {}, "config": config}) + "\n"

    async def answer(self, message: bytes, client: Client) -> bytes | None:
        """Return hello, an action or an error; None: the message has no answer."""
        kind, seq = "message", 0
        try:
            values = await VLA_EVAL.receive(message)
            kind, payload, seq = envelope(values)
            if kind == "hello":
                return pack("hello", self._hello(payload, client), seq)
            if not client.has_greeted:
                raise UserError("say hello first")
            if kind == "observation":
                return pack("action", await self._act(payload, client), seq)
            if kind in ("episode_start", "episode_end"):
                client.reset()
            elif kind == "error":
                log.warning("%s: %.500s", client.name, payload)
            else:
                raise WireError(f"the type {kind!r:.100} does not exist")
        except ANSWERED as error:
            text = self.service.refuse(client.name, error)
            return pack("error", {"error": f"{kind}_failed: {type(error).__name__}: {text}"[:2000]}, seq)
        return None

    def error(self, text: str) -> bytes:
        """Return an error that belongs to no message."""
        return pack("error", {"error": text}, 0)

    def _hello(self, payload: dict[str, Any], client: Client) -> dict[str, Any]:
        """Return what the policy sees and says, in vla-eval's words and as `PolicySpec`."""
        if client.has_greeted:
            raise UserError("this connection has said hello already")
        if payload.get("protocol_version") != VERSION:
            raise UserError(f"protocol version {payload.get('protocol_version')!r:.50}, the server speaks {VERSION}")
        client.has_greeted = True
        service = self.service
        needs_state = bool(service.source.proprio_names)
        return {
            "harness_version": f"robovlms {__version__}",
            "protocol_version": VERSION,
            "model_server": "robovlms",
            "capabilities": {"policy_spec": service.spec.to_json()},
            "observation_params": {
                "send_wrist_image": len(service.views) > 1,
                "send_state": needs_state,
                "absolute_action": service.contract.representation is Representation.absolute,
            },
            "action_spec": action_spec(service.contract),
            "observation_spec": observation_spec(service.source.proprio_names),
        }

    async def _act(self, payload: dict[str, Any], client: Client) -> dict[str, Any]:
        if payload.get("episode_restart"):  # CALVIN: another instruction of the same scene
            client.reset()
        pictures = payload.get("images")
        if not isinstance(pictures, dict):
            raise WireError("an observation needs images, a map of cameras.")
        (actions,) = await client.act(
            [
                Observation(
                    frames=self.frames(pictures),
                    instruction=payload.get("task_description"),
                    proprio=payload.get("states", payload.get("state")),
                )
            ]
        )
        return {"actions": actions[0]}


def envelope(values: Any) -> tuple[str, dict[str, Any], int]:
    """Return type, payload and seq of a message.

    Raises:
        WireError: it is none.
    """
    if not isinstance(values, dict) or not isinstance(values.get("payload"), dict):
        raise WireError("a message must be a map of type, payload, seq and timestamp")
    kind, seq = values.get("type"), values.get("seq")
    if not isinstance(kind, str) or type(seq) is not int:
        raise WireError("a message must have a type, which is text, and a seq, which is a whole number")
    return kind, values["payload"], seq


def pack(kind: str, payload: dict[str, Any], seq: int) -> bytes:
    """Return a message."""
    return VLA_EVAL.pack({"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()})


def action_spec(contract: ActionContract) -> dict[str, Any]:
    """Return an action contract in vla-eval's words, as far as it has them: for one arm, its gripper last."""
    found: dict[str, Any] = {}
    if len(arms(contract.names)) > 1 or contract.grippers not in ([], [len(contract.names) - 1]):
        return {"action": {"name": "raw", "dims": len(contract.names), "format": "raw"}}
    if position_entries(contract.names):
        found["position"] = {"name": "position", "dims": 3, "format": f"{contract.representation}_xyz"}
    if contract.rotation in ROTATIONS:
        dims = len(ROTATION_NAMES[contract.rotation])
        found["rotation"] = {"name": "rotation", "dims": dims, "format": ROTATIONS[contract.rotation]}
    if contract.grippers:
        words = GRIPPERS.get((contract.gripper_closed, contract.gripper_open), "raw") if contract.binary else "raw"
        found["gripper"] = {"name": "gripper", "dims": 1, "format": words}
    return found or {"action": {"name": "raw", "dims": len(contract.names), "format": "raw"}}


def observation_spec(proprio_names: list[str]) -> dict[str, Any]:
    """Return what the policy reads in vla-eval's words."""
    found = {
        "image": {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"},
        "language": {"name": "language", "dims": 0, "format": "language"},
    }
    if proprio_names:
        words = next((form for start, form in STATES.items() if tuple(proprio_names[: len(start)]) == start), "raw")
        found["state"] = {"name": "state", "dims": len(proprio_names), "format": words}
    return found

"""The contract of a wire protocol: one class, registered under its option's name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from robovlms.config.closed_loop import ProtocolConfig
from robovlms.config.commands import ServeConfig
from robovlms.serving.service import Service


class Protocol(ABC):
    """How one kind of client asks a service for actions.

    What reaches the policy is an `Observation` with our names of views; where a protocol has a handshake, it carries
    the `PolicySpec`. Whatever a client gets wrong is answered in the protocol's own form, and logged.
    """

    def __init__(self, config: ProtocolConfig, service: Service) -> None:
        """Take the options of the protocol's schema and what answers."""
        self.config, self.service = config, service

    @property
    def port(self) -> int:
        """Where to listen."""
        server: ServeConfig = self.service.config
        return self.config.port if server.port is None else server.port

    def frames(self, pictures: Mapping[Any, Any]) -> dict[str, Any]:
        """Return by our names the pictures that a client sends under its own or ours."""
        found = {}
        for view in self.service.spec.views:
            names = [*self.config.views.get(view, view).split("|"), view]
            if name := next((each for each in names if each in pictures), None):
                found[view] = pictures[name]
        return found

    @abstractmethod
    def listening(self) -> AbstractAsyncContextManager[str]:
        """Serve clients until the block ends; the value is the address, e.g. ws://127.0.0.1:8000."""

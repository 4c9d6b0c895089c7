"""Protocols over a websocket, and the pages about the server on the same port."""

from __future__ import annotations

import asyncio
import json
import logging
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from robovlms.config.commands import ServeConfig
from robovlms.serving.base import Protocol
from robovlms.serving.dispatcher import BusyError
from robovlms.serving.service import Client, Service

AWAY, POLICY, INTERNAL_ERROR, TRY_AGAIN = 1001, 1008, 1011, 1013  # RFC 6455, section 7.4.1, and its registry
OPEN_PAGES = ("/healthz", "/health")  # also without a token
SCHEMES = ("Bearer ", "Api-Key ")  # of the header Authorization

log = logging.getLogger(__name__)
quiet = logging.getLogger(f"{__name__}.handshakes")  # tells with a traceback of whoever does not speak HTTP
quiet.setLevel(logging.CRITICAL)


@asynccontextmanager
async def pages_beside(service: Service) -> AsyncIterator[None]:
    """Serve the pages on a port of their own, `status_port`, until the block ends; nothing where it is unset."""
    config: ServeConfig = service.config
    if config.status_port is None:
        yield
        return
    pages = Pages(service)

    async def refuse(connection: ServerConnection) -> None:
        await connection.close(POLICY, "pages only")

    async with serve(
        refuse, config.host, config.status_port, ssl=service.tls(), process_request=pages.answer
    ) as server:
        log.info("pages: port %d", server.sockets[0].getsockname()[1])
        yield


class Pages:
    """What is served over HTTP: how the server is, to everybody; the rest to those who present the token."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.texts: dict[str, Callable[[], str]] = {
            "/spec": lambda: json.dumps(service.spec.to_json()) + "\n",
            "/metrics": service.metrics.text,
        }

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a request for a page, or for a connection without the token; None: it may become a connection."""
        place = urlsplit(request.path)
        if place.path in OPEN_PAGES:
            is_ready = self._service.is_ready
            text = '{"status": "ok"}\n' if place.path == "/health" else "OK\n"
            status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
            return connection.respond(status, text if is_ready else "not ready\n")
        if not self._service.admits(token_of(request, place.query)):
            log.warning("%s presents no token, or a wrong one", name_of(connection))
            return connection.respond(HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Bearer <token>\n")
        page = self.texts.get(place.path)
        return connection.respond(HTTPStatus.OK, page()) if page is not None else None


class WebSocketProtocol(Protocol):
    """A client is a connection; it sends one message after the other, and each is answered before the next is read."""

    @abstractmethod
    def greeting(self) -> bytes | None:
        """Return what a client is sent when it connects; None: nothing."""

    @abstractmethod
    async def answer(self, message: bytes, client: Client) -> bytes | str | None:
        """Return the answer to a message, errors of the client's included; None: there is none."""

    @abstractmethod
    def error(self, text: str) -> bytes | str:
        """Return an error that belongs to no message, as a client is sent it before its connection ends."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Serve clients until the block ends."""
        config = self.service.config
        tls = self.service.tls()
        async with serve(
            self._handle,
            config.host,
            self.port,
            ssl=tls,
            compression=None,
            max_size=int(config.max_message_mb * 2**20),
            max_queue=1,  # messages of one client that are read ahead
            origins=[None],  # browsers say where a page is from; no page is to steer a robot
            ping_interval=None,  # clients that wait for a slow simulator do not answer
            process_request=self.pages().answer,
            server_header=None,
            logger=quiet,
        ) as server:
            host, port = server.sockets[0].getsockname()[:2]
            yield f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"
            await self.service.drain()

    def pages(self) -> Pages:
        """Return what is served over HTTP on the same port."""
        return Pages(self.service)

    async def _handle(self, connection: ServerConnection) -> None:
        """Serve one client from its first message to its last."""
        name = name_of(connection)
        try:
            client = self.service.connect(name)
        except BusyError as error:
            await connection.send(self.error(self.service.refuse(name, error)))
            await connection.close(TRY_AGAIN, "busy")
            return
        try:
            await self._converse(connection, client)
        except ConnectionClosed as closed:
            if closed.sent is not None and closed.sent.code not in (1000, AWAY):
                log.warning("%s is disconnected: %s", name, closed.sent)
        except TimeoutError:
            log.info("%s is silent, or does not listen, for %g s", name, self.service.config.idle_timeout_s)
            await connection.close(AWAY, "idle")
        except Exception as error:
            await connection.send(self.error(self.service.refuse(name, error)))
            await connection.close(INTERNAL_ERROR, "internal error")
        finally:
            client.close()

    async def _converse(self, connection: ServerConnection, client: Client) -> None:
        patience = self.service.config.idle_timeout_s
        if (greeting := self.greeting()) is not None:
            await connection.send(greeting)
        while True:
            async with asyncio.timeout(patience):
                message = await connection.recv(decode=False)
            if not self.service.is_ready:  # it would not be answered before the connection ends
                await connection.close(AWAY, "the server ends")
                return
            with self.service.working():
                answer = await self.answer(bytes(message), client)
                if answer is not None:
                    async with asyncio.timeout(patience):
                        await connection.send(answer)


def name_of(connection: ServerConnection) -> str:
    """Return what a client is called in the log."""
    host, port = (*(connection.remote_address or ()), "client", "")[:2]
    return f"{host}:{port}"


def token_of(request: Request, query: str) -> str | None:
    """Return the token of a request: of its header Authorization, or `?token=` for clients that set no headers."""
    header = request.headers.get("Authorization", "")
    for scheme in SCHEMES:
        if header.startswith(scheme):
            return header.removeprefix(scheme).strip()
    return parse_qs(query).get("token", [None])[0]

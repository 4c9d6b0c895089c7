"""What every protocol has in common: the policy, its clients, and who may be one."""

from __future__ import annotations

import asyncio
import hmac
import logging
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from robovlms.actions.contract import check_contract, write_grippers
from robovlms.config.choices import CompileMode, Execution
from robovlms.config.commands import ServeConfig
from robovlms.config.data import ActionContract
from robovlms.errors import UserError
from robovlms.policy.engine import PolicyEngine, unwrap
from robovlms.policy.observations import read_prefix
from robovlms.policy.sessions import Session
from robovlms.policy.spec import PolicySpec, check_observations, read_contract
from robovlms.serving.checks import check_client, check_instruction
from robovlms.serving.codecs import BUSY, numbers_of
from robovlms.serving.dispatcher import Actions, BusyError, Dispatcher, Request
from robovlms.serving.metrics import Metrics
from robovlms.serving.sparing import SparingLog
from robovlms.types import ActionPrefix, Observation

DRAIN_S = 10.0  # that requests under way may take when the server ends
WARM_UP = "warm up"  # an instruction
ANSWERED = (UserError, FloatingPointError)  # errors after which a client's sessions are as they were

log = logging.getLogger(__name__)


class Service:
    """One policy, its clients and its state; protocols open a `Client` for everybody who connects."""

    def __init__(self, engine: PolicyEngine, spec: PolicySpec, config: ServeConfig, digest: str | None = None) -> None:
        """Take a policy.

        Args:
            engine: that answers.
            spec: of its policy.
            config: of the server.
            digest: of the checkpoint; None: it is of none.

        Raises:
            UserError: `source` or `execution` does not fit it, or its clients show less than it needs.
        """
        self.engine, self.spec, self.config, self.digest = engine, spec, config, digest
        self.source, self.metrics = spec.find(config.source), Metrics()
        self.contract = replace(  # of the actions that clients get
            self.source.contract,
            gripper_closed=config.protocol.gripper_closed,
            gripper_open=config.protocol.gripper_open,
        )
        self.execution = config.execution or (None if config.protocol.takes_chunks else Execution.chunk)
        self.is_ready = False
        self._clients: set[Client] = set()
        self._num_working = 0
        self.dispatcher = Dispatcher(
            self._predict if self.execution is None else self._step,
            self.metrics,
            max_batch_size=config.engine.max_batch_size,
            max_wait_ms=config.engine.max_wait_ms,
            max_waiting=config.max_waiting,
        )
        self._refusals = SparingLog(log)
        self.metrics.watch("robovlms_clients", lambda: len(self._clients))
        self.metrics.watch("robovlms_sessions", lambda: self.num_sessions)
        self.metrics.watch("robovlms_requests_waiting", lambda: self.dispatcher.num_waiting)
        self.open_session = partial(self.engine.open, config.source)
        if self.execution is not None:
            self.open_session = partial(self.open_session, execution=self.execution, execute_steps=config.execute_steps)
        try:
            self.views = self.open_session().source.views  # that clients must show
        except UserError as error:  # the engine names options as an evaluation has them
            raise UserError(str(error).replace("evaluation.", "")) from error
        check_client(self.views, self.source.proprio_names, config.protocol)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests until the block ends; it begins when the policy is warm."""
        async with self.dispatcher:
            await self._warm_up()
            self.is_ready = True
            yield

    async def _warm_up(self) -> None:
        """Answer an example, and where forwards are compiled, as many at once as the sizes that are compiled.

        Three times: what is compiled in the first forward of all may depend on what that forward imports, and a CUDA
        graph is recorded when what was compiled runs again.
        """
        engine = self.config.engine
        largest = engine.max_batch_size if engine.compile is CompileMode.model else 1
        sizes = [min(2**i, largest) for i in range((largest - 1).bit_length() + 1)]
        for size in sizes * (1 if engine.compile is CompileMode.off else 3):
            sessions = [self.open_session(name=WARM_UP) for _ in range(size)]
            await asyncio.gather(*(self.dispatcher.ask(session, self.example()) for session in sessions))
            for session in sessions:
                self.dispatcher.forget(session)

    def example(self) -> Observation:
        """Return an observation of black pictures, as the policy needs them."""
        frames = {view: np.zeros((size, size, 3), np.uint8) for view, size in self.spec.views.items()}
        names = self.source.proprio_names
        proprio = np.zeros(len(names), np.float32) if names else None
        return Observation(frames=frames, instruction=WARM_UP, proprio=proprio)

    @property
    def chunk_size(self) -> int:
        """Actions in an answer."""
        return self.spec.chunk_size if self.execution is None else 1

    @property
    def joins(self) -> list[Execution]:
        """How clients may join chunks; none where they are executed here."""
        if self.execution is not None:
            return []
        can_continue = [Execution.real_time] if self.engine.policy.head.supports_prefix else []
        return [Execution.chunk, Execution.ensemble, *can_continue]

    def connect(self, name: str) -> Client:
        """Return a new client; `name` is for the log.

        Raises:
            BusyError: there are as many as the server takes, or it is ending.
        """
        if not self.is_ready:
            raise BusyError("the server is not ready, or about to end: connect again later.")
        if len(self._clients) >= self.config.max_sessions:
            raise BusyError(f"{BUSY}: it has {len(self._clients)} clients (max_sessions). Try later.")
        client = Client(self, name)
        self._clients.add(client)
        log.info("%s connected", name)
        return client

    def refuse(self, name: str, error: Exception) -> str:
        """Log and count that a request gets no actions; return what its client is told."""
        result = "busy" if isinstance(error, BusyError) else "refused" if isinstance(error, UserError) else "failed"
        self.metrics.count(result)
        if isinstance(error, ANSWERED):
            self._refusals.warning(name, error)
            return str(error)
        log.error("%s: this is our fault", name, exc_info=error)
        return "internal error: see the server's log"

    def check_room(self) -> None:
        """Raise BusyError where there are as many sessions as the server takes."""
        if self.num_sessions >= self.config.max_sessions:
            raise BusyError(f"{BUSY}: it has {self.config.max_sessions} sessions (max_sessions). Try later.")

    @property
    def num_sessions(self) -> int:
        """Sessions of all clients."""
        return sum(len(client.sessions) for client in self._clients)

    def close(self, client: Client) -> None:
        """Forget a client."""
        if client in self._clients:
            self._clients.remove(client)
            for session in client.sessions:
                self.dispatcher.forget(session)
            log.info("%s left", client.name)

    def admits(self, token: str | bytes | None) -> bool:
        """Tell whether a client presents the right token; takes as long whatever it presents."""
        if not self.config.token:
            return True
        given = token if isinstance(token, bytes) else (token or "").encode(errors="replace")
        return hmac.compare_digest(given, self.config.token.encode())

    @contextmanager
    def working(self) -> Iterator[None]:
        """Mark a request from its arrival to the end of its answer, so that the server does not end in between."""
        self._num_working += 1
        try:
            yield
        finally:
            self._num_working -= 1

    async def drain(self) -> None:
        """Take nothing new, and wait until what is under way is answered."""
        self.is_ready = False
        loop = asyncio.get_running_loop()
        end = loop.time() + DRAIN_S
        while self._num_working and loop.time() < end:
            await asyncio.sleep(0.01)

    def _predict(self, requests: Sequence[Request]) -> list[Actions | Exception]:
        return self.engine.predict(requests)

    def _step(self, requests: Sequence[Request]) -> list[Actions | Exception]:
        found = self.engine.step(requests)
        return [each if isinstance(each, Exception) else each[None] for each in found]

    def tls(self) -> ssl.SSLContext | None:
        """Return what encrypts connections; None: nothing.

        Raises:
            UserError: the files are no certificate and its key.
        """
        certificate, key = self.config.tls_certificate, self.config.tls_key
        if certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # A client that reads and writes in two threads (websockets' blocking one) may lose its request, once in some
        # thousand connections, if it writes while OpenSSL takes in a ticket; nobody resumes a session here.
        context.num_tickets = 0
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise UserError(f"tls_certificate={certificate} and tls_key={key}: {error}.") from error
        return context


class Client:
    """Who asks, and the sessions of its robots: one, or as many as it sends rows at once."""

    def __init__(self, service: Service, name: str) -> None:
        self.name, self._service = name, service
        self.has_greeted = False  # whether its handshake is over, where the protocol has one
        self._may_be_silent = False  # whether an empty instruction is meant so
        self.sessions: list[Session] = []
        theirs, ours = service.config.protocol.proprio_names, service.source.proprio_names
        self._entries = [theirs.index(each) for each in ours] if theirs else None

    def reset(self) -> None:
        """Begin other episodes."""
        for session in self.sessions:
            session.reset()

    def declare(self, environment: Any) -> None:
        """Hold what a client says of its robot against the policy.

        Args:
            environment: fields of an action contract, as far as they are known; `views` and `proprio_names` that the
                robot has; `may_be_silent`, whether an empty instruction is meant so, else it is refused.

        Raises:
            UserError: it means something else, or shows less than the policy needs; lists both sides.
        """
        if not isinstance(environment, Mapping):
            raise UserError(f"environment must be a map, not {type(environment).__name__}.")
        said = dict(environment)
        views, proprio_names = said.pop("views", None), said.pop("proprio_names", None)
        may_be_silent = said.pop("may_be_silent", self._may_be_silent)
        if not isinstance(may_be_silent, bool):
            raise UserError("environment.may_be_silent must be true or false.")
        needed, source = self._service.views, self._service.source
        contract = replace(self._service.contract, **read_contract(said, "environment"))
        for name, words in (("views", views), ("proprio_names", proprio_names)):
            if words is not None and not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
                raise UserError(f"environment.{name} must be a list of names.")
        self._check_gripper(contract)
        check_contract(self._service.contract, contract, self.name)
        check_observations(
            needed,
            source.proprio_names,
            views if views is not None else needed,
            proprio_names if proprio_names is not None else source.proprio_names,
            self.name,
        )
        self._may_be_silent = may_be_silent

    def _check_gripper(self, theirs: ActionContract) -> None:
        """Refuse another gripper, which the server could convert."""
        ours = self._service.contract
        if (ours.gripper_closed, ours.gripper_open) != (theirs.gripper_closed, theirs.gripper_open):
            raise UserError(
                f"gripper_closed, gripper_open: the server gives {ours.gripper_closed:g}, {ours.gripper_open:g}, "
                f"{self.name} expects {theirs.gripper_closed:g}, {theirs.gripper_open:g}. Serve with "
                f"protocol.gripper_closed={theirs.gripper_closed:g} protocol.gripper_open={theirs.gripper_open:g}."
            )

    async def act(self, observations: Sequence[Observation]) -> list[Actions]:
        """Return the actions for one observation of each robot: a chunk, or, executed here, one; in the client's terms.

        Raises:
            UserError: an observation is not what the policy needs, or the policy has no answer. BusyError: ask again
                later. FloatingPointError: the policy predicts actions that are not finite.
            Exception: a fault of ours.
        """
        while len(self.sessions) < len(observations):
            self._service.check_room()
            name = f"{self.name} [{len(self.sessions)}]"
            self.sessions.append(self._service.open_session(name=name, may_be_silent=self._may_be_silent))
        asking = zip(self.sessions[: len(observations)], map(self._ours, observations), strict=True)
        answers = await asyncio.gather(*(self._ask(session, each) for session, each in asking))
        for _ in (answer for answer in answers if isinstance(answer, np.ndarray)):
            self._service.metrics.count("ok")
        return [write_grippers(unwrap(answer), self._service.contract) for answer in answers]

    async def _ask(self, session: Session, observation: Observation) -> Actions | Exception:
        """Return actions, or what is wrong."""
        try:
            return await self._service.dispatcher.ask(session, observation)
        except Exception as error:
            return error

    def close(self) -> None:
        """Leave."""
        self._service.close(self)

    def _prefix(self, prefix: ActionPrefix | None) -> ActionPrefix | None:
        """Return a prefix with the policy's grippers.

        Raises:
            UserError: it is none.
        """
        contract = self._service.contract
        closed, opened = contract.gripper_closed, contract.gripper_open
        if prefix is None or (closed, opened) == (-1, 1):
            return prefix
        actions, delay = read_prefix(prefix, contract.names, self._service.spec.chunk_size)
        actions[:, contract.grippers] = 2 * (actions[:, contract.grippers] - closed) / (opened - closed) - 1
        return ActionPrefix(actions=actions, delay=delay)

    def _ours(self, observation: Observation) -> Observation:
        """Return an observation with the entries of proprioception that the policy was trained with."""
        check_instruction(observation.instruction)
        earlier = [self._ours(each) for each in observation.earlier]
        observation = replace(observation, earlier=earlier, prefix=self._prefix(observation.prefix))
        if self._entries is None or observation.proprio is None:
            return observation
        given = numbers_of(observation.proprio, "proprioception")
        names = self._service.config.protocol.proprio_names
        if len(given) != len(names):
            raise UserError(f"proprioception has {len(given)} entries, not those of {', '.join(names)}.")
        return replace(observation, proprio=given[self._entries])

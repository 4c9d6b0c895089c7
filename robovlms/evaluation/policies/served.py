"""A policy behind a server plays: every process that plays has a connection, which is a session, and holds no model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32

from robovlms.actions.contract import check_contract
from robovlms.client import BusyError, PolicyClient
from robovlms.config.choices import Execution
from robovlms.config.closed_loop import EvaluationConfig
from robovlms.errors import UserError
from robovlms.evaluation.analysis.certificate import PolicyIdentity
from robovlms.evaluation.analysis.latency import check_latencies
from robovlms.evaluation.rollout import Policy, PolicyGoneError
from robovlms.policy.execution import Chunk, ChunkExecutor, check_execute_steps
from robovlms.policy.spec import PolicySpec, SourceSpec, check_observations
from robovlms.sims.base import Simulator
from robovlms.types import Observation

T = TypeVar("T")

SAID = ("checkpoint_digest", "source", "views", "proprio_names", "execute_steps", "device", "dtype", "versions")
SHORTEST_S, LONGEST_S = 0.05, 2.0  # between two questions to a busy server


@dataclass(frozen=True, kw_only=True)
class Handshake:
    """What a server says of itself and its policy."""

    spec: PolicySpec
    chunk_size: int  # actions in an answer
    checkpoint_digest: str
    source: str  # whose actions are given
    views: list[str]  # that are to be sent
    proprio_names: list[str]  # entries of proprioception that are to be sent, in this order
    execution: Execution | None  # of chunks, by the server; None: clients execute them
    execute_steps: int
    device: str
    dtype: str
    versions: dict[str, str]

    @classmethod
    def of(cls, metadata: Mapping[str, Any], address: str) -> Handshake:
        """Read it from the metadata of protocol=openpi.

        Raises:
            UserError: it is not that of a server of ours.
        """
        said = metadata.get("server")
        if not isinstance(said, dict) or not said.get("checkpoint_digest"):
            raise UserError(
                f"server={address} does not say which checkpoint it serves: it is not robovlms-serve protocol=openpi, "
                "or an earlier version of it."
            )
        try:
            return cls(
                spec=PolicySpec.from_json(metadata["policy_spec"], f"the policy_spec of server={address}"),
                chunk_size=int(metadata["chunk_size"]),
                execution=said["execution"] and Execution(said["execution"]),
                **{name: said[name] for name in SAID},
            )
        except (TypeError, KeyError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"server={address} is of another version of robovlms: what it says of itself is not read "
                f"({type(error).__name__}: {error})."
            ) from error

    @property
    def source_spec(self) -> SourceSpec:
        """What holds for the actions that are given."""
        return self.spec.find(self.source)

    def check(self, config: EvaluationConfig) -> None:
        """Refuse what is the server's to decide and was decided otherwise, and chunks that are not executed so.

        Raises:
            UserError: both sides, and the option.
        """
        if config.source not in (None, self.source):
            raise UserError(
                f"evaluation.source={config.source}: the server gives the actions of {self.source}. Serve with "
                f"source={config.source}."
            )
        if self.execution is None:
            if config.execution is Execution.real_time:
                raise UserError(
                    "evaluation.execution=real_time is the server's work, and it leaves chunks to its clients: serve "
                    "with execution=real_time."
                )
            check_execute_steps(config.execute_steps, self.chunk_size)
            check_latencies(config, self.chunk_size)
        elif (config.execution, config.execute_steps) != (self.execution, self.execute_steps):
            raise UserError(
                f"evaluation.execution={config.execution} evaluation.execute_steps={config.execute_steps}: the server "
                f"executes chunks itself. Set evaluation.execution={self.execution} "
                f"evaluation.execute_steps={self.execute_steps}, or serve without execution, so that clients do."
            )
        elif config.decision_steps or config.latency:
            raise UserError(
                "evaluation.decision_steps and evaluation.latency delay chunks that are executed here: serve without "
                f"execution={self.execution}."
            )

    def start_executor(self, config: EvaluationConfig) -> ChunkExecutor:
        """Return what makes actions of answers; what the server has executed is passed on."""
        is_ours = self.execution is None
        return ChunkExecutor(
            config.execution if is_ours else Execution.chunk,
            config.execute_steps if is_ours else 1,
            self.source_spec.contract,
            latency=config.decision_steps,
        )


class RemotePolicy:
    """The policy of a process that plays: it asks a server, and executes the chunks itself unless the server does.

    A policy that remembers is shown every frame, as in a session of this machine: where no chunk is due, the server's
    is dropped.
    """

    def __init__(
        self,
        client: PolicyClient,
        views: Sequence[str],
        entries: Sequence[int],
        start_executor: Callable[[], ChunkExecutor],
        *,
        remembers: bool,
        patience_s: float,
    ) -> None:
        """Begin an episode.

        Args:
            client: connected.
            views: that are sent.
            entries: of an observation's proprioception, those that are sent.
            start_executor: makes what executes an episode's chunks.
            remembers: whether earlier frames matter.
            patience_s: that a busy server is asked again.
        """
        self._client, self._views, self._entries = client, views, list(entries)
        self._start_executor, self._remembers, self._patience_s = start_executor, remembers, patience_s
        self._executor, self._step = start_executor(), 0

    def reset(self) -> None:
        """Forget the episode so far."""
        self._ask(self._client.reset)
        self._executor, self._step = self._start_executor(), 0

    def step(self, observation: Observation) -> Float32[np.ndarray, "a"]:
        """Return the next action, in environment units.

        Raises:
            RefusedError: the observation is not what the policy needs.
            PolicyGoneError: the server does not answer any more.
        """
        step, self._step = self._step, self._step + 1
        is_due = self._executor.wants(step)
        if is_due or self._remembers:
            chunk = self._ask(partial(self._client.act, self._message(observation)))
            if is_due:
                self._executor.add(Chunk(step, np.array(chunk, np.float32)))
        return self._executor.action(step)

    def close(self) -> None:
        """Leave the server."""
        self._client.close()

    def _message(self, observation: Observation) -> dict[str, Any]:
        frames = {view: observation.frames[view] for view in self._views if view in observation.frames}
        proprio = {"proprio": observation.proprio[self._entries]} if self._entries else {}
        return {**frames, **proprio, "instruction": observation.instruction}

    def _ask(self, question: Callable[[], T]) -> T:
        try:
            return patiently(question, self._patience_s)
        except (BusyError, ConnectionError, TimeoutError) as error:
            raise PolicyGoneError(
                f"the server does not answer any more ({str(error).rstrip('.')}). What was played is kept: repeat the "
                "command when it does, and it goes on from there."
            ) from error


def patiently(question: Callable[[], T], patience_s: float) -> T:
    """Return an answer; a server that is busy is asked again, less and less often, as long as patience lasts.

    Raises:
        BusyError: it is busy all the time.
    """
    end, pause = time.monotonic() + patience_s, SHORTEST_S
    while True:
        try:
            return question()
        except BusyError:
            if time.monotonic() + pause > end:
                raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_S)


@dataclass(frozen=True, kw_only=True)
class ServedPolicy:
    """A policy behind a server, as far as an evaluation needs it; picklable, for it holds no connection."""

    address: str
    token: str | None
    patience_s: float  # for an answer, and with a server that is busy
    handshake: Handshake

    @classmethod
    def find(cls, address: str, token: str | None, patience_s: float) -> ServedPolicy:
        """Ask a server what it serves.

        Raises:
            ConnectionError: nobody listens there, or the token is not the right one.
            UserError: it is no server of ours, or it is busy.
        """
        try:
            with connect(address, token, patience_s) as client:
                handshake = Handshake.of(client.metadata, address)
        except ConnectionError as error:
            if not isinstance(error.__cause__, ConnectionRefusedError):
                raise
            raise UserError(
                f"server={address}: nobody listens there. Start one first, and wait until it says that it is ready: "
                "python scripts/serve.py checkpoint=<run>."
            ) from error
        except TimeoutError as error:
            raise UserError(f"{error} An evaluation asks by openpi's protocol: serve with protocol=openpi.") from error
        return cls(address=address, token=token, patience_s=patience_s, handshake=handshake)

    @property
    def identity(self) -> PolicyIdentity:
        """Its address and the checkpoint's digest, and what it says that it runs on."""
        said = self.handshake
        versions = {f"{name} of the server": version for name, version in said.versions.items()}
        return PolicyIdentity(self.address, said.checkpoint_digest, f"{said.device} of a server", versions)

    def conditions(self, config: EvaluationConfig) -> dict[str, Any]:
        """Return checkpoint and arithmetic; a server may move."""
        return {
            "checkpoint": "behind a server",
            "digest": self.handshake.checkpoint_digest,
            "dtype": self.handshake.dtype,
        }

    def ways(self, config: EvaluationConfig) -> list[Execution]:
        """Return the ways of execution that success against latency is measured for: those asked for, or all that are
        not the server's work.

        Raises:
            UserError: real_time is asked for.
        """
        if Execution.real_time in config.executions:
            raise UserError("evaluation.executions has real_time, which is the server's work: leave it out.")
        return config.executions or [Execution.chunk, Execution.ensemble]

    def check(self, simulator: Simulator, config: EvaluationConfig) -> None:
        """Refuse a simulator whose actions mean something else, or that shows less than the policy was trained with,
        and what is the server's to decide.

        Raises:
            UserError: lists both sides of every disagreement.
        """
        said, name = self.handshake, f"sim={simulator.config.name}"
        check_contract(said.source_spec.contract, simulator.contract, name)
        check_observations(said.views, said.proprio_names, simulator.views, simulator.proprio_names, name)
        said.check(config)
        self.ways(config)
        self.connect(simulator).close()  # refused if the server converts grippers for others

    def connect(self, simulator: Simulator) -> PolicyClient:
        """Return a session for a simulator.

        Raises:
            UserError: the server refuses the simulator, or serves another checkpoint by now.
        """
        environment = {
            **asdict(simulator.contract),
            "views": list(simulator.views),
            "proprio_names": list(simulator.proprio_names),
            "may_be_silent": True,  # `evaluation.language` may ask for it
        }
        client = connect(self.address, self.token, self.patience_s, environment)
        now, then = Handshake.of(client.metadata, self.address).checkpoint_digest, self.handshake.checkpoint_digest
        if now != then:
            client.close()
            raise UserError(f"server={self.address} serves the checkpoint {now} by now, and served {then} before.")
        return client

    def answerer(self, config: EvaluationConfig, instructions: Sequence[str]) -> None:
        """Return nothing: every process asks the server itself."""

    def start(self, config: EvaluationConfig, simulator: Simulator) -> Policy:
        """Return what asks the server, in a session of its own."""
        said = self.handshake
        return RemotePolicy(
            self.connect(simulator),
            said.views,
            [simulator.proprio_names.index(name) for name in said.proprio_names],
            partial(said.start_executor, config),
            remembers=said.spec.window_size > 1,
            patience_s=self.patience_s,
        )


def connect(
    address: str, token: str | None, patience_s: float, environment: Mapping[str, Any] | None = None
) -> PolicyClient:
    """Return a connection; a server with too many clients is asked again, as long as patience lasts."""
    return patiently(
        partial(PolicyClient, address, token=token, environment=environment, timeout_s=patience_s), patience_s
    )

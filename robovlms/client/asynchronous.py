"""A policy on a server, asked by a robot that never waits: its loop runs at its rate, chunks arrive beside it."""

from __future__ import annotations

import logging
import math
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypedDict, Unpack

import numpy as np

from robovlms.client.blocking import PolicyClient, RefusedError
from robovlms.client.joining import Counters, Joiner, Joining
from robovlms.config.choices import Execution
from robovlms.errors import UserError

JOINS = (Execution.real_time, Execution.ensemble, Execution.chunk)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0  # before a server that is gone or busy is tried again
RECONNECT_S = 3.0  # that one attempt to connect again may take
MAX_UNANSWERED = 3  # requests in a row, until a connection counts as dead

log = logging.getLogger(__name__)


class Connecting(TypedDict, total=False):
    """How to connect, as in `PolicyClient`."""

    token: str | None
    environment: Mapping[str, Any] | None
    timeout_s: float
    tls: ssl.SSLContext | None


class AsyncPolicyClient:
    """A session of a policy that `robovlms-serve` serves with `protocol=openpi`, for a loop that waits for nothing.

    A thread asks for chunks, one at a time, whenever one is due. Answers carry the number of the control step whose
    observation they are to, so an action is always that of the step at which it is executed: what has been missed of a
    late chunk is skipped. Lost answers are asked for again, and a server that is gone is connected to again; it is then
    shown all frames that its policy remembers.

    Example:
        with AsyncPolicyClient("ws://gpu:8000", join="real_time") as policy:
            policy.start(robot.look())  # waits for the first chunk
            while robot.is_moving:
                robot.move(policy.act(robot.look()))  # at the rate of policy.metadata["action"]["control_hz"]
    """

    def __init__(
        self,
        address: str,
        *,
        join: str = "real_time",
        execute_steps: int = 1,
        on_starvation: str = "hold",
        max_staleness_s: float = math.inf,
        idle_action: Sequence[float] | None = None,
        answer_timeout_s: float = 1.0,
        **connecting: Unpack[Connecting],
    ) -> None:
        """Connect.

        Args:
            address: ws://host:port, or wss:// with TLS.
            join: of chunks. `real_time`: the server makes every chunk go on from what will have been executed of the
                last one when it arrives (arXiv:2506.07339); `ensemble`: the mean of all predictions of a step;
                `chunk`: the last one is executed until the next has arrived.
            execute_steps: control steps before the policy is asked again; it is never asked before its last answer.
            on_starvation: where no chunk reaches a control step, or its observation is too old: `hold` gives zeros
                where the action contract speaks of deltas, the last action where it speaks of poses, and the gripper as
                it was; `stop` raises.
            max_staleness_s: age of an observation, up to which its chunk is executed.
            idle_action: what holds the robot before the first chunk, where `start` has not waited for it.
            answer_timeout_s: after which a request counts as lost.
            connecting: `token`, `environment`, `timeout_s` and `tls` of `PolicyClient`.

        Raises:
            ConnectionError: nobody listens there, or the token is not the right one.
            RefusedError: the policy does not fit `environment`.
            UserError: an option is none, or asks what the policy cannot do.
        """
        check_options(join, on_starvation, max_staleness_s, answer_timeout_s)
        options = Joining(
            join=Execution(join),
            execute_steps=execute_steps,
            on_starvation=on_starvation,
            max_staleness_s=max_staleness_s,
            idle_action=None if idle_action is None else np.array(idle_action, np.float32),
        )
        self.address, self._connecting, self._answer_timeout_s = address, connecting, answer_timeout_s
        self._connection = PolicyClient(address, **connecting)
        self.metadata = self._connection.metadata
        try:
            options.check(self.metadata, address)
        except UserError:
            self._connection.close()
            raise
        self._joiner = Joiner(options, self.metadata, time.monotonic)
        self._changed = threading.Condition()  # guards all that follows, and the joiner
        self._is_asked = self._is_awaiting = self._is_closed = False
        self._fault: Exception | None = None  # what the next call raises
        self._trouble: Exception | None = None  # why there was no answer, the last time
        self._pause_s, self._num_unanswered = FIRST_PAUSE_S, 0
        self._thread = threading.Thread(target=self._run, name=f"policy at {address}", daemon=True)
        self._thread.start()

    @property
    def spec(self) -> dict[str, Any]:
        """What the policy sees, says and how often: its `spec.json`."""
        return dict(self.metadata["policy_spec"])

    @property
    def counters(self) -> Counters:
        """What has become of the steps and requests so far."""
        with self._changed:
            return self._joiner.counters

    def start(self, observation: Mapping[str, Any], timeout_s: float = 30.0) -> None:
        """Wait for an episode's first chunk, before anything moves. The next `act` executes its first action.

        Raises:
            TimeoutError: there is none within `timeout_s`.
            RefusedError: the observation is not what the policy needs.
        """
        with self._changed:
            self._observe(observation)
            self._joiner.stand()
            self._changed.wait_for(lambda: self._joiner.has_chunk or self._fault, timeout_s)
            self._raise_fault()
            if not self._joiner.has_chunk:
                raise TimeoutError(f"{self.address} gave no chunk within {timeout_s:g} s. {self._trouble or ''}")

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Return the action of this control step at once, in the units of `metadata["action"]`.

        Args:
            observation: as for `PolicyClient.act`; arrays are copied.

        Raises:
            TimeoutError: no chunk reaches this step, with on_starvation=stop.
            RefusedError: an observation before this one is not what the policy needs.
            UserError: there is no chunk yet, and nothing is known that would hold the robot.
            ConnectionError: the client is closed.
        """
        with self._changed:
            self._observe(observation)
            return self._joiner.action(self._trouble)

    def reset(self) -> None:
        """Begin another episode; what is still to come of the last one is dropped."""
        with self._changed:
            self._joiner.reset()
            self._is_asked = False

    def close(self) -> None:
        """Leave."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._connection.close()
        self._thread.join()

    def __enter__(self) -> AsyncPolicyClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _observe(self, observation: Mapping[str, Any]) -> None:
        """Take the observation of a control step, and ask for a chunk where one is due."""
        self._raise_fault()
        if self._is_closed:
            raise ConnectionError(f"{self.address}: the client is closed.")
        self._joiner.observe(
            {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in observation.items()}
        )
        if self._joiner.wants() and not (self._is_awaiting and self._joiner.has_chunk):
            self._is_asked = True
            self._changed.notify_all()

    def _raise_fault(self) -> None:
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _run(self) -> None:
        """Ask for chunks until the client is closed."""
        try:
            while not self._is_closed:
                try:
                    self._converse()
                except (ConnectionError, RefusedError) as error:  # refused without a number: what ends a connection
                    if not self._is_closed:
                        self._connect_again(error)
        except Exception as error:  # a fault of ours, or a value that cannot be sent
            with self._changed:
                self._fault, self._is_closed = error, True
                self._changed.notify_all()

    def _converse(self) -> None:
        """Ask whenever a chunk is due.

        Raises:
            ConnectionError: the server is gone, or answers no more.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: (self._is_asked and self._joiner.has_frames) or self._is_closed)
                if self._is_closed:
                    return
                self._is_asked, self._is_awaiting = False, True
                number, message = self._joiner.ask()
            self._connection.send(message)
            self._await(number)
            self._is_awaiting = False

    def _await(self, number: int) -> None:
        """Take answers until the one to a request has come, or is lost."""
        end = time.monotonic() + self._answer_timeout_s
        while not self._is_closed:
            try:
                answer = self._connection.receive(max(0.0, end - time.monotonic()))
            except TimeoutError as error:
                self._lose(error)
                self._num_unanswered += 1
                if self._num_unanswered == MAX_UNANSWERED:
                    raise ConnectionError(f"{self.address}: {MAX_UNANSWERED} requests without an answer") from error
                return
            if type(answer.get("number")) is not int:
                raise ConnectionError(f"{self.address} does not number its answers")
            self._num_unanswered = 0
            if "error" in answer:
                self._refuse(answer["number"], str(answer["error"]), is_busy=answer.get("is_busy") is True)
            else:
                self._take(answer["number"], np.asarray(answer.get("actions")), is_awaited=answer["number"] == number)
            if answer["number"] == number:
                return

    def _take(self, number: int, actions: np.ndarray, *, is_awaited: bool) -> None:
        with self._changed:
            if self._joiner.expects(number):
                if is_awaited:
                    self._joiner.accept(number)
                self._joiner.answer(number, actions)
            self._pause_s, self._trouble = FIRST_PAUSE_S, None
            self._changed.notify_all()

    def _refuse(self, number: int, text: str, *, is_busy: bool) -> None:
        """Raise in the robot's loop what the server has against an observation; a busy one is asked again later."""
        if is_busy:
            self._lose(RefusedError(text))
            self._pause()
            return
        with self._changed:
            if self._joiner.expects(number):
                self._fault = RefusedError(text)
                self._changed.notify_all()

    def _lose(self, error: Exception) -> None:
        """Ask again, about the newest observation."""
        with self._changed:
            if self._is_awaiting:
                self._joiner.lose()
            self._is_asked, self._is_awaiting, self._trouble = True, False, error

    def _connect_again(self, error: Exception) -> None:
        """Connect as often as it takes; return also when the client is closed.

        Raises:
            UserError: another policy is served there now.
        """
        log.warning("%s: connecting again", error)
        self._connection.close()
        self._lose(error)
        connecting: Connecting = {**self._connecting}
        connecting["timeout_s"] = min(RECONNECT_S, connecting.get("timeout_s", RECONNECT_S))
        while not self._is_closed:
            self._pause()
            try:
                self._connection = PolicyClient(self.address, **connecting)
                break
            except (ConnectionError, TimeoutError, RefusedError) as trouble:
                self._trouble = trouble
        if self._is_closed:
            self._connection.close()
            return
        if any(self._connection.metadata.get(key) != self.metadata[key] for key in ("policy_spec", "action", "joins")):
            self._connection.close()
            raise UserError(f"{self.address} serves another policy than before: connect anew.")
        self._num_unanswered = 0
        with self._changed:
            self._joiner.reconnect()

    def _pause(self) -> None:
        """Leave a server in peace, longer from time to time."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed, self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def check_options(join: str, on_starvation: str, max_staleness_s: float, answer_timeout_s: float) -> None:
    """Refuse options that are none.

    Raises:
        UserError: says what may be.
    """
    if join not in JOINS:
        raise UserError(f"join={join} must be one of {', '.join(JOINS)}.")
    if on_starvation not in ("hold", "stop"):
        raise UserError(f"on_starvation={on_starvation} must be hold or stop.")
    for name, seconds in (("max_staleness_s", max_staleness_s), ("answer_timeout_s", answer_timeout_s)):
        if not seconds > 0:
            raise UserError(f"{name}={seconds} must be above 0.")

"""What a robot executes of the chunks that reach it: from when, for how long, and what where there is none.

Values only: nothing here waits, or knows of threads and sockets. Times are those of a clock that is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from robovlms.config.choices import Execution, Representation
from robovlms.config.data import ActionContract
from robovlms.errors import UserError
from robovlms.policy.execution import Chunk, ChunkExecutor

NUM_LATENCIES = 8  # answers, whose slowest says how late the next one will be
HEADERS_MB = 0.1  # of a message, beside its pictures


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What has become of the control steps and requests of a client."""

    steps: int = 0  # actions that were given
    held: int = 0  # of them, that held the robot for want of a chunk
    chunks: int = 0  # that arrived in time
    late: int = 0  # that arrived when their last step was over, or behind a newer one
    lost: int = 0  # requests without an answer in time, also those of connections that broke
    reconnects: int = 0
    staleness_s: float = 0.0  # age of the observation that the last action was decided on
    max_staleness_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Joining:
    """How chunks are joined, and what is done where there is none."""

    join: Execution
    execute_steps: int
    on_starvation: str  # hold | stop
    max_staleness_s: float
    idle_action: np.ndarray | None

    def check(self, metadata: Mapping[str, Any], address: str) -> None:
        """Refuse what a server's policy cannot do.

        Raises:
            UserError: names both sides, and the option.
        """
        offered = metadata.get("joins", [])
        if not offered:
            raise UserError(
                f"{address} executes chunks itself, or does not number its answers: serve with robovlms-serve, without "
                "the option execution, or use PolicyClient."
            )
        if self.join not in offered:
            why = "its head cannot go on from a chunk (flow and diffusion can)" if self.join == "real_time" else ""
            raise UserError(
                f"join={self.join}: the policy of {address} offers {', '.join(offered)}{f': {why}' * bool(why)}."
            )
        size, width = metadata["chunk_size"], len(metadata["action"]["names"])
        if size == 1:
            raise UserError(
                f"the policy of {address} predicts one action at a time, which is over when it arrives: use "
                "PolicyClient, or train with a larger window.chunk_size."
            )
        if not 1 <= self.execute_steps <= size:
            raise UserError(f"execute_steps={self.execute_steps} must lie in 1..{size}, the policy's chunk_size.")
        if self.join is Execution.ensemble and self.execute_steps != 1:
            raise UserError(f"join=ensemble asks at every step: execute_steps={self.execute_steps} must be 1.")
        if self.idle_action is not None and self.idle_action.shape != (width,):
            raise UserError(f"idle_action must be {width} numbers, not of the shape {self.idle_action.shape}.")


class Joiner:
    """The control steps of one robot: observations and chunks in, an action out at every step."""

    def __init__(self, options: Joining, metadata: Mapping[str, Any], clock: Callable[[], float]) -> None:
        """Take how chunks are joined, what the server says of them, and seconds."""
        action, self._options, self._clock = metadata["action"], options, clock
        self.counters = Counters()
        said = {field.name: action[field.name] for field in fields(ActionContract) if field.name in action}
        self._contract = ActionContract(**{**said, "representation": Representation(action["representation"])})
        self._width, self._chunk_size = len(self._contract.names), metadata["chunk_size"]
        self._latencies: deque[float] = deque(maxlen=NUM_LATENCIES)
        self._window_size = metadata["policy_spec"]["window_size"]
        self._frames: deque[tuple[int, float, dict[str, Any]]] = deque(maxlen=self._window_size)
        self._max_message_mb = metadata["max_message_mb"]
        self._step = -1
        self.reset()

    def reset(self) -> None:
        """Begin another episode; answers to the last one's observations count no more."""
        self._executor = ChunkExecutor(self._options.join, self._options.execute_steps, self._contract)
        self._frames.clear()
        self._asked: dict[int, float] = {}  # steps whose answers may come, with the time of their observation
        self._made: dict[int, float] = {}  # likewise, of the chunks that are there
        self._shown: int | None = None  # the newest step that the server has seen; None: not known
        self._has_moved = self._stands = False

    @property
    def has_chunk(self) -> bool:
        """Tell whether a chunk has arrived."""
        return bool(self._executor.chunks)

    @property
    def has_frames(self) -> bool:
        """Tell whether this episode has begun."""
        return bool(self._frames)

    def wants(self) -> bool:
        """Tell whether a new chunk is due."""
        return self._executor.wants(self._step)

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Take what is seen at the next control step.

        Raises:
            UserError: a window of such frames is more than the server takes at once.
        """
        size = sum(value.nbytes for value in observation.values() if isinstance(value, np.ndarray)) / 2**20
        if size * self._window_size + HEADERS_MB > self._max_message_mb:
            raise UserError(
                f"the frames that the policy remembers are {self._window_size} x {size:.1f} MB, "
                f"and the server takes {self._max_message_mb:g} MB at once: send pictures of the sizes that the policy "
                "sees, or serve with a larger max_message_mb."
            )
        if self._stands:
            self._frames.pop()
        else:
            self._step += 1
        self._stands = False
        self._frames.append((self._step, self._clock(), dict(observation)))

    def stand(self) -> None:
        """Say that nothing was executed at this control step, so that the next observation is of the same one."""
        self._stands = True

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Return a request for the chunk of the newest control step, and its number.

        It shows the frames between, so that the policy remembers every one of its window, however seldom it is asked.
        Where it is not known what the server has seen, its memory begins anew with all frames of the window.
        """
        *before, (step, since, newest) = self._frames
        request: dict[str, Any] = {"number": step}
        message = {**newest, "request": request}
        if self._shown is None:
            message["reset"] = True
        request["earlier"] = [each for number, _, each in before if self._shown is None or number > self._shown]
        if self._options.join is Execution.real_time and len(rest := self._rest()):
            latency = max(self._latencies, default=0.0)
            request |= {
                "prefix": rest,
                "delay": int(latency * self._contract.control_hz) + 1,
            }  # this step's action is given
        self._shown, self._asked[step] = None, since
        return step, message

    def expects(self, step: int) -> bool:
        """Tell whether an answer to the observation of this step is still of use; one of the last episode is not."""
        return step in self._asked

    def answer(self, step: int, actions: np.ndarray) -> None:
        """Take a chunk that is expected.

        Raises:
            ConnectionError: it is none that this policy gives.
        """
        is_number = actions.dtype.kind in "iuf" and bool(np.isfinite(actions).all())
        if not is_number or actions.shape != (self._chunk_size, self._width):
            raise ConnectionError(f"the server answers with no chunk, but with an array of the shape {actions.shape}.")
        since = self._asked.pop(step)
        self._latencies.append(self._clock() - since)
        newest = self._executor.chunks[-1].made if self._executor.chunks else -1
        if step < newest or step + len(actions) <= self._step + (not self._stands):
            self._count(late=1)
            return
        self._executor.add(Chunk(step, actions.astype(np.float32)))
        self._made[step] = since
        self._made = {each.made: self._made[each.made] for each in self._executor.chunks}
        self._count(chunks=1)

    def accept(self, step: int) -> None:
        """Note that the server has seen a control step, and those before."""
        self._shown = step

    def lose(self) -> None:
        """Note that a request stays without an answer."""
        self._count(lost=1)

    def reconnect(self) -> None:
        """Note that the server has forgotten everything."""
        self._shown = None
        self._count(reconnects=1)

    def action(self, trouble: Exception | None = None) -> np.ndarray:
        """Return the action of this control step.

        Args:
            trouble: why chunks may be missing, for messages.

        Raises:
            TimeoutError: no chunk reaches this step, or it is too old, and `on_starvation` is stop.
            UserError: it is hold, and nothing is known that would hold the robot.
        """
        if (age := self._age()) is not None and age <= self._options.max_staleness_s:
            worst = max(age, self.counters.max_staleness_s)
            self.counters = replace(self.counters, staleness_s=age, max_staleness_s=worst)
            action = self._executor.action(self._step)
            self._has_moved = True
        elif self._options.on_starvation == "stop":
            raise TimeoutError(self._starved(trouble))
        else:
            action = self._held(trouble)
            self._count(held=1)
        self._count(steps=1)
        return action.copy()

    def _age(self) -> float | None:
        """Return for how many seconds the observation is past that this step's action was decided on; None: no chunk
        reaches this step.
        """
        chunks = self._executor.reaching(self._step)
        return self._clock() - self._made[chunks[-1].made] if chunks else None

    def _rest(self) -> np.ndarray:
        """Return what the newest chunk has from this step on."""
        chunks = self._executor.reaching(self._step)
        return chunks[-1].actions[self._step - chunks[-1].made :] if chunks else np.empty((0, 0))

    def _held(self, trouble: Exception | None) -> np.ndarray:
        """Return the action that leaves the robot where it is."""
        if self._has_moved:
            return self._executor.held()
        if self._options.idle_action is not None:
            return self._options.idle_action
        if self._contract.representation is Representation.delta and not self._contract.grippers:
            return np.zeros(self._width, np.float32)
        raise UserError(
            "no chunk has arrived yet, and nothing says what holds this robot until then: call start(observation) "
            f"first, which waits for a chunk, or give idle_action=.{_because(trouble)}"
        )

    def _starved(self, trouble: Exception | None) -> str:
        if not self._executor.chunks:
            found = "no chunk has arrived yet: call start(observation) first, which waits for one"
        else:
            made = self._executor.chunks[-1].made
            age = self._clock() - self._made[made]
            found = (
                f"step {self._step} is due, and the newest chunk, of {self._chunk_size} actions, was made at step "
                f"{made}, {age:.2f} s ago: the policy or the network is too slow, or gone. Predict longer chunks "
                "(window.chunk_size), or choose on_starvation=hold or another max_staleness_s"
            )
        return f"{found}.{_because(trouble)}"

    def _count(self, **more: int) -> None:
        self.counters = replace(self.counters, **{name: getattr(self.counters, name) + n for name, n in more.items()})


def _because(trouble: Exception | None) -> str:
    return f" The last trouble: {trouble}" if trouble is not None else ""

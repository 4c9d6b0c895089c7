"""A server among clients that come and go, send garbage, die in the middle of a message, or do not read.

    python benchmarks/serving_soak.py [--seconds 600] [--protocols openpi groot lerobot] [--clients 6]
    python benchmarks/serving_soak.py --beside 8 [--seconds 60]

One server, `python scripts/serve.py`, for every protocol; all run at once, with the small policy of the tests (window
4) and the tests' clients, a thread each. Every answer is held against that of a session that is alone, computed before.
Fails where an answer is wrong or an error is none, where a client is stuck for 30 s, a session or request is left
behind, a fault of ours is counted, or the server's memory at the end is more than 5 % above that after a fifth of the
time. `--beside` measures instead what one client of openpi waits for its answers, alone and beside so many others that
misbehave.
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("benchmarks", "tests", "tests/policy"))
sys.path.append(str(Path(__file__).parents[1] / "tests/serving"))
from served import SINGLE, chunks, config_of
from serving import ask, server
from serving_clients import UPGRADE, frame_of
from test_openpi import message
from test_protocols import CLIENTS

from robovlms.registry import PROTOCOLS
from robovlms.serving.codecs import OPENPI

NUM_EPISODES, MAX_STEPS, NUM_OBSERVATIONS = 24, 16, 20
GROWTH, SETTLED = 0.05, 0.2  # of the server's memory, after a share of the time
IDLE_S, STALL_S, PATIENCE_S = 5.0, 2.0, 30.0
COUNTED = (("ok", "answers"), ("refused", "refused"))  # the server's, of which clients may have seen fewer
WEIGHTS = {"play": 6, "junk": 1, "die": 1, "stall": 1, "err": 2}
BAD = {"junk": 1, "die": 1, "stall": 1}


class Episodes:
    """Orders of observations, and what a session that is alone answers to them."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.orders = [generator.integers(0, NUM_OBSERVATIONS, MAX_STEPS).tolist() for _ in range(NUM_EPISODES)]
        self.answers = [chunks(config_of(SINGLE), order) for order in self.orders]


class Crowd:
    """Clients of one server, each a thread that lives one life after the other."""

    def __init__(self, protocol: str, address: str, episodes: Episodes, end: float, weights: dict[str, int]) -> None:
        self.protocol, self.address, self._episodes, self._end = protocol, address, episodes, end
        self._weights = weights
        self.counts, self.faults = Counter[str](), list[str]()
        self._lives: dict[str, Callable[[random.Random], None]] = {
            "play": self._play, "err": self._err, "junk": self._junk, "die": self._die, "stall": self._stall,
        }  # fmt: skip

    def live(self, seed: int) -> None:
        """Live until the end; what goes wrong is noted."""
        chance = random.Random(seed)
        while time.monotonic() < self._end:
            (kind,) = chance.choices(list(self._weights), list(self._weights.values()))
            started = time.monotonic()
            try:
                self._lives[kind](chance)
            except Exception as error:  # whatever it is, it is a finding
                self.faults.append(f"{self.protocol}, {kind}: {type(error).__name__}: {str(error)[:300]}")
            if (taken := time.monotonic() - started) > PATIENCE_S:
                self.faults.append(f"{self.protocol}, {kind}: took {taken:.0f} s")
            self.counts[kind] += 1

    def _client(self, chance: random.Random) -> Any:
        return chance.choice(CLIENTS[self.protocol])(self.address)

    def _play(self, chance: random.Random, is_wrong_at: int = -1) -> None:
        """Play a part of an episode, perhaps with an observation in between that is refused."""
        number, length = chance.randrange(NUM_EPISODES), chance.randint(1, MAX_STEPS)
        client = self._client(chance)
        for i, step in enumerate(self._episodes.orders[number][:length]):
            found, expected = client.act(step), self._episodes.answers[number][i]
            np.testing.assert_allclose(found, expected[: len(found)], rtol=0, atol=1e-5)
            self.counts["answers"] += 1
            if i == is_wrong_at:
                if not isinstance(client.wrong(), str):
                    raise AssertionError("a wrong observation was answered")
                self.counts["refused"] += 1
        client.close()

    def _err(self, chance: random.Random) -> None:
        """Play with an error."""
        self._play(chance, is_wrong_at=0)

    def _connect(self) -> socket.socket:
        place = urlsplit(self.address)
        return socket.create_connection((place.hostname or "127.0.0.1", place.port), PATIENCE_S)

    def _junk(self, chance: random.Random) -> None:
        """Send bytes that mean nothing, perhaps behind a handshake, and hang up at once or later."""
        with self._connect() as wire, suppress(OSError):
            if self.address.startswith("ws") and chance.random() < 0.5:
                wire.sendall(UPGRADE.format(host="localhost").encode())
                whole = frame_of(OPENPI.pack(message(0)))
                wire.sendall(chance.choice([chance.randbytes(3000), whole[: chance.randrange(len(whole))]]))
            else:
                wire.sendall(chance.randbytes(chance.randint(1, 5000)))
            time.sleep(chance.choice([0, 0, 1]))

    def _die(self, chance: random.Random) -> None:
        """Ask and leave before the answer."""
        client = self._client(chance)
        thread = threading.Thread(target=lambda: suppressed(client.act, 0), daemon=True)
        thread.start()
        time.sleep(chance.uniform(0, 0.02))
        inner = getattr(client, "client", client)
        if hasattr(inner, "socket") and hasattr(inner.socket, "socket"):
            with suppress(OSError):
                inner.socket.socket.shutdown(socket.SHUT_RDWR)
        elif self.protocol == "lerobot":
            client.close()
        thread.join(PATIENCE_S)
        if self.protocol != "lerobot":
            client.close()

    def _stall(self, _: random.Random) -> None:
        """Ask again and again without reading, as far as the server takes it."""
        with self._connect() as wire, suppress(OSError):
            if self.address.startswith("ws"):
                wire.sendall(UPGRADE.format(host="localhost").encode())
            wire.settimeout(STALL_S)
            frame, end = frame_of(OPENPI.pack(message(0))), time.monotonic() + STALL_S
            while time.monotonic() < end:
                wire.sendall(frame)


def suppressed(function: Callable[..., Any], *given: Any) -> None:
    """Call a function whose connection may end."""
    with suppress(Exception):
        function(*given)


def metric(page: str, name: str) -> float:
    """Return a number of a server's metrics; 0 where there is none yet."""
    return next((float(line.split()[-1]) for line in page.splitlines() if line.startswith(name + " ")), 0.0)


def page_of(port: int) -> str:
    """Return a server's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def resident_mb(process: int) -> float:
    """Return the memory of a process."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def judge(crowd: Crowd, port: int, memory: list[float]) -> list[str]:
    """Return what is wrong with a server whose clients have left, and print what was counted."""
    faults, end = list(crowd.faults), time.monotonic() + IDLE_S * 4
    while True:  # those that do not say that they leave are let go when they are idle
        page = page_of(port)
        left = {name: metric(page, f"robovlms_{name}") for name in ("clients", "sessions", "requests_waiting")}
        if not any(left.values()) or time.monotonic() > end:
            break
        time.sleep(0.2)
    faults += [f"{crowd.protocol}: {count:g} {name} are left" for name, count in left.items() if count]
    results = {
        name: metric(page, f'robovlms_requests_total{{result="{name}"}}')
        for name in ("ok", "refused", "busy", "failed")
    }
    if results["failed"] or results["busy"] or any(results[ours] < crowd.counts[theirs] for ours, theirs in COUNTED):
        faults.append(f"{crowd.protocol}: the server counts {results}, its clients {dict(crowd.counts)}")
    settled, last = memory[int(SETTLED * len(memory))], float(np.mean(memory[-5:]))
    if last > settled * (1 + GROWTH):
        faults.append(f"{crowd.protocol}: memory grew from {settled:.0f} to {last:.0f} MB")
    print(
        f"{crowd.protocol}: {dict(crowd.counts)}; server: {results}; memory {settled:.1f} -> {last:.1f} MB", flush=True
    )
    return faults


def soak(protocols: list[str], seconds: float, num_clients: int) -> list[str]:
    """Return all that went wrong."""
    episodes, faults = Episodes(), list[str]()
    with ExitStack() as stack:
        crowds, servers = [], []
        for name in protocols:
            own_pages = not issubclass(PROTOCOLS.get(name), PROTOCOLS.get("openpi").__mro__[1])
            options = [f"protocol={name}", f"idle_timeout_s={IDLE_S}"]
            options += [f"status_port={(port := free_port())}"] if own_pages else []
            address, process = stack.enter_context(server(SINGLE, *options))
            servers.append((process, port if own_pages else int(urlsplit(address).port or 0)))
            crowds.append((name, address))
        end = time.monotonic() + seconds
        living = [Crowd(name, address, episodes, end, WEIGHTS) for name, address in crowds]
        threads = [
            threading.Thread(target=crowd.live, args=(seed,), daemon=True)
            for crowd in living
            for seed in range(num_clients)
        ]
        for thread in threads:
            thread.start()
        memory: list[list[float]] = [[] for _ in servers]
        while time.monotonic() < end:
            for row, (process, _) in zip(memory, servers, strict=True):
                row.append(resident_mb(process))
            time.sleep(min(1.0, seconds / 100))
        for thread in threads:
            thread.join(2 * PATIENCE_S)
        if stuck := sum(thread.is_alive() for thread in threads):
            faults.append(f"{stuck} clients are stuck")
        for crowd, (_, port), row in zip(living, servers, memory, strict=True):
            faults += judge(crowd, port, row)
    return faults


def beside(seconds: float, num_bad: int, rounds: int = 5) -> None:
    """Print what a client waits for its answers, alone and beside others that misbehave, in turns."""
    episodes, waited = Episodes(), dict[str, list[float]]()
    with server(SINGLE, "protocol=openpi", f"idle_timeout_s={IDLE_S}") as (address, process):
        for _ in range(rounds):
            for name, count in (("alone", 0), (f"beside {num_bad}", num_bad)):
                share = seconds / rounds / 2
                crowd = Crowd("openpi", address, episodes, time.monotonic() + share + 1.5, BAD)
                threads = [threading.Thread(target=crowd.live, args=(seed,), daemon=True) for seed in range(count)]
                for thread in threads:
                    thread.start()
                waited.setdefault(name, []).extend(ask(address, process, 1, share, 40)["latencies_ms"])
                for thread in threads:
                    thread.join(PATIENCE_S)
    for name, latencies in waited.items():
        p50, p95, p99 = np.quantile(latencies, (0.5, 0.95, 0.99))
        print(f"{name}: p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms, longest {max(latencies):.0f} ms")


def main() -> None:
    """Soak, and fail if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS.names(), default=PROTOCOLS.names())
    parser.add_argument("--clients", type=int, default=6, help="at once, of every protocol")
    parser.add_argument("--beside", type=int, help="measure one client beside so many that misbehave")
    given = parser.parse_args()
    if given.beside:
        beside(given.seconds, given.beside)
    elif faults := soak(given.protocols, given.seconds, given.clients):
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()

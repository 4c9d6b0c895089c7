"""Clients of openpi's websocket that cost little, so that a server beside them on few cores is what is measured.

    python benchmarks/serving_clients.py ws://127.0.0.1:8000 --clients 32 --seconds 5 [--size 96] [--proprio 4]

Messages are packed and framed before the clock starts, and masked with zeros; answers are not unpacked, but for the
first. Every client waits for its answer before it asks again. Prints JSON: answers, seconds, and every latency in ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from urllib.parse import urlsplit

import numpy as np

from robovlms.serving.codecs import OPENPI

NUM_MESSAGES = 16
TEXTS = ("open the drawer", "close the window to the left", "push")  # a client keeps to one
UPGRADE = (
    "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXT, BINARY = 0x81, 0x82  # first bytes of whole frames


def observation(number: int, text: str, size: int, proprio: int) -> dict[str, object]:
    """Return an observation of noise, with our names of views."""
    generator = np.random.default_rng(number)
    frames = {view: generator.integers(0, 256, (size, size, 3), dtype=np.uint8) for view in ("side", "wrist")}
    return frames | {"instruction": text, "proprio": generator.uniform(-1, 1, proprio).astype(np.float32)}


def frame_of(message: bytes) -> bytes:
    """Return a message as one websocket frame of a client, masked with zeros."""
    size = len(message)
    if size < 126:
        head = bytes([BINARY, 0x80 | size])
    elif size < 2**16:
        head = bytes([BINARY, 0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([BINARY, 0x80 | 127]) + size.to_bytes(8, "big")
    return head + bytes(4) + message


class Wire:
    """A connection: frames out, frames in."""

    async def open(self, address: str) -> None:
        """Connect and read the server's greeting."""
        place = urlsplit(address)
        self._reader, self._writer = await asyncio.open_connection(place.hostname, place.port, limit=2**20)
        self._writer.write(UPGRADE.format(host=place.netloc).encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        if b" 101 " not in head:
            raise ConnectionError(head.decode(errors="replace"))
        await self.receive()

    async def receive(self) -> bytes:
        """Return the content of the next frame; a text is an error of the server's."""
        first, size = await self._reader.readexactly(2)
        if size > 125:
            size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8), "big")
        message = await self._reader.readexactly(size)
        if first != BINARY:
            raise ConnectionError(message.decode(errors="replace"))
        return message

    async def ask(self, frame: bytes) -> bytes:
        """Send a frame and return what is answered."""
        self._writer.write(frame)
        return await self.receive()

    def close(self) -> None:
        """Leave."""
        self._writer.close()


async def play(wire: Wire, frames: list[bytes], start: int, end: float) -> list[float]:
    """Ask again and again until `end`; return the latencies in ms."""
    found = []
    while (asked := time.perf_counter()) < end:
        await wire.ask(frames[(start + len(found)) % len(frames)])
        found.append(1000 * (time.perf_counter() - asked))
    return found


async def load(
    address: str, num_clients: int, seconds: float, frames: list[list[bytes]], warm_up: int
) -> dict[str, object]:
    """Connect all clients, fill their sessions' windows, and measure."""
    wires = [Wire() for _ in range(num_clients)]
    for wire in wires:
        await wire.open(address)
    robots = [(wire, frames[i % len(frames)]) for i, wire in enumerate(wires)]
    answer = OPENPI.unpack(await wires[0].ask(frames[0][0]))
    if not np.isfinite(answer["actions"]).all():
        raise ValueError("actions are not finite")
    for number in range(warm_up):
        await asyncio.gather(*(wire.ask(own[number % len(own)]) for wire, own in robots))
    started = time.perf_counter()
    played = await asyncio.gather(*(play(*robot, i, started + seconds) for i, robot in enumerate(robots)))
    spent = time.perf_counter() - started
    for wire in wires:
        wire.close()
    return {
        "answers": sum(map(len, played)),
        "all": sum(map(len, played)) + 1 + warm_up * num_clients,
        "seconds": spent,
        "latencies_ms": [each for row in played for each in row],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--proprio", type=int, default=4)
    parser.add_argument("--warm-up", type=int, default=8)
    given = parser.parse_args()
    frames = [
        [frame_of(OPENPI.pack(observation(i, text, given.size, given.proprio))) for i in range(NUM_MESSAGES)]
        for text in TEXTS
    ]
    found = asyncio.run(load(given.address, given.clients, given.seconds, frames, given.warm_up))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()

"""Measure how a robot tracks a path through a policy that is late: chunks, ensembles, real-time chunking, and waiting.

    python benchmarks/async_client.py [--seconds 8] [--figure docs/async_client.png]

The robot integrates what it is commanded, and drifts; its loop runs in real time. Server, wire and clients are the real
ones; answers are late by a latency of +- 30 %. In the policy's place an expert decides: every chunk follows the path
from where the robot was seen, towards an offset of its own (2 cm, one in each direction), as policies that sample do;
what it must keep of the last chunk it keeps with the weights that a head is given, and goes on from there.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from relay import Relay
from torch import Tensor

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.plan import Source
from robovlms.actions.statistics import Statistics
from robovlms.backbones.schemas.nano import NanoBackboneConfig
from robovlms.client import AsyncPolicyClient, PolicyClient
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation, Structure
from robovlms.config.closed_loop import EngineConfig
from robovlms.config.commands import ServeConfig
from robovlms.config.data import ActionContract, DataConfig, NormalizationConfig
from robovlms.heads.base import HeadSizes, Prefix
from robovlms.heads.schemas.flow import FlowHeadConfig
from robovlms.images.processor import Processor
from robovlms.policy.engine import PolicyEngine
from robovlms.policy.policy import ProprioEncoder, VLAPolicy
from robovlms.policy.sessions import Session
from robovlms.policy.spec import PolicySpec, SourceSpec
from robovlms.registry import BACKBONES, HEADS
from robovlms.serving.schemas.openpi import OpenPIConfig
from robovlms.serving.server import serving
from robovlms.serving.service import Service

RATES_HZ, LATENCIES_S, JITTER = (5, 10, 20, 50), (0.0, 0.1, 0.2, 0.3), 0.3
CHUNK_S, EXECUTED_S = 1.0, 0.25  # of a chunk, and of it before the next is asked for
OFFSET_M, CORRECTION_S, DRIFT_M_S = 0.02, 0.3, 0.1  # of chunks; time constant of corrections; of the robot
BOUND_M = 0.5  # of one action
JOINS = ("blocking", "chunk", "ensemble", "real_time")
NAMES, PROPRIO = ["dx", "dy", "gripper"], ["x", "y", "t"]
BLACK = np.zeros((32, 32, 3), np.uint8)


class Result(NamedTuple):
    """What became of one robot."""

    error_mm: float  # root mean square distance from the path
    jump_mm_s: float  # median change of the commanded velocity where a chunk begins, beyond the path's own
    jerk_m_s3: float  # root mean square
    stale_ms: float  # mean age of what an action was decided on
    still: float  # share of control steps without an action
    late_ms: float  # slowest call of the client


def path(t: np.ndarray | float) -> np.ndarray:
    """Return where the robot is to be at a time, m."""
    return np.stack([0.2 * np.sin(0.8 * np.pi * np.asarray(t)), 0.2 * np.sin(0.6 * np.pi * np.asarray(t) + 1)], -1)


class Expert(PolicyEngine):
    """An engine whose forward is a script."""

    control_hz: float

    def _act(self, sessions: Sequence[Session], prefixes: Sequence[Prefix | None]) -> list[Tensor | Exception]:
        states = [session.memory.frames[-1].step.proprio[0, 0].double().numpy() for session in sessions]
        return [self._chunk(state, prefix) for state, prefix in zip(states, prefixes, strict=True)]

    def _chunk(self, state: np.ndarray, prefix: Prefix | None) -> Tensor:
        """Return normalised actions from a position and a time."""
        position, t, k = state[:2].copy(), state[2], self.policy.head.chunk_size
        kept = np.zeros((k, 2)) if prefix is None else prefix.arm[0].double().numpy() * BOUND_M
        weights = np.zeros(k) if prefix is None else prefix.weight[0].double().numpy()
        angle = np.random.default_rng(int(1e6 * t)).uniform(0, 2 * np.pi)
        offset = OFFSET_M * np.array([np.cos(angle), np.sin(angle)])
        gain, actions = 1 - math.exp(-1 / (CORRECTION_S * self.control_hz)), []
        for i in range(k):
            here, there = path(t + i / self.control_hz), path(t + (i + 1) / self.control_hz)
            wanted = there - here + gain * (here + offset - position)
            actions.append(weights[i] * kept[i] + (1 - weights[i]) * wanted)
            position += actions[-1]
        return torch.tensor(np.c_[np.array(actions) / BOUND_M, np.ones(k)], dtype=torch.float32)


def make_service(control_hz: float) -> Service:
    """Build the server of a rate."""
    chunk_size = round(CHUNK_S * control_hz)
    nano = NanoBackboneConfig(name="nano", image_size=32, hidden_dim=16, num_layers=1, num_heads=1)
    backbone = BACKBONES.get("nano")(nano)
    head = HEADS.get("flow")(
        FlowHeadConfig(name="flow", hidden_dim=16, num_heads=1),
        HeadSizes(
            feature_dim=16, action_dim=len(NAMES), binary=(len(NAMES) - 1,), window_size=1, chunk_size=chunk_size
        ),
    )
    encoder = ProprioEncoder(len(PROPRIO), 16)
    policy = VLAPolicy(backbone, head, Structure.policy_head, Processor(backbone, ["side"], max_text_tokens=8), encoder)
    contract = ActionContract(
        names=NAMES,
        representation=Representation.delta,
        frame=ReferenceFrame.world,
        position_unit=1.0,
        control_hz=control_hz,
    )
    normalization = NormalizationConfig(mode=NormalizationMode.bounds, low=-BOUND_M, high=BOUND_M)
    data = DataConfig(
        name="path", root="", views={"side": ""}, contract=contract, normalization=normalization,
        proprio_key="state", proprio_names=PROPRIO,
    )  # fmt: skip
    rows = np.random.default_rng(0).uniform(-1, 1, (50, len(NAMES))).astype(np.float32)
    normalizer = ActionNormalizer(normalization, Statistics.compute(rows), NAMES, [len(NAMES) - 1])
    engine = Expert(policy, [(Source.of(data), normalizer)], window_size=1, config=EngineConfig(device="cpu"))
    engine.control_hz = control_hz
    source = SourceSpec(contract=contract, proprio_names=PROPRIO, statistics="")
    spec = PolicySpec(name="path", views={"side": 32}, window_size=1, chunk_size=chunk_size, sources={"path": source})
    protocol = OpenPIConfig(name="openpi", port=0, instruction="instruction")
    return Service(engine, spec, ServeConfig(checkpoint="", protocol=protocol))


@contextmanager
def served(service: Service) -> Iterator[str]:
    """Serve in a thread until the block ends; return the address."""
    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    addresses: list[str] = []

    async def main() -> None:
        async with serving(service) as address:
            addresses.append(address)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    assert ready.wait(30)
    yield addresses[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()


class Robot:
    """An integrator that drifts, and what it has done."""

    def __init__(self, control_hz: float) -> None:
        self.control_hz, self.position = control_hz, path(0.0)
        self.positions, self.actions, self.starts = [self.position], list[np.ndarray](), list[int]()
        self.ages, self.took = list[float](), list[float]()
        self.num_still = 0

    @property
    def step(self) -> int:
        """Control steps that are over."""
        return len(self.actions)

    def look(self) -> dict[str, object]:
        """Return what the policy is shown."""
        return {"side": BLACK, "instruction": "go", "proprio": np.array([*self.position, self.step / self.control_hz])}

    def move(self, action: np.ndarray) -> None:
        """Execute a control step."""
        drift = DRIFT_M_S * np.array([np.sin(np.pi * self.step / self.control_hz), 0]) / self.control_hz
        self.position = self.position + action[:2] + drift
        self.actions.append(action[:2])
        self.positions.append(self.position)

    def result(self) -> Result:
        """Return figures, of all but the first second."""
        first, hz = round(self.control_hz), self.control_hz
        times = np.arange(len(self.positions)) / hz
        positions, wanted = np.array(self.positions), path(times)
        beyond = (np.array(self.actions) - np.diff(wanted, axis=0)) * hz
        jumps = np.linalg.norm(np.diff(beyond, axis=0), axis=-1)
        jerk = np.diff(np.array(self.actions) * hz, n=2, axis=0) * hz**2
        return Result(
            error_mm=1e3 * float(np.sqrt(((positions - wanted)[first:] ** 2).sum(-1).mean())),
            jump_mm_s=1e3 * float(np.median([jumps[i - 1] for i in self.starts if i > first])),
            jerk_m_s3=float(np.sqrt((jerk[first:] ** 2).sum(-1).mean())),
            stale_ms=1e3 * float(np.mean(self.ages)),
            still=self.num_still / self.step,
            late_ms=1e3 * max(self.took),
        )


def play(address: str, join: str, control_hz: float, seconds: float) -> Result:
    """Let one robot run in real time."""
    robot, executed = Robot(control_hz), max(1, round(EXECUTED_S * control_hz))
    go = wait_for_chunks if join == "blocking" else never_wait
    go(robot, address, join, executed, round(seconds * control_hz))
    return robot.result()


def never_wait(robot: Robot, address: str, join: str, executed: int, num_steps: int) -> None:
    """Run a loop at its rate."""
    execute_steps = 1 if join == "ensemble" else executed
    with AsyncPolicyClient(address, join=join, execute_steps=execute_steps) as policy:
        policy.start(robot.look())
        started, num_chunks = time.perf_counter(), 0
        for step in range(num_steps):
            sleep_until(started + step / robot.control_hz)
            before, asked = policy.counters, time.perf_counter()
            action = policy.act(robot.look())
            robot.took.append(time.perf_counter() - asked)
            if before.chunks > num_chunks:
                robot.starts.append(step)
                num_chunks = before.chunks
            robot.ages.append(policy.counters.staleness_s)
            robot.move(action)
        robot.num_still = policy.counters.held


def wait_for_chunks(robot: Robot, address: str, join: str, executed: int, num_steps: int) -> None:
    """Stand still while a chunk is decided."""
    with PolicyClient(address) as policy:
        started, chunk, seen = time.perf_counter(), np.empty((0, 3)), 0.0
        while robot.step < num_steps:
            sleep_until(started + robot.step / robot.control_hz)
            if not len(chunk):
                seen = time.perf_counter()
                chunk = policy.act(robot.look())[:executed]
                robot.took.append(time.perf_counter() - seen)
                while started + (robot.step + 1) / robot.control_hz < time.perf_counter():
                    robot.move(np.zeros(3))
                    robot.num_still += 1
                robot.starts.append(robot.step)
            robot.ages.append(time.perf_counter() - seen)
            robot.move(chunk[0])
            chunk = chunk[1:]


def sleep_until(moment: float) -> None:
    """Wait for a control step."""
    time.sleep(max(0.0, moment - time.perf_counter()))


def late(seconds: float, seed: int) -> Callable[[], float]:
    """Return what draws latencies."""
    draw = np.random.default_rng(seed)
    return lambda: seconds * float(draw.uniform(1 - JITTER, 1 + JITTER))


def measure(seconds: float) -> dict[tuple[float, float, str], Result]:
    """Return results by rate, latency and join; the robots of a rate and latency run at once."""
    found = {}
    for hz in RATES_HZ:
        with served(make_service(hz)) as address, ThreadPoolExecutor(len(JOINS)) as threads:
            for latency in LATENCIES_S:

                def one(join: str, hz: float = hz, latency: float = latency, address: str = address) -> Result:
                    relay = Relay(address)
                    relay.delay = late(latency, JOINS.index(join))
                    with relay.running():
                        return play(relay.address, join, hz, seconds)

                for join, result in zip(JOINS, threads.map(one, JOINS), strict=True):
                    found[hz, latency, join] = result
                    figures = " ".join(f"{value:9.2f}" for value in result)
                    print(f"{hz:3} Hz {1000 * latency:4.0f} ms {join:10} {figures}", flush=True)
    return found


def draw(found: dict[tuple[float, float, str], Result], file: Path) -> None:
    """Plot figures against latency."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = {"error_mm": "tracking error, mm", "jump_mm_s": "jump at a chunk's start, mm/s", "jerk_m_s3": "jerk, m/s³"}
    figure, axes = plt.subplots(len(labels), len(RATES_HZ), figsize=(11, 7), sharex=True, sharey="row")
    for column, hz in enumerate(RATES_HZ):
        for row, (field, label) in enumerate(labels.items()):
            axis = axes[row][column]
            for join, style in zip(JOINS, ("k:", "C1-o", "C2-s", "C0-D"), strict=True):
                values = [getattr(found[hz, latency, join], field) for latency in LATENCIES_S]
                axis.plot([1000 * each for each in LATENCIES_S], values, style, label=join, markersize=4)
            axis.set_yscale("log" if row else "linear")
            if not column:
                axis.set_ylabel(label)
            if not row:
                axis.set_title(f"{hz} Hz")
        axes[-1][column].set_xlabel("latency, ms")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=80)


def main() -> None:
    """Print the figures of every robot, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--figure", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':26}" + " ".join(f"{name:>9}" for name in Result._fields))
    found = measure(given.seconds)
    if given.figure is not None:
        draw(found, given.figure)


if __name__ == "__main__":
    main()

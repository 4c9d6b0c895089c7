"""What one engine answers a second, for many sessions at once, against one policy in each process.

    python benchmarks/engine.py [--seconds 2] [--device cuda]

On a CPU the engine has one thread, and seconds are those that it was at work, so that other load does not count. Every
session is a robot that acts at every step (`execute_steps=1`): a frame in, an action out, two views. Models: nano
as in configs/backbone/nano.yaml, and the tiny Kosmos-2 of the tests; structures with a window of 8. `alone` is a
process with a policy of its own and one session, as many of them at once as there are cores. Without simulators: what
is measured is the policy alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time

import numpy as np
import torch

from robovlms.actions.normalizer import ActionNormalizer
from robovlms.actions.plan import Source
from robovlms.actions.statistics import Statistics
from robovlms.backbones.schemas.nano import NanoBackboneConfig
from robovlms.config.choices import NormalizationMode, ReferenceFrame, Representation, Structure
from robovlms.config.closed_loop import EngineConfig
from robovlms.config.data import ActionContract, DataConfig, NormalizationConfig
from robovlms.heads.base import HeadSizes
from robovlms.heads.schemas.lstm import LSTMHeadConfig
from robovlms.heads.schemas.mlp import MLPHeadConfig
from robovlms.images.processor import Processor
from robovlms.policy.engine import PolicyEngine
from robovlms.policy.policy import VLAPolicy
from robovlms.registry import BACKBONES, HEADS
from robovlms.types import Observation

WINDOW, CHUNK, SESSIONS, VIEWS = 8, 4, (1, 4, 16), ["side", "wrist"]
NAMES = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
STRUCTURES = (Structure.policy_head, Structure.interleaved)
TEXTS = ["push the red block to the left", "open the drawer", "close it"]


def make_engine(backbone_name: str, structure: Structure, device: str) -> PolicyEngine:
    """Build a random policy and its engine."""
    torch.manual_seed(0)
    kind = BACKBONES.get(backbone_name)
    nano = NanoBackboneConfig(name="nano", image_size=64, hidden_dim=128, num_layers=2, num_heads=4)
    backbone = kind(nano) if backbone_name == "nano" else kind.tiny()
    is_late = structure is Structure.policy_head
    config = LSTMHeadConfig(name="lstm", hidden_dim=256) if is_late else MLPHeadConfig(name="mlp", hidden_dim=256)
    sizes = HeadSizes(
        feature_dim=backbone.hidden_dim,
        action_dim=len(NAMES),
        binary=(len(NAMES) - 1,),
        window_size=WINDOW,
        chunk_size=CHUNK,
    )
    head = HEADS.get(config.name)(config, sizes)
    policy = VLAPolicy(backbone, head, structure, Processor(backbone, VIEWS, max_text_tokens=64))
    contract = ActionContract(
        names=NAMES, representation=Representation.delta, frame=ReferenceFrame.world, position_unit=1.0, control_hz=10.0
    )
    normalization = NormalizationConfig(mode=NormalizationMode.min_max)
    views = dict.fromkeys(VIEWS, "")
    source = Source.of(DataConfig(name="robot", root="", views=views, contract=contract, normalization=normalization))
    rows = np.random.default_rng(0).uniform(-1, 1, (50, len(NAMES))).astype(np.float32)
    normalizer = ActionNormalizer(normalization, Statistics.compute(rows), NAMES, [len(NAMES) - 1])
    return PolicyEngine(policy, [(source, normalizer)], window_size=WINDOW, config=EngineConfig(device=device))


def frames_a_second(engine: PolicyEngine, num_sessions: int, seconds: float) -> float:
    """Return how many observations are answered a second, in batches of all sessions, once windows are full."""
    generator = np.random.default_rng(0)
    frames = [dict.fromkeys(VIEWS, generator.integers(0, 256, (128, 128, 3), dtype=np.uint8)) for _ in range(16)]
    sessions = [engine.open() for _ in range(num_sessions)]

    def step(number: int) -> None:
        requests = [
            (session, Observation(frames=frames[(number + i) % 16], instruction=TEXTS[i % len(TEXTS)]))
            for i, session in enumerate(sessions)
        ]
        for answer in engine.step(requests):
            if isinstance(answer, Exception):
                raise answer

    for number in range(WINDOW + 2):
        step(number)
    clock = time.process_time if engine.device.type == "cpu" else time.perf_counter
    started, count = clock(), 0
    while clock() - started < seconds:
        step(count)
        count += 1
    return count * num_sessions / (clock() - started)


def alone(backbone_name: str, structure: Structure, device: str, seconds: float) -> float:
    """Measure one session in this process."""
    torch.set_num_threads(1)
    return frames_a_second(make_engine(backbone_name, structure, device), 1, seconds)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    print(f"torch {torch.__version__}, {arguments.device}; frames/s")
    print(f"{'':28}{f'{cores} processes':>14}" + "".join(f"{f'{n} sessions':>14}" for n in SESSIONS))
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        for backbone_name in ("nano", "kosmos"):
            for structure in STRUCTURES:
                measured = (backbone_name, structure, arguments.device, arguments.seconds)
                rates = [sum(pool.starmap(alone, [measured] * cores, chunksize=1))]
                engine = make_engine(backbone_name, structure, arguments.device)
                rates += [frames_a_second(engine, count, arguments.seconds) for count in SESSIONS]
                name = f"{backbone_name}, {structure}"
                print(f"{name:28}" + "".join(f"{rate:14.0f}" for rate in rates), flush=True)


if __name__ == "__main__":
    main()

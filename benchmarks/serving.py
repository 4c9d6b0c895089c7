"""What a server answers a second, with forwards shared by its clients and without, and what it adds to a forward.

    python benchmarks/serving.py [--rounds 5] [--seconds 3] [--size 96] [--output serving.json]

The policy is that of experiment=quickstart (nano, two views, proprioception) with an LSTM of one layer,
structure=policy_head and a window of 8 frames, untrained. Two servers, `python scripts/serve.py`, run all the time, one
with engine.max_batch_size=32 and one with 1; rounds go from one to the other, so that what else the machine does meets
both.
Each server has one thread of torch; clients (serving_clients.py) share one process. `bare` is the engine's own step for
one session, in this process. On two cores, the server computes on one; its network and the clients have the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in ("benchmarks", "tests"))
from composing import completed, composed, plan_of
from serving_clients import TEXTS, observation

from robovlms.actions.statistics import Statistics
from robovlms.policy.checkpoint import Trained, save_policy
from robovlms.policy.engine import PolicyEngine, unwrap
from robovlms.policy.manifest import new_checkpoint
from robovlms.policy.policy import VLAPolicy
from robovlms.types import Observation

ROOT = Path(__file__).parents[1]
NUMBERS, BATCHED, UNBATCHED = (1, 8, 32, 128), 32, 1
PROMISED_TIMES, PROMISED_MS = 4.0, 2.0
LSTM = ("head=lstm", "head.loss=l1", "head.hidden_dim=256", "head.num_layers=1")
QUICKSTART = ("experiment=quickstart", "structure=policy_head", "window=w8_c10", *LSTM)


def make_checkpoint(run: Path) -> Path:
    """Write an untrained policy as a run's checkpoint."""
    torch.manual_seed(0)
    config = completed(composed(*QUICKSTART))
    plan = plan_of(config)
    policy = VLAPolicy.from_config(config, plan)
    rows = np.random.default_rng(0).uniform(-1, 1, (50, len(plan.action_names))).astype(np.float32)
    statistics = {source.name: Statistics.compute(rows) for source in plan.sources}
    target = run / "checkpoints" / "step_000001"
    target.parent.mkdir(parents=True)
    with new_checkpoint(target) as folder:
        save_policy(folder, Trained(config, policy, statistics, plan))
    return target


@contextmanager
def server(run: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Run scripts/serve.py until the block ends; return its address and its process."""
    command = [sys.executable, str(ROOT / "scripts/serve.py"), f"checkpoint={run}", "port=0", "engine.device=cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([*command, *options], env=environment, **pipes) as process:
        assert process.stdout is not None
        try:
            line = next((line for line in process.stdout if line.startswith("ready: ")), None)
            if line is None:
                raise RuntimeError("the server did not start")
            yield line.split()[1], process.pid
        finally:
            process.terminate()


def cpu_seconds(process: int) -> float:
    """Return what a process has computed so far."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(address: str, process: int, num_clients: int, seconds: float, size: int) -> dict[str, Any]:
    """Let clients ask a server."""
    command = [sys.executable, str(ROOT / "benchmarks/serving_clients.py"), address]
    command += [f"--clients={num_clients}", f"--seconds={seconds}", f"--size={size}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    before = cpu_seconds(process)
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)
    return {**found, "cpu_seconds": cpu_seconds(process) - before}


def bare(engine: PolicyEngine, seconds: float, size: int) -> dict[str, Any]:
    """Return what one session takes without a server, as `ask` does."""
    session, seen = engine.open(), [observation(i, TEXTS[0], size, 4) for i in range(16)]
    wanted = [
        Observation(
            frames={view: each[view] for view in ("side", "wrist")},
            instruction=each["instruction"],
            proprio=each["proprio"],
        )
        for each in seen
    ]
    for each in wanted:
        unwrap(engine.predict([(session, each)])[0])
    started, cpu, found = time.perf_counter(), time.process_time(), []
    while (begun := time.perf_counter()) < started + seconds:
        unwrap(engine.predict([(session, wanted[len(found) % 16])])[0])
        found.append(1000 * (time.perf_counter() - begun))
    spent, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"answers": len(found), "all": len(found), "seconds": spent, "cpu_seconds": cpu, "latencies_ms": found}


def measure(
    run: Path, folder: Path, numbers: list[int], rounds: int, seconds: float, size: int
) -> dict[str, list[dict[str, Any]]]:
    """Return what every round of every case gave, by the case's name."""
    engine = PolicyEngine.from_checkpoint(folder)
    found: dict[str, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(server(run, f"engine.max_batch_size={rows}"))
            for name, rows in (("batched", BATCHED), ("unbatched", UNBATCHED))
        }
        for _ in range(rounds):
            found.setdefault("bare", []).append(bare(engine, seconds, size))
            for number in numbers:
                for name, (address, process) in servers.items():
                    found.setdefault(f"{name} {number}", []).append(ask(address, process, number, seconds, size))
    return found


def summary(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Return the rate over all rounds and quantiles of all latencies."""
    latencies = np.concatenate([each["latencies_ms"] for each in rounds])
    p50, p95, p99 = np.quantile(latencies, (0.5, 0.95, 0.99))
    rate = sum(each["answers"] for each in rounds) / sum(each["seconds"] for each in rounds)
    cpu = 1000 * sum(each["cpu_seconds"] for each in rounds) / sum(each["all"] for each in rounds)
    return {"answers_per_s": rate, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "cpu_ms": cpu}


def main() -> None:
    """Measure, print a table, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=list(NUMBERS), help="1 and 32 are judged")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--size", type=int, default=96, help="px of frames, square")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        found = measure(run, make_checkpoint(run), given.clients, given.rounds, given.seconds, given.size)
    rows = {case: summary(rounds) for case, rounds in found.items()}
    times = rows["batched 32"]["answers_per_s"] / rows["unbatched 32"]["answers_per_s"]
    added = rows["batched 1"]["p50_ms"] - rows["bare"]["p50_ms"]
    report = {"cores": len(os.sched_getaffinity(0)), "torch": torch.__version__, "frames_px": given.size}
    report |= {"rounds": given.rounds, "seconds": given.seconds, "times_at_32": times, "added_p50_ms": added}
    if given.output:
        given.output.write_text(json.dumps({**report, "cases": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"{'':16}{'answers/s':>12}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}{'CPU ms':>10}")
    for case, row in rows.items():
        print(f"{case:16}{row['answers_per_s']:12.0f}" + "".join(f"{row[key]:10.1f}" for key in list(row)[1:]))
    print(f"batched / unbatched at 32 clients: {times:.2f}; added to a bare step at 1 client: {added:.2f} ms p50")
    if times < PROMISED_TIMES or added > PROMISED_MS:
        raise SystemExit(f"promised: at least {PROMISED_TIMES:g} times, and less than {PROMISED_MS:g} ms")


if __name__ == "__main__":
    main()

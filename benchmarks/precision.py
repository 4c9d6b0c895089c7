"""Losses of 200 steps in every precision and with every kind of moments, beside what another seed changes.

`python benchmarks/precision.py [nano|kosmos ...]` trains on `calvin_mini` (ROBOVLMS_SHARED_DATA), the same samples in
every run but that of the other seed, and prints a row as soon as it is known. Exit status 1: a run is further from fp32
than the other seed is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ROBOVLMS_SHARED_DATA", ROOT.parent / "shared" / "data"))
STEPS, LAST = 200, 50
COMMON = [
    f"data.root={DATA}/calvin_mini", "window=w2_c10", "batch_size=4", "device_batch_size=4", "cluster=local",
    "head.hidden_dim=32", "head.num_layers=1", "optimizer.lr=1e-3", "schedule.warmup=10 step",
    f"schedule.total={STEPS} step", "data.num_workers=0", "trainer.num_threads=1", "trainer.log_every=1 step",
    "trainer.validate_every=null", f"trainer.save_every={STEPS} step",
]  # fmt: skip
MODELS = {
    "nano": ["backbone=nano", "backbone.hidden_dim=32", "backbone.num_heads=2"],
    "kosmos": ["backbone=kosmos", "backbone.size=tiny"],
}
RUNS = {
    "fp32": ["precision=fp32"],
    "fp32, another seed": ["precision=fp32", "seed=1"],
    "bf16": ["precision=bf16"],
    "bf16_autocast": ["precision=bf16_autocast"],
    "bf16, moments bf16_stochastic": ["precision=bf16", "optimizer.moments=bf16_stochastic"],
    "bf16, moments int8": ["precision=bf16", "optimizer.moments=int8"],
}


def losses(options: list[str]) -> list[float]:
    """Train one run and return its losses."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), *COMMON, *options, f"output_dir={folder}/run"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def mean(values: list[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def main() -> int:
    """Print the table and return the exit status."""
    worst = 0
    for model in sys.argv[1:] or MODELS:
        print(f"| {model} | first loss | mean of the last {LAST} | mean distance to fp32 |\n|---|---|---|---|")
        found: dict[str, list[float]] = {}
        distance: dict[str, float] = {}
        for name, options in RUNS.items():
            found[name] = losses([*MODELS[model], *options])
            distance[name] = mean([abs(a - b) for a, b in zip(found[name], found["fp32"], strict=True)])
            ends = f"{found[name][0]:.5f} | {mean(found[name][-LAST:]):.5f}"
            print(f"| {name} | {ends} | {distance[name]:.5f} |", flush=True)
        worst |= int(any(each > distance["fp32, another seed"] for each in distance.values()))
    return worst


if __name__ == "__main__":
    sys.exit(main())

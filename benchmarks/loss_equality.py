"""Losses of short runs, to the last digit: proof that moving code changed no number.

`python benchmarks/loss_equality.py losses.json [name ...]` trains and writes the losses of every step;
`python benchmarks/loss_equality.py a.json b.json --compare` holds two such files against each other. Both need
ROBOVLMS_SHARED_DATA with `calvin_mini`; the quickstart collects its demonstrations into LOSS_EQUALITY_DEMOS once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(os.environ.get("LOSS_EQUALITY_REPO", Path(__file__).parents[1]))
DATA = Path(os.environ.get("ROBOVLMS_SHARED_DATA", ROOT.parent / "shared" / "data"))
DEMOS = os.environ.get("LOSS_EQUALITY_DEMOS", "datasets/loss_equality_demos")
TINY = [
    "experiment=calvin_perform", f"data.root={DATA}/calvin_mini", "backbone.size=tiny", "batch_size=4",
    "cluster=local", "device_batch_size=2", "precision=fp32", "window=w4_c10", "head.hidden_dim=32",
    "data.num_workers=0", "trainer.num_threads=1", "trainer.max_validation_batches=1", "schedule.warmup=2 step",
    "schedule.total=5 step", "trainer.log_every=1 step", "trainer.validate_every=5 step", "trainer.save_every=5 step",
]  # fmt: skip
RUNS = {
    "quickstart": [
        "experiment=quickstart", f"data.root={DEMOS}", "evaluation.enabled=false", "schedule.total=100 step",
        "trainer.log_every=1 step", "trainer.validate_every=50 step", "trainer.save_every=100 step",
        "data.num_workers=0", "trainer.num_threads=1", "trainer.max_validation_batches=2",
    ],
    "calvin_mini": [
        "backbone=nano", "data=calvin", f"data.root={DATA}/calvin_mini", "window=w2_c10", "precision=fp32",
        "batch_size=8", "device_batch_size=8", "head.hidden_dim=32", "head.num_layers=1", "backbone.hidden_dim=32",
        "backbone.num_heads=2", "optimizer.lr=1e-3", "schedule=constant_5k", "schedule.total=100 step",
        "data.num_workers=0", "trainer.num_threads=1", "trainer.max_validation_batches=1", "trainer.log_every=1 step",
        "trainer.validate_every=50 step", "trainer.save_every=100 step",
    ],
    "kosmos": [*TINY, "backbone=kosmos"],
    "paligemma": [*TINY, "backbone=paligemma"],
    "qwen2_5_vl": [*TINY, "backbone=qwen2_5_vl"],
}  # fmt: skip
FIRST = {"quickstart": 50}  # steps that are compared, of a run that is longer: its warm-up has 100
TIMES = ("samples_per_s", "data_wait")  # what differs from run to run


def losses(name: str) -> list[dict[str, float]]:
    """Train one run and give its rows of metrics, without times."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, str(ROOT / "train.py"), *RUNS[name], f"output_dir={run}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row["step"] <= FIRST.get(name, row["step"])]
    return [{key: value for key, value in row.items() if not key.endswith(TIMES)} for row in rows]


def compare(left: Path, right: Path) -> int:
    """Print how many of the numbers of two files are equal, and give the exit status."""
    before, after = json.loads(left.read_text(encoding="utf-8")), json.loads(right.read_text(encoding="utf-8"))
    status = 0
    for name in before:
        pairs = [
            (row[key], other.get(key))
            for row, other in zip(before[name], after[name], strict=True)
            for key in row
            if key in other
        ]
        equal = sum(a == b for a, b in pairs)
        last = [row["train/loss"] for row in before[name] if "train/loss" in row][-1]
        print(f"{name}: {len(before[name])} rows, {equal} of {len(pairs)} numbers equal, last loss {last!r}")
        status |= equal != len(pairs)
    return status


if __name__ == "__main__":
    files = [Path(argument) for argument in sys.argv[1:] if argument.endswith(".json")]
    if "--compare" in sys.argv:
        sys.exit(compare(*files))
    names = [argument for argument in sys.argv[1:] if argument in RUNS] or list(RUNS)
    files[0].write_text(json.dumps({name: losses(name) for name in names}, indent=1) + "\n", encoding="utf-8")

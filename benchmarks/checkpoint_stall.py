"""How long training waits for a checkpoint, saved beside it and in line.

    python benchmarks/checkpoint_stall.py [--gb 0.7] [--saves 5] [--every 10] [--parallel ddp] [--processes 1]

Trains nano with a head that is as wide as the state is to be large (weights and two moments, in float32), saves after
every ten steps, and reads what each save says of itself: how long training waited, and how long until the checkpoint
was whole, hashes and syncs to the disk included. Where the median wait of asynchronous saves is more than 5 % of the
median synchronous one, the exit status is 1. A save waits for the one before: with `--every 1` that is most of it.
The first save of a run, which allocates the copies' memory, is printed too, but left out of the medians. What a write
takes from the steps beside it, on a machine whose cores they share, is printed last.
Needs ROBOVLMS_SHARED_DATA with `calvin_mini`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ROBOVLMS_SHARED_DATA", ROOT.parent / "shared" / "data"))
ALLOWED = 0.05
BATCH = 4  # windows of a step
SAVED = re.compile(r"saved \S+ \((\d+\.\d+) GB here\) in (\d+\.\d+) s, training waited (\d+\.\d+) s")


def run(folder: Path, asked: argparse.Namespace, *, is_async: bool) -> tuple[list[tuple[float, ...]], float]:
    """Train and return the mean seconds of a step, saves left out, and of every save what it says of itself.

    That is the state's GB, the seconds until it was whole, and those that training waited.

    The learning rate is so small that no weight of these arbitrary sizes is lost.
    """
    width = int((asked.gb * 1e9 / 12 / 4) ** 0.5)  # of an LSTM layer that reads less: it has 4 width^2 weights and more
    command = [sys.executable]
    if asked.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={asked.processes}"]
    command += [
        str(ROOT / "train.py"), "experiment=calvin_perform", f"data.root={DATA}/calvin_mini", "backbone=nano",
        "backbone.size=tiny", f"batch_size={BATCH}", f"device_batch_size={BATCH // asked.processes}", "precision=fp32",
        "window=w4_c10", f"head.hidden_dim={width}", "head.num_layers=1", "data.num_workers=0",
        "trainer.num_threads=1", "trainer.validate_every=null", "schedule.warmup=0 step", "optimizer.lr=1e-6",
        f"schedule.total={(asked.saves + 1) * asked.every} step", f"trainer.save_every={asked.every} step",
        "trainer.keep_last=1", "trainer.log_every=1 step",
        f"parallel={asked.parallel}", f"trainer.async_save={is_async}", f"output_dir={folder / 'run'}",
        "trainer.overwrite=true", "tracking=console",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [BATCH / row["train/samples_per_s"] for row in rows if "train/samples_per_s" in row]
    return [tuple(map(float, found.groups())) for found in SAVED.finditer(done.stderr)], mean(steps[1:])


def main() -> int:
    """Print both kinds of saves and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=0.7)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--every", type=int, default=10, help="steps from a save to the next")
    parser.add_argument("--parallel", default="ddp")
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {is_async: run(Path(folder), asked, is_async=is_async) for is_async in (False, True)}
    saves = {is_async: rows for is_async, (rows, _) in runs.items()}
    for is_async, rows in saves.items():
        for number, (size, whole, waited) in enumerate(rows):
            kind = "asynchronous" if is_async else "synchronous"
            print(f"{kind:12} save {number}: {size:.2f} GB, whole after {whole:.2f} s, training waited {waited:.3f} s")
    waits, lines = (median(waited for *_, waited in rows[1:]) for rows in (saves[True], saves[False]))
    print(
        f"median wait {waits:.3f} s, {waits / lines:.1%} of a synchronous save's {lines:.3f} s (first saves left out)"
    )
    print(
        f"a step takes {runs[False][1]:.3f} s, and {runs[True][1]:.3f} s on average where saves are written beside it"
    )
    return int(waits > ALLOWED * lines)


if __name__ == "__main__":
    sys.exit(main())

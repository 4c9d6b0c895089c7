"""Measure what an evaluation beside a run costs its training, in steps a second.

    python benchmarks/evaluation_beside.py datasets/quickstart [--rounds 3]

Trains the quickstart for a minute, alternately without and with `evaluation.during_training=true`, on a machine with a
free core for each of the two processes. The first steps, which read pictures for the first time, are left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from robovlms.files import read_json_lines

STEPS, SAVE_EVERY, SKIPPED, BATCH = 600, 150, 150, 32
OPTIONS = (
    "experiment=quickstart",
    "collect.enabled=false",
    "evaluation.enabled=false",
    "evaluation.language=[]",
    "evaluation.num_workers=1",
    "trainer.num_threads=1",
    f"schedule.total={STEPS} step",
    f"trainer.save_every={SAVE_EVERY} step",
    "trainer.validate_every=null",
    "trainer.log_every=10 step",
)


def steps_per_second(data: Path, folder: Path, *, beside: bool) -> float:
    """Train once and return the median rate over the log lines."""
    command = [sys.executable, "train.py", *OPTIONS, f"data.root={data}", f"output_dir={folder}"]
    command.append(f"evaluation.during_training={str(beside).lower()}")
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    rows = read_json_lines(folder / "metrics.jsonl")
    return median(row["train/samples_per_s"] / BATCH for row in rows if row["step"] > SKIPPED)


def main() -> None:
    """Print both rates of every round, and the cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="demonstrations of the quickstart")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rates: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            for beside in (False, True):
                rate = steps_per_second(given.data, Path(folder, f"{number}_{beside}"), beside=beside)
                rates[beside].append(rate)
                sys.stdout.write(f"{'with' if beside else 'without'} evaluation: {rate:.2f} steps/s\n")
    without, with_it = median(rates[False]), median(rates[True])
    sys.stdout.write(f"{without:.2f} without, {with_it:.2f} with: {100 * (with_it / without - 1):+.1f} %\n")


if __name__ == "__main__":
    main()

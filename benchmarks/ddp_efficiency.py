"""What a window costs with 1, 2 and 4 processes, and what travels between them: counted where wall time says little.

    python benchmarks/ddp_efficiency.py [--parallel ddp] [--steps 40] [--hidden 512]

Trains nano on CPUs with gloo, four windows a process and step, once for 8 steps and once for more: the difference is
what steps cost, without start and end. Processor time does not depend on how many processes share a core; wall time
does. Bytes are those of the loopback device, where the benchmark can have a network of its own (`unshare --net`), and
are compared with the gradients' 2P (n-1)/n of each process. Needs ROBOVLMS_SHARED_DATA with `calvin_mini`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ROBOVLMS_SHARED_DATA", ROOT.parent / "shared" / "data"))
DEVICES = Path("/proc/self/net/dev")  # of this process's network
FEW, WINDOWS = 8, 4  # steps of the short run; windows of a process and step


def sent() -> int:
    """Return the bytes that the loopback device has carried."""
    line = next(line for line in DEVICES.read_text(encoding="utf-8").splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])


def run(asked: argparse.Namespace, processes: int, steps: int, folder: Path) -> tuple[float, float, float, int]:
    """Train and return seconds of processor and of wall time, bytes that were sent, and trained weights."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        str(ROOT / "train.py"), "experiment=calvin_perform", f"data.root={DATA}/calvin_mini", "backbone=nano",
        "backbone.size=tiny", f"batch_size={WINDOWS * processes}", f"device_batch_size={WINDOWS}", "precision=fp32",
        "window=w4_c10", f"head.hidden_dim={asked.hidden}", "head.num_layers=1", "data.num_workers=0",
        "trainer.num_threads=1", "trainer.validate_every=null", "schedule.warmup=0 step", "optimizer.lr=1e-6",
        f"schedule.total={steps} step", f"trainer.save_every={steps} step", f"trainer.log_every={steps} step",
        f"parallel={asked.parallel}", f"output_dir={folder / 'run'}", "trainer.overwrite=true", "tracking=console",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    before, carried, begun = resource.getrusage(resource.RUSAGE_CHILDREN), sent(), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - begun
    weights = round(float(done.stderr.split(" M trainable parameters")[0].split()[-1]) * 1e6)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return processor, wall, float(sent() - carried), weights


def main() -> None:
    """Print a line for each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", default="ddp")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--hidden", type=int, default=512, help="width of the head, for the number of weights")
    asked = parser.parse_args()
    first = 0.0
    for processes in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            short, long = (run(asked, processes, steps, Path(folder)) for steps in (FEW, asked.steps))
        steps, weights = asked.steps - FEW, long[3]
        processor, wall = ((long[i] - short[i]) / steps / processes / WINDOWS for i in (0, 1))
        carried = (long[2] - short[2]) / steps / processes
        first = first or processor
        row = {
            "processes": processes, "weights_M": weights / 1e6, "processor_ms_a_window": processor * 1e3,
            "efficiency": first / processor, "wall_ms_a_window": wall * 1e3,
            "sent_MB_a_step_and_process": carried / 1e6,
            "gradients_MB": 4 * weights * 2 * (processes - 1) / processes / 1e6,
        }  # fmt: skip
        print(json.dumps({key: round(value, 3) for key, value in row.items()}), flush=True)


if __name__ == "__main__":
    main()

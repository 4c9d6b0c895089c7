"""Several training runs in one launch of torchrun: starting processes costs more than a tiny run."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

TESTS = Path(__file__).parent
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def launch(num_processes: int, runs: Sequence[Sequence[str]], folder: Path) -> str:
    """Train each list of overrides, one after another, in `num_processes` processes; return what was printed."""
    with started(num_processes, runs, folder) as process:
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-12000:]
    return output


@contextmanager
def started(num_processes: int, runs: Sequence[Sequence[str]], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start what `launch` waits for; what still runs when the block ends is killed."""
    asked = folder / f"runs_of_{num_processes}.json"
    asked.write_text(json.dumps([list(run) for run in runs]), encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    command = [*torchrun, str(TESTS / "launching.py"), str(asked)]
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.communicate()


def _train_all(asked: Path) -> None:
    import torch
    from composing import completed, composed

    from robovlms.cli.output import report, set_up_output
    from robovlms.commands import train
    from robovlms.config.run import TrainConfig

    set_up_output()
    train.plot_run = lambda *_: {}
    torch.set_num_threads(1)
    for overrides in json.loads(asked.read_text(encoding="utf-8")):
        try:
            train.train(completed(composed(*overrides)))
        except Exception as error:
            sys.exit(report(error, TrainConfig)[0])


if __name__ == "__main__":
    _train_all(Path(sys.argv[1]))

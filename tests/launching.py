"""Training runs in processes of their own: starting one costs more than a tiny run does, so each is forked from a
process that has imported everything, and several runs may follow each other in one launch.
"""

import gc
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import psutil
import torch
from calvin_folder import losses
from composing import completed, composed
from torch.distributed import TCPStore

from robovlms.cli.main import train as train_command
from robovlms.cli.output import report, set_up_output
from robovlms.commands import train
from robovlms.config.run import TrainConfig
from robovlms.policy.graphs import compiling

TESTS = Path(__file__).parent
PATIENCE_S = 120  # that a launch may take, and every run in it again


class Launch:
    """The processes of a launch, and what they said."""

    def __init__(self, processes: Sequence[BaseProcess], log: Path) -> None:
        self._processes, self._log = processes, log

    @property
    def pids(self) -> list[int]:
        """Of the processes, by rank."""
        return [process.pid or 0 for process in self._processes]

    def family(self) -> list[psutil.Process]:
        """Return the processes that still run, and those that they have started."""
        alive = [psutil.Process(process.pid) for process in self._processes if process.is_alive()]
        return [*alive, *(child for each in alive for child in each.children(recursive=True))]

    def statuses(self, timeout_s: float = PATIENCE_S) -> list[int]:
        """Wait for all, and return their exit statuses."""
        for process in self._processes:
            process.join(timeout_s)
            assert process.exitcode is not None, f"still running after {timeout_s} s: {self.output()}"
        return [process.exitcode or 0 for process in self._processes]

    def output(self) -> str:
        """Return what they have printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-12_000:]

    def wait_for(self, happened: Callable[[], bool], timeout_s: float = 120) -> None:
        """Wait until something is so, while the processes run."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            assert all(process.is_alive() for process in self._processes), self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.02)

    def wait_for_losses(self, run: Path) -> None:
        """Wait for the first step of a run."""
        self.wait_for(lambda: (run / "metrics.jsonl").is_file() and bool(losses(run)))


def launch(num_processes: int, runs: Sequence[Sequence[str]], folder: Path) -> str:
    """Train each list of overrides, one after another, in `num_processes` processes; return what was printed."""
    with started(num_processes, runs, folder) as processes:
        assert not any(processes.statuses(PATIENCE_S * (1 + len(runs)))), processes.output()
    return processes.output()


@contextmanager
def started(num_processes: int, runs: Sequence[Sequence[str]], folder: Path) -> Iterator[Launch]:
    """Start what `launch` waits for; what still runs when the block ends is killed."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun has one
    world = {"WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes, "MASTER_PORT": store.port}
    world |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    ranks = [{**world, "RANK": rank, "LOCAL_RANK": rank} for rank in range(num_processes)]
    log = folder / f"said_by_{num_processes}.log"
    with _forked(_train_all, [(log, rank, runs) for rank in ranks], log) as processes:
        yield processes


@contextmanager
def command(overrides: Sequence[str], folder: Path) -> Iterator[Launch]:
    """Start `python train.py` with overrides, the leader of a process group; killed when the block ends."""
    log = folder / "said.log"
    with _forked(_train_by_command, [(log, {}, overrides)], log) as process:
        yield process


@contextmanager
def _forked(act: Callable[..., None], arguments: Sequence[tuple[object, ...]], log: Path) -> Iterator[Launch]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["launching", "pytest"])
    log.write_bytes(b"")
    launched = Launch([context.Process(target=act, args=each) for each in arguments], log)
    with mock.patch.dict(os.environ, {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"}):  # the server, once started, needs it
        for process in launched._processes:
            process.start()
    try:
        yield launched
    finally:
        for process in launched.family():
            process.kill()
        for process in launched._processes:
            process.join()


def _settle(log: Path, environment: dict[str, object]) -> None:
    """Be a process as a launcher would have started it."""
    os.setsid()
    gc.freeze()  # what was imported is no garbage
    multiprocessing.set_start_method("fork", force=True)  # as in a process that was not forked from a server
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update({"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"})
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    set_up_output()
    train.plot_run = lambda *_: {}
    compiling.BACKEND = "eager"  # building C++ takes minutes


def _train_all(log: Path, environment: dict[str, object], runs: Sequence[Sequence[str]]) -> None:
    _settle(log, environment)
    for overrides in runs:
        try:
            train.train(completed(composed(*overrides)))
        except Exception as error:
            sys.exit(report(error, TrainConfig)[0])


def _train_by_command(log: Path, environment: dict[str, object], overrides: Sequence[str]) -> None:
    _settle(log, environment)
    sys.argv = [str(TESTS.parent / "train.py"), *overrides]
    try:
        train_command()
    except Exception:
        traceback.print_exc()
        raise

"""The processes of a run: how they start and end, what one does for all, and the signals that stop them."""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import broadcast_object_list
from torch._C._distributed_c10d import PrefixStore, TCPStore

from robovlms.config.choices import Precision
from robovlms.config.run import TrainConfig
from robovlms.errors import LostProcessError
from robovlms.terminal import PrintableFormatter

log = logging.getLogger(__name__)

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # of prctl(2)
RUNS = itertools.count()  # of this process: a sweep has several
LOGS = "logs"  # in the run folder, one file a process
LOST = re.compile(
    r"connection (closed|reset)|broken pipe|socket (closed|timeout)|timed out|timeout|remote process (has )?exited|"
    r"no longer alive|peer",
    re.IGNORECASE,
)  # how gloo and NCCL say that another process has gone
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
FORWARDED_S = 3.0  # torchrun sends the Ctrl-C that a terminal has sent already once more


@contextmanager
def launched(config: TrainConfig) -> Iterator[Accelerator]:
    """Set up this process as one of the run's; on the way out its group and Accelerate's global state are taken down.

    Raises:
        LostProcessError: another process of the run has gone.
        UserError: the cluster's preset means another number of processes.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.precision.tf32
    if config.trainer.num_threads:
        torch.set_num_threads(config.trainer.num_threads)
    end_with_launcher()
    timeout = timedelta(seconds=config.parallel.timeout_s)
    meet(timeout)
    accelerator = Accelerator(
        mixed_precision="no" if config.precision.name is Precision.fp32 else "bf16",
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
        step_scheduler_with_optimizer=False,
    )
    try:
        config.cluster.check_launch(accelerator.num_processes)
        yield accelerator
        accelerator.wait_for_everyone()
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not LOST.search(str(error)):
            raise
        raise LostProcessError(
            f"process {accelerator.process_index} of {accelerator.num_processes} lost the others "
            f"({str(error).splitlines()[0]}): one was killed, has failed, or did not answer within parallel.timeout_s="
            f"{config.parallel.timeout_s}. What each said is in {config.output_dir}/{LOGS}; resume the run "
            "with trainer.resume=auto."
        ) from error
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()


def meet(timeout: timedelta) -> None:
    """Join the processes that torchrun started; those of every run of a sweep meet under a name of their own."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or int(os.environ["WORLD_SIZE"]) == 1:
        return
    address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    store = TCPStore(*address, is_master=False, timeout=timeout)
    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(f"run_{next(RUNS)}", store),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timeout,
    )


@contextmanager
def logged(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Write what every one of several processes says, and what it fails with, into a file of its own in a folder."""
    if accelerator.num_processes == 1:
        yield
        return
    (folder / LOGS).mkdir(exist_ok=True)
    handler = logging.FileHandler(folder / LOGS / f"rank_{accelerator.process_index:05d}.log", encoding="utf-8")
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    ours = logging.getLogger("robovlms")
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        ours.info("process %d on %s, pid %d", accelerator.process_index, socket.gethostname(), os.getpid())
        yield
    except Exception:
        handler.handle(ours.makeRecord(ours.name, logging.ERROR, "", 0, "failed with", (), sys.exc_info()))
        raise
    finally:
        ours.setLevel(level)
        ours.removeHandler(handler)
        handler.close()


def end_with_launcher() -> None:
    """Have the system end this process when torchrun is gone, even by SIGKILL: nobody else would."""
    if under_torchrun():
        end_with_parent()


def end_with_parent() -> None:
    """Have the system send SIGTERM when the process that started this one is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def under_torchrun() -> bool:
    """Tell whether torchrun, or what builds on it, started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def on_main(accelerator: Accelerator, act: Callable[[], T]) -> T:
    """Return, in every process, what the main process gets from `act`; where that fails all end, and one says why.

    Raises:
        SystemExit: in the others, where the main process raises what `act` raised.
    """
    outcome: list[Any] = [(None, True)]
    try:
        if accelerator.is_main_process:
            outcome = [(act(), False)]
    finally:
        broadcast_object_list(outcome)
    value, has_failed = outcome[0]
    if has_failed:
        raise SystemExit(2)
    return value


class StopSignals:
    """SIGTERM and SIGUSR1 (a cluster's ways to say that time is up) and Ctrl-C end a run after the current step.

    It leaves a checkpoint.

    A second Ctrl-C ends it at once.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._received: signal.Signals | None = None
        self._when = 0.0

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Listen inside the block; outside, signals do what they did."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._on_signal) for number in HANDLED}
        try:
            yield
        except Exception:
            if under_torchrun():  # which sends SIGTERM as soon as one process has ended: the others say why first
                previous[signal.SIGTERM] = signal.SIG_IGN
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_new = self._received is None
        is_forwarded = under_torchrun() and time.monotonic() - self._when < FORWARDED_S
        if number == signal.SIGINT and not is_new and not is_forwarded:
            raise KeyboardInterrupt
        if is_new:
            self._received, self._when = signal.Signals(number), time.monotonic()

    def agreed(self, is_log_line: bool) -> signal.Signals | None:
        """Return the signal that stops the run, the same in all processes; several ask each other at log lines only."""
        if self._accelerator.num_processes == 1:
            return self._received
        if not is_log_line:
            return None
        flags = torch.tensor([float(self._received == number) for number in HANDLED], device=self._accelerator.device)
        total = self._accelerator.reduce(flags, "sum").tolist()
        return next((number for number, count in zip(HANDLED, total, strict=True) if count), None)


def end(stop: signal.Signals, step: int) -> None:
    """Leave as a stopped run does, its checkpoint written.

    Raises:
        SystemExit: with status 0, after SIGTERM and SIGUSR1.
        KeyboardInterrupt: after Ctrl-C; the command's status is 130.
    """
    log.info("stopped by %s at step %d; continue with trainer.resume=auto", stop.name, step)
    if stop == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(0)

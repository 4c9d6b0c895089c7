"""What happens in loader processes and to them: how they start, how their errors arrive, what a dead one died of.

A DataLoader turns an error in a process into one whose message is two tracebacks long, and a process that was killed
into an exception at any line of the training process. Here an error arrives as it was raised, when its batch is asked
for, and a killed process is named with the likely cause.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from robovlms.data.loading.sampler import Draw
from robovlms.errors import UserError
from robovlms.workers import Failure, death

T = TypeVar("T")


class Samples(Dataset[Any]):
    """A data set addressed by draws, so that the collator learns each sample's number."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> tuple[Any, Draw] | Failure:
        try:
            return self.dataset[draw.window], draw
        except Exception as error:
            if get_worker_info() is None:
                raise
            return Failure.of(error)


class Guarded:
    """A collator that hands on the failure of a sample, and gives its own as one."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        """Collate."""
        if (failure := next((sample for sample in samples if isinstance(sample, Failure)), None)) is not None:
            return failure
        try:
            return self.collate(samples)
        except Exception as error:
            if get_worker_info() is None:
                raise
            return Failure.of(error)


class Loader(Generic[T]):
    """Batches of a DataLoader, whose errors are those of the data.

    Args:
        loader: of `Samples`, with a `Guarded` collator.
        option: that sets its number of processes, for messages.
    """

    def __init__(self, loader: DataLoader[T], option: str) -> None:
        self._loader, self._option = loader, option

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[T]:
        before = signal.getsignal(signal.SIGCHLD)
        iterator = iter(self._loader)
        if _is_torchs(signal.getsignal(signal.SIGCHLD)):
            # It raises wherever the process happens to be; a dead worker is noticed below as well.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if _is_torchs(before) else before)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if (said := self._death(iterator)) is None:
                    raise
                _kill(iterator)
                raise UserError(said) from error
            if isinstance(batch, Failure):
                _kill(iterator)
                raise batch.error from batch.cause
            yield batch

    def _death(self, iterator: Any) -> str | None:
        """Say which process died, and of what; None where all are alive."""
        dead = [process for process in _processes(iterator) if process.exitcode]
        if not dead:
            return None
        number = self._loader.num_workers
        return (
            f"{len(dead)} of {number} loader processes died: {death(dead[0])}. Where memory is short, lower "
            f"{self._option}={number} or data.cache_mb; {self._option}=0 reads in the training process."
        )


def _is_torchs(handler: Any) -> bool:
    return str(getattr(handler, "__module__", "")).startswith("torch.utils.data")


def _processes(iterator: Any) -> list[BaseProcess]:
    return list(getattr(iterator, "_workers", ()))  # private to torch, which has no other way to them


def _kill(iterator: Any) -> None:
    """End the processes at once: an iterator that an error keeps alive would not, and its end would wait for them."""
    for process in _processes(iterator):
        process.kill()


def context() -> BaseContext:
    """Return how loader processes are started: as this program's others, but joblib's own way cannot start them."""
    method = multiprocessing.get_start_method()
    known = multiprocessing.get_all_start_methods()
    own = ("fork", "spawn", "forkserver")
    return multiprocessing.get_context(method if method in own else known[0])


def stop_at_exit() -> None:
    """See to it that no loader process outlives this one, which may be one of multiprocessing itself."""
    Finalize(None, _stop, exitpriority=100)  # before multiprocessing waits for its children


def _stop() -> None:
    """End loader processes that an exception kept alive: they ignore the signal that python ends its children with."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def start(worker: int) -> None:
    """Return a loader process one thread; signals to the whole group are the training process's to handle."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

"""Checkpoints of a run: written by all processes, beside training, whole or not at all.

A save takes a *snapshot*: what this process has of the state, copied to the host's memory where training goes on
meanwhile (`trainer.async_save`). The copy is made beside the next step's forward and backward: training waits for it
only where the weights are about to change. Processes that share the state each write their part of it; the main process
then puts the weights together, writes the manifest and renames the folder. An error is raised where the next save, or
the end of the run, waits for this one.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from robovlms.errors import writing
from robovlms.files import PARTIAL
from robovlms.policy.checkpoint import BACKBONE, EMA, STATE, WEIGHTS, Trained, save_description
from robovlms.policy.manifest import new_checkpoint
from robovlms.policy.policy import first_names, save_weights
from robovlms.training.checkpoints.pieces import Piece, Pieces, save_pieces
from robovlms.training.checkpoints.state import OPTIMIZER, TrainingState
from robovlms.training.launch import on_main
from robovlms.training.optimizer.optimization import check_finite

log = logging.getLogger(__name__)

WEIGHT_SHARDS, AVERAGE_SHARDS = "weights_of_", "averages_of_"  # files of processes: put together, then deleted


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What one process has of a run's state."""

    target: Path
    trained: Trained
    state: TrainingState  # without the optimizer's tensors
    weights: dict[str, Tensor]  # whole ones, by name
    pieces: dict[str, Piece]  # of weights that are spread over processes
    optimizer: dict[str, Piece]
    averages: dict[str, Piece] = field(default_factory=dict)  # of trained weights

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, by a name that is unique and the same in every save."""
        named = {"weight": self.weights, "optimizer": _values(self.optimizer), "piece": _values(self.pieces)}
        named["average"] = _values(self.averages)
        return {f"{kind} {name}": tensor for kind, group in named.items() for name, tensor in group.items()}

    def trained_tensors(self) -> dict[str, Tensor]:
        """Return what this process has of the trained weights."""
        first = first_names(self.trained.policy)
        ours = self.weights | _values(self.pieces)
        return {name: ours[first[name]] for name in self.state.parameters if first[name] in ours}

    @property
    def num_bytes(self) -> int:
        """The size of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def held_by(self, copies: Mapping[str, Tensor]) -> Snapshot:
        """Return this snapshot with other tensors of `tensors`' names."""
        return Snapshot(
            target=self.target,
            trained=self.trained,
            state=self.state,
            weights={name: copies[f"weight {name}"] for name in self.weights},
            pieces={name: piece._replace(values=copies[f"piece {name}"]) for name, piece in self.pieces.items()},
            optimizer={
                name: piece._replace(values=copies[f"optimizer {name}"]) for name, piece in self.optimizer.items()
            },
            averages={name: piece._replace(values=copies[f"average {name}"]) for name, piece in self.averages.items()},
        )


def _values(pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
    return {name: piece.values for name, piece in pieces.items()}


class CheckpointWriter:
    """Writes checkpoints one after another, in a thread of its own where asked to.

    A context manager: what has been begun inside is whole, or gone, behind it.
    """

    def __init__(
        self, accelerator: Accelerator, kept: Callable[[int], Any], *, is_sharded: bool, is_async: bool
    ) -> None:
        """Set up the writers; every process calls this at the same time.

        Args:
            accelerator: the processes.
            kept: called by the main process with the step whose checkpoint is whole.
            is_sharded: whether every process has a part of the state, or the main process has all of it.
            is_async: whether training goes on while a checkpoint is written.
        """
        self._accelerator, self._kept, self._is_async = accelerator, kept, is_async
        self.rank, self._is_sharded = accelerator.process_index, is_sharded
        self._group = dist.new_group(backend="gloo") if is_sharded else None
        # The backbone's own files never change; its tokenizer may be in use while the thread writes.
        self._files = tempfile.TemporaryDirectory(prefix="robovlms_backbone_")
        self._copies: dict[str, Tensor] = {}  # the last snapshot's, whose memory the next one takes
        self._copied, self._waited = threading.Event(), 0.0  # seconds, that training waited for the last snapshot
        self._copied.set()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
            return
        try:
            self._wait()
        except (Exception, SystemExit) as error:
            log.error("the checkpoint that was being written is lost: %s", error)

    def save(self, take: Callable[[], Snapshot]) -> None:
        """Write a checkpoint, or begin to, in all processes; the one before is complete when this returns.

        Trained weights that are not finite are never written.

        Raises:
            UserError: weights are lost, in this one or the one before.
            OSError: this one, or the one before, could not be written; earlier checkpoints are untouched.
            SystemExit: that was so in another process, which says why.
        """
        self._in_writers(lambda: self.save_alone(take()))

    def save_alone(self, snapshot: Snapshot) -> None:
        """Write a checkpoint as `save` does, asking no other process: for the main one, where it has everything."""
        started = time.perf_counter()
        self._wait()
        if self.rank == 0 and not any(Path(self._files.name).iterdir()):
            snapshot.trained.policy.backbone.save_pretrained(Path(self._files.name), weights=False)
        if not self._is_async:
            self._write(snapshot, started)
            return
        self._copied.clear()
        self._thread = threading.Thread(target=self._run, args=(snapshot, started), name="checkpoint")
        self._thread.start()
        self._waited = time.perf_counter() - started

    def before_change(self) -> None:
        """Wait until what `save` was given is copied: for whoever is about to change weights or optimizer state."""
        begun = time.perf_counter()
        self._copied.wait()
        self._waited += time.perf_counter() - begun

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if any, in all processes.

        Raises:
            OSError, SystemExit: as `save`.
        """
        self._in_writers(self._wait)

    def _in_writers(self, act: Callable[[], None]) -> None:
        """Do something in the processes that write; where it fails all end, and one says why."""
        act() if self._is_sharded else on_main(self._accelerator, act)

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy to the host's memory; on a GPU only ask for it, in the stream in which training goes on."""
        for name, tensor in tensors.items():
            copy = self._copies.get(name)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._copies[name] = copy
            copy.copy_(tensor.detach(), non_blocking=True)

    def _run(self, snapshot: Snapshot, started: float) -> None:
        device = self._accelerator.device
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # of this thread
            self._copy(snapshot.tensors())
            self._copied.set()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self._write(snapshot.held_by(self._copies), started)
        except BaseException as error:
            self._error = error
        finally:
            self._copied.set()

    def _write(self, snapshot: Snapshot, started: float) -> None:
        is_main, folder = self.rank == 0, snapshot.target.with_name(f".{snapshot.target.name}{PARTIAL}")
        self._together(lambda: check_finite(snapshot.trained_tensors(), snapshot.state.step))
        with ExitStack() as stack:
            if is_main:
                self._together(lambda: (stack.enter_context(new_checkpoint(snapshot.target)) / STATE).mkdir())
                self._together(lambda: self._write_part(folder, snapshot))
                self._together(lambda: self._finish(folder, snapshot, stack))
            else:
                self._together(lambda: None)
                with writing(snapshot.target):
                    self._together(lambda: self._write_part(folder, snapshot))
                self._together(lambda: None)
        if is_main:
            self._kept(snapshot.state.step)
            took = time.perf_counter() - started
            figures = (snapshot.num_bytes / 1e9, took, self._waited if self._is_async else took)
            log.info("saved %s (%.2f GB here) in %.2f s, training waited %.3f s", snapshot.target, *figures)

    def _finish(self, folder: Path, snapshot: Snapshot, stack: ExitStack) -> None:
        self._write_whole(folder, snapshot)
        stack.close()

    def _together(self, act: Callable[[], Any]) -> None:
        """Do something in every process; where it fails in one, fail in all.

        Raises:
            SystemExit: it has failed in another process, which raises what it met.
        """
        error: BaseException | None = None
        try:
            act()
        except Exception as caught:
            error = caught
        if self._group is not None:
            failed: list[bool] = [False] * self._accelerator.num_processes
            dist.all_gather_object(failed, error is not None, group=self._group)
            if any(failed) and error is None:
                raise SystemExit(2)
        if error is not None:
            raise error

    def _write_part(self, folder: Path, snapshot: Snapshot) -> None:
        """Write what this process has of the state."""
        name = OPTIMIZER.replace(".", f"_{self.rank:05d}.") if self._is_sharded else OPTIMIZER
        for kind, pieces in ((WEIGHT_SHARDS, snapshot.pieces), (AVERAGE_SHARDS, snapshot.averages)):
            if pieces:
                save_pieces(folder / f"{kind}{self.rank:05d}", pieces)
        if snapshot.optimizer:
            save_pieces(folder / STATE / name, snapshot.optimizer)

    def _write_whole(self, folder: Path, snapshot: Snapshot) -> None:
        """Put the weights together, and write what is not spread over processes."""
        weights = snapshot.weights | _put_together(folder, WEIGHT_SHARDS)
        if averages := _put_together(folder, AVERAGE_SHARDS):
            save_file(averages, folder / EMA)
        save_description(folder, snapshot.trained)
        shutil.copytree(self._files.name, folder / BACKBONE)
        save_weights(folder / WEIGHTS, snapshot.trained.policy, weights)
        snapshot.state.save(folder / STATE)


def _put_together(folder: Path, kind: str) -> dict[str, Tensor]:
    """Return the whole tensors of the processes' files of a kind, and delete the files."""
    shards = sorted(folder.glob(f"{kind}*"))
    pieces = Pieces(shards)
    tensors = {name: pieces.read(name) for name in pieces.shapes}
    for path in shards:
        path.unlink()
    return tensors

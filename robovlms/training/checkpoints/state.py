"""What a run needs besides the weights to be resumed bit for bit, and which checkpoint it may be resumed from."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from robovlms.config.choices import Moments
from robovlms.config.data import DataConfig
from robovlms.config.fields import RUN, change_keeps
from robovlms.config.run import TrainConfig
from robovlms.config.training import Rounding
from robovlms.errors import UserError
from robovlms.policy.checkpoint import CONFIG, STATE, checkpoints, load_config, run_folder_of, step_of
from robovlms.policy.manifest import DamagedCheckpointError, check_checkpoint, reading
from robovlms.training.checkpoints.pieces import Piece, Pieces
from robovlms.training.optimizer.adamw import COMPENSATION, LowPrecisionAdamW
from robovlms.training.optimizer.moments import converted
from robovlms.training.optimizer.optimization import named_weights
from robovlms.training.parallel.base import Share

log = logging.getLogger(__name__)

OPTIMIZER, SHARDS, REST = "optimizer.safetensors", "optimizer_*.safetensors", "state.json"


@dataclass(kw_only=True)
class TrainingState:
    """What a run needs besides the weights to go on bit for bit.

    Nothing in it depends on how the run computes: the same optimizer tensors belong to the same parameters whatever the
    precision, the number of processes, how they share the work, or the order of parameters.
    """

    step: int
    parameters: list[str]  # that are trained, by the policy's name
    rng: list[dict[str, Tensor]]  # one entry per rank
    data: dict[str, Any] = field(default_factory=dict)  # of `feeding.record_data`; empty in checkpoints before it
    optimizer: Pieces = field(default_factory=Pieces)  # `<kind>/<name of the parameter>`: moments and counts
    numbered: bool = False  # whether parameters are numbers, in the optimizer's order: checkpoints before names

    def save(self, folder: Path) -> None:
        """Write all but the optimizer's tensors: those of random states as safetensors, the rest as JSON."""
        for rank, state in enumerate(self.rng):
            save_file(state, folder / f"rng_{rank}.safetensors")
        rest = {"step": self.step, "num_ranks": len(self.rng), "parameters": self.parameters, "data": self.data}
        (folder / REST).write_text(json.dumps(rest, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TrainingState:
        """Read what a run has saved; the optimizer's tensors are read where they are needed.

        Raises:
            DamagedCheckpointError: a file cannot be read, or the step is not that of the checkpoint's name.
        """
        checkpoint = folder.parent
        with reading(checkpoint, f"{STATE}/{REST}"):
            rest = json.loads((folder / REST).read_text(encoding="utf-8"))
            step, num_ranks, numbered = int(rest["step"]), int(rest["num_ranks"]), "param_groups" in rest
            parameters = _numbers(rest["param_groups"]) if numbered else [str(name) for name in rest["parameters"]]
            if checkpoint.name.startswith("step_") and step != step_of(checkpoint):
                raise ValueError(f"it is of step {step}, the folder of step {step_of(checkpoint)}")
        with reading(checkpoint, f"{STATE}/{OPTIMIZER}"):
            optimizer = Pieces(sorted(folder.glob(SHARDS)) or [folder / OPTIMIZER])
        rng = []
        for rank in range(num_ranks):
            with reading(checkpoint, f"{STATE}/rng_{rank}.safetensors"):
                rng.append(load_file(folder / f"rng_{rank}.safetensors"))
        data = dict(rest.get("data") or {})
        return cls(step=step, parameters=parameters, optimizer=optimizer, rng=rng, data=data, numbered=numbered)

    def restore(self, optimizer: torch.optim.Optimizer, names: Sequence[str], shares: Mapping[str, Share]) -> None:
        """Load the moments into an optimizer; rate, decay, betas and eps stay those of the run's config.

        Args:
            optimizer: of `make_optimizer`, over what this process has of the parameters.
            names: of all trained parameters, in the optimizer's order.
            shares: what this process has of them.

        Raises:
            UserError: it is of other parameters.
        """
        ours, theirs = list(names), self.parameters
        if self.numbered:
            ours = [str(number) for number in range(len(ours))]
        if sorted(ours) != sorted(theirs):
            others = sorted(set(ours) ^ set(theirs))
            raise UserError(
                f"the optimizer state of step {self.step} is of {len(theirs)} parameters, this run trains {len(ours)}: "
                f"{len(others)} are of one alone, e.g. {others[0]}. Give the options that it was trained with."
            )
        by_name = {known: shares[name] for known, name in zip(ours, names, strict=True) if name in shares}
        keys: dict[str, dict[str, str]] = {}
        for key in self.optimizer.shapes:
            kind, name = key.split(".", 1)[::-1] if self.numbered else key.split("/", 1)
            keys.setdefault(name, {})[kind] = key
        moments, is_compensated = Moments.fp32, False
        if isinstance(optimizer, LowPrecisionAdamW):
            moments, is_compensated = optimizer.moments, optimizer.rounding is Rounding.kahan
        for name, share in by_name.items():
            state = self._state(keys.get(name, {}), share)
            if not is_compensated:
                state.pop(COMPENSATION, None)
            if state:
                optimizer.state[share.weight] = converted(state, moments, share.weight.shape)

    def _state(self, keys: Mapping[str, str], share: Share) -> dict[str, Tensor]:
        """Return what belongs to a share of a parameter's state: of tensors as large as the parameter, its part."""
        if any(kind.endswith("_scale") for kind in keys) and not share.is_whole:  # scales are of blocks of the whole
            whole = converted(
                {kind: self.optimizer.read(key) for kind, key in keys.items()}, Moments.fp32, torch.Size(share.shape)
            )
            found = {kind: share.part(value) for kind, value in whole.items()}
        else:
            found = {kind: self._part(key, share) for kind, key in keys.items()}
        return {kind: value.to(share.weight.device) for kind, value in found.items()}

    def _part(self, key: str, share: Share) -> Tensor:
        if self.optimizer.shapes[key] != share.shape or not share.shape:
            return self.optimizer.read(key)
        return self.optimizer.read(key, share.start, share.stop).reshape(share.weight.shape)

    def check_data(self, now: dict[str, Any]) -> None:
        """Refuse to resume with other data than the run was trained on so far.

        Args:
            now: of `feeding.record_data`.

        Raises:
            UserError: says what differs.
        """
        if not self.data or self.data == now:
            return
        then_windows, now_windows = self.data.get("windows", {}), now["windows"]
        changed = [
            f"  {name}: {then_windows.get(name, 0)} windows at step {self.step}, now {now_windows.get(name, 0)}"
            for name in then_windows | now_windows
            if then_windows.get(name) != now_windows.get(name)
        ]
        told = changed or [f"  as many windows as at step {self.step}, but other actions or instructions"]
        raise UserError(
            "the data are not those that this run was trained on:\n" + "\n".join(told) + "\nResume it with the same "
            "data, or start a new run from its weights with trainer.init_from=<run> and another output_dir=..."
        )


def optimizer_pieces(optimizer: torch.optim.Optimizer, shares: Mapping[str, Share]) -> dict[str, Piece]:
    """Return what this process has of an optimizer's moments and counts, as `<kind>/<name of the parameter>`."""
    found = {}
    for name, weight in named_weights(optimizer).items():
        share, state = shares[name], optimizer.state[weight]
        if not share.is_whole and state:
            small = any(kind.endswith("_scale") for kind in state)  # whose blocks are of this share alone
            state = converted(state, Moments.fp32, weight.shape) if small else state
        for kind, value in state.items():
            is_part = value.shape == weight.shape and value.ndim > 0
            found[f"{kind}/{name}"] = share.piece(value) if is_part else Piece.whole(value)
    return found


def _numbers(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(number) for group in groups for number in group["params"]]


def rng_state() -> dict[str, Tensor]:
    """Return this process's random states: torch, its CUDA device, numpy and python."""
    _, words, position, has_gauss, cached = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(words, dtype=np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
        "python": torch.tensor(random.getstate()[1], dtype=torch.int64),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_state(states: dict[str, Tensor]) -> None:
    """Restore what `rng_state` gave."""
    torch.set_rng_state(states["torch"])
    position, has_gauss, cached = states["numpy_rest"].tolist()
    words = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, int(position), int(has_gauss), cached))
    random.setstate((3, tuple(states["python"].tolist()), None))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def find_resume(config: TrainConfig) -> Path | None:
    """Return the checkpoint to continue from, if any; its files have been held against its manifest.

    Raises:
        FileNotFoundError: trainer.resume names a folder that is no checkpoint with a training state.
        UserError: the checkpoint is damaged, or belongs to a different run; lists what differs.
    """
    resume, folder = config.trainer.resume, Path(config.output_dir)
    if resume == "never":
        return None
    found = _newest_whole(folder) if resume == "auto" else Path(resume)
    if found is None:
        return None
    if not (found / STATE).is_dir():
        raise FileNotFoundError(
            f"trainer.resume={resume}: {found} has no {STATE}. Give a .../checkpoints/step_<number> folder, or auto."
        )
    if resume != "auto":
        check_checkpoint(found)
        if checkpoints(folder) and run_folder_of(found).resolve() != folder.resolve():
            raise UserError(
                f"trainer.resume={resume} is a checkpoint of another run than the one in output_dir={folder}: choose "
                "another output_dir=..., or trainer.resume=auto to resume the one that is there."
            )
    check_same_run(config, load_config(found / CONFIG), found)
    return found


def resumed_data(config: TrainConfig) -> DataConfig | None:
    """Return the data config of the newest checkpoint that may be continued from, which nobody has checked yet."""
    resume = config.trainer.resume
    folders = checkpoints(Path(config.output_dir)) if resume == "auto" else [Path(resume)]
    for folder in reversed(folders if resume != "never" else []):
        try:
            return load_config(folder / CONFIG).data
        except (DamagedCheckpointError, FileNotFoundError):
            continue  # of which `find_resume` tells
    return None


def _newest_whole(run_folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole, warning of newer ones; None: there is no checkpoint.

    Raises:
        UserError: there are checkpoints, all of them damaged.
    """
    whole, faults = None, []
    for folder in reversed(checkpoints(run_folder)):
        try:
            check_checkpoint(folder, hashes=whole is None)  # of older ones only sizes, which cost nothing
            if whole is None:
                load_config(folder / CONFIG)
                whole = folder
        except DamagedCheckpointError as error:
            faults.append(f"{folder}: {error.what}")
    if whole is not None:
        for fault in faults:
            log.warning("checkpoint error: %s", fault)
        if whole != checkpoints(run_folder)[-1]:
            log.warning("trainer.resume=auto: going back to %s, the newest whole checkpoint", whole)
        return whole
    if faults:
        raise UserError(
            "trainer.resume=auto finds no whole checkpoint:\n  " + "\n  ".join(faults) + "\nCopy one of them again, or "
            "start anew with trainer.overwrite=true and trainer.resume=never."
        )
    return None


def check_same_run(config: TrainConfig, saved: TrainConfig, folder: Path) -> None:
    """Refuse to resume with a config that would make another model or see other samples."""
    now, then = flatten(asdict(config)), flatten(asdict(saved))
    different = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
    fatal = [key for key in different if not change_keeps(config, key, RUN)]
    if fatal:
        lines = "\n".join(f"  {key}: checkpoint {then.get(key)}, now {now.get(key)}" for key in fatal)
        raise UserError(
            f"{folder} is a checkpoint of a different run:\n{lines}\n"
            "Give the same options to resume it, or another output_dir=... for a new run."
        )
    for key in different:
        log.info("resuming with %s=%s (the checkpoint had %s)", key, now.get(key), then.get(key))


def flatten(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested dicts as one, with dotted keys."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

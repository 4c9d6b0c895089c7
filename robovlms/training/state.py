"""What a run needs besides the weights to be resumed bit for bit, and which checkpoint it may be resumed from."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from robovlms.config.fields import RUN, change_keeps
from robovlms.config.run import TrainConfig
from robovlms.errors import UserError
from robovlms.policy.checkpoint import CONFIG, STATE, checkpoints, load_config, run_folder_of, step_of
from robovlms.policy.manifest import DamagedCheckpointError, check_checkpoint, reading

log = logging.getLogger(__name__)

OPTIMIZER, REST = "optimizer.safetensors", "state.json"


@dataclass(kw_only=True)
class TrainingState:
    """What a run needs besides the weights to go on bit for bit."""

    step: int
    optimizer: dict[str, Any]  # state_dict of the optimizer
    rng: list[dict[str, Tensor]]  # one entry per rank
    data: dict[str, Any] = field(default_factory=dict)  # of `feeding.record_data`; empty in checkpoints before it

    def save(self, folder: Path) -> None:
        """Write tensors as safetensors, the rest as JSON."""
        folder.mkdir()
        tensors = {
            f"{index}.{name}": value.contiguous()
            for index, entry in self.optimizer["state"].items()
            for name, value in entry.items()
        }
        save_file(tensors, folder / OPTIMIZER)
        for rank, state in enumerate(self.rng):
            save_file(state, folder / f"rng_{rank}.safetensors")
        rest = {"step": self.step, "num_ranks": len(self.rng), "param_groups": self.optimizer["param_groups"]}
        (folder / REST).write_text(json.dumps(rest | {"data": self.data}, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TrainingState:
        """Read what `save` wrote.

        Raises:
            DamagedCheckpointError: a file cannot be read, or the step is not that of the checkpoint's name.
        """
        checkpoint = folder.parent
        with reading(checkpoint, f"{STATE}/{REST}"):
            rest = json.loads((folder / REST).read_text(encoding="utf-8"))
            step, num_ranks, groups = int(rest["step"]), int(rest["num_ranks"]), list(rest["param_groups"])
            if checkpoint.name.startswith("step_") and step != step_of(checkpoint):
                raise ValueError(f"it is of step {step}, the folder of step {step_of(checkpoint)}")
        state: dict[int, dict[str, Tensor]] = {}
        with reading(checkpoint, f"{STATE}/{OPTIMIZER}"):
            for key, value in load_file(folder / OPTIMIZER).items():
                index, name = key.split(".", 1)
                state.setdefault(int(index), {})[name] = value
        rng = []
        for rank in range(num_ranks):
            with reading(checkpoint, f"{STATE}/rng_{rank}.safetensors"):
                rng.append(load_file(folder / f"rng_{rank}.safetensors"))
        optimizer = {"state": state, "param_groups": groups}
        return cls(step=step, optimizer=optimizer, rng=rng, data=dict(rest.get("data") or {}))

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Load the moments into an optimizer; rate, decay, betas and eps stay those of the run's config.

        Raises:
            UserError: it is of other parameters.
        """
        fresh, groups = optimizer.state_dict()["param_groups"], self.optimizer["param_groups"]
        ours, theirs = ([len(group["params"]) for group in each] for each in (fresh, groups))
        if ours != theirs:
            raise UserError(
                f"the optimizer state of step {self.step} is of {theirs} parameters with and without weight decay, "
                f"this run trains {ours}: give the options that it was trained with."
            )
        optimizer.load_state_dict({"state": self.optimizer["state"], "param_groups": fresh})

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

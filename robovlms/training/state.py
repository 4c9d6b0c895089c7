"""What a run needs besides the weights to be resumed bit for bit."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from robovlms.policy.checkpoint import checkpoints


@dataclass(kw_only=True)
class TrainingState:
    """What a run needs besides the weights to go on bit for bit."""

    step: int
    optimizer: dict[str, Any]  # state_dict of the optimizer
    rng: list[dict[str, Tensor]]  # one entry per rank

    def save(self, folder: Path) -> None:
        """Write tensors as safetensors, the rest as JSON."""
        folder.mkdir()
        tensors = {
            f"{index}.{name}": value.contiguous()
            for index, entry in self.optimizer["state"].items()
            for name, value in entry.items()
        }
        save_file(tensors, folder / "optimizer.safetensors")
        for rank, state in enumerate(self.rng):
            save_file(state, folder / f"rng_{rank}.safetensors")
        rest = {"step": self.step, "num_ranks": len(self.rng), "param_groups": self.optimizer["param_groups"]}
        (folder / "state.json").write_text(json.dumps(rest, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TrainingState:
        """Read what `save` wrote."""
        rest = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(folder / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        rng = [load_file(folder / f"rng_{rank}.safetensors") for rank in range(rest["num_ranks"])]
        return cls(step=rest["step"], optimizer={"state": state, "param_groups": rest["param_groups"]}, rng=rng)


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


def keep_newest(run_folder: Path, count: int) -> None:
    """Delete all but the newest `count` checkpoints, and what interrupted saves left behind."""
    for path in checkpoints(run_folder)[:-count]:
        shutil.rmtree(path)
    for path in (run_folder / "checkpoints").glob(".*.partial"):
        shutil.rmtree(path, ignore_errors=True)

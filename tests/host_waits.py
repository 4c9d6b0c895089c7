"""What would make the host wait for a GPU, seen on a CPU: an operation that gives the host a value, a shape that
depends on values, a tensor made of the host's numbers.
"""

from __future__ import annotations

import os
import site
import traceback
from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import robovlms

OURS = os.path.dirname(robovlms.__file__)
PACKAGES = tuple(site.getsitepackages())
READS = ("_local_scalar_dense", "equal.default", "is_nonzero")
SIZES = ("nonzero", "masked_select", "_unique", "unique", "repeat_interleave.Tensor", "bincount")
METHODS = ("cpu", "numpy", "tolist", "item")

# What a GPU does not wait for, by family: F.one_hot looks for numbers out of range on a CPU alone.
ONLY_ON_A_CPU = {
    "gemma4": {"_local_scalar_dense.default in transformers/models/gemma4/modeling_gemma4.py:_avg_pool_by_positions"}
}


class Waits(TorchDispatchMode):
    """Counts what would make the host wait for a GPU, by what and where."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._stack = ExitStack()

    def __enter__(self):
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        for method in METHODS:
            patch.setattr(torch.Tensor, method, noting(self, method, getattr(torch.Tensor, method)))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.")
        if name.startswith((*READS, *SIZES)) or is_boolean_index(name, args):
            self.note(name)
        elif name.startswith("lift_fresh"):
            self.note("copy to the device")
        return function(*args, **(kwargs or {}))

    def note(self, what: str) -> None:
        self.found[f"{what} in {place()}"] += 1


def is_boolean_index(name, args):
    places = args[1] if name.startswith(("index.Tensor", "index_put", "_index_put_impl")) else ()
    return any(isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8) for each in places)


def place():
    """Return the innermost function that is neither torch's nor this test's, as path:function."""
    frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and f.filename not in (__file__,)]
    frames = [f for f in frames if f.filename.startswith((OURS, *PACKAGES))]
    frame = next(f for f in reversed(frames) if "jaxtyping" not in f.filename and "beartype" not in f.filename)
    path = frame.filename
    for root in (*PACKAGES, os.path.dirname(OURS)):  # an environment may lie within the repository
        path = path.removeprefix(f"{root}/")
    return f"{path}:{frame.name}"


def noting(waits, method, function):
    def noted(self, *args, **kwargs):
        waits.note(f".{method}()")
        return function(self, *args, **kwargs)

    return noted

"""What a CUDA graph is on a CPU: operations, written down as they are done, and done again on the same memory.

No Python runs again: what it has decided stays decided, and a number that it has read stays as it was.
"""

from __future__ import annotations

import torch
from host_waits import ONLY_ON_A_CPU, Waits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Writes operations down."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)  # what it has rounded is written down
    def replay(self) -> None:
        """Do them again; results go where they went."""
        for function, args, kwargs, before in self.calls:
            given = {place(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
            after = function(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                if isinstance(old, Tensor) and place(old) not in given:
                    old.copy_(new)


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Captures:
    """Captures functions as a tape, refusing what would make the host wait for a GPU."""

    def __init__(self) -> None:
        self.taken = []  # for every capture, how many operations it has

    def __call__(self, run):
        with Waits() as waits:
            run()
        if waiting := set(waits.found) - set.union(*ONLY_ON_A_CPU.values()):
            raise RuntimeError(", ".join(waiting))
        with Tape() as tape:
            output = run()
        self.taken.append(len(tape.calls))
        return tape.replay, output

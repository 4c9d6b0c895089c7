"""Pickles of lerobot's clients, read without running anything that they name.

Unpickling calls whatever a pickle asks for. Here it may ask for three message classes of lerobot and for what numpy
and torch write arrays with, and gets inert stand-ins of ours for them; every other name is refused, and so is every
instruction that such a message does not need, before the first is carried out.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robovlms.serving.codecs import WireError, array_of, number_type
from robovlms.serving.tensors import STORAGES, read_storage, view_storage

MAX_INSTRUCTIONS = 100_000  # an observation has some hundred
HELPERS = "lerobot.async_inference.helpers"
INSTRUCTIONS = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK"),
    *("MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD"),
}


class Stand:
    """A stand-in for an object: what a pickle says of it, and nothing else."""

    given: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *given: Any) -> None:
        self.given = given

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Array(Stand):
    """Of numpy.ndarray."""


class DType(Stand):
    """Of numpy.dtype."""


class Number(Stand):
    """Of a number of numpy."""


class Buffer(Stand):
    """Of an array of protocol 5."""


class Tensor(Stand):
    """Of a tensor of torch."""


class Storage(Stand):
    """Of the storage of a tensor, as bytes that torch would load."""


class Hooks(Stand):
    """Of the hooks of a tensor's gradient, an empty dict."""


@dataclass(frozen=True)
class StorageType:
    """Of a class of storages, which is named and never called."""

    name: str


class Message(Stand):
    """Of one of lerobot's messages."""


class PolicySetup(Message):
    """Of RemotePolicyConfig."""


class ObservationMessage(Message):
    """Of TimedObservation."""


class ActionMessage(Message):
    """Of TimedAction."""


NAMES: dict[tuple[str, str], Any] = {
    (HELPERS, "RemotePolicyConfig"): PolicySetup,
    (HELPERS, "TimedObservation"): ObservationMessage,
    (HELPERS, "TimedAction"): ActionMessage,
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): DType,
    ("torch._utils", "_rebuild_tensor_v2"): Tensor,
    ("torch.storage", "_load_from_bytes"): Storage,
    ("collections", "OrderedDict"): Hooks,
}
for module in ("numpy.core", "numpy._core"):
    NAMES[f"{module}.multiarray", "_reconstruct"] = Array
    NAMES[f"{module}.multiarray", "scalar"] = Number
    NAMES[f"{module}.numeric", "_frombuffer"] = Buffer


STORAGE_NAMES = {("torch", name): StorageType(name) for name in STORAGES}


class Unpickler(pickle.Unpickler):
    """Knows the names of `NAMES` and no others."""

    names: Mapping[tuple[str, str], Any] = NAMES

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name.

        Raises:
            WireError: the name is not one of those.
        """
        if (module, name) not in self.names:
            raise WireError(f"the pickle asks for {module}.{name}"[:200] + ", which is not run here.")
        return self.names[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to what is outside."""
        raise WireError("the pickle refers to what is outside of it.")


class StorageUnpickler(Unpickler):
    """Knows the classes of storages and nothing else; a reference to a storage is what it says."""

    names = STORAGE_NAMES

    def persistent_load(self, pid: Any) -> Any:
        """Return the reference."""
        return pid


@dataclass(frozen=True)
class Loaded:
    """A message of lerobot: its class, and its fields, arrays as numpy has them."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


def load(data: bytes) -> Loaded:
    """Return a message of lerobot.

    Raises:
        WireError: it is anything else; says what the pickle asks for.
    """
    check_instructions(data)
    try:
        value = Unpickler(io.BytesIO(data)).load()
    except WireError:
        raise
    except Exception as error:  # what a damaged pickle raises is open-ended
        raise WireError(f"the pickle is damaged: {type(error).__name__}: {str(error)[:200]}") from error
    if not isinstance(value, Message) or not isinstance(value.state, dict):
        raise WireError(f"the pickle is no message of lerobot but {type(value).__name__}.")
    kind = next(name for (_, name), stand in NAMES.items() if stand is type(value))
    try:
        return Loaded(kind, Reader().read(value.state))
    except RecursionError as error:
        raise WireError("the message is nested too deeply.") from error


def read_pickles(data: bytes, count: int) -> tuple[list[Any], int]:
    """Return what so many pickles at the beginning of a storage's bytes say, and where they end.

    Raises:
        WireError: they are no such pickles.
    """
    file, values = io.BytesIO(data), []
    for _ in range(count):
        start = file.tell()
        check_instructions(file, INSTRUCTIONS | {"BINPERSID"})
        try:
            values.append(StorageUnpickler(io.BytesIO(data[start : file.tell()])).load())
        except WireError:
            raise
        except Exception as error:  # as in `load`
            raise WireError(f"a tensor's storage is damaged: {type(error).__name__}: {str(error)[:200]}") from error
    return values, file.tell()


def check_instructions(data: bytes | io.BytesIO, allowed: Collection[str] = INSTRUCTIONS) -> None:
    """Refuse a pickle with an instruction that is not allowed, or with too many.

    Raises:
        WireError: names the instruction.
    """
    try:
        for number, (code, argument, _) in enumerate(pickletools.genops(data)):
            if code.name not in allowed:
                raise WireError(f"the pickle has the instruction {code.name}, which no observation needs.")
            is_memo = code.name in ("BINPUT", "LONG_BINPUT")  # memory is taken for as many as the number says
            if number >= MAX_INSTRUCTIONS or (is_memo and isinstance(argument, int) and argument > MAX_INSTRUCTIONS):
                raise WireError(f"the pickle has more than {MAX_INSTRUCTIONS} instructions.")
    except WireError:
        raise
    except Exception as error:
        raise WireError(f"no pickle: {type(error).__name__}: {str(error)[:200]}") from error


class Reader:
    """Replaces stand-ins by what they stand for; the same value may be referred to again and again, so it counts."""

    def __init__(self) -> None:
        self._num_values = 0
        self._storages: dict[int, np.ndarray] = {}  # by the stand-in, which lives as long as the message

    def read(self, value: Any) -> Any:
        """Return a value without stand-ins.

        Raises:
            WireError: an array is none of numbers, or there are too many values.
        """
        self._num_values += 1
        if self._num_values > MAX_INSTRUCTIONS:
            raise WireError(f"the message has more than {MAX_INSTRUCTIONS} values.")
        if isinstance(value, dict):
            return {str(key): self.read(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.read(each) for each in value]
        if isinstance(value, Array):
            return array_state(value.state)
        if isinstance(value, Buffer) and 4 <= len(value.given) <= 5:
            data, kind, shape, order = value.given[:4]
            return ordered(data, kind, shape, is_fortran=order == "F")
        if isinstance(value, Number) and len(value.given) == 2:
            return array_of(value.given[1], type_of(value.given[0]), [])[()]
        if isinstance(value, Tensor) and len(value.given) in (6, 7) and isinstance(value.given[0], Storage):
            return view_storage(self._storage(value.given[0]), *value.given[1:4])
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        raise WireError(f"{type(value).__name__} is not taken: send numbers, text, and arrays of numpy or torch.")

    def _storage(self, stand: Storage) -> np.ndarray:
        if id(stand) not in self._storages:
            self._storages[id(stand)] = read_storage(stand.given[0] if stand.given else None, read_pickles)
        return self._storages[id(stand)]


def array_state(state: Any) -> np.ndarray:
    """Return an array from the state that numpy pickles: version, shape, type, order, data."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise WireError("an array has no state.")
    _, shape, kind, is_fortran, data = state
    return ordered(data, kind, shape, is_fortran=is_fortran is True)


def ordered(data: Any, kind: Any, shape: Any, *, is_fortran: bool) -> np.ndarray:
    """Return an array whose first (Fortran) or last axis is that of neighbours in memory."""
    if not is_fortran:
        return array_of(data, type_of(kind), shape)
    if not isinstance(shape, tuple):
        raise WireError("an array's shape must be a tuple.")
    return array_of(data, type_of(kind), shape[::-1]).T


def type_of(kind: Any) -> str:
    """Return a type of numbers as `<f4`."""
    if not isinstance(kind, DType) or not kind.given or not isinstance(kind.given[0], str):
        raise WireError("an array has no type.")
    state = kind.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "=") else ""
    return number_type(f"{order}{kind.given[0]}").str

"""lerobot's pickles are read; nothing that a pickle names is run, whatever it is wrapped in."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
import torch
from damaging import break_bytes, damage
from hypothesis import given, settings
from lerobot_messages import TimedObservation, of_lerobot

from robovlms.serving.codecs import WireError
from robovlms.serving.pickles import HELPERS, load

MARKER = "ROBOVLMS_TEST_PICKLE_RAN"


SEEN = {
    "front": np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3),
    "depth": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
    "shoulder.pos": 1.5,
    "gripper.pos": np.float32(0.25),
    "task": "lift the cup",
}


@pytest.mark.parametrize("protocol", [4, 5])
def test_an_observation_is_read_as_it_was_pickled(protocol):
    found = load(of_lerobot(TimedObservation(SEEN), protocol))
    assert found.kind == "TimedObservation"
    assert (found.fields["timestamp"], found.fields["timestep"], found.fields["must_go"]) == (100.0, 3, True)
    for key, sent in SEEN.items():
        np.testing.assert_array_equal(found.fields["observation"][key], sent)


class Gadget:
    """Pickles as a call."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


TENSORS = {
    "float": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "half": torch.arange(6).half(),
    "pictures": torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4),
    "long": torch.tensor([1, -2]),
    "bool": torch.tensor([True, False]),
    "a view": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)[1:, :, ::2],
    "a number": torch.tensor(1.5),
    "nothing": torch.zeros(0, 3),
    "a gradient": torch.ones(2, requires_grad=True),
}


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("what", TENSORS)
def test_a_tensor_is_read_as_it_was_pickled(what, protocol):
    sent = TENSORS[what]
    found = load(of_lerobot(TimedObservation({"x": sent, "again": sent}), protocol)).fields["observation"]
    for key in ("x", "again"):
        assert found[key].dtype == sent.detach().numpy().dtype
        np.testing.assert_array_equal(found[key], sent.detach().numpy())


def storage_bytes():
    return torch.ones(4)._typed_storage().__reduce__()[1][0]


class Tampered:
    """Pickles as a tensor of 4 floats with something else about it."""

    def __init__(self, data=None, offset=0, size=(4,), stride=(1,)):
        self.data, self.view = storage_bytes() if data is None else data, (offset, size, stride)

    def __reduce__(self):
        storage = Gadget(torch.storage._load_from_bytes, self.data)
        return torch._utils._rebuild_tensor_v2, (storage, *self.view, False, OrderedDict())


def of_os(data):
    """Return a storage whose class is a function of os."""
    return data.replace(b"ctorch\nFloatStorage\n", b"cposix\nsystem\n")


WRONG_TENSORS = {
    "outside its storage": Tampered(size=(5,)),
    "an offset outside": Tampered(offset=1),
    "a negative offset": Tampered(offset=-1),
    "a negative stride": Tampered(stride=(-1,)),
    "a stride outside": Tampered(size=(2,), stride=(4,)),
    "one entry that is many": Tampered(size=(10**9, 10**9), stride=(0, 0)),
    "a size that is none": Tampered(size=(2.0,)),
    "a size that is a truth": Tampered(size=(True,)),
    "no strides": Tampered(stride=()),
    "many axes": Tampered(size=(1,) * 40, stride=(0,) * 40),
    "many empty axes": Tampered(size=(0, 2**62, 2**62), stride=(1, 1, 1)),
    "no storage": Tampered(b""),
    "half a storage": Tampered(storage_bytes()[:-3]),
    "more than a storage": Tampered(storage_bytes() + b"xxxx"),
    "a storage of another class": Tampered(of_os(storage_bytes())),
    "a storage of brain floats": torch.ones(2, dtype=torch.bfloat16),
    "a storage that is a pickle": Tampered(pickle.dumps(Gadget(os.system, "true"))),
    "a storage in the zip format": Tampered(b"PK\x03\x04" + b"x" * 100),
    "a storage that is text": Tampered("text"),
}


@pytest.mark.parametrize("what", WRONG_TENSORS)
def test_a_tensor_that_is_not_what_it_says_is_refused(what):
    tracemalloc.start()
    with pytest.raises(WireError):
        load(of_lerobot(TimedObservation({"x": WRONG_TENSORS[what]})))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_a_tensor_that_is_sent_again_and_again_takes_no_memory_again():
    data = of_lerobot(TimedObservation([torch.ones(250_000)] * 4_000))
    tracemalloc.start()
    found = load(data).fields["observation"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 4_000
    assert peak < 50e6


@given(changes=damage())
@settings(max_examples=300, deadline=None)
def test_a_damaged_tensor_is_read_or_refused(changes):
    with contextlib.suppress(WireError):
        load(break_bytes(of_lerobot(TimedObservation({"x": TENSORS["a view"]})), changes))


def run_marker():
    return f"import os; os.environ[{MARKER!r}] = '1'"


def named(module, name, *arguments):
    """Return a pickle that calls a function by its name, whether it exists here or not."""
    body = b"".join(b"X" + struct.pack("<I", len(text.encode())) + text.encode() for text in arguments)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + body + b"tR."


CODE = run_marker()
GADGETS = {
    "os.system": pickle.dumps(Gadget(os.system, f"export {MARKER}=1")),
    "posix.system": named("posix", "system", "true"),
    "eval": named("builtins", "eval", f"exec({CODE!r})"),
    "exec": named("builtins", "exec", CODE),
    "eval of Python 2": named("__builtin__", "eval", "1"),
    "getattr": named("builtins", "getattr", "x", "y"),
    "import": named("builtins", "__import__", "os"),
    "subprocess": named("subprocess", "Popen", "true"),
    "runpy": named("runpy", "_run_code", CODE),
    "importlib": named("importlib", "import_module", "antigravity"),
    "pickle in a pickle": named("pickle", "loads", "x"),
    "numpy.load": named("numpy", "load", "x"),
    "numpy's test runner": named("numpy.testing._private.utils", "runstring", CODE),
    "torch.load": named("torch", "load", "x"),
    "torch's storage": named("torch.storage", "_load_from_bytes", "x"),
    "a storage alone": pickle.dumps(torch.ones(2)._typed_storage()),
    "a tensor alone": pickle.dumps(torch.ones(2)),
    "a parameter": of_lerobot(TimedObservation({"x": torch.nn.Parameter(torch.ones(2))})),
    "torch's older rebuilder": named("torch._utils", "_rebuild_tensor", "x"),
    "torch's files": named("torch._utils", "_rebuild_from_type_v2", "x"),
    "a storage from a file": named("torch.multiprocessing.reductions", "rebuild_storage_filename", "x"),
    "a dict of hooks with entries": b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00aK\x01u.",
    "torch's compiler": named("torch.jit", "CompilationUnit", "x"),
    "pip": named("pip._internal", "main", "install"),
    "ctypes": named("ctypes", "CDLL", "libc.so.6"),
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x15ndarray.__class__.mro\x93.",
    "another class of lerobot": named(HELPERS, "get_logger", "x"),
    "a module of ours": named("robovlms.files", "remove_folder", "/"),
    "inside an observation": of_lerobot(TimedObservation({"front": Gadget(os.system, "true")})),
    "as a type of an array": of_lerobot(TimedObservation({"front": np.array([Gadget(os.system, "true")], object)})),
    "an old instance": b"(i__main__\nX\n.",
    "by persistent id": b"\x80\x02Pother\n.",
    "by a number": b"\x80\x02\x82\x01.",
    "no message": pickle.dumps({"a": 1}),
    "an array alone": pickle.dumps(np.zeros(2)),
}


@pytest.mark.parametrize("what", GADGETS)
def test_a_hostile_pickle_is_refused_and_not_run(what):
    with pytest.raises(WireError):
        load(GADGETS[what])
    assert MARKER not in os.environ


def lists_in_lists(depth, width):
    value = 0
    for _ in range(depth):
        value = [value] * width
    return value


BOMBS = {
    "a large memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a large frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fN.",
    "large bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fN.",
    "a large bytearray": b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00N.",
    "a large number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "few lists that are many": of_lerobot(TimedObservation(lists_in_lists(8, 300))),
    "deep lists": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "many instructions": b"\x80\x02" + b"N0" * 200_000 + b"N.",
    "nothing": b"",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BOMBS)
def test_a_pickle_that_would_fill_the_memory_is_refused(what):
    tracemalloc.start()
    with pytest.raises(WireError):
        load(BOMBS[what])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


@given(changes=damage())
@settings(max_examples=500, deadline=None)
def test_a_damaged_pickle_is_read_or_refused(changes):
    with contextlib.suppress(WireError):
        load(break_bytes(of_lerobot(TimedObservation(SEEN)), changes))

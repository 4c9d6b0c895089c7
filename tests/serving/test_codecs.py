"""What the wire carries comes back as it was sent, or is refused before memory is taken: nothing is run."""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import tracemalloc

import msgpack
import numpy as np
import pytest
from damaging import break_bytes, damage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from robovlms.serving.codecs import GROOT, GROOT_ND, MAX_ITEMS, OPENPI, VLA_EVAL, WireError

CODECS = {"openpi": OPENPI, "vla_eval": VLA_EVAL, "groot": GROOT, "groot_nd": GROOT_ND}
TYPES = ["|b1", "|u1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8", ">f4"]
OBSERVATION = {
    "image": np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3),
    "state": np.linspace(-1, 1, 8, dtype=np.float32),
    "nested": {"task": ["lift the cup"], "empty": np.zeros((0, 7)), "text": "ü"},
    "step": 3,
}


def same(found, sent):
    if isinstance(sent, np.ndarray):
        assert found.dtype == sent.dtype
        np.testing.assert_array_equal(found, sent)
    elif isinstance(sent, dict):
        assert found.keys() == sent.keys()
        for key, value in sent.items():
            same(found[key], value)
    else:
        assert found == sent


@pytest.mark.parametrize("name", CODECS)
@given(array=arrays.arrays(st.sampled_from(TYPES), arrays.array_shapes(min_dims=0, max_dims=4, min_side=0)))
@settings(max_examples=50, deadline=None)
def test_every_array_of_numbers_comes_back_as_it_was_sent(name, array):
    codec = CODECS[name]
    found = codec.unpack(codec.pack({"array": array}))["array"]
    assert found.shape == array.shape
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("name", CODECS)
def test_an_observation_comes_back_as_it_was_sent(name):
    same(CODECS[name].unpack(CODECS[name].pack(OBSERVATION)), OBSERVATION)


def test_arrays_in_the_order_of_fortran_are_read():
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    buffer = io.BytesIO()
    np.save(buffer, array)
    message = msgpack.packb({"__ndarray_class__": True, "as_npy": buffer.getvalue()})
    same(GROOT.unpack(message), array)


def test_single_numbers_of_numpy_keep_their_type():
    found = OPENPI.unpack(OPENPI.pack({"a": np.float32(0.5), "b": np.bool_(True)}))
    assert (found["a"].dtype, found["a"], found["b"]) == (np.dtype("f4"), 0.5, True)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_pictures_of_vla_eval_are_decoded(form):
    pixels = np.full((8, 6, 3), 200, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    value = {"__image__": True, "format": form.lower(), "data": buffer.getvalue(), "shape": [8, 6, 3]}
    np.testing.assert_allclose(VLA_EVAL.unpack(msgpack.packb(value)).astype(int), pixels, atol=2)
    with pytest.raises(WireError, match="8 x 6 px"):
        VLA_EVAL.unpack(msgpack.packb(value | {"shape": [9, 6, 3]}))


def of_openpi(dtype="<f4", shape=(2,), data=b"12345678", **more):
    return {b"__ndarray__": True, b"dtype": dtype, b"shape": shape, b"data": data} | more


@pytest.mark.parametrize(
    "value",
    [
        of_openpi(dtype="|O"), of_openpi(dtype="O"), of_openpi(dtype="V8"), of_openpi(dtype="<c8"),
        of_openpi(dtype="<U2"),
        of_openpi(dtype="(2,)f4"), of_openpi(dtype="f4,f4"), of_openpi(dtype=["f4"]), of_openpi(dtype=None),
        of_openpi(dtype="<f16"), of_openpi(dtype="<M8"), of_openpi(shape=(3,)), of_openpi(shape=(-1,)),
        of_openpi(shape=(2.0,)), of_openpi(shape=(True, 2)), of_openpi(shape=2), of_openpi(shape=None),
        of_openpi(shape=(2**62, 2**62, 4)), of_openpi(shape=(1,) * 9 + (2,)), of_openpi(shape=(0, 2**62)),
        of_openpi(data="12345678"), of_openpi(data=None), of_openpi(data=[1] * 8), {b"__ndarray__": True},
        {b"__npgeneric__": True, b"dtype": "|u1", b"data": 300}, {b"__npgeneric__": True, b"dtype": "f4", b"data": "1"},
        {b"__npgeneric__": True, b"dtype": "|O", b"data": 1}, {b"__npgeneric__": True},
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_array_of_numbers_is_refused(value):
    with pytest.raises(WireError):
        OPENPI.unpack(msgpack.packb({"observation": [value]}))
    text = {key.decode(): entry for key, entry in value.items()}
    if "__ndarray__" in text:
        with pytest.raises(WireError):
            VLA_EVAL.unpack(msgpack.packb([text]))
        packaged = {b"nd": True, b"type": text.get("dtype"), b"shape": text.get("shape"), b"data": text.get("data")}
        with pytest.raises(WireError):
            GROOT.unpack(msgpack.packb([packaged]))


def npy(header):
    data = header.encode()
    return b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data


@pytest.mark.parametrize(
    "data",
    [
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }") + pickle.dumps(print),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os').system('x'),), }"),
        npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }") + b"1234",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }") + b"1234",
        npy("(" * 5000), npy(""), b"\x93NUMPY\x02\x00", b"", b"PK\x03\x04", pickle.dumps(np.zeros(2)), None, 3,
    ],
    ids=lambda data: repr(data)[:40],
)  # fmt: skip
def test_only_plain_arrays_of_numpys_file_format_are_read(data):
    with pytest.raises(WireError):
        GROOT.unpack(msgpack.packb({"__ndarray_class__": True, "as_npy": data}))


def bomb(width, height):
    """Return a PNG of some hundred bytes that says to be this large."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(data)


HOSTILE = {
    "a list longer than the message": b"\xdd\xff\xff\xff\xff",
    "lists in lists that each begin large": (b"\xdd\x00\x00\x0f\xff" * 1000),
    "a map larger than the message": b"\xdf\xff\xff\xff\xff",
    "bytes longer than the message": b"\xc6\xff\xff\xff\xff",
    "a text longer than the message": b"\xdb\xff\xff\xff\xff",
    "deep lists": b"\x91" * 1_000_000,
    "deep maps": b"\x81\x01" * 1_000_000,
    "many empty maps": b"\xdc\x0f\xff" + (b"\xdc\x0f\xff" + b"\x80" * 4095) * 4095,
    "an extension": b"\xc9\x00\x00\x00\x08\x05" + bytes(8),
    "a timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "no text": b"\xa1\xff",
    "lists as keys": b"\x81\x91\x01\x01",
    "nothing": b"",
    "two values": b"\x01\x01",
    "a pickle": pickle.dumps(print),
    "a picture that would fill the memory": msgpack.packb(
        {"__image__": True, "format": "png", "data": bomb(30000, 30000), "shape": [30000, 30000, 3]}
    ),
    "no picture": msgpack.packb({"__image__": True, "format": "png", "data": b"GIF89a", "shape": [1, 1, 3]}),
    "PostScript": msgpack.packb({"__image__": True, "format": "eps", "data": b"%!PS", "shape": [1, 1, 3]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_message_is_refused_and_takes_no_memory(what):
    message = HOSTILE[what]
    for codec in (VLA_EVAL,) if b"__image__" in message else CODECS.values():
        tracemalloc.start()
        with pytest.raises(WireError):
            codec.unpack(message)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 50e6 + 2 * len(message)


def test_a_message_may_hold_many_arrays_but_not_too_many_items():
    OPENPI.unpack(OPENPI.pack([[0.5] * 4000] * 10))
    with pytest.raises(WireError, match=str(MAX_ITEMS)):
        OPENPI.unpack(OPENPI.pack([[0.5] * 4000] * math.ceil(MAX_ITEMS / 4000)))


@pytest.mark.parametrize("name", CODECS)
@given(changes=damage())
@settings(max_examples=300, deadline=None)
def test_a_damaged_message_is_read_or_refused(name, changes):
    codec = CODECS[name]
    with contextlib.suppress(WireError):
        codec.unpack(break_bytes(codec.pack(OBSERVATION), changes))

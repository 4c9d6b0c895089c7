from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from robovlms.data.files.npz import read_npz, read_pickled_npy


def write_pickled(path: Path, payload: bytes, shape: tuple[int, ...] = ()) -> Path:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": shape})
        file.write(payload)
    return path


def test_plain_containers_and_arrays_come_back(tmp_path):
    content = {"ann": ["open"], "indx": [(0, np.int64(5))], "emb": np.ones((1, 2), np.float32)}
    np.save(tmp_path / "a.npy", content)

    read = read_pickled_npy(tmp_path / "a.npy")

    assert read["indx"] == [(0, 5)]
    np.testing.assert_array_equal(read["emb"], content["emb"])


def test_files_of_numpy_1_are_read(tmp_path):
    array = np.array({"emb": np.arange(3.0)}, dtype=object)
    payload = pickle.dumps(array, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"numpy.core" in payload

    read = read_pickled_npy(write_pickled(tmp_path / "old.npy", payload))

    np.testing.assert_array_equal(read["emb"], [0, 1, 2])


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_calls_a_function_is_refused_by_name_and_not_run(tmp_path):
    np.save(tmp_path / "bad.npy", np.array(Attack(tmp_path / "marker"), dtype=object))

    with pytest.raises(ValueError, match=r"bad\.npy cannot be read: refused global '(posix|nt)\.mkdir'"):
        read_pickled_npy(tmp_path / "bad.npy")
    assert not (tmp_path / "marker").exists()


def test_attributes_of_admitted_classes_are_refused(tmp_path):
    payload = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."

    with pytest.raises(ValueError, match=r"refused global 'numpy\.ndarray\.tofile'"):
        read_pickled_npy(write_pickled(tmp_path / "a.npy", payload))


@pytest.mark.parametrize("payload", [b"", b"\x80\x04", b"garbage", pickle.dumps([1])])
def test_damaged_pickles_name_the_file(tmp_path, payload):
    with pytest.raises(ValueError, match=r"a\.npy cannot be read"):
        read_pickled_npy(write_pickled(tmp_path / "a.npy", payload))


def test_an_ordinary_array_is_not_a_pickled_object(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))

    with pytest.raises(ValueError, match="expected a 0-d object array"):
        read_pickled_npy(tmp_path / "a.npy")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_members_equal_those_of_numpy(tmp_path, save):
    arrays = {"f": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "u": np.arange(4, dtype=np.uint8), "s": np.array(7)}
    save(tmp_path / "a.npz", **arrays)

    read = read_npz(tmp_path / "a.npz", list(arrays))

    for key, array in arrays.items():
        np.testing.assert_array_equal(read[key], array, strict=True)


def test_real_frames_equal_those_of_numpy(shared_data):
    for path in sorted((shared_data / "calvin" / "frames").glob("*.npz")):
        with np.load(path) as expected:
            read = read_npz(path, expected.files)
            for key in expected.files:
                np.testing.assert_array_equal(read[key], expected[key], strict=True)


def test_a_missing_key_lists_those_there_are(tmp_path):
    np.savez(tmp_path / "a.npz", left=1, right=2)

    with pytest.raises(KeyError, match="has no 'up'; it has left, right"):
        read_npz(tmp_path / "a.npz", ["left", "up"])


def test_truncated_and_altered_files_are_told_by_name(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(1000))
    data = path.read_bytes()

    path.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=r"a\.npz cannot be read"):
        read_npz(path, ["x"])
    path.write_bytes(data[:4000] + b"!" + data[4001:])
    with pytest.raises(ValueError, match="Bad CRC-32"):
        read_npz(path, ["x"])


def test_object_arrays_inside_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))

    with pytest.raises(ValueError, match=r"a\.npz cannot be read"):
        read_npz(tmp_path / "a.npz", ["x"])


class Array:
    """Pickles as an array of a shape whose state holds other `entries`."""

    def __init__(self, shape, dtype, entries):
        self.state = (1, shape, np.dtype(dtype), False, entries)

    def __reduce__(self):
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), self.state


@pytest.mark.parametrize(
    "inner",
    [
        Array((), object, []),
        Array((1,), object, bytes(range(8))),
        Array((10**6,), "f8", b"1234"),
        Array((3,), [("a", "O")], [(1,), (2,)]),
    ],
    ids=["fewer objects", "bytes as objects", "fewer bytes", "records of objects"],
)
def test_the_state_of_an_array_is_not_believed(tmp_path, inner):
    payload = pickle.dumps(Array((), object, [inner]))  # numpy's own loading ends the interpreter
    path = write_pickled(tmp_path / "hostile.npy", payload)
    with pytest.raises(ValueError, match=r"hostile\.npy"):
        read_pickled_npy(path)

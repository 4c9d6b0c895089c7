from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rlds_folder import example, field, record, varint

from robovlms.data.rlds.tfrecord import RecordFile, masked_crc32c, parse_example, scan_records

quick = settings(max_examples=150, deadline=None, derandomize=True)

EPISODE = {
    "steps/text": [b"pick", b"", b"up"],
    "steps/action": np.array([1.5, -2, 0], np.float32),
    "steps/count": np.array([1, -1, 300, 2**40], np.int64),
}


def bitwise(data: bytes) -> list[int]:
    """Return the checksum of the first 0, 1, ... bytes, bit by bit as the standard says."""
    register, found = 0xFFFFFFFF, [0]
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
        found.append(register ^ 0xFFFFFFFF)
    return found


def read_all(payload: bytes) -> dict:
    found = parse_example(payload, EPISODE)
    read = {"bytes": "bytes_list", "float": "floats", "int64": "ints", "": "bytes_list"}
    return {key: getattr(feature, read[feature.kind])() for key, feature in found.items()}


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_checksum_is_the_masked_one_of_rfc_3720s_vectors(data, checksum):
    assert checksum == bitwise(data)[-1]
    rotated = checksum >> 15 | checksum << 17 & 0xFFFFFFFF
    assert masked_crc32c(data) == (rotated + 0xA282EAD8) % 2**32


def test_records_are_found_with_their_places(tmp_path):
    (tmp_path / "a").write_bytes(record(b"first") + record(b"") + record(b"third"))
    found = list(scan_records(tmp_path / "a"))
    assert [r.payload for r in found] == [b"first", b"", b"third"]
    assert [r.offset for r in found] == [12, 33, 49]
    assert all(r.fault is None for r in found)
    assert RecordFile(tmp_path / "a").read(49, 5) == b"third"


def test_a_damaged_payload_leaves_the_records_behind_it(tmp_path):
    data = bytearray(record(b"first") + record(b"second"))
    data[13] ^= 1
    (tmp_path / "a").write_bytes(data)
    first, second = scan_records(tmp_path / "a")
    assert first.fault == "its checksum is wrong"
    assert (second.payload, second.fault) == (b"second", None)


@pytest.mark.parametrize("place", range(12))
def test_a_damaged_length_ends_the_file(tmp_path, place):
    data = bytearray(record(b"first") + record(b"second"))
    data[place] ^= 1
    (tmp_path / "a").write_bytes(data)
    (found,) = scan_records(tmp_path / "a")
    assert "checksum of its length" in found.fault


def test_a_length_beyond_the_file_is_not_believed(tmp_path):
    length = (2**40).to_bytes(8, "little")
    (tmp_path / "a").write_bytes(length + masked_crc32c(length).to_bytes(4, "little") + b"abc")
    (found,) = scan_records(tmp_path / "a")
    assert "says that it has 1099511627776 bytes, but the file ends after 15" in found.fault


def test_wherever_a_file_is_cut_off_the_rest_is_read_and_the_cut_is_told(tmp_path):
    data = record(b"first") + record(b"second")
    for length in range(len(data)):
        (tmp_path / "a").write_bytes(data[:length])
        found = list(scan_records(tmp_path / "a"))
        assert [r.payload for r in found if r.fault is None] == ([b"first"] if length >= 21 else [])
        assert any(r.fault for r in found) == (length not in (0, 21))


def test_a_file_that_became_shorter_is_an_error(tmp_path):
    (tmp_path / "a").write_bytes(record(b"first"))
    with pytest.raises(ValueError, match=r"a ends within the 50 bytes at 12"):
        RecordFile(tmp_path / "a").read(12, 50)


def test_an_example_gives_back_its_lists():
    found = read_all(example(EPISODE))
    assert [bytes(v) for v in found["steps/text"]] == EPISODE["steps/text"]
    np.testing.assert_array_equal(found["steps/action"], EPISODE["steps/action"])
    np.testing.assert_array_equal(found["steps/count"], EPISODE["steps/count"])


def test_keys_that_are_not_there_are_left_out():
    assert set(parse_example(example(EPISODE), ["steps/text", "steps/other"])) == {"steps/text"}


def entry(name: bytes, feature: bytes) -> bytes:
    return field(1, field(1, field(1, name) + field(2, feature)))


def test_numbers_that_are_not_packed_are_read_and_fields_unknown_to_us_passed_over():
    floats = b"".join(varint(1 << 3 | 5) + np.float32(v).tobytes() for v in (1, 2))
    ints = b"".join(varint(1 << 3) + varint(v) for v in (3, -4)) + varint(7 << 3) + varint(9)
    unknown = varint(9 << 3 | 1) + bytes(8) + varint(8 << 3 | 5) + bytes(4) + field(6, b"abc")
    message = unknown + entry(b"f", field(2, floats)) + entry(b"i", unknown + field(3, ints))
    found = parse_example(message, ["f", "i"])
    assert found["f"].floats().tolist() == [1, 2]
    assert found["i"].ints().tolist() == [3, -4]


def test_an_empty_feature_is_an_empty_list_of_any_kind():
    found = parse_example(entry(b"a", b""), ["a"])["a"]
    assert (found.bytes_list(), len(found.floats()), len(found.ints())) == ([], 0, 0)


@pytest.mark.parametrize(
    ("feature", "read", "message"),
    [
        (field(2, b""), "ints", "it holds float, expected int64"),
        (field(2, field(1, b"abc")), "floats", "no multiple of 4"),
        (field(3, field(1, b"\x01\x80")), "ints", "ends early"),
        (field(3, field(1, b"\x80" * 10 + b"\x01")), "ints", "too long"),
        (field(1, varint(1 << 3) + b"\x01"), "bytes_list", "a number where a message should be"),
        (field(1, b"\x0b"), "bytes_list", "wire type 3"),
        (field(1, b"\x0a\x05ab"), "bytes_list", "5 bytes where 2 are left"),
        (field(1, b"\x80" * 11), "bytes_list", "too long"),
    ],
)
def test_a_damaged_list_says_what_is_wrong(feature, read, message):
    found = parse_example(entry(b"a", feature), ["a"])["a"]
    with pytest.raises(ValueError, match=message):
        getattr(found, read)()


def changed(data: bytes, changes: list[tuple[float, int]]) -> bytes:
    result = bytearray(data)
    for place, byte in changes:
        at = int(place * (len(result) - 1)) if result else 0
        if byte < 0:
            del result[at:]
        elif result:
            result[at] = byte
    return bytes(result)


changes = st.lists(st.tuples(st.floats(0, 1), st.integers(-1, 255)), min_size=1, max_size=6)


@quick
@given(changes=changes)
def test_a_damaged_example_ends_in_value_error_or_is_read(changes):
    try:
        read_all(changed(example(EPISODE), changes))
    except ValueError:
        return


@quick
@given(data=st.binary(max_size=200))
def test_bytes_of_any_origin_end_in_value_error_or_are_read(data):
    try:
        read_all(data)
    except ValueError:
        return


@quick
@given(changes=changes)
def test_a_damaged_file_never_gives_a_payload_that_was_not_written(tmp_path_factory, changes):
    payloads = [example(EPISODE), b"second", b""]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(changed(b"".join(map(record, payloads)), changes))
    assert {found.payload for found in scan_records(path) if found.fault is None} <= set(payloads)

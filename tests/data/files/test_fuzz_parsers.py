"""What benchmarks/fuzz_readers.py does for minutes, for a few inputs: valid files are read, damaged ones refused."""

import contextlib
import random
import sys
from pathlib import Path

import pytest

pytest.importorskip("h5py", reason='pip install -e ".[libero]"')
sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
from fuzz_damage import damage
from fuzz_parsers import PARSERS

from robovlms.data.packed import shards as packing_shards


@pytest.mark.parametrize("name", list(PARSERS))
def test_damaged_files_end_in_value_error_or_os_error_or_are_read(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOVLMS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packing_shards, "MIN_SHARD_ROWS", 4)  # which a parser sets for good
    parser, chance = PARSERS[name], random.Random(0)
    paths = parser.make(tmp_path)
    parser.read(tmp_path)
    for _ in range(25):
        path = chance.choice(paths)
        original = path.read_bytes()
        path.write_bytes(damage(chance, path, original))
        with contextlib.suppress(ValueError, OSError):
            parser.read(tmp_path)
        path.write_bytes(original)

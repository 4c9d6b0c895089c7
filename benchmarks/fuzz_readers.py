"""Damage valid files at random and read them: anything but ValueError and OSError is a finding.

    nice -n 10 python benchmarks/fuzz_readers.py --parser libero --minutes 10

Reports inputs a second, how many were refused, and every kind of finding once, with the damaged files (below --keep). A
crash of the interpreter, more than 10 s for an input and more than 2 GB of memory are findings, too. The parsers are in
fuzz_parsers.py, the damages in fuzz_damage.py.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

sys.path.append(str(Path(__file__).parent))
from fuzz_damage import damage
from fuzz_parsers import PARSERS, Parser

SECONDS, BYTES = 10, 2 * 2**30
PATIENCE = 3 * SECONDS  # until a library that does not come back is killed


class TooSlowError(Exception):
    """An input took longer than it may."""


@dataclass
class Result:
    """What a run has seen so far."""

    count: int = 0
    refused: int = 0
    findings: dict[str, str] = field(default_factory=dict)
    peak: int = 0  # bytes that the process grew by

    def add(self, kind: str, path: Path, keep: Path) -> None:
        """Note a finding of a new kind, and keep the damaged file."""
        if kind not in self.findings:
            kept = keep / f"{len(self.findings)}-{path.name}"
            shutil.copyfile(path, kept)
            self.findings[kind] = f"{kind}, input {self.count}, kept as {kept}"


def too_slow(_: int, __: FrameType | None) -> None:
    """Stop reading an input."""
    raise TooSlowError(f"longer than {SECONDS} s")


def read_damaged(parser: Parser, folder: Path, originals: dict[Path, bytes], seed: int, report: Connection) -> None:
    """Damage one file after another, for ever; send (path, kind of finding or None, refused, growth) after each."""
    logging.disable()
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries complain there
    signal.signal(signal.SIGALRM, too_slow)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, resource.RLIM_INFINITY))
    chance, paths = random.Random(seed), list(originals)
    while True:
        path = chance.choice(paths)
        path.write_bytes(damage(chance, path, originals[path]))
        report.send((path, None, None, 0))
        kind, refused = None, False
        signal.alarm(SECONDS)
        try:
            parser.read(folder)
        except (ValueError, OSError):
            refused = True
        except Exception as error:  # this is what is looked for
            place = traceback.extract_tb(error.__traceback__)[-1]
            cause = error.__cause__ or error.__context__
            kind = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:200]}"
            kind += f" (from {cause!r:.200})" if isinstance(error, AssertionError) and cause else ""
        finally:
            signal.alarm(0)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
        report.send((path, kind, refused, grown * 1024))
        if kind is not None:
            report.recv()  # until the file is kept
        path.write_bytes(originals[path])


def fuzz(parser: Parser, seconds: float, seed: int, keep: Path, folder: Path) -> Result:
    """Read damaged files in a child, and start another where it dies."""
    originals = {path: path.read_bytes() for path in parser.make(folder)}
    parser.read(folder)
    result, end = Result(), time.monotonic() + seconds
    fork = multiprocessing.get_context("fork")
    while time.monotonic() < end:
        ours, theirs = fork.Pipe()
        child = fork.Process(target=read_damaged, args=(parser, folder, originals, seed, theirs), daemon=True)
        child.start()
        theirs.close()
        path = next(iter(originals))
        try:
            while time.monotonic() < end:
                if not ours.poll(PATIENCE):
                    result.add(f"a library did not come back within {PATIENCE} s", path, keep)
                    break
                path, kind, refused, peak = ours.recv()
                if refused is None:
                    continue
                result.count += 1
                result.refused += refused
                result.peak = max(result.peak, peak)
                if kind is not None:
                    result.add(kind, path, keep)
                    ours.send(None)
        except (EOFError, ConnectionError):
            child.join()
            result.count += 1
            result.add(f"the interpreter ended with {child.exitcode}", path, keep)
        child.kill()
        child.join()
        for file, data in originals.items():
            file.write_bytes(data)
        seed += 1
    return result


def main() -> None:
    """Run and report; fails if anything was found."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--parser", choices=list(PARSERS), required=True)
    command.add_argument("--minutes", type=float, default=1)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--keep", type=Path, default=None)
    args = command.parse_args()
    keep = args.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        os.environ["ROBOVLMS_CACHE"] = f"{folder}/cache"
        found = fuzz(PARSERS[args.parser], 60 * args.minutes, args.seed, keep, Path(folder))
    print(
        f"{args.parser}: {found.count} inputs in {args.minutes:g} min, {found.refused} refused, memory grew by "
        f"{found.peak / 2**20:.0f} MiB, {len(found.findings)} findings"
    )
    for finding in found.findings.values():
        print(f"  {finding}")
    if found.findings:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

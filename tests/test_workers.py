"""Jobs in processes: results, errors as they were raised, what a dead process died of, the end at an interrupt."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from robovlms.errors import UserError
from robovlms.workers import Pool


@contextmanager
def squares(folder: Path | None = None) -> Iterator[Callable[[int], int]]:
    """Square numbers; 13 cannot be, 17 ends the process, and 19 takes long."""

    def work(number: int) -> int:
        if number == 13:
            raise UserError("13 brings bad luck")
        if number == 17:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 19:
            time.sleep(60)
        return number**2

    yield work
    if folder is not None:
        (folder / str(os.getpid())).touch()


@contextmanager
def unbuilt() -> Iterator[Callable[[int], int]]:
    raise UserError("there is no simulator")
    yield


def pool(num_workers: int, start=squares) -> Pool[int, int]:
    return Pool(start, num_workers, "collect.num_workers")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_job_has_its_result_and_what_was_built_is_taken_down_once_a_process(num_workers, tmp_path):
    with pool(num_workers, partial(squares, tmp_path)) as workers:
        assert dict(workers.run(range(6))) == {number: number**2 for number in range(6)}
        assert dict(workers.run([7])) == {7: 49}  # the processes stay
    assert len(list(tmp_path.iterdir())) == num_workers
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_arrives_as_it_was_raised_and_ends_all(num_workers):
    with pytest.raises(UserError, match="13 brings bad luck"), pool(num_workers) as workers:
        list(workers.run([1, 13, 2]))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_cannot_be_built_is_told(num_workers):
    with pytest.raises(UserError, match="there is no simulator"), pool(num_workers, unbuilt) as workers:
        list(workers.run([1, 2, 3]))


def test_a_dead_process_is_named_with_its_job_the_likely_cause_and_the_option():
    said = r"process \d+ was ended by SIGKILL, .*memory ran out.*worked on 17.*lower collect\.num_workers=2"
    with pytest.raises(UserError, match=said), pool(2) as workers:
        list(workers.run([1, 17, 2]))


def test_ctrl_c_ends_all_processes_at_once(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_workers as t\\n"
        "if __name__ == '__main__':\\n"
        "    with t.pool(2) as workers:\\n"
        "        for job, result in workers.run([2, 3, 19, 19]): print(result, flush=True)"
    ).replace("\\n", "\n")
    (tmp_path / "job.py").write_text(code)
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "job.py"), str(here)],
        env=os.environ | {"PYTHONPATH": str(here.parent)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert {process.stdout.readline(), process.stdout.readline()} == {b"4\n", b"9\n"}
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) != 0
    assert time.monotonic() - start < 10
    assert process.stdout.read() == b""  # nobody holds the pipe any longer


@contextmanager
def anxious() -> Iterator[Callable[[int], int]]:
    """Warn of a name that would steer a terminal."""

    def work(number: int) -> int:
        logging.getLogger("robovlms.data").warning("file \x1b[31m%d", number)
        return number

    yield work


def test_what_processes_warn_of_cannot_steer_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with Pool(anxious, 2, "collect.num_workers") as pool:
        assert sorted(result for _, result in pool.run([1, 2])) == [1, 2]
    told = capfd.readouterr().err
    assert "WARNING file \\x1b[31m1" in told
    assert "\x1b[31m" not in told

"""Jobs in processes: results, errors as they were raised, what a dead process died of, the end at an interrupt."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, takewhile
from pathlib import Path

import pytest

from robovlms.errors import UserError
from robovlms.workers import Pool, ask


@contextmanager
def squares(folder: Path | None = None) -> Iterator[Callable[[int], int]]:
    """Square numbers; 13 and 23 cannot be, 17 ends the process, and 19 takes long."""

    def work(number: int) -> int:
        if number == 13:
            raise UserError("13 brings bad luck")
        if number == 23:
            raise ConnectionResetError("the model's server hung up")
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
@pytest.mark.parametrize(("job", "error"), [(13, UserError), (23, ConnectionResetError)])
def test_an_error_arrives_as_it_was_raised_and_ends_all(num_workers, job, error):
    with pytest.raises(error, match=r"13 brings bad luck|server hung up"), pool(num_workers) as workers:
        list(workers.run([1, job, 2], if_dead=lambda job, error: 0))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_cannot_be_built_is_told(num_workers):
    with pytest.raises(UserError, match="there is no simulator"), pool(num_workers, unbuilt) as workers:
        list(workers.run([1, 2, 3]))


def test_a_dead_process_is_named_with_its_job_the_likely_cause_and_the_option():
    said = r"process \d+ was ended by SIGKILL, .*memory ran out.*worked on 17.*lower collect\.num_workers=2"
    with pytest.raises(UserError, match=said), pool(2) as workers:
        list(workers.run([1, 17, 2]))


def test_a_job_of_which_two_processes_die_is_a_result_and_others_go_on():
    with pool(2) as workers:
        results = dict(workers.run([17, 2, *range(30, 50)], if_dead=lambda job, error: str(error)))
        assert re.match(r"process \d+ was ended by SIGKILL, .*while it worked on 17", results.pop(17))
        assert results == {number: number**2 for number in [2, *range(30, 50)]}
    assert multiprocessing.active_children() == []


@contextmanager
def fragile(folder: Path) -> Iterator[Callable[[int], int]]:
    """Die of every job the first time that it is tried."""

    def work(number: int) -> int:
        if not (folder / str(number)).exists():
            (folder / str(number)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2

    yield work


def test_a_job_whose_process_died_is_done_once_more_by_another(tmp_path):
    with pool(2, partial(fragile, tmp_path)) as workers:
        assert dict(workers.run(range(4), if_dead=lambda job, error: -1)) == {0: 0, 1: 1, 2: 4, 3: 9}


def test_processes_that_die_of_every_job_end_all_with_the_cause():
    done = []
    with pytest.raises(UserError, match="was ended by SIGKILL"), pool(2) as workers:
        done.extend(workers.run([2, *[17] * 100], if_dead=lambda job, error: -1))
    assert sorted(done) == [(2, 4), (17, -1), (17, -1)]


class Doubling:
    """Doubles numbers, as many at once as ask; 13 cannot be, and 17 ends the process that asked."""

    max_wait_s = 5.0

    def __init__(self, max_batch_size: int = 8) -> None:
        self.max_batch_size = max_batch_size
        self.sizes: list[int] = []

    def answer(self, questions: Sequence[tuple[int, int]]) -> list[object]:
        self.sizes.append(len(questions))
        assert len({process for process, _ in questions}) == len(questions)
        return [UserError("13 brings bad luck") if number == 13 else 2 * number for _, number in questions]


@contextmanager
def curious() -> Iterator[Callable[[int], int]]:
    """Ask three times for each job."""

    def work(number: int) -> int:
        for _ in range(3):
            number = ask(number)
        if number == 8 * 17:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    yield work


@pytest.mark.parametrize("num_workers", [1, 3])
def test_jobs_ask_the_process_that_they_work_for(num_workers):
    doubling = Doubling()
    with Pool(curious, num_workers, "evaluation.num_workers", lambda: doubling) as workers:
        assert dict(workers.run(range(6))) == {number: 8 * number for number in range(6)}
        with pytest.raises(UserError, match="13 brings bad luck"):
            list(workers.run([13]))
    assert sum(doubling.sizes) == 3 * 6 + 1
    assert max(doubling.sizes) == num_workers, "all that are at work are answered at once"
    with pytest.raises(LookupError):
        ask(1)


def test_no_more_are_answered_at_once_than_fit_and_nobody_waits_for_the_dead():
    doubling = Doubling(max_batch_size=2)
    with Pool(curious, 3, "evaluation.num_workers", lambda: doubling) as workers:
        results = dict(workers.run([1, 17, 2, 3], if_dead=lambda job, error: -1))
    assert results == {1: 8, 2: 16, 3: 24, 17: -1}
    assert max(doubling.sizes) <= 2


def test_a_question_to_nobody_is_told():
    with pytest.raises(LookupError, match="nobody is there to answer"), pool(2, curious) as workers:
        list(workers.run([1]))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_jobs_are_taken_one_by_one_and_may_end_early(num_workers):
    done = []
    with pool(num_workers) as workers:
        for job, _ in workers.run(takewhile(lambda _: len(done) < 3, count())):
            done.append(job)
    assert len(done) in {3, 2 + num_workers}
    assert set(done) == set(range(len(done)))


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
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # who tests in the background may ignore it
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


def test_processes_leave_when_their_parent_is_killed(tmp_path):
    code = "\n".join(
        [
            "import sys; sys.path.insert(0, sys.argv[1]); import test_workers as t",
            "if __name__ == '__main__':",
            "    with t.pool(2) as workers:",
            "        for job, result in workers.run(t.count()): print(result, flush=True)",
        ]
    )
    (tmp_path / "job.py").write_text(code)
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "job.py"), str(here)],
        env=os.environ | {"PYTHONPATH": str(here.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() in {b"0\n", b"1\n"}
    process.kill()
    start = time.monotonic()
    assert process.stdout.read()[-1:] in {b"", b"\n"}  # its end: no process holds the pipe any longer
    assert time.monotonic() - start < 10
    process.wait()

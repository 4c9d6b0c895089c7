"""Long work says how far it is: lines in the log where stderr is no terminal, a bar where it is one."""

from __future__ import annotations

import io
import logging
import re
import sys
import time

import pytest

from robovlms.progress import Progress, track


def lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "robovlms.progress"]


def test_short_work_says_nothing(caplog):
    with caplog.at_level(logging.INFO):
        assert list(track([1, 2], "reading", 2, "file")) == [1, 2]
    assert lines(caplog) == []


def test_a_line_has_count_rate_and_what_is_left_and_the_last_one_is_the_end(caplog):
    with caplog.at_level(logging.INFO), Progress("reading", 4, "file", initial=1, every_s=0.1) as progress:
        time.sleep(0.15)
        progress.update(note="1 bad")
        progress.update()
        time.sleep(0.15)
        progress.update()
    first, last = lines(caplog)[0], lines(caplog)[-1]
    assert re.fullmatch(r"reading: 2 of 4 files, \d\.?\d* files/s, 0:00:00 left, 1 bad", first)
    assert re.fullmatch(r"reading: 4 of 4 files, \d+\.?\d* files/s, 1 bad", last)
    assert len(lines(caplog)) == 3


def test_slow_work_is_counted_a_minute_and_an_unknown_end_is_not_guessed(caplog):
    with caplog.at_level(logging.INFO), Progress("collecting", 0, "demo", every_s=0.0) as progress:
        progress._start -= 100
        progress.update()
    assert re.fullmatch(r"collecting: 1 demos, 0\.6 demos/min", lines(caplog)[0])


def test_hours_that_are_left_are_told_as_hours(caplog):
    with caplog.at_level(logging.INFO), Progress("collecting", 73, "demo", every_s=0.0) as progress:
        progress._start -= 100
        progress.update()
    assert lines(caplog)[0].endswith(", 2:00:00 left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_no_lines(caplog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("robovlms.progress.DELAY_S", 0)
    with caplog.at_level(logging.INFO):
        list(track(range(3), "reading", 3, "file"))
    assert "reading: 100%" in sys.stderr.getvalue()
    assert lines(caplog) == []

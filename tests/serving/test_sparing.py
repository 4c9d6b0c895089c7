"""A log that a client cannot fill."""

from __future__ import annotations

import logging

import pytest

from robovlms.serving.sparing import BURST, LINES_A_SECOND, SparingLog


def test_a_client_that_floods_fills_no_log_and_what_is_left_out_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = SparingLog(logging.getLogger("flooded"), clock=lambda: now)
    for number in range(1000):
        log.warning("openpi 1", ValueError(f"message {number}"))
    assert len(caplog.records) == BURST
    now = 1 / LINES_A_SECOND
    log.warning("openpi 1", ValueError("the last"))
    assert [record.getMessage() for record in caplog.records[-2:]] == [
        "900 messages like the next were left out",
        "openpi 1: the last",
    ]


def test_a_client_that_errs_now_and_then_is_logged_each_time(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = SparingLog(logging.getLogger("patient"), clock=lambda: now)
    for number in range(300):
        now = number / LINES_A_SECOND
        log.warning("groot 1", ValueError("no picture"))
    assert len(caplog.records) == 300

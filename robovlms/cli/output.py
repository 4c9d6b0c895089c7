"""What a command says: log lines and error messages, once a launch, on a terminal of any encoding."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from importlib.util import find_spec

from robovlms.cli import launch
from robovlms.errors import LostProcessError
from robovlms.terminal import printable, set_up_logging


def set_up_output() -> None:
    """Log INFO from the first process of a launch and WARNING from the others, on stderr.

    What the terminal's encoding has no character for is written as an escape. Several processes of a launch on one
    machine say the same warning once.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    set_up_logging(level, _is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno < logging.WARNING or is_first_to_say(record.getMessage())


def is_first_to_say(text: str) -> bool:
    """Tell whether no other process of this launch, on this machine, has said the same."""
    folder = launch.said_folder()
    return folder is None or launch.is_first(folder / hashlib.sha256(text.encode(errors="replace")).hexdigest()[:32])


def report(error: Exception, schema: type) -> tuple[int, str]:
    """Say on stderr what went wrong, once a launch; return the exit status and the message's text.

    The status is 2 for what the user can fix, 1 for the rest, which comes with its traceback. The module that knows the
    words of Hydra's errors is imported here, when there is an error.
    """
    if isinstance(error, ModuleNotFoundError) and find_spec("hydra") is None:
        message: str | None = (
            f"{sys.executable} has no {error.name}: it is not the Python that robovlms was installed in. Activate that "
            "environment (. .venv/bin/activate), or install it here as README.md says."
        )
    else:
        from robovlms.cli.errors import explain

        message = explain(error, schema)
    status, reason = (2, message) if message is not None else (1, f"{type(error).__name__}: {error}")
    if not launch.speaks(is_cause=status == 2 and not isinstance(error, LostProcessError)):
        return status, reason
    if status == 1 or os.environ.get("ROBOVLMS_TRACEBACK") == "1":
        import traceback

        traceback.print_exception(error)
    last = printable(f"error: {reason}")
    if status == 2 and is_first_to_say(last):
        sys.stderr.write(f"{last}\n")
    launch.say_last(last)
    return status, reason

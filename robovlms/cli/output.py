"""What a command says: log lines and error messages, once a launch, on a terminal of any encoding."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import TextIO

from robovlms.terminal import PrintableFormatter, printable


def set_up_output() -> None:
    """Log INFO from the first process of a launch and WARNING from the others, on stderr.

    What the terminal's encoding has no character for is written as an escape. Several processes of a launch on one
    machine say the same warning once.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    if not logging.getLogger().handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
        handler.addFilter(_is_news)
        logging.basicConfig(level=level, handlers=[handler])


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno < logging.WARNING or is_first_to_say(record.getMessage())


def is_first_to_say(text: str) -> bool:
    """Tell whether no other process of this launch, on this machine, has said the same.

    torchrun gives every process a file below a folder of the launch; what was said is noted there.
    """
    given = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not given:
        return True
    rank = os.environ.get("RANK", "0")
    folder = Path(given).parents[1] / "said"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / hashlib.sha256(text.encode(errors="replace")).hexdigest()[:32]
        with note.open("x", encoding="utf-8") as file:
            file.write(rank)
    except FileExistsError:
        return note.read_text(encoding="utf-8") == rank
    except OSError:
        return True
    return True


def say(text: str, stream: TextIO | None = None) -> None:
    """Write an error to stderr, once a launch."""
    if is_first_to_say(text):
        (stream or sys.stderr).write(printable(text))


def tell_launcher(message: str) -> None:
    """Leave the message where torchrun looks for the cause of a failure, so that its last lines show it."""
    given = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not given:
        return
    message = printable(message)
    told = {"message": {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(int(time.time()))}}}
    try:
        Path(given).write_text(json.dumps(told), encoding="utf-8")
    except OSError:
        return  # torchrun's folder is full or gone: the message is on stderr


def report(error: Exception, schema: type) -> tuple[int, str]:
    """Say on stderr what went wrong; return the exit status and the message's text.

    The status is 2 for what the user can fix, 1 for the rest, which comes with its traceback. The module that knows the
    words of Hydra's errors is imported here, when there is an error.
    """
    import traceback

    from robovlms.cli import launch
    from robovlms.cli.errors import explain

    message = explain(error, schema)
    status = 1 if message is None else 2
    reason = message if message is not None else f"{type(error).__name__}: {error}"
    if not launch.speaks(is_cause=message is not None):
        return status, reason
    if message is None or os.environ.get("ROBOVLMS_TRACEBACK") == "1":
        say("".join(traceback.format_exception(error)))
    if message is not None:
        say(f"error: {message}\n")
    tell_launcher(reason)
    launch.say_last(f"error: {reason}")
    return status, reason or type(error).__name__

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from robovlms.terminal import PrintableFormatter, printable, show


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("lift\x1b[31m the cup", r"lift\x1b[31m the cup"),
        ("a\x9b2Jb\x00\x07\x7f", r"a\x9b2Jb\x00\x07\x7f"),
        ("paid\u202egpj.exe", r"paid\u202egpj.exe"),
        ("half \ud800 a pair", r"half \ud800 a pair"),
        ("carriage\rreturn", r"carriage\rreturn"),
        ("two\n\tlines", "two\n\tlines"),
        ("soulève l'œuf, 컵을 들어, می‌خواهم, 👩‍🚀", "soulève l'œuf, 컵을 들어, می‌خواهم, 👩‍🚀"),
    ],
)
def test_control_characters_are_written_out_and_words_stay(text, shown):
    assert printable(text) == shown


def test_a_name_can_be_kept_on_its_line():
    assert printable("a\nb", keep="") == r"a\nb"


def test_what_is_shown_and_what_is_logged_cannot_steer_the_terminal(capsys):
    show("a\x1b[2J")
    assert capsys.readouterr().out == "a\\x1b[2J\n"
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "task %s", ("\x1b]0;title\x07",), None)
    assert PrintableFormatter("%(message)s").format(record) == r"task \x1b]0;title\x07"


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", ["data.root='/no/\x1b[2Jfolder'", "experiment=\x1b[31mquickstart", "\x1b]0;title\x07=1"]
)
def test_a_command_answers_to_a_hostile_option_without_its_control_characters(option):
    done = subprocess.run(
        [sys.executable, "train.py", "data=calvin", option],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "x1b" in done.stderr
    assert not {"\x1b", "\x07"} & set(done.stderr + done.stdout)

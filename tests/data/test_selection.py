"""`data.episodes`: what its text means, and that every format counts its episodes and leaves the others out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from robovlms.data.selection import EpisodeSelection, in_short
from robovlms.errors import UserError


def chosen(text: str | None, total: int = 10) -> list[int]:
    return EpisodeSelection.parse(text).choose(range(total), "/data")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (None, list(range(10))),
        ("4", [4]),
        ("0-2,8-", [0, 1, 2, 8, 9]),
        ("[0,3]", [0, 3]),
        (" 5 , 1-2", [1, 2, 5]),
        ("-3,-7-9", [0, 1, 2, 4, 5, 6]),
        ("-2-", [0, 1]),
        ("0-5,-2,-4-5", [0, 1, 3]),
        ("3,3,1-3", [1, 2, 3]),
        ("9-", [9]),
    ],
)
def test_numbers_ranges_and_a_minus_choose_episodes(text, kept):
    assert chosen(text) == kept


@pytest.mark.parametrize(
    ("content", "text", "kept"),
    [
        ([5, 1], "{}", [1, 5]),
        ([5, 1], "-{}", [0, 2, 3, 4, 6, 7, 8, 9]),
        ({"keep": [2, 3, 4], "drop": [3]}, "{}", [2, 4]),
        ({"drop": [0]}, "{}", [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"drop": [0]}, "-{}", [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"drop": [8]}, "7-,{}", [7, 9]),
        ([0], "{},5-6", [0, 5, 6]),
        ([], "-{}", list(range(10))),
    ],
)
def test_a_json_file_lists_what_is_kept_or_left_out(tmp_path, content, text, kept):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content))
    assert chosen(text.format(path)) == kept


@pytest.mark.parametrize("text", ["", "a", "1;2", "1-2-3", "--3", "1,,2", "keep.txt", "1.5", "-", "99999999999"])
def test_what_is_no_choice_is_refused_with_the_form(text):
    with pytest.raises(UserError, match=r"data\.episodes=.*0-99,200-"):
        chosen(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("10", r"names 10, but /data has 10 episodes, 0-9"),
        ("5-12", r"names 5-12, but /data has 10 episodes"),
        ("12-", r"names 12-, but"),
        ("-10", r"names 10, but"),
        ("0-4,-0-4", r"0-4,-0-4 leaves no episode: /data has 10 episodes"),
        ("9-3", r"the range 9-3 ends before it begins; write 3-9"),
    ],
)
def test_numbers_that_are_not_there_and_an_empty_choice_are_refused(text, told):
    with pytest.raises(UserError, match=told):
        chosen(text)


def test_a_gap_in_the_folders_numbers_is_no_number_of_it():
    numbers = [0, 1, 4, 5]
    assert EpisodeSelection.parse("1,4-").choose(numbers, "/data") == [1, 2, 3]
    with pytest.raises(UserError, match=r"names 1-4, but /data has 4 episodes, 0-1,4-5"):
        EpisodeSelection.parse("1-4").choose(numbers, "/data")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not valid JSON"),
        ('"3"', "neither a list"),
        ('{"good": [1]}', "neither a list"),
        ("[true]", "lists True, which is no number"),
        ("[-1]", "lists -1"),
        ("[1.5]", "lists 1.5"),
        ("[]", "keeps no episode"),
        ('{"keep": 3}', "must list numbers"),
    ],
)
def test_a_file_that_lists_no_episodes_is_named(tmp_path, content, told):
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(UserError, match=told) as refused:
        chosen(str(path))
    assert str(path) in str(refused.value)


def test_a_file_that_is_missing_or_kept_under_a_minus_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.json does not exist"):
        chosen(str(tmp_path / "gone.json"))
    (tmp_path / "keep.json").write_text('{"keep": [1]}')
    with pytest.raises(UserError, match="omit the minus"):
        chosen(f"-{tmp_path / 'keep.json'}")


def test_numbers_are_written_as_they_are_read():
    generator = np.random.default_rng(0)
    for _ in range(50):
        numbers = sorted(generator.choice(60, 20, replace=False).tolist())
        assert chosen(in_short(numbers), 60) == numbers
    assert str(EpisodeSelection.parse("200-,0-99,50-120,-7-9,-3")) == "0-120,200-,-3,-7-9"

"""The page on structures says what the code allows."""

from pathlib import Path

from robovlms.config.checks import REFUSED
from robovlms.config.choices import HeadKind, Structure

PAGE = Path(__file__).parents[2] / "docs" / "structures.md"


def test_the_table_of_what_goes_together_is_the_codes():
    table = (
        PAGE.read_text()
        .split("<!-- table of tests/config/test_structures.py -->")[1]
        .split("<!-- end of the table -->")[0]
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    assert [row[0].strip("`") for row in rows] == list(Structure)
    for row in rows:
        for kind, cell in zip(HeadKind, row[1:], strict=True):
            reason = REFUSED.get((Structure(row[0].strip("`")), kind))
            assert cell == ("yes" if reason is None else f"no: {reason.split(':')[0]}")

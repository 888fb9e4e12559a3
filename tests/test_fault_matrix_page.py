"""docs/development/fault-matrix.md says what is so: every row is there, every test it names exists, one of them by its row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "development" / "fault-matrix.md"
ROWS = {"N": 23, "H": 19, "P": 13, "E": 12, "C": 18, "L": 3, "R": 4, "K": 6, "J": 4, "I": 6, "G": 4, "S": 6}
"""How many rows each letter has: 118."""
NOT_BUILT = {"R", "J"}

TABLE = {
    cells[0]: cells[1:]
    for line in PAGE.read_text().splitlines()
    if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
    and re.fullmatch(r"[A-Z]\d\d", cells[0])
}


def test_every_row_is_there_once() -> None:
    """None is forgotten, none is made up."""
    wanted = [f"{letter}{number:02}" for letter, count in ROWS.items() for number in range(1, count + 1)]
    assert len(wanted) == 118
    assert sorted(TABLE) == sorted(wanted)
    assert all(inject and does for inject, does, _ in TABLE.values())


@pytest.mark.parametrize("row", TABLE)
def test_its_tests_exist_and_one_is_named_by_it(row: str) -> None:
    """Or nothing of the kind is built yet, and the page says so."""
    _, does, cell = TABLE[row]
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", cell)
    if row[0] in NOT_BUILT:
        assert named == []
        assert "not built yet" in does
        return
    assert named
    for file, name in named:
        assert re.search(rf"^\s*(?:async )?def {name}\(", (TESTS / file).read_text(), re.MULTILINE), name
    assert any(_covers(name, row) for _, name in named)


def _covers(name: str, row: str) -> bool:
    """Whether a test's name has the row in it, alone or within a range as in ``p01_to_p06``."""
    rows = re.findall(r"(?<=_)([a-z])(\d\d)(?=_)", f"_{name}_")
    if (row[0].lower(), row[1:]) in rows:
        return True
    found = re.search(r"_([a-z])(\d\d)_to_[a-z](\d\d)_", f"_{name}_")
    return found is not None and found[1] == row[0].lower() and found[2] <= row[1:] <= found[3]

"""Checks docs/development/fault-matrix.md: every row is listed, its tests exist, and one carries the row's marker."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
KIT_TESTS = TESTS.parent / "conformance" / "kit_tests"
PAGE = TESTS.parent / "docs" / "development" / "fault-matrix.md"
ROWS = {
    "N": 24,
    "H": 19,
    "P": 13,
    "E": 18,
    "F": 3,
    "C": 20,
    "L": 3,
    "R": 4,
    "K": 6,
    "J": 4,
    "I": 6,
    "G": 4,
    "S": 8,
    "V": 8,
    "B": 8,
}
"""The number of rows of each letter."""
NOT_BUILT = {"R", "J"}

TABLE = {
    cells[0]: cells[1:]
    for line in PAGE.read_text().splitlines()
    if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
    and re.fullmatch(r"[A-Z]\d\d", cells[0])
}


def test_every_row_is_listed_once() -> None:
    """No row is missing, and none is invented."""
    wanted = [f"{letter}{number:02}" for letter, count in ROWS.items() for number in range(1, count + 1)]
    assert sorted(TABLE) == sorted(wanted)
    assert all(fault and behaviour for fault, behaviour, _ in TABLE.values())


@pytest.mark.parametrize("row", TABLE)
def test_the_tests_of_a_row_exist_and_one_has_its_marker(row: str) -> None:
    """A row whose subject is not built yet names no test, and the page says so."""
    _, behaviour, cell = TABLE[row]
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", cell)
    if row[0] in NOT_BUILT:
        assert named == []
        assert "not built yet" in behaviour
        return
    assert named
    for file, name in named:
        assert name in _tests(file), f"{file} has no test {name}"
    assert any(row in _tests(file)[name] for file, name in named)


def test_every_marker_is_a_row() -> None:
    """A typing error in a marker would hide a test from the page."""
    marked = {
        row
        for folder in (TESTS, KIT_TESTS)
        for path in folder.rglob("test_*.py")
        for rows in _tests(str(path)).values()
        for row in rows
    }
    assert marked <= set(TABLE)


@cache
def _tests(file: str) -> dict[str, set[str]]:
    """The tests of a file, and the rows that each is marked with: ``@pytest.mark.row("N05", "N06")``."""
    # Tests of the conformance kit are beside it, and their paths begin at the repository.
    path = TESTS.parent / file if file.startswith("conformance/") else TESTS / file
    tree = ast.parse(path.read_text())
    return {
        node.name: {row for decorator in node.decorator_list for row in _rows(decorator)}
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def _rows(decorator: ast.expr) -> set[str]:
    if not (isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.row"):
        return set()
    return {str(ast.literal_eval(argument)) for argument in decorator.args}

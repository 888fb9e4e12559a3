"""The table of limits (`python -m tests.limits`), each row with its bounds."""

from __future__ import annotations

from typing import Final

import pytest

from tests.limits.rows import ROWS, Row
from tests.support.scale import NIGHTLY

NOT_YET: Final = {
    "75 s with a full bank": "56 %",
    "neither headers nor limits": "92.5 %",
    "requests-only gateway, then large batches": "39 s",
    "a tenth refused at random, 400 calls": "903 s",
}
"""Rows that do not keep their bounds, and what they reach; whoever mends a row removes it here."""


def _params() -> list[object]:
    return [
        pytest.param(
            row,
            id=row.name,
            marks=[pytest.mark.xfail(strict=True, reason=NOT_YET[row.name])] if row.name in NOT_YET else [],
        )
        for row in ROWS
    ]


@pytest.mark.parametrize("row", _params())
def test_limits(row: Row) -> None:
    """A short variant in every run, all variants at night."""
    broken = {}
    for case in row.cases if NIGHTLY else row.cases[: row.quick]:
        report = case.report()
        print(case.name, report)
        if problems := row.bounds.broken(report):
            broken[case.name] = problems
    assert not broken

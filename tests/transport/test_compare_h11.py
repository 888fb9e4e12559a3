"""A few cases of `tests.transport.compare_h11`, which reads a million at night."""

from __future__ import annotations

import pytest

from tests.transport import compare_h11
from tests.transport.compare_h11 import DIFFERENCES, Comparison


def test_responses_are_read_as_h11_reads_them_or_differ_for_a_reason() -> None:
    """Whole, cut at random, and some of them cut at every byte."""
    comparison = Comparison(seed=16)
    for number in range(400):
        comparison.run(every_byte=number % 100 == 0)
    assert comparison.unexplained == []
    assert comparison.uneven == []
    assert len(comparison.met) > len(DIFFERENCES) // 3


def test_a_difference_that_is_not_in_the_table_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that gives one answer to everything is found out."""
    monkeypatch.setattr(compare_h11, "read_ours", lambda *_, **__: compare_h11.Read("", 200, {}, b"always"))
    comparison = Comparison(seed=16)
    for _ in range(20):
        comparison.run(every_byte=False)
    assert len(comparison.unexplained) > 10

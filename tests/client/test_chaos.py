"""A few calls of `tests.client.chaos`, which runs for long at night: the harness works, and the client under it."""

from __future__ import annotations

import pytest

from tests.client.chaos import chaos
from tests.support.scale import nightly_only

CALLS = 120


@pytest.mark.parametrize(
    "every_fault",
    [
        pytest.param(False, marks=nightly_only, id="faults that a retry mends"),
        pytest.param(True, id="every fault"),
    ],
)
def test_two_loops_and_eight_threads_get_right_vectors_or_errors_of_llmopt(every_fault: bool) -> None:
    """While the server fails a quarter of the requests."""
    calls = iter(range(CALLS))

    tally = chaos(
        lambda: next(calls, None) is not None,
        seed=7,
        every_fault=every_fault,
        total_s=2.0,
        say=lambda line: None,
    )

    assert tally.wrong == []
    assert tally.foreign == []
    assert tally.outcomes["answered"] > 0

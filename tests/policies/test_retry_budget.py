"""The retry budget: the AWS SDKs' table of outcomes and tokens left (docs/development/resilience.md)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.policies.retry import BUDGET_CAPACITY, NO_COST, THROTTLED_COST, TRANSIENT_COST, RetryBudget


def test_the_prices() -> None:
    """As in botocore: 500, 14, 5."""
    assert (BUDGET_CAPACITY, TRANSIENT_COST, THROTTLED_COST, NO_COST) == (500, 14, 5, 0)


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([], 500),
        (["transient"], 486),
        (["throttled"], 495),
        (["free"], 500),
        (["transient", "transient", "throttled"], 467),
        (["transient", "success 14"], 500),
        (["transient", "success"], 487),
        (["transient", "success 0"], 487),
        (["throttled", "throttled", "success 5"], 495),
        (["success", "success 14"], 500),
        (["throttled", "success 14"], 500),
        (["transient", "put back 14"], 500),
    ],
)
def test_tokens_left(steps: list[str], left: Any) -> None:
    """Each outcome changes the level by its rule, and never above the capacity."""
    budget = RetryBudget()
    costs = {"transient": TRANSIENT_COST, "throttled": THROTTLED_COST, "free": NO_COST}
    for step in steps:
        if step in costs:
            assert budget.acquire(costs[step])
        elif step.startswith("put back"):
            budget.release(int(step.split()[-1]))
        else:
            budget.succeeded(int(step.split()[-1]) if " " in step else 0)

    assert budget.available == left


def test_an_outage_costs_35_retries() -> None:
    """Then calls fail fast; the remaining tokens still pay for throttled retries."""
    budget = RetryBudget()

    assert sum(budget.acquire(TRANSIENT_COST) for _ in range(1000)) == 35
    assert budget.available == 10
    assert sum(budget.acquire(THROTTLED_COST) for _ in range(1000)) == 2
    assert budget.available == 0
    assert budget.acquire(NO_COST)


def test_fourteen_successful_calls_pay_for_one_retry() -> None:
    """An empty budget gains one token a call."""
    budget = RetryBudget(14)
    assert budget.acquire(TRANSIENT_COST)

    for _ in range(13):
        budget.succeeded()
    assert not budget.acquire(TRANSIENT_COST)
    budget.succeeded()
    assert budget.acquire(TRANSIENT_COST)


def test_a_budget_without_capacity_allows_no_paid_retries() -> None:
    """Free retries still happen."""
    budget = RetryBudget(0)

    assert not budget.acquire(THROTTLED_COST)
    assert budget.acquire(NO_COST)
    assert repr(budget) == "RetryBudget(0/0)"


@given(st.lists(st.tuples(st.sampled_from(["take", "back", "good"]), st.sampled_from([0, 5, 14]))))
def test_the_level_stays_between_zero_and_the_capacity(steps: list[tuple[str, int]]) -> None:
    """Only a refused retry leaves the level unchanged."""
    budget = RetryBudget(40)
    for kind, cost in steps:
        before = budget.available
        if kind == "take":
            assert budget.acquire(cost) == (cost <= before)
        elif kind == "back":
            budget.release(cost)
        else:
            budget.succeeded(cost)
        assert 0 <= budget.available <= 40

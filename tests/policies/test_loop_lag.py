"""How late an event loop was, measured with timers in simulated time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.policies.timeouts import LoopLag, explains_timeout
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.scale import scaled

INTERVAL = 1.0


def measured(plan: list[tuple[float, float]], within: float | None = None) -> tuple[float, float, float]:
    """The lag after a plan of pauses and blocks in seconds, with the time that passed and that was blocked."""

    async def main(clock: SimulatedClock) -> tuple[float, float, float]:
        lag = LoopLag(clock, lambda: True)
        lag.watch()
        for pause, block in plan:
            await asyncio.sleep(pause)
            clock.advance(block)
        seconds = lag.seconds(clock.elapsed if within is None else within)
        return seconds, clock.elapsed, sum(block for _, block in plan)

    return run_simulated(main)


def test_an_idle_loop_is_not_late() -> None:
    assert measured([(100.0, 0.0)])[0] == 0


@pytest.mark.parametrize("block", [2.0, 30.0])
def test_a_block_is_measured(block: float) -> None:
    """But for what was left until the timer was due."""
    seconds, _, _ = measured([(5.5, block)])
    assert seconds == pytest.approx(block - 0.5)


def test_a_block_before_the_period_does_not_count() -> None:
    assert measured([(5.5, 30.0), (10.0, 0.0)], within=9.0)[0] == 0
    assert measured([(5.5, 30.0), (10.0, 0.0)], within=12.0)[0] == pytest.approx(2.0, abs=0.01)


def test_many_short_blocks_add_up() -> None:
    """A loop whose every turn takes 0.7 s is late for a good part of the time."""
    seconds, elapsed, _ = measured([(0.001, 0.7)] * 100)
    assert seconds > 0.1 * elapsed


@pytest.mark.parametrize(("late", "expected"), [(0.015, 0.0), (0.03, 0.03)])
def test_delays_of_less_than_20_ms_are_usual(late: float, expected: float) -> None:
    assert measured([(0.99, 0.01 + late), (0.5, 0.0)])[0] == pytest.approx(expected)


def test_the_last_600_delays_are_remembered() -> None:
    """Of 650 of one second each, and that of the timer that is due."""
    assert measured([(0.5, 1.5)] * 650)[0] == pytest.approx(601)


@given(st.lists(st.tuples(st.floats(0.001, 5), st.floats(0, 20)), max_size=scaled(12, nightly=40)))
def test_the_lag_is_never_longer_than_the_blocks(plan: list[tuple[float, float]]) -> None:
    """And shorter by at most one interval for each of them."""
    seconds, elapsed, blocked = measured(plan)
    assert seconds <= min(elapsed, blocked) + 1e-6
    assert seconds >= sum(max(0.0, block - INTERVAL) for _, block in plan) - 0.02 * (elapsed + 1)


def test_the_timer_ends_when_nothing_is_in_flight() -> None:
    """And starts again with the next request."""

    async def main(clock: SimulatedClock) -> None:
        active = True
        lag = LoopLag(clock, lambda: active)
        lag.watch()
        await asyncio.sleep(10)
        active = False
        await asyncio.sleep(10)
        clock.advance(50)  # nothing measures this
        await asyncio.sleep(10)
        assert lag.seconds(clock.elapsed) == 0
        lag.watch()
        await asyncio.sleep(0)
        clock.advance(50)
        assert lag.seconds(50) == pytest.approx(49)

    run_simulated(main)


@pytest.mark.parametrize(
    ("late", "limit", "expected"), [(0.5, 2, False), (0.6, 2, True), (0.6, 60, False), (7, 60, True)]
)
def test_a_tenth_of_the_timeout_explains_it(late: float, limit: float, expected: bool) -> None:
    assert explains_timeout(late, limit) is expected

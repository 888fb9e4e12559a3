"""The rate limiter keeps its limit over any window, for any arrivals and any error of the estimates."""

from __future__ import annotations

import asyncio
import random

import pytest

from llmopt.policies.rate_limiter import RateLimiter
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.scale import scaled

RPM, TPM = 600.0, 60_000.0
BURST_REQUESTS, BURST_TOKENS = RPM / 60, 5 * TPM / 60
MARGIN = 0.9
"""Of a burst: a tenth is left to the server."""


def most_in_any_window(grants: list[tuple[float, float]], rate: float, burst: float) -> float:
    """The largest excess over ``rate * window + burst`` of any window that begins and ends with a grant."""
    worst = -burst
    level = burst
    before = grants[0][0]
    for moment, cost in grants:
        level = min(burst, level + rate * (moment - before)) - cost
        before = moment
        worst = max(worst, -level)
    return worst


@pytest.mark.row("L01")
@pytest.mark.parametrize("seed", range(scaled(4, nightly=8)))
def test_no_window_exceeds_the_limit_and_the_queue_keeps_its_order(seed: int) -> None:
    """Random arrivals, sizes, cancellations and refunds: never too much, never out of order, never idle."""
    dice = random.Random(seed)

    async def main(clock: SimulatedClock) -> None:
        limiter = RateLimiter(clock=clock, rpm=RPM, tpm=TPM, initial_window=0)
        grants: list[tuple[float, float]] = []
        turns: list[int] = []

        async def one(number: int, tokens: float) -> None:
            lease = await limiter.acquire(tokens)
            turns.append(number)
            if dice.random() < 0.1:
                lease.refund()
                return
            grants.append((clock.elapsed, tokens))
            lease.settle()

        tasks = []
        for number in range(600):
            tasks.append(asyncio.create_task(one(number, dice.choice([1, 20, 150, 900]))))
            if dice.random() < 0.2:
                await clock.sleep(dice.expovariate(5))
            if dice.random() < 0.1:
                dice.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert turns == sorted(turns)
        assert limiter.waiting == 0
        assert most_in_any_window([(at, 1.0) for at, _ in grants], RPM / 60, BURST_REQUESTS) <= 1e-6
        assert most_in_any_window(grants, TPM / 60, BURST_TOKENS) <= 1e-6
        # While requests waited, the narrower limit was used up, apart from the initial burst.
        busy = clock.elapsed
        requests = (len(grants) - BURST_REQUESTS * MARGIN) / (busy * RPM / 60)
        tokens = (sum(cost for _, cost in grants) - BURST_TOKENS * MARGIN) / (busy * TPM / 60)
        assert max(requests, tokens) > 0.9

    run_simulated(main)


@pytest.mark.row("L03")
@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_a_wrong_estimate_is_charged_afterwards(factor: float) -> None:
    """The actual cost is charged at once, as a debt of one burst at most, and the average rate is right."""

    async def main(clock: SimulatedClock) -> None:
        limiter = RateLimiter(clock=clock, tpm=TPM, initial_window=0)
        spent = 0.0
        while clock.elapsed < 120:
            lease = await limiter.acquire(100)
            spent += 100 * factor
            lease.settle(100 * factor)
            assert limiter._quota.tokens.level >= -MARGIN * BURST_TOKENS - 1e-6
        assert spent == pytest.approx(120 * TPM / 60, rel=0.05)

    run_simulated(main)


@pytest.mark.row("L03")
def test_an_estimate_of_zero_is_charged_afterwards() -> None:
    async def main(clock: SimulatedClock) -> None:
        limiter = RateLimiter(clock=clock, tpm=TPM, initial_window=0)
        spent = 0.0
        while clock.elapsed < 60:
            lease = await limiter.acquire(0)
            spent += 500
            lease.settle(500)
        assert spent == pytest.approx(60 * TPM / 60, rel=0.1)

    run_simulated(main)

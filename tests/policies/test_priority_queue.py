"""The order of two priorities, the least share of bulk, and the bound of waiting calls."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import QueueFull
from llmopt.policies.concurrency_limit import ConcurrencyLimiter, Slot
from llmopt.policies.quota import Refusal
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.policies.wait_queue import BULK_SHARE, PriorityQueue, WaitingCalls
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.calls import Priority

Item = tuple[Priority, int, float]
"""Priority, number and cost of a waiter."""


def queue_of(items: Iterable[Item]) -> PriorityQueue[Item]:
    queue: PriorityQueue[Item] = PriorityQueue(lambda item: item[2])
    for item in items:
        queue.put(item, item[0])
    return queue


def interactive(count: int, cost: float = 1.0) -> list[Item]:
    return [("interactive", number, cost) for number in range(count)]


def bulk(count: int, cost: float = 1.0) -> list[Item]:
    return [("bulk", number, cost) for number in range(count)]


def serve_next(queue: PriorityQueue[Item]) -> Item:
    first = queue.first()
    assert first is not None
    assert queue.remove(first, served=True)
    return first


def serve(queue: PriorityQueue[Item], count: int) -> str:
    """Serve ``count`` waiters, and return the first letters of their priorities."""
    return "".join(serve_next(queue)[0][0] for _ in range(count))


def test_interactive_goes_first_and_bulk_gets_a_tenth() -> None:
    """After nine interactive waiters a bulk one is served, and so on."""
    queue = queue_of([*bulk(3), *interactive(20)])
    assert serve(queue, 23) == "iiiiiiiiib" * 2 + "iib"
    assert (len(queue), queue.first(), queue.heads()) == (0, None, [])


def test_bulk_alone_is_served_in_order_and_owes_nothing() -> None:
    """What bulk gets while nothing else waits does not count against it."""
    queue = queue_of(bulk(30))
    assert [serve_next(queue)[1] for _ in range(20)] == list(range(20))
    for item in interactive(20):
        queue.put(item, "interactive")
    assert serve(queue, 12) == "iiiiiiiiibii"


def test_a_credit_ends_with_the_queue_of_bulk() -> None:
    """Bulk that comes later has waited for nothing yet."""
    queue = queue_of([*bulk(1), *interactive(30)])
    assert serve(queue, 8) == "iiiiiiii"
    (left,) = bulk(1)
    assert queue.remove(left)
    assert not queue.remove(left)
    assert serve(queue, 5) == "iiiii"
    queue.put(left, "bulk")
    assert serve(queue, 10) == "iiiiiiiiib"


def test_bulk_that_comes_later_leaves_the_credit_as_it_is() -> None:
    """Otherwise a steady stream of bulk calls would never be served."""
    queue = queue_of([*bulk(1), *interactive(20)])
    assert serve(queue, 8) == "iiiiiiii"
    queue.put(("bulk", 1, 1.0), "bulk")
    assert serve(queue, 2) == "ib"


def test_interactive_waiters_that_leave_give_bulk_nothing() -> None:
    """Only what is served does."""
    queue = queue_of([*bulk(1), *interactive(29)])
    for item in interactive(20):
        assert queue.remove(item)
    assert serve(queue, 10) == "iiiiiiiiib"


def test_a_cancelled_head_leaves_its_credit_to_the_next() -> None:
    """Bulk as a whole has waited, not one of its waiters."""
    queue = queue_of([*bulk(2), *interactive(20)])
    assert serve(queue, 8) == "iiiiiiii"
    assert queue.remove(("bulk", 0, 1.0))
    assert serve(queue, 2) == "ib"


def test_the_share_is_of_the_cost() -> None:
    """A bulk request of the cost of fifty others waits for four hundred and fifty of them, a small one for one."""
    queue = queue_of([*bulk(1, cost=50.0), *interactive(600)])
    assert serve(queue, 460) == "i" * 450 + "b" + "i" * 9
    queue = queue_of([*bulk(10, cost=0.1), *interactive(5)])
    assert serve(queue, 6) == "ibibib"
    queue = queue_of([*bulk(4), *interactive(4, cost=18.5)])
    assert serve(queue, 6) == "ibbibb", "what is left of the credit stays"


def test_iteration_and_heads() -> None:
    """Interactive waiters come first."""
    (one, two), (other,) = bulk(2), interactive(1)
    queue = queue_of([one, other, two])
    assert list(queue) == [other, one, two]
    assert queue.heads() == [other, one]
    queue.remove(other)
    assert (queue.heads(), queue.first()) == ([one], one)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["interactive", "bulk"]),
            st.sampled_from(["put", "serve", "cancel"]),
            st.floats(0.1, 20),
        ),
        max_size=150,
    )
)
def test_shares_and_order_hold_in_any_history(steps: list[tuple[Priority, str, float]]) -> None:
    """While both wait, bulk gets a tenth of the cost but for one request of each, and no more than that."""
    queue = queue_of([])
    waiting: dict[Priority, list[Item]] = {"interactive": [], "bulk": []}
    got = {"interactive": 0.0, "bulk": 0.0}
    largest = 0.0
    for number, (priority, step, cost) in enumerate(steps):
        if step == "put":
            item = (priority, number, cost)
            waiting[priority].append(item)
            queue.put(item, priority)
        elif step == "cancel" and waiting[priority]:
            assert queue.remove(waiting[priority].pop(len(waiting[priority]) // 2))
        elif step == "serve" and (first := queue.first()) is not None:
            both = all(waiting.values())
            assert waiting[first[0]].pop(0) == first, "first come, first served"
            assert both or not waiting["interactive" if first[0] == "bulk" else "bulk"]
            largest = max(largest, first[2])
            if both:
                got[first[0]] += first[2]
            assert queue.remove(first, served=True)
        assert len(queue) == sum(map(len, waiting.values()))
        if not waiting["bulk"]:
            got, largest = {"interactive": 0.0, "bulk": 0.0}, 0.0
        # A bulk request served while no interactive one waits uses up the credit, too.
        assert got["bulk"] <= got["interactive"] * BULK_SHARE / (1 - BULK_SHARE) + 1e-9


def test_priorities_at_the_rate_limit() -> None:
    """Interactive requests overtake bulk that came before, also from another task in the same moment."""

    async def main(clock: SimulatedClock) -> None:
        limiter = RateLimiter(clock=clock, rpm=60, initial_window=0)
        while limiter.try_acquire() is not None:
            pass
        order: list[str] = []

        async def one(priority: Priority) -> None:
            await limiter.acquire(priority=priority)
            order.append(priority[0])

        calls = [asyncio.create_task(one("bulk")) for _ in range(3)]
        await clock.sleep(0.5)
        calls += [asyncio.create_task(one("interactive")) for _ in range(10)]
        await asyncio.gather(*calls)
        assert "".join(order) == "iiiiiiiiibibb"

    run_simulated(main)


def test_a_small_interactive_request_does_not_empty_what_bulk_saves_up() -> None:
    """It goes at once, and the large request before which it came waits its tokens longer, not the whole time again."""

    async def main(clock: SimulatedClock) -> None:
        limiter = RateLimiter(clock=clock, tpm=6_000, initial_window=0)
        while limiter.try_acquire(45) is not None:
            pass
        large = asyncio.create_task(limiter.acquire(3_000, priority="bulk"))
        for _ in range(5):
            await clock.sleep(5)
            assert (await limiter.acquire(10)).waited == 0
        assert (await large).waited == pytest.approx(30.5)

    run_simulated(main)


@pytest.mark.parametrize(("tokens", "expected"), [(10, "iiiiiiiiib"), (85, "i" * 77 + "b")])
def test_the_cost_of_a_request_is_the_part_of_the_narrower_limit(tokens: int, expected: str) -> None:
    """A bulk request of 8.5 times the tokens is worth 8.5 requests where tokens are short."""

    async def main(clock: SimulatedClock) -> None:
        limiter = RateLimiter(clock=clock, rpm=6_000, tpm=6_000, initial_window=0)
        while limiter.try_acquire(10) is not None:
            pass
        order: list[str] = []

        async def one(tokens: int, priority: Priority) -> None:
            await limiter.acquire(tokens, priority=priority)
            order.append(priority[0])

        calls = [asyncio.create_task(one(tokens, "bulk"))]
        calls += [asyncio.create_task(one(10, "interactive")) for _ in range(len(expected))]
        await asyncio.gather(*calls)
        assert "".join(order) == expected + "i"

    run_simulated(main)


def test_without_limits_each_request_costs_the_same() -> None:
    """During a pause, or the slow start, nothing is known of the narrower limit."""

    async def main(clock: SimulatedClock) -> None:
        limiter = RateLimiter(clock=clock, initial_window=0)
        limiter.throttled(limiter.try_acquire(), Refusal(1.0))
        order: list[str] = []

        async def one(tokens: int, priority: Priority) -> None:
            (await limiter.acquire(tokens, priority=priority)).settle()
            order.append(priority[0])

        calls = [asyncio.create_task(one(1_000, "bulk"))]
        calls += [asyncio.create_task(one(1, "interactive")) for _ in range(12)]
        await asyncio.gather(*calls)
        assert "".join(order) == "iiiiiiiiibiii"

    run_simulated(main)


def test_priorities_at_the_concurrency_limit() -> None:
    """The order is that of the rate limiter; each place costs the same."""

    async def main(clock: SimulatedClock) -> None:
        limiter = ConcurrencyLimiter(clock=clock, initial=1, maximum=1)
        order: list[str] = []
        first = limiter.try_acquire()
        assert isinstance(first, Slot)

        async def one(priority: Priority) -> None:
            slot = await limiter.acquire(priority=priority)
            order.append(priority[0])
            slot.release()

        calls = [asyncio.create_task(one("bulk")) for _ in range(3)]
        await asyncio.sleep(0)
        calls += [asyncio.create_task(one("interactive")) for _ in range(10)]
        await asyncio.sleep(0)
        first.release()
        await asyncio.gather(*calls)
        assert "".join(order) == "iiiiiiiiibibb"

    run_simulated(main)


# The bound


def test_no_more_calls_wait_than_the_bound() -> None:
    """The error says how many wait, and what to do."""
    waiting = WaitingCalls(max_calls=2)
    for tokens in (10, 1_500):
        waiting.enter(tokens, bounded=True)
    with pytest.raises(
        QueueFull,
        match=r"^2 calls with about 1,510 tokens wait already, and no more than 2 calls or 100,000,000 tokens may; "
        r"nothing was sent\. Start fewer calls at once",
    ) as caught:
        waiting.enter(1, bounded=True)
    assert (caught.value.sent, caught.value.retryable) == ("no", True)
    # A call that was sent before waits for its retry.
    waiting.enter(5, bounded=False)
    assert (waiting.calls, waiting.tokens) == (3, 1_515)
    waiting.leave(5)
    waiting.leave(10)
    waiting.enter(1, bounded=True)
    assert (waiting.calls, waiting.tokens) == (2, 1_501)


def test_no_more_tokens_wait_than_the_bound() -> None:
    """One call of any size may."""
    waiting = WaitingCalls(max_tokens=100)
    waiting.enter(1_000, bounded=True)
    with pytest.raises(QueueFull):
        waiting.enter(1, bounded=True)
    waiting.leave(1_000)
    waiting.enter(60, bounded=True)
    waiting.enter(40, bounded=True)
    with pytest.raises(QueueFull):
        waiting.enter(1, bounded=True)

"""Limited, ordered concurrency."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from llmopt.policies.tasks import concurrent_map


async def numbers(count: int, taken: list[int] | None = None) -> AsyncIterator[int]:
    for number in range(count):
        if taken is not None:
            taken.append(number)
        yield number


async def test_results_keep_the_order_of_the_source() -> None:
    """Even when each task waits for the task after it."""
    gates = [asyncio.Event() for _ in range(6)]

    async def work(number: int) -> int:
        if number % 3 != 2:
            await gates[number + 1].wait()
        gates[number].set()
        return number * 10

    flow = concurrent_map(numbers(6), work, concurrency=3, lookahead=3)
    assert [result async for result in flow] == [0, 10, 20, 30, 40, 50]


async def test_results_in_the_order_of_completion() -> None:
    """Each comes when it is there; an exception of the source after all of them, one of an item at once."""
    gates = [asyncio.Event() for _ in range(3)]

    async def source() -> AsyncIterator[int]:
        for number in range(3):
            yield number
        raise OSError("source")

    async def work(number: int) -> int:
        await gates[number].wait()
        return number

    flow = concurrent_map(source(), work, concurrency=3, lookahead=3, in_order=False)
    seen = []
    with pytest.raises(OSError, match="source"):
        for number in (2, 0, 1, 2):
            gates[number].set()
            seen.append(await anext(flow))
    assert seen == [2, 0, 1]

    async def fail(number: int) -> int:
        if number == 1:
            raise ValueError("one")
        await asyncio.Event().wait()
        return number

    with pytest.raises(ValueError, match="one"):
        await anext(concurrent_map(numbers(9), fail, concurrency=2, lookahead=2, in_order=False))
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("in_order", [True, False])
async def test_width_limits_the_tasks_and_ahead_limits_the_read_items(*, in_order: bool) -> None:
    """An endless source is read only as far as there is room."""
    taken: list[int] = []
    running = most = 0

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    flow = concurrent_map(numbers(10**9, taken), work, concurrency=4, lookahead=8, in_order=in_order)
    seen = 0
    results = flow
    async for _ in results:
        seen += 1
        assert len(taken) <= seen + 8
        if seen == 100:
            break
    await results.aclose()
    assert most == 4


async def test_an_error_is_raised_after_the_results_before_it() -> None:
    """The consumer does not wait for the tasks after it."""

    async def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    results: list[int] = []
    with pytest.raises(ValueError, match="three"):
        async for result in concurrent_map(numbers(9), work, concurrency=2, lookahead=4):
            results.append(result)
    assert results == [0, 1, 2]


async def test_an_error_of_the_source_is_raised_last() -> None:
    """All items that were read before it are finished first."""

    async def source() -> AsyncIterator[int]:
        yield 0
        yield 1
        raise KeyError("cursor")

    async def work(number: int) -> int:
        await asyncio.sleep(0)
        return number

    results: list[int] = []
    with pytest.raises(KeyError, match="cursor"):
        async for result in concurrent_map(source(), work, concurrency=3, lookahead=3):
            results.append(result)
    assert results == [0, 1]


async def test_closing_the_iterator_stops_the_tasks() -> None:
    """No task is left, and the source is closed."""
    closed = False

    async def source() -> AsyncIterator[int]:
        nonlocal closed
        try:
            for number in range(100):
                yield number
        finally:
            closed = True

    async def work(number: int) -> int:
        if number:
            await asyncio.Event().wait()
        return number

    results = concurrent_map(source(), work, concurrency=4, lookahead=8)
    assert await anext(results) == 0
    await results.aclose()
    assert closed
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelling_the_consumer_stops_the_tasks() -> None:
    async def work(number: int) -> int:
        await asyncio.Event().wait()
        return number

    async def consume() -> None:
        async for _ in concurrent_map(numbers(10), work, concurrency=4, lookahead=4):
            pass

    task = asyncio.create_task(consume())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_empty_source_gives_nothing() -> None:
    async def work(number: int) -> int:
        return number

    assert [result async for result in concurrent_map(numbers(0), work, concurrency=3, lookahead=3)] == []


async def test_a_task_that_finishes_while_its_consumer_is_cancelled_is_no_error() -> None:
    """Both happen in the same turn of the loop."""
    gate = asyncio.Event()

    async def work(number: int) -> int:
        await gate.wait()
        return number

    async def consume() -> None:
        async for _ in concurrent_map(numbers(3), work, concurrency=2, lookahead=2):
            pass

    task = asyncio.create_task(consume())
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == {asyncio.current_task()}

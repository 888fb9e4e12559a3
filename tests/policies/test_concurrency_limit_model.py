"""The adaptive limit and its queue against a model with a plain list (Hypothesis, one step of the loop at a time)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmopt.errors import DeadlineExceeded
from llmopt.policies.clock import Deadline
from llmopt.policies.concurrency_limit import ConcurrencyLimiter, LoadSignal, Slot
from llmopt.testing.clock import SimulatedClock, SimulatedLoop
from tests.support.scale import scaled


class Model:
    """The rules of docs/development/resilience.md in the simplest form."""

    def __init__(self, limit: int, maximum: int) -> None:
        self.limit, self.maximum = float(limit), maximum
        self.holding: set[int] = set()
        self.queue: list[tuple[int, float]] = []
        self.bulk: set[int] = set()
        self.credit = 0.0
        self.late: set[int] = set()
        self.decreased = float("-inf")

    def arrive(self, number: int, until: float, now: float, *, bulk: bool) -> None:
        if bulk and not self.waiting_bulk():
            self.credit = 0.0
        if bulk:
            self.bulk.add(number)
        if not self.queue and len(self.holding) < int(self.limit):
            self.holding.add(number)
        else:
            self.queue.append((number, until))
        self.pump(now)

    def pump(self, now: float) -> None:
        while self.queue and len(self.holding) < int(self.limit):
            number, until = self.queue.pop(self.next_place())
            (self.late if now >= until else self.holding).add(number)
            if now < until and number in self.bulk:
                self.credit = max(0.0, self.credit - 1)
            elif now < until and self.waiting_bulk():
                self.credit += 1 / 9

    def waiting_bulk(self) -> list[int]:
        return [place for place, (number, _) in enumerate(self.queue) if number in self.bulk]

    def next_place(self) -> int:
        bulk = self.waiting_bulk()
        others = [place for place in range(len(self.queue)) if place not in bulk]
        return bulk[0] if not others or (bulk and self.credit >= 1) else others[0]

    def expire(self, now: float) -> None:
        self.late |= {number for number, until in self.queue if now >= until}
        self.queue = [(number, until) for number, until in self.queue if now < until]

    def leave(self, number: int, load: LoadSignal, now: float) -> None:
        if load == "success" and len(self.holding) >= self.limit / 2:
            self.limit = min(self.maximum, self.limit + 1 / self.limit)
        if load == "overload" and now - self.decreased >= 1:
            self.limit, self.decreased = max(1, self.limit * 0.75), now
        self.holding.discard(number)
        self.pump(now)

    def cancel(self, number: int, now: float) -> None:
        self.queue = [(waiting, until) for waiting, until in self.queue if waiting != number]
        if number in self.holding:  # granted, but its task has not run yet
            self.leave(number, "neutral", now)


class ConcurrencyMachine(RuleBasedStateMachine):
    """Tasks arrive, are cancelled, finish and expire; `settle` runs the loop until it is idle, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = SimulatedClock()
        self.loop = SimulatedLoop(self.clock)
        self.tasks: dict[int, asyncio.Task[Slot]] = {}
        self.slots: dict[int, Slot] = {}
        self.settled = True
        self.count = 0

    @initialize(limit=st.integers(1, 4), maximum=st.integers(2, 6))
    def start(self, limit: int, maximum: int) -> None:
        self.concurrency = ConcurrencyLimiter(clock=self.clock, initial=limit, maximum=maximum)
        self.model = Model(min(limit, maximum), maximum)

    def run(self, ticks: int) -> None:
        async def spin() -> None:
            for _ in range(ticks):
                await asyncio.sleep(0)

        self.loop.run_until_complete(spin())

    def settle(self) -> None:
        self.run(4)
        for number, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[number]
                if not task.cancelled() and task.exception() is None:
                    self.slots[number] = task.result()
                elif not task.cancelled():
                    assert isinstance(task.exception(), DeadlineExceeded)
                    assert number in self.model.late

    @rule(left=st.sampled_from([None, None, 1.0, 3.0]), bulk=st.booleans())
    def arrive(self, left: float | None, bulk: bool) -> None:
        self.count += 1
        until = float("inf") if left is None else self.clock.now() + left
        self.model.arrive(self.count, until, self.clock.now(), bulk=bulk)
        deadline = Deadline.after(left, self.clock.now)
        waiting = self.concurrency.acquire(deadline, priority="bulk" if bulk else "interactive")
        self.tasks[self.count] = self.loop.create_task(waiting)
        self.run(1)
        self.settle()

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), load=st.sampled_from(["success", "success", "overload", "neutral"]))
    def release(self, data: Any, load: LoadSignal) -> None:
        number = data.draw(st.sampled_from(sorted(self.slots)))
        self.slots.pop(number).release(load)
        self.model.leave(number, load, self.clock.now())
        self.settle()

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(self.tasks)))
        self.tasks[number].cancel()
        self.model.cancel(number, self.clock.now())
        self.settle()

    @precondition(lambda self: self.tasks and self.slots)
    @rule(data=st.data(), cancel_first=st.booleans())
    def race(self, data: Any, cancel_first: bool) -> None:
        """A release and a cancellation within one tick of the loop."""
        leaving = data.draw(st.sampled_from(sorted(self.slots)))
        waiting = data.draw(st.sampled_from(sorted(self.tasks)))
        now = self.clock.now()
        for cancelling in (cancel_first, not cancel_first):
            if cancelling:
                self.tasks[waiting].cancel()
                self.model.cancel(waiting, now)
            else:
                self.slots.pop(leaving).release()
                self.model.leave(leaving, "neutral", now)
        self.settle()

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0]))
    def sleep(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.model.expire(self.clock.now())
        self.settle()

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "concurrency"):
            return
        assert self.concurrency.limit == pytest.approx(self.model.limit)
        assert self.concurrency.in_flight == len(self.model.holding)
        assert set(self.slots) == self.model.holding
        assert list(self.tasks) == [number for number, _ in self.model.queue]
        assert self.concurrency.waiting == len(self.model.queue)
        assert not self.model.queue or self.concurrency.in_flight >= int(self.concurrency.limit)

    def teardown(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        self.run(3)
        for slot in self.slots.values():
            slot.release()
        if hasattr(self, "concurrency"):
            assert (self.concurrency.in_flight, self.concurrency.waiting) == (0, 0)
        self.loop.close()


TestConcurrency = ConcurrencyMachine.TestCase
TestConcurrency.settings = settings(
    max_examples=scaled(40, nightly=150), stateful_step_count=40, deadline=None
)

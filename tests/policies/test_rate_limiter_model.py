"""The limiter against a small model, over random histories (L01).

The model has three rules: over any time w at most rate * w and one burst (or the largest request) is granted, waiters
of one priority are served in order of arrival, and a cancelled waiter gets nothing. A refund counts from the moment of
the refund.
"""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmopt.policies.quota import Lease, Refusal
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.testing.clock import SimulatedClock, SimulatedLoop
from llmopt.values.calls import Priority
from tests.support.scale import scaled

RPM, TPM = 600, 60_000
REQUEST_BURST, TOKEN_BURST = 9.0, 4_500.0
SLACK = 1e-3


class Debt:
    """The granted amount that has not flowed back since: the worst of all windows that end now."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.amount = 0.0
        self.at = 0.0

    def add(self, now: float, cost: float) -> None:
        """Grant ``cost`` at ``now``, or return it when it is negative."""
        self.amount = max(0.0, self.amount - self.rate * (now - self.at)) + cost
        self.at = now


class Call:
    """One caller: the waiting task, and its lease."""

    def __init__(self, task: asyncio.Task[Lease], tokens: int, priority: Priority) -> None:
        self.task = task
        self.tokens = tokens
        self.priority = priority
        self.cancelled = False
        self.open = True


class LimiterMachine(RuleBasedStateMachine):
    """Arrivals, cancellations, settlements, refunds and refusals in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = SimulatedClock()
        self.loop = SimulatedLoop(self.clock)
        self.limiter = RateLimiter(clock=self.clock, rpm=RPM, tpm=TPM, initial_window=0)
        self.calls: list[Call] = []
        self.order: list[Call] = []
        self.requests = Debt(RPM / 60)
        self.tokens = Debt(TPM / 60)
        self.largest = TOKEN_BURST
        self.words = 0
        self.breaches: list[str] = []

    def teardown(self) -> None:
        """No stall: with time, every remaining waiter is served."""
        waiting = [call for call in self.calls if not call.task.done()]
        longest = sum(call.tokens for call in waiting) / (TPM / 60) + len(waiting) / (RPM / 60)
        # Refusals lower the rate to its minimum at worst. After many, one request is sent every half minute
        # without a response.
        self.pass_time(longest * 30 + 200 + 35 * len(waiting))
        for call in waiting:
            assert call.task.done(), (call.tokens, self.limiter)
        assert self.limiter.waiting == 0
        self.loop.close()

    def pass_time(self, seconds: float) -> None:
        """Run the loop for a while."""

        async def main() -> None:
            await asyncio.sleep(seconds)

        self.loop.run_until_complete(main())

    async def acquire(self, call: list[Call], tokens: int, priority: Priority) -> Lease:
        lease = await self.limiter.acquire(tokens, priority=priority)
        self.order.append(call[0])
        # What was saved up for a bulk request that still waits may go to interactive requests instead.
        waiting = (each.tokens for each in self.calls if each.priority == "bulk" and not each.task.done())
        self.largest = max(self.largest, tokens, *waiting)
        self.charge(1, tokens, lease.granted_at)
        return lease

    def charge(self, requests: float, tokens: float, at: float) -> None:
        """Record a grant, or a refund when it is negative."""
        self.requests.add(at, requests)
        self.tokens.add(at, tokens)
        # A request larger than a burst was granted after its tokens were saved up.
        # After a pause whose end the server stated, one request is granted whatever the buckets hold.
        requests, tokens = REQUEST_BURST + self.words, self.largest * (1 + self.words)
        if self.requests.amount > requests + SLACK or self.tokens.amount > tokens + SLACK:
            self.breaches.append(f"{self.requests.amount} requests, {self.tokens.amount} tokens at {at}")

    @rule(
        tokens=st.one_of(st.integers(0, 300), st.integers(1_000, 20_000)),
        count=st.integers(1, 12),
        priority=st.sampled_from(["interactive", "bulk"]),
    )
    def arrive(self, tokens: int, count: int, priority: Priority) -> None:
        """Several requests arrive at once."""
        for _ in range(count):
            holder: list[Call] = []
            task = self.loop.create_task(self.acquire(holder, tokens, priority))
            call = Call(task, tokens, priority)
            holder.append(call)
            self.calls.append(call)
        self.pass_time(0)

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.pass_time(seconds)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Cancel a waiter, perhaps in the moment of its grant."""
        call = data.draw(st.sampled_from(self.calls))
        if not call.task.done():
            call.cancelled = call.task.cancel()
            self.pass_time(0)

    @precondition(lambda self: any(self.has_lease(call) for call in self.calls))
    @rule(data=st.data(), part=st.floats(0, 1))
    def settle(self, data: st.DataObject, part: float) -> None:
        """A response arrived; it cost at most the estimate."""
        call = data.draw(st.sampled_from([call for call in self.calls if self.has_lease(call)]))
        call.open = False
        actual = int(call.tokens * part)
        self.charge(0, actual - call.tokens, self.clock.now())
        call.task.result().settle(actual)
        self.pass_time(0)

    @precondition(lambda self: any(self.has_lease(call) for call in self.calls))
    @rule(data=st.data())
    def refund(self, data: st.DataObject) -> None:
        """Nothing was sent."""
        call = data.draw(st.sampled_from([call for call in self.calls if self.has_lease(call)]))
        call.open = False
        self.charge(-1, -call.tokens, self.clock.now())
        call.task.result().refund()
        self.pass_time(0)

    @precondition(lambda self: any(self.has_lease(call) for call in self.calls))
    @rule(data=st.data(), retry_after=st.one_of(st.none(), st.floats(0.1, 5)))
    def refuse(self, data: st.DataObject, retry_after: float | None) -> None:
        """The server answered 429; it did not count the tokens."""
        self.refuse_call(
            data.draw(st.sampled_from([call for call in self.calls if self.has_lease(call)])), retry_after
        )

    def refuse_call(self, call: Call, retry_after: float | None) -> None:
        """Report a 429."""
        call.open = False
        self.charge(0, -call.tokens, self.clock.now())
        self.words += retry_after is not None and retry_after >= 1
        call.task.result().throttled(Refusal(retry_after))
        self.pass_time(0)

    @staticmethod
    def has_lease(call: Call) -> bool:
        return call.task.done() and not call.task.cancelled() and call.open

    @invariant()
    def windows_hold(self) -> None:
        """In any window at most the rate and one burst."""
        assert not self.breaches

    @invariant()
    def first_come_first_served(self) -> None:
        """In the order of arrival, within a priority."""
        for priority in ("interactive", "bulk"):
            places = [self.calls.index(call) for call in self.order if call.priority == priority]
            assert places == sorted(places)

    @invariant()
    def cancelled_waiters_get_nothing(self) -> None:
        """Their grants passed to the next."""
        assert not any(call.cancelled and call in self.order for call in self.calls)

    @invariant()
    def the_queue_holds_the_waiting_tasks(self) -> None:
        """Exactly."""
        assert self.limiter.waiting == sum(not call.task.done() for call in self.calls)


LimiterMachine.TestCase.settings = settings(
    max_examples=scaled(40, nightly=150), stateful_step_count=30, deadline=None
)
TestLimiter = LimiterMachine.TestCase


def test_refused_small_requests_do_not_hold_back_a_large_one() -> None:
    """Six calls of one token, one of 4,495, and a refusal without a hint: the large one was not served in an hour."""
    machine = LimiterMachine()
    machine.arrive(tokens=1, count=6, priority="interactive")
    machine.arrive(tokens=4_495, count=1, priority="interactive")
    machine.arrive(tokens=4_495, count=1, priority="interactive")
    machine.refuse_call(machine.calls[0], None)
    machine.windows_hold()
    machine.pass_time(60)
    assert all(call.task.done() for call in machine.calls)
    machine.teardown()

"""Concurrency limit of one endpoint: how many requests may be in flight, adapted to its load.

Additive increase, multiplicative decrease, as in TCP and Netflix's concurrency-limits: each success adds
1/limit while at least half of the limit is in use, and each sign of overload takes a quarter, at most once a
second, because one overload shows in many responses. There is no latency gradient: with timeouts of constant
length it grows to the maximum (Netflix/concurrency-limits#137).

A request that finds no free slot waits in a `PriorityQueue`. The waiting is written by hand: asyncio's semaphore and
condition have lost wake-ups under cancellation (CPython gh-90155, gh-112202), and a slot that is granted at the moment
its waiter is cancelled or times out must go to the next waiter (Netflix/concurrency-limits#179).

No I/O and no locks: a limiter serves one event loop, and all requests of the endpoint on that loop share it. Only
`acquire` awaits; the monotonic clock and its timers are passed in.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final, Literal

from attrs import define, field

from llmopt import errors
from llmopt.policies.clock import Clock, Deadline
from llmopt.policies.wait_queue import PriorityQueue
from llmopt.values.calls import Priority

LoadSignal = Literal["success", "overload", "neutral"]
"""What a request says about the load of the endpoint; "neutral" says nothing."""
_DECREASE: Final = 0.75
_DECREASE_INTERVAL_S: Final = 1.0


class ConcurrencyLimiter:
    """The limit of one endpoint and the queue for its slots. For use on one event loop.

    Attributes:
        limit: the limit as a fraction; its whole part is in force.
        in_flight: slots that are taken.
    """

    def __init__(self, *, clock: Clock, initial: float = 16, maximum: int = 256) -> None:
        """Start at ``initial`` and stay between 1 and the maximum.

        Args:
            clock: for deadlines, and for the interval between decreases.
            initial: the first limit.
            maximum: the highest limit, at most the size of the connection pool.
        """
        self._clock = clock
        self._release_slot = self._release  # bound once, not for each slot
        self._maximum = max(1, maximum)
        self.limit = float(min(max(initial, 1), self._maximum))
        self.in_flight = 0
        self._waiters: PriorityQueue[_Waiter] = PriorityQueue()
        self._decreased_at = -math.inf

    def __repr__(self) -> str:
        return (
            f"ConcurrencyLimiter(limit={self.limit:.4g}, in_flight={self.in_flight}, waiting={self.waiting})"
        )

    @property
    def waiting(self) -> int:
        """Number of waiters in the queue."""
        return len(self._waiters)

    def try_acquire(self) -> Slot | None:
        """A slot if one is free and nothing waits for it, else None. Never awaits."""
        if self.in_flight >= int(self.limit) or self._waiters:
            return None
        self.in_flight += 1
        return Slot(self._release_slot)

    async def acquire(self, deadline: Deadline | None = None, *, priority: Priority = "interactive") -> Slot:
        """A slot, in the order of `llmopt.policies.wait_queue.PriorityQueue`.

        Raises:
            DeadlineExceeded: the deadline passed first.
        """
        slot = self.try_acquire()
        if slot is not None:
            return slot
        waiter = _Waiter(deadline)
        self._waiters.put(waiter, priority)
        timer = None
        if deadline is not None and deadline.bounded:
            timer = self._clock.call_later(deadline.remaining(), self._expire, waiter)
        try:
            await waiter.future
        except BaseException:
            self._abandon(waiter)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return Slot(self._release_slot)

    def _abandon(self, waiter: _Waiter) -> None:
        """Remove a waiter that goes without a slot; one that was granted to it just now goes to the next."""
        future = waiter.future
        future.cancel()  # no effect on a future that is done; an abandoned coroutine leaves one that is not
        if future.cancelled():
            self._waiters.remove(waiter)
        elif future.exception() is None:
            self._release("neutral")

    def _expire(self, waiter: _Waiter) -> None:
        if not waiter.future.done():  # a slot that was granted before stays granted
            self._waiters.remove(waiter)
            waiter.future.set_exception(
                errors.DeadlineExceeded(
                    "the deadline passed while waiting for a free slot", phase="concurrency"
                )
            )

    def _release(self, signal: LoadSignal) -> None:
        if signal == "success":
            # Successes below an unused limit do not show that more would work.
            if self.in_flight * 2 >= self.limit:
                self.limit = min(self._maximum, self.limit + 1 / self.limit)
        elif signal == "overload" and self._clock.now() - self._decreased_at >= _DECREASE_INTERVAL_S:
            self._decreased_at = self._clock.now()
            self.limit = max(1, self.limit * _DECREASE)
        self.in_flight -= 1
        if self._waiters:
            self._grant_waiting()

    def _grant_waiting(self) -> None:
        while self.in_flight < int(self.limit) and (waiter := self._waiters.first()) is not None:
            if waiter.future.done():  # cancelled, but its task has not run since
                self._waiters.remove(waiter)
            elif waiter.deadline is not None and waiter.deadline.expired():
                self._expire(waiter)
            else:
                self._waiters.remove(waiter, served=True)
                self.in_flight += 1
                waiter.future.set_result(None)


@define(eq=False)
class _Waiter:
    """A request in the queue."""

    deadline: Deadline | None
    future: asyncio.Future[None] = field(factory=lambda: asyncio.get_running_loop().create_future())


class Slot:
    """A place for one request in flight. The first release counts, later ones do nothing."""

    __slots__ = ("_release",)

    def __init__(self, release: Callable[[LoadSignal], None]) -> None:
        self._release: Callable[[LoadSignal], None] | None = release

    def release(self, signal: LoadSignal = "neutral") -> None:
        """Free the place, and say what the request showed of the load. Never awaits."""
        release = self._release
        if release is not None:
            self._release = None
            release(signal)


def load_signal(error: BaseException | None) -> LoadSignal:
    """What the outcome of an attempt says about the load; None is a good response.

    A 429 is neutral, because the rate limiter handles it. A plugin whose provider means "too many requests at
    once" by it classifies it as `errors.Overloaded`.
    """
    if error is None:
        return "success"
    if isinstance(error, (errors.Overloaded, errors.AttemptTimeout)):
        return "overload"
    if isinstance(error, errors.ConnectFailed) and error.cause == "timeout":
        return "overload"
    return "neutral"

"""Those who wait for a rate limit, in the order they came, whatever event loop they wait on.

A waiter's future belongs to its loop, and each loop with waiters keeps one timer, the same moment in all,
so that nobody depends on a loop that is blocked or closed. To be used under the limiter's mutex, except
for the callbacks, which run on their own loop.

Written by hand because asyncio's semaphore and condition lost wake-ups under cancellation (gh-90155, gh-112202).
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVarTuple, Unpack

from llmopt.errors import LLMOptError
from llmopt.policies.clock import Clock, Timer
from llmopt.policies.deadline import Deadline
from llmopt.policies.lease import Lease

_Args = TypeVarTuple("_Args")


class Waiter:
    """One in line.

    Attributes:
        tokens: what it wants.
        since: when it came.
        cause: what it waits for, as it was when it came.
        deadline: until when it waits.
        patience: seconds of a pause that it waits for at most.
        loop: the event loop it waits on.
        future: what it awaits.
        lease: what it was granted, and may not know of yet.
        expiry: the timer of its deadline.
    """

    __slots__ = ("cause", "deadline", "expiry", "future", "lease", "loop", "patience", "since", "tokens")

    def __init__(self, tokens: float, since: float, deadline: Deadline | None, patience: float) -> None:
        self.tokens = tokens
        self.since = since
        self.cause = ""
        self.deadline = deadline
        self.patience = patience
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Lease] = self.loop.create_future()
        self.lease: Lease | None = None
        self.expiry: Timer | None = None


class _Alarm:
    """The timer of one loop."""

    __slots__ = ("due", "timer", "waiters")

    def __init__(self) -> None:
        self.waiters = 0
        self.due = math.inf
        self.timer: Timer | None = None


class Line:
    """Waiters in order.

    Attributes:
        tokens: what all of them together want.
    """

    def __init__(self, clock: Clock, ring: Callable[[], None]) -> None:
        """Call ``ring``, on a loop with waiters, when the moment given to `wake_at` has come."""
        self.tokens = 0.0
        self._clock = clock
        self._ring = ring
        # In a deque, a waiter that leaves the middle would cost a search: 10,000 cancelled at once, 10,000 searches.
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()
        self._alarms: dict[asyncio.AbstractEventLoop, _Alarm] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def first(self) -> Waiter | None:
        """The one whose turn it is, None when the line is empty; who was cancelled leaves on the way."""
        while self._waiters:
            waiter = next(iter(self._waiters))
            if not waiter.future.done():
                return waiter
            self.leave(waiter)
        return None

    def all(self) -> list[Waiter]:
        """All of them, in order."""
        return list(self._waiters)

    def join(self, waiter: Waiter) -> None:
        """Stand at the end."""
        self._waiters[waiter] = None
        self.tokens += waiter.tokens
        self._alarms.setdefault(waiter.loop, _Alarm()).waiters += 1

    def leave(self, waiter: Waiter) -> bool:
        """Leave the line; False if it had left before."""
        if waiter not in self._waiters:
            return False
        del self._waiters[waiter]
        self.tokens -= waiter.tokens
        alarm = self._alarms[waiter.loop]
        alarm.waiters -= 1
        if not alarm.waiters:
            del self._alarms[waiter.loop]
            _on(waiter.loop, _silence, alarm)
        return True

    def serve(self, waiter: Waiter, lease: Lease) -> bool:
        """Give a waiter its lease; False when its loop is closed, so that nobody will ever come for it."""
        self.leave(waiter)
        waiter.lease = lease
        return _on(waiter.loop, _deliver, waiter.future, lease)

    def reject(self, waiter: Waiter, error: LLMOptError) -> None:
        """Send a waiter away."""
        if self.leave(waiter):
            _on(waiter.loop, _fail, waiter.future, error)

    def wake_at(self, moment: float) -> None:
        """Ring at that moment at the latest."""
        for loop, alarm in self._alarms.items():
            if moment < alarm.due:
                alarm.due = moment
                _on(loop, self._set, alarm, moment)

    def _set(self, alarm: _Alarm, moment: float) -> None:
        _silence(alarm)
        if alarm.waiters:
            alarm.timer = self._clock.call_later(max(0.0, moment - self._clock.now()), self._due, alarm)

    def _due(self, alarm: _Alarm) -> None:
        alarm.timer = None
        alarm.due = math.inf
        self._ring()


def _on(loop: asyncio.AbstractEventLoop, act: Callable[[Unpack[_Args]], None], *args: *_Args) -> bool:
    """Run it on that loop, at once if we are there; False when the loop is closed."""
    if _running_loop() is loop:
        act(*args)
        return True
    try:
        loop.call_soon_threadsafe(act, *args)
    except RuntimeError:
        return False
    return True


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _silence(alarm: _Alarm) -> None:
    if alarm.timer is not None:
        alarm.timer.cancel()
        alarm.timer = None


def _deliver(future: asyncio.Future[Lease], lease: Lease) -> None:
    if not future.done():
        future.set_result(lease)


def _fail(future: asyncio.Future[Lease], error: LLMOptError) -> None:
    if not future.done():
        future.set_exception(error)

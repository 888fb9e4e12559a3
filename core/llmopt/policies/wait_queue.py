"""Queues of calls that wait: two priorities, their order, and how many may wait.

`PriorityQueue` orders the waiters of the rate limiter and of the concurrency limit. `WaitQueue` is that of the rate
limiter, whose waiters may be on several event loops. `WaitingCalls` counts the calls of one quota that wait before they
are sent, and refuses more than the bound.

No I/O, and nothing awaits. A `PriorityQueue` has no lock: the rate limiter uses it under its mutex, and the concurrency
limit on its own loop. `WaitingCalls` has a lock of its own, because calls on all loops and threads share it. Timers are
those of the `Clock` that is passed in, on the loops of the waiters.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from itertools import chain
from typing import Final, Generic, TypeVar

from attrs import define, field

from llmopt.errors import LLMOptError, QueueFull
from llmopt.policies.clock import Clock, Deadline, Timer
from llmopt.policies.quota import Lease
from llmopt.policies.tasks import run_on, settle
from llmopt.values.calls import Priority

_W = TypeVar("_W", bound=Hashable)
BULK_SHARE: Final = 0.1
"""What bulk gets at least while interactive waiters never run out. They wait a ninth longer for it; with a quarter it would
be a third."""
_CREDIT: Final = BULK_SHARE / (1 - BULK_SHARE)
MAX_WAITING_CALLS: Final = 10_000
MAX_WAITING_TOKENS: Final = 100_000_000
"""Tokens of all waiting calls, about 400 MB of text."""


class PriorityQueue(Generic[_W]):
    """Waiters of two priorities: "interactive" before "bulk", within each first come, first served.

    Bulk never starves. While it waits, it is credited with a part of what interactive waiters are served, and its first
    waiter goes before them when the credit covers its cost. This is deficit round robin (Shreedhar and Varghese,
    "Efficient Fair Queuing Using Deficit Round-Robin", SIGCOMM 1995) with two queues, of which the interactive one has
    its turn until bulk's deficit is large enough. Weighted fair queueing by virtual time gives the same shares, but it
    lets small bulk requests go before a large interactive one.

    Args:
        cost: what serving a waiter takes from the others; one for each waiter if nothing is given.
    """

    def __init__(self, cost: Callable[[_W], float] = lambda _: 1.0) -> None:
        self._cost = cost
        self._credit = 0.0
        # Ordered dicts, because a waiter in the middle leaves one in O(1). A deque would search for it: 10,000
        # searches for 10,000 waiters that are cancelled at once.
        self._interactive: OrderedDict[_W, None] = OrderedDict()
        self._bulk: OrderedDict[_W, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._interactive) + len(self._bulk)

    def __iter__(self) -> Iterator[_W]:
        return chain(self._interactive, self._bulk)

    def put(self, waiter: _W, priority: Priority) -> None:
        """Add a waiter behind the others of its priority."""
        if priority == "interactive":
            self._interactive[waiter] = None
            return
        if not self._bulk:
            self._credit = 0.0
        self._bulk[waiter] = None

    def first(self) -> _W | None:
        """The waiter to be served next; None if there is none."""
        heads = self.heads()
        if len(heads) == 2 and self._credit >= self._cost(heads[1]):
            return heads[1]
        return heads[0] if heads else None

    def heads(self) -> list[_W]:
        """The first waiter of each priority that has one, the interactive one first."""
        return [next(iter(queue)) for queue in (self._interactive, self._bulk) if queue]

    def remove(self, waiter: _W, *, served: bool = False) -> bool:
        """Remove a waiter, because it is served or because it left; False if it was not in the queue."""
        if waiter in self._interactive:
            del self._interactive[waiter]
            if served:
                self._credit += self._cost(waiter) * _CREDIT
        elif waiter in self._bulk:
            del self._bulk[waiter]
            if served:
                self._credit = max(0.0, self._credit - self._cost(waiter))
        else:
            return False
        return True


@define(eq=False)
class WaitingCalls:
    """How many calls of one quota wait before they are sent, for whatever reason: a slot, the rate limit, a circuit.

    Attributes:
        max_calls: most calls that may wait.
        max_tokens: most tokens, as estimated, that they may have together.
        calls: calls that wait.
        tokens: their estimated tokens.
    """

    max_calls: int = MAX_WAITING_CALLS
    max_tokens: float = MAX_WAITING_TOKENS
    calls: int = 0
    tokens: float = 0.0
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def enter(self, tokens: float, *, bounded: bool) -> None:
        """A call begins to wait.

        Args:
            tokens: its estimated tokens.
            bounded: whether it may be refused; a call that was sent before may not.

        Raises:
            QueueFull: too many calls wait, or too many tokens.
        """
        with self._lock:
            full = self.calls >= self.max_calls or self.tokens + tokens > self.max_tokens
            if full and bounded and self.calls:
                raise QueueFull(
                    f"{self.calls:,} calls with about {self.tokens:,.0f} tokens wait already, and no more than "
                    f"{self.max_calls:,} calls or {self.max_tokens:,.0f} tokens may; nothing was sent. Start fewer "
                    "calls at once, give all texts to one call of embed or embed_iter, or try again later.",
                    sent="no",
                )
            self.calls += 1
            self.tokens += tokens

    def leave(self, tokens: float) -> None:
        """A call no longer waits."""
        with self._lock:
            self.calls -= 1
            self.tokens -= tokens


# The queue of the rate limiter.


@define(eq=False)
class Waiter:
    """A request in the queue.

    Attributes:
        tokens: its estimated tokens.
        enqueued_at: monotonic seconds when it entered the queue.
        deadline: until when it waits.
        max_pause: the longest pause after a 429, in seconds, that it waits for.
        priority: "interactive" or "bulk".
        requests: what it counts under a limit of requests.
        cause: why it waits, see `Lease.cause`.
        lease: what was granted to it; its task may not have run since.
        deadline_timer: rejects it at its deadline.
        loop: the event loop of its task.
        future: what its task awaits.
    """

    tokens: float
    enqueued_at: float
    deadline: Deadline | None
    max_pause: float
    priority: Priority = "interactive"
    requests: float = 1.0
    cause: str = ""
    lease: Lease | None = None
    deadline_timer: Timer | None = None
    loop: asyncio.AbstractEventLoop = field(factory=asyncio.get_running_loop)
    future: asyncio.Future[Lease] = field(factory=lambda: asyncio.get_running_loop().create_future())


@define(eq=False)
class _LoopTimer:
    """The timer of one event loop with waiters."""

    waiters: int = 0
    due: float = math.inf
    handle: Timer | None = None


class WaitQueue:
    """The waiters for a rate limit in the order of a `PriorityQueue`, whatever event loop they wait on.

    A waiter's future belongs to its loop. Each loop with waiters has a timer, all with the same moment, so that no
    waiter depends on a loop that is blocked or closed. To be used under the limiter's mutex, except for callbacks,
    which run on their own loop.

    It is written by hand because asyncio's semaphore and condition have lost wake-ups under cancellation (CPython
    gh-90155, gh-112202).
    """

    def __init__(
        self, clock: Clock, on_timer: Callable[[], None], cost: Callable[[Waiter], float] = lambda _: 1.0
    ) -> None:
        """Call ``on_timer``, on a loop with waiters, at the moment passed to `wake_at`; ``cost`` as in `PriorityQueue`."""
        self._clock = clock
        self._on_timer = on_timer
        self._waiters = PriorityQueue(cost)
        self._timers: dict[asyncio.AbstractEventLoop, _LoopTimer] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def first(self) -> Waiter | None:
        """The first waiter, None if the queue is empty. Waiters that were cancelled are removed."""
        while (waiter := self._waiters.first()) is not None and waiter.future.done():
            self.remove(waiter)
        return waiter

    @property
    def head_costs(self) -> tuple[float, float]:
        """Most tokens, and most requests, that the first waiter of a priority needs; 0 if the queue is empty."""
        heads = self._waiters.heads()
        tokens = max((waiter.tokens for waiter in heads), default=0.0)
        return tokens, max((waiter.requests for waiter in heads), default=0.0)

    def all(self) -> list[Waiter]:
        """All waiters."""
        return list(self._waiters)

    def put(self, waiter: Waiter) -> None:
        """Add a waiter behind the others of its priority."""
        self._waiters.put(waiter, waiter.priority)
        self._timers.setdefault(waiter.loop, _LoopTimer()).waiters += 1

    def remove(self, waiter: Waiter, *, served: bool = False) -> bool:
        """As `PriorityQueue.remove`."""
        if not self._waiters.remove(waiter, served=served):
            return False
        timer = self._timers[waiter.loop]
        timer.waiters -= 1
        if not timer.waiters:
            del self._timers[waiter.loop]
            run_on(waiter.loop, _cancel, timer)
        return True

    def grant(self, waiter: Waiter, lease: Lease) -> bool:
        """Give a waiter its lease; False if its loop is closed, so that its task can never use it."""
        self.remove(waiter, served=True)
        waiter.lease = lease
        return run_on(waiter.loop, settle, waiter.future, lease)

    def reject(self, waiter: Waiter, error: LLMOptError) -> None:
        """Remove a waiter and raise an error in its task."""
        if self.remove(waiter):
            run_on(waiter.loop, settle, waiter.future, error)

    def wake_at(self, moment: float) -> None:
        """Call ``on_timer`` at that moment at the latest."""
        for loop, timer in self._timers.items():
            if moment < timer.due:
                timer.due = moment
                run_on(loop, self._schedule, timer, moment)

    def _schedule(self, timer: _LoopTimer, moment: float) -> None:
        _cancel(timer)
        if timer.waiters:
            timer.handle = self._clock.call_later(max(0.0, moment - self._clock.now()), self._fire, timer)

    def _fire(self, timer: _LoopTimer) -> None:
        timer.handle = None
        timer.due = math.inf
        self._on_timer()


def _cancel(timer: _LoopTimer) -> None:
    if timer.handle is not None:
        timer.handle.cancel()
        timer.handle = None

"""How many requests may be in flight to one endpoint at once: a limit that finds its own value.

Additive increase, multiplicative decrease (TCP's rule, as in Netflix's concurrency-limits): each success
adds 1/limit while the limit is really used, each sign of overload takes a quarter, at most once a
second, because one overload shows in many answers (docs/development/resilience.md). A latency gradient is left
out: with time-outs of constant length it grows to the maximum (Netflix #137).

Who finds no room waits in line, first come first served. The line is written by hand: asyncio's own
semaphore and condition lost wake-ups under cancellation (gh-90155, gh-112202), and a permit that is granted
in the moment its waiter is cancelled or times out must go to the next one (Netflix PR #179).
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Literal, Self

from llmopt import errors
from llmopt.policies.clock import Clock, Deadline

LoadSignal = Literal["success", "overload", "neutral"]
"""What a request says of the load: it went well, there was too much of it, or nothing."""
_DECREASE: Final = 0.75
_DECREASE_EVERY_S: Final = 1.0


def load_signal(error: BaseException | None) -> LoadSignal:
    """What an attempt's outcome says of the load; None stands for a good answer.

    A 429 is not among the signs: pace is the rate limiter's business. A plugin that knows a 429 to mean
    too many at once calls it overloaded.
    """
    if error is None:
        return "success"
    if isinstance(error, (errors.Overloaded, errors.AttemptTimeout)):
        return "overload"
    if isinstance(error, errors.ConnectFailed) and error.cause == "timeout":
        return "overload"
    return "neutral"


class Slot:
    """Room for one request in flight. The first release counts, later ones do nothing.

    Leaving the ``with`` block without one is neutral.
    """

    __slots__ = ("_give_back",)

    def __init__(self, give_back: Callable[[LoadSignal], None]) -> None:
        self._give_back: Callable[[LoadSignal], None] | None = give_back

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self, load: LoadSignal = "neutral") -> None:
        """Give the room back, and say what the request told of the load. Never awaits."""
        give_back = self._give_back
        if give_back is not None:
            self._give_back = None
            give_back(load)


class ConcurrencyLimiter:
    """The limit of one endpoint, and the line before it. For use within one event loop.

    Attributes:
        limit: the limit as a fraction; its whole part is in force.
        in_flight: slots that are out.
    """

    def __init__(self, *, clock: Clock, initial: float = 16, minimum: int = 1, maximum: int = 256) -> None:
        """Keep between ``minimum`` and ``maximum``; the latter is never above the size of the pool."""
        self._clock = clock
        self._take_back = self._release  # bound once, not for each slot
        self._minimum = minimum
        self._maximum = max(minimum, maximum)
        self.limit = float(min(max(initial, minimum), self._maximum))
        self.in_flight = 0
        # A deque would do for the order; here a waiter that leaves the middle costs O(1) as well,
        # and 10,000 that are cancelled at once do not take 10,000 searches.
        self._line: OrderedDict[asyncio.Future[None], Deadline | None] = OrderedDict()
        self._decreased_at = -math.inf

    def __repr__(self) -> str:
        return f"Concurrency(limit={self.limit:.4g}, in_flight={self.in_flight}, waiting={self.waiting})"

    @property
    def waiting(self) -> int:
        """How many wait in line."""
        return len(self._line)

    def try_acquire(self) -> Slot | None:
        """A slot if there is room and nobody waits for it, else None. Never awaits."""
        if self.in_flight >= int(self.limit) or self._line:
            return None
        self.in_flight += 1
        return Slot(self._take_back)

    async def acquire(self, deadline: Deadline | None = None) -> Slot:
        """A slot, when it is this caller's turn.

        Raises:
            DeadlineExceeded: its time came first.
        """
        slot = self.try_acquire()
        if slot is not None:
            return slot
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line[waiter] = deadline
        timer = None
        if deadline is not None and deadline.bounded:
            timer = self._clock.call_later(deadline.remaining(), self._expire, waiter)
        try:
            await waiter
        except BaseException:
            self._left(waiter)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return Slot(self._take_back)

    def resize(self, maximum: int) -> None:
        """Set another maximum, such as that of a new pool."""
        self._maximum = max(self._minimum, maximum)
        self.limit = min(self.limit, float(self._maximum))
        self._pump()

    def _left(self, waiter: asyncio.Future[None]) -> None:
        """A waiter goes without a slot: out of the line, or, if it was granted just now, on to the next."""
        waiter.cancel()  # no effect on a future that is done; an abandoned coroutine leaves one that is not
        if waiter.cancelled():
            self._line.pop(waiter, None)
        elif waiter.exception() is None:
            self._release("neutral")

    def _expire(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.done():  # a grant that came first stands
            del self._line[waiter]
            waiter.set_exception(_too_late())

    def _release(self, load: LoadSignal) -> None:
        if load == "success":
            self._increase()
        elif load == "overload":
            self._decrease()
        self.in_flight -= 1
        if self._line:
            self._pump()

    def _increase(self) -> None:
        # A limit that is not used says nothing by being kept (Netflix: "app-limited").
        if self.in_flight * 2 >= self.limit:
            self.limit = min(self._maximum, self.limit + 1 / self.limit)

    def _decrease(self) -> None:
        now = self._clock.now()
        if now - self._decreased_at >= _DECREASE_EVERY_S:
            self._decreased_at = now
            self.limit = max(self._minimum, self.limit * _DECREASE)

    def _pump(self) -> None:
        while self._line and self.in_flight < int(self.limit):
            waiter, deadline = self._line.popitem(last=False)
            if waiter.done():  # cancelled, and not yet run to leave the line
                continue
            if deadline is not None and deadline.expired():
                waiter.set_exception(_too_late())
                continue
            self.in_flight += 1
            waiter.set_result(None)


def _too_late() -> errors.DeadlineExceeded:
    return errors.DeadlineExceeded("the deadline passed while waiting for a free slot", phase="concurrency")

"""Timeouts that cost less than `asyncio.timeout`: for attempts, and for the waits of a stream.

`asyncio.timeout` makes one timer per block and cancels it again. Cancelled timers stay in the loop's heap, where they
are compared with the others: 4 to 6 µs a request with many in flight.

Unlike with `asyncio.timeout`, data wins over the timeout: if the loop was blocked, or the process suspended, then the
timer is due in the same iteration of the loop in which the bytes are read that have been in the socket for long.

No I/O. They read the clock of the event loop they belong to, set its timers, and cancel the task that waits too long.
No lock: a `TimeoutScheduler` is shared by the attempts of one connection pool on one loop, or by the waits of one
stream. Nothing here awaits or may be called from another thread.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final, Protocol, Self

from attrs import define, field


class Expiring(Protocol):
    """What can take too long."""

    def expire(self) -> None:
        """Called when its time is up, unless `TimeoutScheduler.remove` says that it has ended."""


class TimeoutScheduler:
    """Timeouts on one event loop, with one timer.

    They begin one after the other with nearly equal lengths, so the earliest deadline is usually the oldest.

    Args:
        loop: the event loop to use.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop: Final = loop
        self._due: Final[dict[Expiring, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def timeout(self, seconds: float | None) -> Timeout:
        """A context manager like `asyncio.timeout`: raises `TimeoutError` after ``seconds``, None for no limit."""
        return Timeout(self, None if seconds is None else self._loop.time() + seconds)

    def add(self, timeout: Expiring, at: float) -> None:
        """Start a timeout, which ends at a time of the loop's clock."""
        self._due[timeout] = at
        # Only ever moved to an earlier time, and kept when no timeout is left: a timer that fires too early costs one
        # look at the deadlines.
        if at < self._timer_at:
            self._schedule(at)

    def remove(self, timeout: Expiring) -> bool:
        """Forget a timeout: what it was for has ended, or is about to; whether it was there."""
        return self._due.pop(timeout, None) is not None

    def close(self) -> None:
        """Cancel the timer: no timeout is left."""
        self._schedule(math.inf)

    def _schedule(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = None if at == math.inf else self._loop.call_at(at, self._expire_due)

    def _expire_due(self) -> None:
        # The planned time, not the clock's: a loop timer can fire slightly before its time (the clock's
        # resolution).
        now, self._timer = self._timer_at, None
        for timeout, at in self._due.items():
            if at <= now:
                # One iteration later, so that tasks woken in this one run first.
                self._loop.call_soon(timeout.expire)
        self._schedule(min((at for at in self._due.values() if at > now), default=math.inf))


# Without a repr: that of the task shows the exception that it has ended with, which may quote a request.
@define(eq=False, repr=False)
class Timeout:
    """The timeout of one ``with`` block, which ends at a time of the loop's clock."""

    _scheduler: TimeoutScheduler
    _at: float | None
    _expired: bool = field(init=False, default=False)
    _task: asyncio.Task[object] = field(init=False)
    _cancelling_before: int = field(init=False)

    def __enter__(self) -> Self:
        if self._at is not None:
            task = asyncio.current_task()
            if task is None:
                raise RuntimeError("llmopt must be called from a task of asyncio")
            self._task = task
            # As in asyncio.timeout: a cancellation with another cause must not be swallowed.
            self._cancelling_before = task.cancelling()
            self._scheduler.add(self, self._at)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._at is None:
            return
        if not self._expired:
            self._scheduler.remove(self)
        # Always uncancel: a task that keeps the count would look cancelled to the next timeout around it.
        elif self._task.uncancel() <= self._cancelling_before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """Cancel the block, unless it has ended: its deadline has passed."""
        if self._scheduler.remove(self):
            self._expired = True
            self._task.cancel()

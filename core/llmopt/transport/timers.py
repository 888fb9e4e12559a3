"""Timeouts that cost less than `asyncio.timeout`: for attempts, and for the waits of a stream.

`asyncio.timeout` makes one timer per block and cancels it again. Cancelled timers stay in the loop's heap, where they
are compared with the others: 4 to 6 µs a request with many in flight.

No I/O. They read the clock of the event loop they belong to, set its timers, and cancel the task that waits too long.
No lock: a `TimeoutScheduler` is shared by the attempts of one connection pool on one loop, a `StreamTimer` belongs to
one stream. Nothing here awaits or may be called from another thread.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final, Self

from attrs import define, field


class TimeoutScheduler:
    """The timeouts of all attempts of a pool on one event loop, with one timer.

    Attempts begin one after the other with nearly equal timeouts, so the earliest deadline is usually the oldest.

    Args:
        loop: the event loop to use.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop: Final = loop
        self._due: Final[dict[Timeout, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def timeout(self, seconds: float | None) -> Timeout:
        """A context manager like `asyncio.timeout`: raises `TimeoutError` after ``seconds``, None for no limit."""
        return Timeout(self, seconds)

    def add(self, timeout: Timeout, seconds: float) -> None:
        """Start a timeout now."""
        at = self._due[timeout] = self._loop.time() + seconds
        # Only ever moved to an earlier time: a timer that fires too early costs one look at the deadlines.
        if at < self._timer_at:
            self._schedule(at)

    def remove(self, timeout: Timeout) -> None:
        """Forget a timeout whose block has ended."""
        self._due.pop(timeout, None)
        if not self._due:
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
        for timeout in [each for each, at in self._due.items() if at <= now]:
            del self._due[timeout]
            timeout.expire()
        self._schedule(min(self._due.values(), default=math.inf))


@define(eq=False)
class Timeout:
    """The timeout of one ``with`` block."""

    _scheduler: TimeoutScheduler
    _seconds: float | None
    _expired: bool = field(init=False, default=False)
    _task: asyncio.Task[object] = field(init=False)
    _cancelling_before: int = field(init=False)

    def __enter__(self) -> Self:
        if self._seconds is not None:
            task = asyncio.current_task()
            if task is None:
                raise RuntimeError("llmopt must be called from a task of asyncio")
            self._task = task
            # As in asyncio.timeout: a cancellation with another cause must not be swallowed.
            self._cancelling_before = task.cancelling()
            self._scheduler.add(self, self._seconds)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._seconds is None:
            return
        if not self._expired:
            self._scheduler.remove(self)
        # Always uncancel: a task that keeps the count would look cancelled to the next timeout around it.
        elif self._task.uncancel() <= self._cancelling_before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """Cancel the block: its deadline has passed."""
        self._expired = True
        self._task.cancel()


@define(eq=False)
class StreamTimer:
    """One timer for all the waits of a stream: cancels the waiting task when a wait takes too long.

    It belongs to the running loop. Unlike `asyncio.timeout` it makes no timer for each wait, and data wins over the
    timeout: if the loop was blocked, or the process suspended, then the timer is due in the same iteration of the loop
    in which the bytes are read that have been in the socket for long.

    ::

        timer.start(seconds)
        try:
            await something
        except asyncio.CancelledError:
            if not timer.uncancel_if_expired():
                raise  # cancelled for another reason
            ...
        finally:
            timer.stop()
    """

    _loop: asyncio.AbstractEventLoop = field(init=False, factory=asyncio.get_running_loop)
    _timer: asyncio.TimerHandle | None = field(init=False, default=None)
    _task: asyncio.Task[Any] | None = field(init=False, default=None)
    _cancelling_before: int = field(init=False, default=0)
    _deadline: float = field(init=False, default=0.0)
    _expired: bool = field(init=False, default=False)

    def start(self, seconds: float) -> None:
        """Limit the wait that the current task begins now."""
        self._task = task = asyncio.current_task()
        self._cancelling_before = 0 if task is None else task.cancelling()
        self._expired = False
        self._deadline = self._loop.time() + seconds
        # A timer that is due earlier is kept; when it fires, it is set again for the new deadline.
        if self._timer is None or self._timer.when() > self._deadline:
            self._arm()

    def stop(self) -> None:
        """End the limit: the wait is over."""
        self._task = None

    def uncancel_if_expired(self) -> bool:
        """Whether this timer caused the cancellation that was just raised; if so, the task is uncancelled."""
        return self._expired and self._task is not None and self._task.uncancel() <= self._cancelling_before

    def close(self) -> None:
        """Cancel the timer for good."""
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._due)

    def _due(self) -> None:
        self._timer = None
        if self._task is None:
            return
        if self._loop.time() < self._deadline:
            self._arm()
            return
        # One iteration later, so that tasks woken in this one run first.
        self._loop.call_soon(self._cancel_task, self._deadline)

    def _cancel_task(self, deadline: float) -> None:
        # A wait that began in the meantime has another deadline and must not be cancelled.
        if self._task is not None and self._deadline == deadline:
            self._expired = True
            self._task.cancel()

"""Time-outs of all attempts on one event loop, with one timer.

`asyncio.timeout` makes a timer for each and cancels it again, and cancelled timers stay in the loop's heap, where the
others are compared with them: 4 to 6 µs a request with many in flight. Attempts begin one after the
other with much the same time-out, so that the one that is due first is nearly always the oldest.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final, Self


class Watchdog:
    """Ends what takes too long.

    Args:
        loop: its event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop: Final = loop
        self._due: Final[dict[Watched, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def watch(self, seconds: float | None) -> Watched:
        """For a ``with`` block that may take so long: as `asyncio.timeout`, it raises `TimeoutError`."""
        return Watched(self, seconds)

    def begin(self, watched: Watched, seconds: float) -> None:
        """Watch from now on."""
        at = self._due[watched] = self._loop.time() + seconds
        if at < self._timer_at:
            self._set(at)

    def end(self, watched: Watched) -> None:
        """Watch no more."""
        self._due.pop(watched, None)
        if not self._due:
            self._set(math.inf)

    def _set(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = None if at == math.inf else self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        now, self._timer = self._timer_at, None
        for watched in [each for each, at in self._due.items() if at <= now]:
            del self._due[watched]
            watched.expire()
        self._set(min(self._due.values(), default=math.inf))


class Watched:
    """One block under watch."""

    __slots__ = ("_before", "_dog", "_expired", "_seconds", "_task")

    def __init__(self, dog: Watchdog, seconds: float | None) -> None:
        self._dog = dog
        self._seconds = seconds
        self._expired = False

    def __enter__(self) -> Self:
        if self._seconds is not None:
            task = asyncio.current_task()
            if task is None:
                raise RuntimeError("llmopt must be called from a task of asyncio")
            self._task: asyncio.Task[object] = task
            # As asyncio.timeout: whoever else wants the task cancelled shall have it cancelled.
            self._before = task.cancelling()
            self._dog.begin(self, self._seconds)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._seconds is None:
            return
        if not self._expired:
            self._dog.end(self)
        elif self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """Its time is up."""
        self._expired = True
        self._task.cancel()


# Waits that must not take too long, one timer for all of a stream's.
#
# ``asyncio.timeout`` around each wait makes and cancels a timer for every piece of a stream. And it does not
# ask whether something came: when the loop was held up, by the program or by a suspended process, the timer
# is due in the same turn in which the bytes arrive that lay in the socket all the while, and they must win.


class Watch:
    """Cancels the task that waits, once its wait has taken too long. Belongs to the running loop.

    ::

        watch.begin(seconds)
        try:
            await something
        except asyncio.CancelledError:
            if not watch.broke_off():
                raise  # somebody else's cancellation
            ...
        finally:
            watch.end()
    """

    __slots__ = ("_asked", "_expired", "_loop", "_task", "_timer", "_until")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._asked = 0
        self._until = 0.0
        self._expired = False

    def begin(self, seconds: float) -> None:
        """The running task begins to wait."""
        self._task = task = asyncio.current_task()
        self._asked = 0 if task is None else task.cancelling()
        self._expired = False
        self._until = self._loop.time() + seconds
        # A timer that is due earlier looks when it is due.
        if self._timer is None or self._timer.when() > self._until:
            self._arm()

    def end(self) -> None:
        """The wait is over."""
        self._task = None

    def broke_off(self) -> bool:
        """Whether the cancellation that has just arrived is this watch's; it is taken back then."""
        return self._expired and self._task is not None and self._task.uncancel() <= self._asked

    def close(self) -> None:
        """No further wait will begin."""
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._until, self._due)

    def _due(self) -> None:
        self._timer = None
        if self._task is None:
            return
        if self._loop.time() < self._until:
            self._arm()
            return
        # After those whom this turn of the loop woke.
        self._loop.call_soon(self._break_off, self._until)

    def _break_off(self, until: float) -> None:
        if self._task is not None and self._until == until:
            self._expired = True
            self._task.cancel()

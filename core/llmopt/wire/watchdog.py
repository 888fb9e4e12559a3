"""Time-outs of all attempts on one event loop, with one timer.

`asyncio.timeout` makes a timer for each and cancels it again, and cancelled timers stay in the loop's heap, where the
others are compared with them: 4 to 6 µs a request with many in flight. Attempts begin one after the
other with much the same time-out, so that the one that is due first is nearly always the oldest.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final, Self


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

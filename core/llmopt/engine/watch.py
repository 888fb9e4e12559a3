"""Waits that must not take too long, one timer for all of a stream's.

``asyncio.timeout`` around each wait makes and cancels a timer for every piece of a stream. And it does not
ask whether something came: when the loop was held up, by the program or by a suspended process, the timer
is due in the same turn in which the bytes arrive that lay in the socket all the while, and they must win.
"""

from __future__ import annotations

import asyncio
from typing import Any


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

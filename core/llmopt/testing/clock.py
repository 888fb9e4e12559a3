"""Simulated time: an hour of waiting runs in a moment, and runs the same every time.

The event loop is asyncio's own; only its idea of time is ours. Where it would wait for the next
timer, `SimulatedClock` jumps there instead, so everything built on the loop's time is simulated with it:
``asyncio.sleep``, ``asyncio.timeout``, ``loop.call_later``. (The idea of a selector that skips is
known from *looptime* and Trio's ``MockClock``; this one looks at public methods of asyncio only.)

::

    async def main(clock: SimulatedClock) -> float:
        await asyncio.sleep(3600)
        return clock.elapsed

    assert run_simulated(main) == 3600

What stays real: sockets and threads. Time stands still while a thread of ``run_in_executor`` or
``asyncio.to_thread`` works, and what a socket brings is read before time moves on, so that a server in
the same loop serves; but a peer in another process has no simulated time: talk to it in real time.
"""

from __future__ import annotations

import asyncio
import heapq
import selectors
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

from llmopt.policies.clock import Timer

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike as _File

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")

_SAME = 1e-9
"""Seconds within which the loop takes a timer for due (its clock's resolution)."""
_GRACE = 0.001
"""Real seconds that a byte between two sockets of this process gets to arrive before time moves on."""


class SimulationStalledError(RuntimeError):
    """Every task waits for something that no timer, socket or thread will ever bring."""


class SimulationOverrunError(RuntimeError):
    """The program outlived the simulated time it was given: it probably polls for ever."""


class SimulatedClock:
    """A clock that moves when nothing else can.

    Attributes:
        elapsed: seconds since the start.
    """

    __slots__ = ("_epoch", "_now", "_start")

    def __init__(self, *, start: float = 0.0, epoch: float = 1_790_000_000.0) -> None:
        self._start = start
        self._now = start
        self._epoch = epoch - start

    def __repr__(self) -> str:
        return f"SimulatedClock(elapsed={self.elapsed:g})"

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._now - self._start

    def now(self) -> float:
        """Monotonic seconds; the loop's ``time()`` too."""
        return self._now

    def wall(self) -> float:
        """Seconds since 1970."""
        return self._now + self._epoch

    def advance(self, seconds: float) -> None:
        """Let time pass at once, as code does that blocks the loop, or a machine that is suspended."""
        if seconds < 0:
            raise ValueError(f"monotonic time cannot go back by {-seconds} s")
        self._now += seconds

    def advance_to(self, moment: float) -> None:
        """Let time pass until ``now()`` is ``moment`` exactly; no effect on a moment that is past."""
        self._now = max(self._now, moment)

    def set_wall(self, epoch: float) -> None:
        """Set the calendar, as a user or NTP does; monotonic time takes no notice."""
        self._epoch = epoch - self._now

    async def sleep(self, seconds: float) -> None:
        """Sleep in simulated time."""
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[Unpack[_Args]], object], *args: *_Args) -> Timer:
        """A timer in simulated time."""
        return asyncio.get_running_loop().call_later(seconds, callback, *args)


class _SkippingSelector(selectors.BaseSelector):
    """A real selector that never waits for time: it moves the clock to the next timer instead."""

    def __init__(self, clock: SimulatedClock, limit: float) -> None:
        self._clock = clock
        self._limit = limit
        self._real = selectors.DefaultSelector()
        self._timers: list[float] = []
        self.threads = 0

    def expect(self, when: float) -> None:
        """Remember the exact moment of a timer: adding up differences would miss it by a rounding."""
        heapq.heappush(self._timers, when)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0 if timeout == 0 else self._patience())
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise SimulationStalledError(
                "nothing is left that could wake any of these tasks up: " + _waiting()
            )
        self._clock.advance_to(self._next(self._clock.now() + max(0.0, timeout)))
        if self._clock.elapsed > self._limit:
            raise SimulationOverrunError(
                f"not finished after {self._limit:g} simulated seconds: " + _waiting()
            )
        return ready

    def _patience(self) -> float | None:
        if self.threads:
            return None
        # The loop's own wake-up socket is always there; nothing can come by it on this thread.
        return _GRACE if len(self._real.get_map()) > 1 else 0

    def _next(self, about: float) -> float:
        # What is due already has run: taken for the next, it would hold the time for ever.
        while self._timers and (self._timers[0] <= self._clock.now() or self._timers[0] < about - _SAME):
            heapq.heappop(self._timers)
        if self._timers and self._timers[0] <= about + _SAME:
            return self._timers[0]
        return about

    def register(self, fileobj: _File, events: int, data: object = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: _File) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: _File, events: int, data: object = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[_File, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


def _waiting() -> str:
    return "; ".join(sorted(repr(task) for task in asyncio.all_tasks()))[:4000]


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose time is a `SimulatedClock`'s. Several may share one clock."""

    def __init__(self, clock: SimulatedClock, *, limit: float = 1e7) -> None:
        self._clock = clock
        self._skipping = _SkippingSelector(clock, limit)
        super().__init__(self._skipping)

    def time(self) -> float:
        """The simulated time."""
        return self._clock.now()

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Args]], object],
        *args: *_Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As asyncio's; ``call_later``, sleeps and time-outs all come through here."""
        self._skipping.expect(when)
        return super().call_at(when, callback, *args, context=context)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[_Args]], _T], *args: *_Args
    ) -> asyncio.Future[_T]:
        """As asyncio's; time stands still until the thread is done."""
        future = super().run_in_executor(executor, func, *args)
        self._skipping.threads += 1
        future.add_done_callback(self._thread_done)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002 asyncio's name
        """As asyncio's, which joins the threads from a thread."""
        self._skipping.threads += 1
        try:
            # Python 3.11 knows no time-out here, and none is ever reached: time stands still.
            await super().shutdown_default_executor()
        finally:
            self._skipping.threads -= 1

    def _thread_done(self, _: object) -> None:
        self._skipping.threads -= 1


def run_simulated(
    main: Callable[[SimulatedClock], Coroutine[Any, Any, _T]],
    *,
    clock: SimulatedClock | None = None,
    limit: float = 1e7,
) -> _T:
    """Run ``main(clock)`` on a loop of its own in simulated time, and return what it returns.

    Tasks it leaves behind are cancelled, as by ``asyncio.run``. A run is repeatable as far as the
    program is: seed its random numbers, and do not let it order things by ``id`` (a set of tasks does).

    Args:
        main: a coroutine function of one argument.
        clock: the clock to run on; a new one by default. Give one to go on where another run ended.
        limit: simulated seconds after which the program is taken for endless.

    Raises:
        SimulationStalledError: all tasks wait for something that can never come.
        SimulationOverrunError: the program was still running after ``limit`` seconds.
    """
    clock = SimulatedClock() if clock is None else clock
    with asyncio.Runner(loop_factory=lambda: SimulatedLoop(clock, limit=limit)) as runner:
        return runner.run(main(clock))

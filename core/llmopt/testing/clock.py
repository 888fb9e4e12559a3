"""Simulated time for asyncio tests: an hour of waiting runs in a moment, and repeatably.

The event loop is asyncio's own with another clock. Where it would wait for the next timer, the
`SimulatedClock` jumps there instead, so that everything built on the loop's time is simulated:
``asyncio.sleep``, ``asyncio.timeout``, ``loop.call_later``. (A selector that skips time is also how *looptime*
and Trio's ``MockClock`` work; this one uses public methods of asyncio only.)

::

    async def main(clock: SimulatedClock) -> float:
        await asyncio.sleep(3600)
        return clock.elapsed

    assert run_simulated(main) == 3600

Sockets and threads stay real. Time stands still while a thread of ``run_in_executor`` or
``asyncio.to_thread`` works, and data on sockets is read before time moves on, so a server in the same
loop works. A peer in another process has no simulated time: use real time with it.

The machine's clocks are not read: by default monotonic time begins at 0 and the calendar at a fixed moment. The loop's
selector blocks its thread for up to 1 ms of real time if sockets are open, and without limit while such a thread
works. A `SimulatedClock` may be shared by several loops; it has no lock. Nothing here is random.
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

_CLOCK_RESOLUTION_S = 1e-9
"""Seconds within which asyncio treats a timer as due."""
_SOCKET_GRACE_S = 0.001
"""Real seconds that data between two sockets of this process may take to arrive before time moves on."""


class SimulationStalledError(RuntimeError):
    """Every task waits, and no timer, socket or thread is left that could wake one."""


class SimulationOverrunError(RuntimeError):
    """The program exceeded its limit of simulated time; it probably polls forever."""


class SimulatedClock:
    """A clock that jumps to the next timer when no task can run.

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
        """Move time forward at once, as code that blocks the loop does, or a suspended machine."""
        if seconds < 0:
            raise ValueError(f"monotonic time cannot go back by {-seconds} s")
        self._now += seconds

    def advance_to(self, moment: float) -> None:
        """Move time forward until ``now()`` is exactly ``moment``; no effect if it is in the past."""
        self._now = max(self._now, moment)

    def set_wall(self, epoch: float) -> None:
        """Set the calendar, as a user or NTP does; monotonic time is not affected."""
        self._epoch = epoch - self._now

    async def sleep(self, seconds: float) -> None:
        """Sleep in simulated time."""
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[Unpack[_Args]], object], *args: *_Args) -> Timer:
        """A timer in simulated time."""
        return asyncio.get_running_loop().call_later(seconds, callback, *args)


class _SkippingSelector(selectors.BaseSelector):
    """A real selector that never waits for a timer: it moves the clock to the timer instead."""

    def __init__(self, clock: SimulatedClock, limit: float) -> None:
        self._clock = clock
        self._limit = limit
        self._real = selectors.DefaultSelector()
        self._timers: list[float] = []
        self.threads = 0

    def expect(self, when: float) -> None:
        """Record the exact time of a timer, which adding the loop's rounded timeout would miss."""
        heapq.heappush(self._timers, when)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0 if timeout == 0 else self._select_timeout())
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise SimulationStalledError(
                "no timer, socket or thread is left that could wake one of these tasks: " + _pending_tasks()
            )
        self._clock.advance_to(self._next_timer(self._clock.now() + max(0.0, timeout)))
        if self._clock.elapsed > self._limit:
            raise SimulationOverrunError(
                f"not finished after {self._limit:g} simulated seconds: " + _pending_tasks()
            )
        return ready

    def _select_timeout(self) -> float | None:
        # A thread works in real time: None waits for it as long as it takes.
        if self.threads:
            return None
        # The loop's own wake-up socket is always registered; nothing can arrive on it from this thread.
        return _SOCKET_GRACE_S if len(self._real.get_map()) > 1 else 0

    def _next_timer(self, due_at: float) -> float:
        # Timers that are due have run already: taken as the next one, they would stop time forever.
        while self._timers and (
            self._timers[0] <= self._clock.now() or self._timers[0] < due_at - _CLOCK_RESOLUTION_S
        ):
            heapq.heappop(self._timers)
        if self._timers and self._timers[0] <= due_at + _CLOCK_RESOLUTION_S:
            return self._timers[0]
        return due_at

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


def _pending_tasks() -> str:
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
        """Like asyncio's; ``call_later``, sleeps and timeouts all call this."""
        self._skipping.expect(when)
        return super().call_at(when, callback, *args, context=context)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[_Args]], _T], *args: *_Args
    ) -> asyncio.Future[_T]:
        """Like asyncio's; time stands still until the thread has finished."""
        future = super().run_in_executor(executor, func, *args)
        self._skipping.threads += 1
        future.add_done_callback(self._thread_done)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ARG002 asyncio's name
        """Like asyncio's, which joins the threads from another thread."""
        self._skipping.threads += 1
        try:
            # Without the timeout, which Python 3.11 does not have and which is never reached: time stands still.
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
    """Run ``main(clock)`` on a new event loop in simulated time, and return its result.

    Tasks that are left over are cancelled, as by ``asyncio.run``. A run is repeatable if the program is: seed
    its random numbers, and do not order things by ``id``, as a set of tasks does.

    Args:
        main: a coroutine function of one argument.
        clock: the clock to use; a new one by default. Pass one to continue where another run ended.
        limit: maximum simulated seconds.

    Raises:
        SimulationStalledError: all tasks wait and nothing can wake one.
        SimulationOverrunError: the program was still running after ``limit`` seconds.
    """
    clock = SimulatedClock() if clock is None else clock
    with asyncio.Runner(loop_factory=lambda: SimulatedLoop(clock, limit=limit)) as runner:
        return runner.run(main(clock))

"""Time, as every policy gets it: handed in, never fetched.

Two readings, and they are not exchangeable. ``now`` only ever grows and measures waits, rates and
deadlines; ``wall`` is the calendar and serves HTTP dates and cache ages alone, because somebody may
set it back (RELIABILITY.md 2.0, C10). Tests hand in `llmopt.testing.clock.SimulatedClock`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol, TypeVarTuple, Unpack

_Args = TypeVarTuple("_Args")


class Timer(Protocol):
    """A callback that is due later."""

    def cancel(self) -> None:
        """Make it not happen; no harm when it has happened already."""


class Clock(Protocol):
    """What a policy may ask of time."""

    def now(self) -> float:
        """Seconds since some fixed moment; never goes back."""

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC; may jump either way."""

    async def sleep(self, seconds: float) -> None:
        """Let other tasks run for so many seconds."""

    def call_later(self, seconds: float, callback: Callable[[Unpack[_Args]], object], *args: *_Args) -> Timer:
        """Have ``callback(*args)`` called on the running event loop in so many seconds."""


class SystemClock:
    """The machine's own clocks, and the running event loop's timers."""

    __slots__ = ()

    # The functions themselves: a wrapper would double the price of a reading.
    now = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        """As `Clock.sleep`."""
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[Unpack[_Args]], object], *args: *_Args) -> Timer:
        """As `Clock.call_later`."""
        return asyncio.get_running_loop().call_later(seconds, callback, *args)

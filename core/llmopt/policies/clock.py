"""Time, as every policy gets it: handed in, never fetched.

Two readings, and they are not exchangeable. ``now`` only ever grows and measures waits, rates and
deadlines; ``wall`` is the calendar and serves HTTP dates and cache ages alone, because somebody may
set it back (docs/development/resilience.md). Tests hand in `llmopt.testing.clock.SimulatedClock`.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Callable
from numbers import Real
from typing import Final, Protocol, TypeVarTuple, Unpack
from weakref import WeakSet

from attrs import field, frozen

from llmopt.errors import ConfigError

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


# The one deadline of a call: a point on the monotonic clock that every wait is measured against.
#
# A time-out per wait adds up (connect, then each read, then each retry), and no HTTP library bounds
# the sum (docs/development/resilience.md). So a call turns the seconds it was given into one absolute moment, once,
# and every later wait asks that moment what is left.

Now = Callable[[], float]
"""Seconds on a clock that never goes back."""


@frozen
class Deadline:
    """A moment after which a call must not go on.

    Attributes:
        at: the moment on the clock; ``math.inf`` when the call has all the time in the world.
        now: the clock it is measured by.
    """

    at: float
    now: Now = field(repr=False, eq=False)

    @classmethod
    def after(cls, seconds: float | None, now: Now) -> Deadline:
        """The moment so many seconds from now, as a user gave them; None is never.

        Zero and less are allowed and mean that the time is up already: a caller who passes on what
        is left of its own time gets `DeadlineExceeded` from it, not a complaint about a number.

        Raises:
            ConfigError: not a finite number. Waiting for ever is asked for by None alone, so that
                a wrong computation (NaN, infinity) is not taken for it.
        """
        if seconds is None:
            return cls(math.inf, now)
        return cls(now() + valid_seconds(seconds, "deadline"), now)

    @property
    def bounded(self) -> bool:
        """Whether there is an end at all."""
        return self.at != math.inf

    def remaining(self) -> float:
        """Seconds left: never negative, ``math.inf`` without a bound."""
        return max(0.0, self.at - self.now())

    def expired(self) -> bool:
        """Whether the time is up."""
        return self.at != math.inf and self.now() >= self.at

    def clamp(self, seconds: float) -> float:
        """A wait or a time-out, cut to what is left."""
        return min(seconds, self.remaining())

    def leaves(self, seconds: float, *, spare: float = 0.0) -> bool:
        """Whether ``spare`` seconds are still left after a wait of so many seconds."""
        return self.now() + seconds + spare <= self.at


def valid_seconds(value: object, name: str) -> float:
    """A user's number of seconds as a float.

    Raises:
        ConfigError: it is not a number, or not a finite one; the message names it.
    """
    # A bool is an int to Python; deadline=True is a slip, not one second.
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(
            f"{name} must be a number of seconds, or None for no bound, not {type(value).__name__}"
        )
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise ConfigError(f"{name} must be a finite number of seconds, or None for no bound, not {seconds}")
    return seconds


# Random numbers for jitter: llmopt's own, and different ones in every process.
#
# Not the ``random`` module's functions: an application that seeds them must find its own sequence
# undisturbed. But like those they are seeded anew in a forked child, or parent and children, which
# share a server, would also share every delay.

_RNGS: Final[WeakSet[random.Random]] = WeakSet()


def new_rng() -> random.Random:
    """A source of random numbers, seeded by the system."""
    source = random.Random()
    _RNGS.add(source)
    return source


def _reseed() -> None:
    for source in list(_RNGS):
        source.seed()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reseed)

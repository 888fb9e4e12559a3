"""Clocks, deadlines and random numbers for all policies; only `SystemClock` reads the real time.

There are two readings of time. ``now`` is monotonic and measures waits, rates and deadlines. ``wall`` is the
calendar time, which may be set back; it serves HTTP dates and the age of cache entries only. Tests pass in
`llmopt.testing.clock.SimulatedClock`.

No I/O. `SystemClock.sleep` and ``call_later`` use the running event loop, which runs the callback; a `Deadline` reads
the clock that it was made with, at each question. `new_rng` makes the random generators of all policies that are given
none. It keeps them in a module-level weak set, without a lock, and a fork hook that importing this file registers seeds
them anew in every forked child.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from numbers import Real
from typing import Final, Protocol, TypeVarTuple, Unpack
from weakref import WeakSet

from attrs import field, frozen

from llmopt._platform import register_at_fork
from llmopt.errors import ConfigError

_Args = TypeVarTuple("_Args")
Now = Callable[[], float]
"""Seconds on a monotonic clock."""


class Timer(Protocol):
    """A callback that will be called later."""

    def cancel(self) -> None:
        """Cancel the call; does nothing if it was made already."""


class Clock(Protocol):
    """The time, as policies use it."""

    def now(self) -> float:
        """Monotonic seconds since some fixed moment."""

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC; may jump in either direction."""

    async def sleep(self, seconds: float) -> None:
        """Sleep while other tasks run."""

    def call_later(self, seconds: float, callback: Callable[[Unpack[_Args]], object], *args: *_Args) -> Timer:
        """Call ``callback(*args)`` on the running event loop after ``seconds``."""


class SystemClock:
    """The clocks of the machine and the timers of the running event loop."""

    __slots__ = ()

    # The functions themselves: a wrapper would double the cost of a reading.
    now = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        """As `Clock.sleep`."""
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[Unpack[_Args]], object], *args: *_Args) -> Timer:
        """As `Clock.call_later`."""
        return asyncio.get_running_loop().call_later(seconds, callback, *args)


@frozen
class Deadline:
    """The moment at which a call must end.

    Timeouts of single waits add up (connect, each read, each retry), and HTTP libraries do not bound the sum. So
    a call turns its seconds into one absolute moment, once, and every later wait is measured against it.

    Attributes:
        at: the moment on the monotonic clock; ``math.inf`` for no deadline.
        now: that clock.
    """

    at: float
    now: Now = field(repr=False, eq=False)

    @classmethod
    def after(cls, seconds: float | None, now: Now) -> Deadline:
        """The moment ``seconds`` from now, as a user gave them; None for no deadline.

        Zero and less are allowed and mean that the time is up: a caller that passes on what is left of its own
        time gets `DeadlineExceeded`, not a complaint about a number.

        Raises:
            ConfigError: not a finite number. Only None means "no deadline", so that the result of a wrong
                computation (NaN, infinity) is not taken for it.
        """
        if seconds is None:
            return cls(math.inf, now)
        return cls(now() + valid_seconds(seconds, "deadline"), now)

    @property
    def bounded(self) -> bool:
        """Whether there is a deadline at all."""
        return self.at != math.inf

    def remaining(self) -> float:
        """Seconds left, never negative; ``math.inf`` without a deadline."""
        return max(0.0, self.at - self.now())

    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.at != math.inf and self.now() >= self.at

    def clamp(self, seconds: float) -> float:
        """A wait or timeout, cut to what is left."""
        return min(seconds, self.remaining())

    def leaves(self, seconds: float, *, spare: float = 0.0) -> bool:
        """Whether ``spare`` seconds are left after a wait of ``seconds``."""
        return self.now() + seconds + spare <= self.at


def valid_seconds(value: object, name: str) -> float:
    """A user's number of seconds as a float.

    Args:
        value: the number.
        name: what it is for, as named in the message.

    Raises:
        ConfigError: it is not a finite number.
    """
    # A bool is an int in Python; deadline=True is a mistake, not one second.
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


_RNGS: Final[WeakSet[random.Random]] = WeakSet()


def new_rng() -> random.Random:
    """A random number generator for jitter, seeded by the system and again in every forked child.

    It is not the module `random` itself, whose sequence belongs to an application that seeds it. Without the
    new seed, a parent and its children, which share a server, would retry at the same moments.
    """
    rng = random.Random()
    _RNGS.add(rng)
    return rng


def _reseed() -> None:
    for rng in list(_RNGS):
        rng.seed()


register_at_fork(_reseed)

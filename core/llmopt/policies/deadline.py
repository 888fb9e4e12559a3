"""The one deadline of a call: a point on the monotonic clock that every wait is measured against.

A time-out per wait adds up (connect, then each read, then each retry), and no HTTP library bounds
the sum (RELIABILITY D4). So a call turns the seconds it was given into one absolute moment, once,
and every later wait asks that moment what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

from attrs import field, frozen

from llmopt.errors import ConfigError

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

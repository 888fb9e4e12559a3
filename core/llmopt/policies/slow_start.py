"""Few requests at first, twice as many each second and one more for each answer: TCP's slow start.

What is configured may be wrong, others may use the quota, and a server's limits are known from its first
answer on. Two requests find out what sixty would have been refused for; the price is a round trip. It is
clocked by answers, so that a fast server is at full speed within milliseconds, and by time, so that one that
loads its model for a minute does not hold everybody up.
"""

from __future__ import annotations

import math
from typing import Final

SCOUTS: Final = 2
"""Requests in the air before the first answer."""
_ENOUGH: Final = 64
_LONGEST_S: Final = 60.0
_SHORTEST_HOLD_S: Final = 1e-3


class SlowStart:
    """The start of one quota.

    Attributes:
        over: whether it is behind us.
    """

    __slots__ = ("_first_at", "_in_air", "_window", "over")

    def __init__(self, scouts: int = SCOUTS) -> None:
        """Begin with so many requests in the air; 0 for no slow start."""
        self.over = scouts == 0
        self._window = scouts
        self._in_air = 0
        self._first_at: float | None = None

    def __repr__(self) -> str:
        return f"SlowStart(over={self.over}, window={self._window}, in_air={self._in_air})"

    def wait(self, now: float) -> float:
        """Seconds to hold the next request back; 0 when it may go."""
        # Beyond the bound nobody is held back, and a day's doublings leave the floats.
        elapsed = 0.0 if self._first_at is None else min(now - self._first_at, _LONGEST_S)
        if self._in_air + 1 <= self._window * 2.0**elapsed:
            return 0.0
        return max(_SHORTEST_HOLD_S, math.log2((self._in_air + 1) / self._window) - elapsed)

    def sent(self, now: float) -> None:
        """A request goes out."""
        self._in_air += 1
        if self._first_at is None:
            self._first_at = now

    def returned(self, *, answered: bool) -> None:
        """A request is no longer in the air."""
        self._in_air -= 1
        if answered:
            self._window += 1
            self.over = self.over or self._window >= _ENOUGH

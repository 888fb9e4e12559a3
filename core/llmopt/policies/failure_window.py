"""How many of the calls of the last seconds failed."""

from __future__ import annotations


class FailureWindow:
    """Results of a sliding window, in a ring of buckets. The sums are kept, so that reading them is free.

    Attributes:
        calls: results in the window, as of the last one added.
        failures: how many of them were failures.
    """

    __slots__ = ("_at", "_calls", "_failures", "_span", "calls", "failures")

    def __init__(self, window_s: float, buckets: int) -> None:
        self._span = window_s / buckets
        self._calls = [0] * buckets
        self._failures = [0] * buckets
        self._at = 0
        self.calls = 0
        self.failures = 0

    def clear(self) -> None:
        """Forget everything."""
        for ring in (self._calls, self._failures):
            ring[:] = [0] * len(ring)
        self.calls = self.failures = 0

    def add(self, now: float, *, failed: bool) -> None:
        """Count a result at a moment not before that of the last one."""
        at = int(now / self._span)
        if at != self._at:
            self._move(at)
        slot = at % len(self._calls)
        self._calls[slot] += 1
        self.calls += 1
        if failed:
            self._failures[slot] += 1
            self.failures += 1

    def _move(self, at: int) -> None:
        """Empty the buckets that were passed; a whole turn empties them all."""
        size = len(self._calls)
        for passed in range(max(self._at + 1, at - size + 1), at + 1):
            slot = passed % size
            self.calls -= self._calls[slot]
            self.failures -= self._failures[slot]
            self._calls[slot] = self._failures[slot] = 0
        self._at = at

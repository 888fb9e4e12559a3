"""A token bucket for one quantity, kept as a copy of the server's own."""

from __future__ import annotations

import math
from typing import Final

from llmopt.policies.pace import Pace
from llmopt.values.limits import RateLimit

_EPSILON: Final = 1e-6
MARGIN: Final = 0.1
SHARED=.2
CAUTION=1.1
RAISE=.03
_START: Final = 0.2


class Bucket:
    __slots__ = ("_at", "_smallest", "capacity", "level", "need", "pace", "spent", "refused", "corrected", "_withheld", "_whole_at")

    def __init__(self, pace: Pace, smallest: float, now: float) -> None:
        self.pace = pace
        self._smallest = smallest
        self._at = now
        self.need = 0.0
        self.spent = 0.0
        self.refused = 0.0
        self.corrected = 0.0
        self._whole_at = math.inf
        self.capacity = self._capacity()
        self.level = self.capacity

    def _capacity(self) -> float:
        return max(self._smallest, self.pace.rate * self.pace.burst_s * (1 - MARGIN))

    def wait(self, now: float, cost: float) -> float:
        elapsed = now - self._at
        if elapsed > 0:
            self._refill(now, elapsed)
        short = cost * (CAUTION if self.pace.burst_s > 1 else 1) - self.level
        if short <= _EPSILON:
            return 0.0
        return max(min(short / self.pace.rate, self._whole_at - now), 1e-6)

    def _refill(self, now: float, elapsed: float) -> None:
        self._at = now
        rate = self.pace.rate
        self.level = min(self.level + elapsed * rate, max(self.capacity, self.need))
        if now >= self._whole_at:
            self._whole_at = math.inf
            self.level = max(self.level, self.need)

    def resize(self, now: float) -> None:
        self.pace.advance(now)
        self.capacity = self._capacity()
        self.level = min(self.level, max(self.capacity, self.need))

    def take(self, cost: float) -> None:
        self.level -= cost
        self.spent += cost

    def settle(self, extra: float) -> None:
        self.corrected += extra
        self.give_back(-extra)

    def give_back(self, amount: float) -> None:
        self.level = max(-self.capacity, min(self.level + amount, max(self.capacity, self.need)))

    def observe(self, now: float, limit: RateLimit, sent_at: float, since: float, own: float) -> None:
        self.wait(now, 0.0)
        self.pace.hear(limit)
        self.resize(now)
        rest = limit.remaining
        if rest is None or self.capacity == math.inf:
            return
        reset = limit.reset_s
        self._whole_at = now + (limit.window_s if reset is None or self.pace.share < 1 else max(reset, self.pace.burst_s))
        expected = rest + self.pace.rate * (now - sent_at) - since
        self.pace.feel(now, sent_at, rest, own, expected)
        self.resize(now)
        expected -= (MARGIN * self.pace.rate if self.pace.alone else SHARED * self.pace.ceiling)* self.pace.burst_s
        if self.pace.alone and self.pace._deepest <= self.pace.ceiling * self.pace.burst_s:
            self.level += RAISE * max(0.0, min(expected, self.capacity) - self.level)
        self.level = max(min(self.level, expected), -self.capacity)


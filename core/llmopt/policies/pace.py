"""How fast one quantity (requests, or tokens) may go: what is known, and what is learned.

Three voices are heard, the lowest decides:

* the **ceiling**: the configured limit, and the limit that headers tell.
* the **share** of it that others who use the same quota leave us. What headers tell of the rest is the
  common signal: all clients of a quota see the same rest, and a controller (proportional and integral,
  on the logarithm of the rate) holds it at a set point. It is the idea of RCP (Dukkipati 2005), with the rest
  of the bucket in the place of the queue: a refusal is foreseen rather than provoked.
* the **learned** rate, for refusals that no header foretold: CUBIC (RFC 9438, as the AWS SDKs use
  it: a cut by 0.7, slow round the rate of the last refusal, then ever faster), in units of
  the rate itself so that one curve serves 1 and 10,000 a second. The rate it comes back to is
  measured: between two refusals an empty bucket became empty again, so what was granted is what the server
  gives.
"""

from __future__ import annotations

import math
from typing import Final

from llmopt.values.limits import RateLimit

CUT: Final = 0.7
"""Rate after a refusal, as a part of the rate before (CUBIC's beta in the AWS SDKs)."""
CUT_EVERY_S: Final = 1.0
"""One overload shows in many answers: they count once."""
_RECOVERY_S: Final = 8.0
"""Seconds from a cut back to the rate of the refusal; the curve is symmetric about this point."""
_DIP = 0.15
_ANCHOR_S: Final = 20.0
_SHORTEST_SPAN_S: Final = 0.5

_LOW_MARK = 0.25
_MARK_WHEN_SHARED = 0.0
_PROPORTIONAL = 1.5
_INTEGRAL: Final = 0.5
FLOOR=.05
KEEPSHARE=False
LO, HI, KI, KP, TAU, DEAD = .5, .35, .5, 1, 5.0, .08
AI = 0.15
MD = 0.5
MOST_S = 3.0
_SMALLEST_SHARE: Final = math.log(0.01)
_MOST_ELAPSED_S: Final = 1.0

_JUMP: Final = 10.0
"""A told limit that changes by more than this factor is believed when it is repeated."""
_REPEATS: Final = 3


class Pace:
    """The rate of one quantity, per second.

    Attributes:
        rate: the rate in force.
        ceiling: the rate that is known to be allowed; infinite when nothing is known.
    """

    __slots__ = (
        "_anchor",
        "_configured",
        "_cut_at",
        "_deepest",
        "_error",
        "_full",
        "_observed_at",
        "_peak",
        "_share",
        "_strange",
        "_told",
        "burst_s",
        "ceiling",
        "moving", "others", "alone", "_seen",
        "rate",
    )

    def __init__(self, per_second: float | None, burst_s: float) -> None:
        self._configured = math.inf if per_second is None else per_second
        self._told = math.inf
        self.burst_s = burst_s
        self.ceiling = self._configured
        self.rate = self.ceiling
        self.moving = False
        self._share = 1.0
        self.others = 0.0
        self.alone = True
        self._seen = None
        self._error = 0.0
        self._observed_at = -math.inf
        self._deepest = 0.0
        self._strange = 0
        self._peak = math.inf  # of the learned curve
        self._cut_at = -math.inf
        self._anchor = (0.0, 0.0)
        self._full = True

    @property
    def share(self) -> float:
        """The part of the ceiling that is ours; below 1 when others use the quota too."""
        return self._share

    # The ceiling

    def hear(self, limit: RateLimit) -> None:
        """Take note of a limit that headers tell."""
        if limit.limit is None or limit.window_s <= 0:
            return
        told = limit.limit / limit.window_s
        if self.ceiling != math.inf and not 1 / _JUMP <= told / self.ceiling <= _JUMP:
            self._strange += 1
            if told < self.ceiling and self._strange < _REPEATS:
                return
        self._strange = 0
        self._told = told
        self.ceiling = min(self._configured, told)
        self._combine(self._observed_at)

    # The share

    def feel(self, now: float, sent_at: float, rest: float, own: float, expected: float) -> None:
        depth = min(max(rest, self._deepest), self.ceiling * self.burst_s)
        self._deepest = max(rest, self._deepest)
        if depth <= 0 or depth == math.inf:
            return
        if self._seen is None:
            used = self.ceiling * self.burst_s - rest
            span = 1.0
            others = used - own
            self.others = max(0.0, others) / self.burst_s
            self.alone = self.others < self.ceiling * 2 * DEAD
            if not self.alone:
                self._share = max(FLOOR, own / used)
        else:
            t0, r0, o0 = self._seen
            span = max(sent_at - t0, 1e-3)
            others = r0 + self.ceiling * span - rest - (own - o0)
            if r0 + self.ceiling * span <= self.ceiling * self.burst_s or self.alone:
                w = math.exp(-span / TAU)
                self.others = max(0.0, self.others * w + (min(r0 + self.ceiling * span, depth)- rest - (own - o0)) / span * (1 - w))
            self.alone = self.others < self.ceiling * (DEAD if not self.alone else 2 * DEAD)
        self._seen = (sent_at, rest, own)
        if self.alone:
            self._share = max(FLOOR, 1 - self.others / self.ceiling)
            self._error = 0
            self._observed_at = now
            self._combine(now)
            return
        mark = LO + HI * self._share
        self._error = max(-1.0, min(1.0, expected / depth - mark))
        elapsed = min(now - self._observed_at, MOST_S) if self._observed_at > 0 else 0
        self._observed_at = now
        self._share = max(min(FLOOR,self._share), min(1.0, self._share * math.exp(KI * self._error * elapsed)))
        self._combine(now)

    def yield_to_others(self, now: float) -> None:
        """Cut the share after a refusal that the rest explains."""
        if now - self._cut_at >= CUT_EVERY_S:
            self._cut_at = now
            self._share = max(0.01, self._share * CUT)
            self._combine(now)

    def learn(self, now: float, rate: float) -> None:
        self._peak = rate
        self._combine(now)

    def advance(self, now: float) -> float:
        """The rate at a later time, along the curve."""
        self._combine(now)
        return self.rate

    def _combine(self, now: float) -> None:
        shared = self.ceiling
        if self._share < 1.0 or self._error < 0.0:
            if not self.alone or KEEPSHARE:
                shared *= min(1.0, self._share * math.exp(KP * self._error))
        self.rate = min(shared, self._peak)

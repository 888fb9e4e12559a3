"""The part of a rate limit that is ours, where clients that know nothing of each other use it too.

The rest of the allowance that an answer's headers tell is a signal all of them see, and two things are read
from it. First, what others use: between two answers the server's bucket gained what the limit gives and
lost what we sent; the remainder is theirs. A client that finds itself alone takes the whole limit. Else a
controller (proportional and integral, on the logarithm of the rate) holds the rest at a set
point, so that a refusal is foreseen and not provoked. It is the idea of RCP (Dukkipati, "Rate Control Protocol",
2007), the rest standing where RCP has the router's queue. The set point is higher for
who takes more, and since all see one rest, that drives the shares together.

Measured (tests/policies/test_limiter_simulation.py): of the requests of four clients of one small bucket, 1 to
2 % were refused, and 98 % of the possible throughput reached; without this, each believing that
the whole limit was its own, 45 to 49 % were refused.
"""

from __future__ import annotations

import math
from typing import Final

from attrs import frozen

_LOW_MARK: Final = 0.5
_HIGH_MARK: Final = 0.85
"""Set points of the rest, as parts of the bucket, for a share of 0 and of 1."""
_INTEGRAL: Final = 0.5
"""Change of the share (its logarithm) per second and unit of error; the proportional gain is 1."""
_LONGEST_STEP_S: Final = 3.0
_SMALLEST: Final = 0.1
"""Share below which only refusals drive it: what is too small is overlooked by those who have the rest."""
_RECOVERY: Final = 0.05
"""Growth of the share per second where the rest tells nothing; refusals cut it."""
_VANISHING: Final = 0.01
_CUT: Final = 0.7
_MEMORY_S: Final = 5.0
"""Time constant of the estimate of what others use."""
_COMPANY: Final = 0.1
"""Others are there when they use more than this part of the limit; they are gone below half of it."""


@frozen(kw_only=True)
class Sight:
    """What one answer shows of the server's bucket.

    Attributes:
        sent_at: when its request was sent.
        rest: what the server says is left.
        own: what this client had taken in all when it sent the request.
        expected: what should be left by now, requests under way taken off.
    """

    sent_at: float
    rest: float
    own: float
    expected: float


class Share:
    """The share of one limit.

    Attributes:
        factor: the part of the limit that may be used now.
        alone: whether nobody else seems to use it.
    """

    __slots__ = ("_deepest", "_last", "_others", "_part", "alone", "factor")

    def __init__(self) -> None:
        self.factor = 1.0
        self.alone = True
        self._part = 1.0
        self._others = 0.0
        self._deepest = 0.0
        self._last: Sight | None = None

    def __repr__(self) -> str:
        return f"Share({self.factor:.2f}, others={self._others:.2f})"

    def fits(self, burst: float) -> bool:
        """Whether the server's bucket is no deeper than ours, as far as it was ever seen."""
        return self._deepest <= burst

    def update(self, sight: Sight, rate: float, burst: float) -> None:
        """Learn from one answer.

        Args:
            sight: what it shows.
            rate: the whole limit, per second.
            burst: the limit's bucket as we keep it.
        """
        self._deepest = max(self._deepest, sight.rest)
        last, self._last = self._last, sight
        if last is None:
            self._first_sight(sight, burst)
            return
        depth = min(self._deepest, burst)
        span = max(sight.sent_at - last.sent_at, 1e-3)
        if depth > 0:
            self._estimate_others(sight, last, span, rate, burst, depth)
            self._control(sight.expected / depth, min(span, _LONGEST_STEP_S))
        elif not self.alone:
            # So shallow a bucket is always empty after a request. Its rest says nothing.
            self._part = min(1.0, self._part + _RECOVERY * min(span, _LONGEST_STEP_S))
            self._apply(0.0)

    def refused(self) -> None:
        """A refusal although our own model had room: others were quicker, or an estimate was too low."""
        self._others = max(0.0, self._others) + _COMPANY / 2
        self.alone = self.alone and self._others < _COMPANY
        if not self.alone:
            self._part = max(_VANISHING, self._part * _CUT)
            self._apply(0.0)

    def _first_sight(self, sight: Sight, burst: float) -> None:
        # Taken as if the bucket had been full, and they had taken their part within one burst's time.
        used = burst - sight.rest
        self._others = max(0.0, used - sight.own) / burst
        self.alone = self._others < _COMPANY
        if not self.alone:
            self._part = max(_SMALLEST, min(1.0, sight.own / used))
            self._apply(0.0)

    def _estimate_others(
        self, sight: Sight, last: Sight, span: float, rate: float, burst: float, depth: float
    ) -> None:
        filled = last.rest + rate * span
        # A bucket that may have run over meanwhile says nothing of use; for one that is alone it says
        # at most that there is none.
        if filled <= burst or self.alone:
            used = min(filled, depth) - sight.rest - (sight.own - last.own)
            weight = math.exp(-span / _MEMORY_S)
            # It may come out below 0 for a moment, when requests overtook each other; the next answers
            # bring that back, and cutting it off here would turn noise into company.
            self._others = max(-1.0, self._others * weight + used / span / rate * (1 - weight))
        self.alone = self._others < (_COMPANY if self.alone else _COMPANY / 2)

    def _control(self, filled: float, elapsed: float) -> None:
        if self.alone:
            self._part = max(_SMALLEST, min(1.0, 1 - self._others))
            self.factor = 1.0
            return
        mark = _LOW_MARK + (_HIGH_MARK - _LOW_MARK) * self._part
        error = max(-1.0, min(1.0, filled - mark))
        part = self._part * math.exp(_INTEGRAL * error * elapsed)
        self._part = max(min(_SMALLEST, self._part), min(1.0, part))
        self._apply(error)

    def _apply(self, error: float) -> None:
        least = min(_SMALLEST, self._part)
        self.factor = min(1.0, max(least, self._part * math.exp(error)))

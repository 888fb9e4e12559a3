"""Token bucket for one quantity (requests or tokens): a copy of the bucket that the server keeps.

Levels are floats. A level may be negative, as a debt of requests that cost more than estimated, but by one burst at
most. For a request that is larger than a burst, the bucket saves up while it is the first in the queue.

The headers of responses correct the copy (docs/development/resilience.md), with two additions to the usual formula.
It subtracts all that was sent after the answered request from what the headers say remains, and ignores the inflow
since. With a latency as long as a bucket lasts (a second, for requests) that left 43 to 75 % of the possible throughput
in the simulation, so the inflow is added (99 %). And while no other client uses the quota, the level is also raised
towards the headers by small steps, so that no error costs throughput for ever (98.8 to 99.5 %).

No I/O, no clock and no lock: the time is an argument, and the rate limiter calls it under its lock.
"""

from __future__ import annotations

import math
from typing import Final

from attrs import frozen

from llmopt.values.calls import RateLimit

_LOW_MARK: Final = 0.5
_HIGH_MARK: Final = 0.85
"""Set points of what remains, as parts of the bucket, for a share of 0 and of 1."""
_INTEGRAL: Final = 0.5
"""Change of the share (its logarithm) per second and unit of error; the proportional gain is 1."""
_MAX_STEP_S: Final = 3.0
_MIN_SHARE: Final = 0.1
"""Below this share only 429s change it: clients with large shares do not notice one that is too small."""
_RECOVERY: Final = 0.05
"""Growth of the share per second where headers show nothing; 429s cut it."""
_VANISHING: Final = 0.01
_CUT: Final = 0.7
_MEMORY_S: Final = 5.0
"""Time constant of the estimate of what others use."""
_CONTENDED: Final = 0.1
"""The quota is contended when others use more than this part of the limit, until they use less than half of it."""


@frozen(kw_only=True)
class QuotaSample:
    """What the headers of one response show of the server's bucket.

    Attributes:
        sent_at: when the request was sent.
        remaining: what remains in the bucket, according to the server.
        spent: all that this client had taken when it sent the request.
        expected_remaining: what should remain by now, without what requests in flight take.
    """

    sent_at: float
    remaining: float
    spent: float
    expected_remaining: float


class FairShare:
    """This client's share of a rate limit that clients which know nothing of each other use together.

    All of them see in the headers what remains of the limit, and two things are derived from it. First, the use by
    others: between two responses the server's bucket gained what the limit gives and lost what this client sent; the
    difference is what others took. A client that finds itself alone takes the whole limit. Otherwise a controller
    (proportional and integral, on the logarithm of the rate) holds what remains at a set point, so that a 429 is
    avoided and not provoked. This is the idea of RCP (Dukkipati, "Rate Control Protocol", 2007), with what remains in
    place of the router's queue. The set point is higher for a client with a larger share, and since all clients see
    the same number, that brings the shares together.

    Measured in tests/policies/test_rate_limiter_simulation.py: 1 to 2 % of the requests of four clients of one small
    bucket were refused, at 98 % of the possible throughput. With each client using the whole limit it was 45 to 49 %.

    Attributes:
        factor: the part of the limit that may be used now.
        uncontended: whether no other client seems to use the limit.
    """

    __slots__ = ("_last", "_max_remaining", "_others", "_share", "factor", "uncontended")

    def __init__(self) -> None:
        self.factor = 1.0
        self.uncontended = True
        self._share = 1.0
        self._others = 0.0
        self._max_remaining = 0.0
        self._last: QuotaSample | None = None

    def __repr__(self) -> str:
        return f"FairShare({self.factor:.2f}, others={self._others:.2f})"

    def bucket_fits(self, burst: float) -> bool:
        """Whether the server's bucket is no larger than ``burst``, as far as headers have shown."""
        return self._max_remaining <= burst

    def update(self, sample: QuotaSample, rate: float, burst: float) -> None:
        """Learn from the headers of one response.

        Args:
            sample: what they show.
            rate: the whole limit, per second.
            burst: capacity of this client's copy of the bucket.
        """
        self._max_remaining = max(self._max_remaining, sample.remaining)
        last, self._last = self._last, sample
        if last is None:
            self._first_sample(sample, burst)
            return
        depth = min(self._max_remaining, burst)
        span = max(sample.sent_at - last.sent_at, 1e-3)
        if depth > 0:
            self._estimate_others(sample, last, span, rate, burst, depth)
            self._control(sample.expected_remaining / depth, min(span, _MAX_STEP_S))
        elif not self.uncontended:
            # A bucket this small is always empty after a request, so what remains says nothing.
            self._share = min(1.0, self._share + _RECOVERY * min(span, _MAX_STEP_S))
            self._apply(0.0)

    def refused(self) -> None:
        """A 429 although this client's copy had capacity: others were faster, or an estimate was too low."""
        self._others = max(0.0, self._others) + _CONTENDED / 2
        self.uncontended = self.uncontended and self._others < _CONTENDED
        if not self.uncontended:
            self._share = max(_VANISHING, self._share * _CUT)
            self._apply(0.0)

    def _first_sample(self, sample: QuotaSample, burst: float) -> None:
        # Assuming that the bucket was full, and that others took their part in the time of one burst.
        used = burst - sample.remaining
        self._others = max(0.0, used - sample.spent) / burst
        self.uncontended = self._others < _CONTENDED
        if not self.uncontended:
            self._share = max(_MIN_SHARE, min(1.0, sample.spent / used))
            self._apply(0.0)

    def _estimate_others(
        self, sample: QuotaSample, last: QuotaSample, span: float, rate: float, burst: float, depth: float
    ) -> None:
        filled = last.remaining + rate * span
        # A bucket that may have overflowed since does not show use by others; without contention it shows at most
        # that there is none.
        if filled <= burst or self.uncontended:
            used = min(filled, depth) - sample.remaining - (sample.spent - last.spent)
            weight = math.exp(-span / _MEMORY_S)
            # It may be below 0 for a moment, when requests overtook each other. Later responses correct that; cutting
            # it off here would make noise look like use by others.
            self._others = max(-1.0, self._others * weight + used / span / rate * (1 - weight))
        self.uncontended = self._others < (_CONTENDED if self.uncontended else _CONTENDED / 2)

    def _control(self, filled: float, elapsed: float) -> None:
        if self.uncontended:
            self._share = max(_MIN_SHARE, min(1.0, 1 - self._others))
            self.factor = 1.0
            return
        spent_when_sent = _LOW_MARK + (_HIGH_MARK - _LOW_MARK) * self._share
        error = max(-1.0, min(1.0, filled - spent_when_sent))
        part = self._share * math.exp(_INTEGRAL * error * elapsed)
        self._share = max(min(_MIN_SHARE, self._share), min(1.0, part))
        self._apply(error)

    def _apply(self, error: float) -> None:
        least = min(_MIN_SHARE, self._share)
        self.factor = min(1.0, max(least, self._share * math.exp(error)))


_EPSILON: Final = 1e-6
"""Far below one token, far above what rounding does to a level."""
_MARGIN: Final = 0.1
"""Part of a burst that is not used, because requests overtake each other on the way to the server."""
_CONTENDED_MARGIN: Final = 0.15
_CONTENDED_RESET_FACTOR: Final = 10.0
_RAISE_STEP: Final = 0.02
_SUSPICIOUS_DROP: Final = 10.0
"""A limit that falls to less than a tenth must be repeated by ``_CONFIRMATIONS`` responses in a row."""
_CONFIRMATIONS: Final = 3
_MAX_LIMIT: Final = 1e9
_DAY: Final = 86_400.0


class TokenBucket:
    """The bucket of one quantity.

    Attributes:
        level: what may be taken now; infinite without a limit.
        rate: inflow per second in force.
        max_rate: inflow per second of the known limit; infinite without one.
        capacity: the highest level.
        reserved: what the first waiter needs; the level may rise to it above the capacity.
        spent: all that was ever taken, by estimates.
        refused_total: the part of it that the server refused with 429s.
        share: this client's share of the limit.
        firm: whether the configured limit holds where the server states a higher one, too.
        shared: whether the limit is shared through a store, which alone says how much of it this client may use.
        server_limit: the limit per minute in the last headers, None before the first.
    """

    __slots__ = (
        "_at",
        "_burst_s",
        "_configured",
        "_corrected",
        "_full_at",
        "_learned",
        "_smallest",
        "_suspicious",
        "capacity",
        "firm",
        "level",
        "max_rate",
        "rate",
        "refused_total",
        "reserved",
        "server_limit",
        "share",
        "shared",
        "spent",
    )

    def __init__(self, per_second: float | None, *, burst_s: float, smallest: float, now: float) -> None:
        """Start full.

        Args:
            per_second: the configured limit, None for none.
            burst_s: capacity, in seconds of inflow.
            smallest: the lowest capacity.
            now: monotonic seconds.
        """
        self._configured = math.inf if per_second is None else per_second
        self.firm = True
        self._burst_s = burst_s
        self._smallest = smallest
        self._learned = math.inf
        self._corrected = 0.0
        self._suspicious = 0
        self._full_at = math.inf
        self._at = now
        self.share = FairShare()
        self.shared = False
        self.server_limit: float | None = None
        self.max_rate = self._configured
        self.rate = self.max_rate
        self.capacity = math.inf
        self.reserved = 0.0
        self.spent = 0.0
        self.refused_total = 0.0
        self.level = math.inf
        self._resize()

    def __repr__(self) -> str:
        return f"TokenBucket(level={self.level:.6g}, rate={self.rate:.6g}/s)"

    # Taking

    def wait_time(self, now: float, cost: float) -> float:
        """Seconds until ``cost`` can be taken; 0 if it can be now."""
        elapsed = now - self._at
        if elapsed > 0:
            self._flow_in(now, elapsed)
        short = cost - self.level
        if short <= _EPSILON:
            return 0.0
        return max(_EPSILON, min(short / self.rate, self._full_at - now))

    def take(self, cost: float) -> None:
        """Take ``cost``, even if the level is lower."""
        self.level -= cost
        self.spent += cost

    def reserve(self, cost: float) -> None:
        """Save up for the first waiter, which needs ``cost``; what was saved for another one beyond that is lost."""
        if cost != self.reserved:
            self.reserved = cost
            self.level = min(self.level, max(self.capacity, cost))

    def refund(self, amount: float) -> None:
        """Return what was taken for a request that was not sent, or that the server did not count."""
        self.level = min(self.level + amount, max(self.capacity, self.reserved))

    def correct(self, extra: float) -> None:
        """A request cost ``extra`` more than was taken for it (less, if negative)."""
        self._corrected += extra
        self.refund(-extra)
        self.level = max(self.level, -self.capacity)

    def _flow_in(self, now: float, elapsed: float) -> None:
        self._at = now
        self.level = min(self.level + elapsed * self.rate, max(self.capacity, self.reserved))
        if now >= self._full_at:
            # According to the server the bucket is full now, so the next request may be sent, whatever the level is.
            self._full_at = math.inf
            self.level = max(self.level, self.reserved, self._smallest)

    # The rate

    def assume_limit(self, per_minute: float | None) -> None:
        """Take a limit for that of the server until its headers say another one; None for no limit of the server."""
        self.server_limit = per_minute
        self.max_rate = self._configured if per_minute is None else self._allowed(per_minute / 60)
        self._resize()

    def _allowed(self, stated: float) -> float:
        return min(self._configured, stated) if self.firm else stated

    def set_learned_rate(self, now: float, rate: float) -> None:
        """Set the highest rate that was learned from 429s; infinite for none."""
        self.wait_time(now, 0.0)
        self._learned = rate
        self._resize()

    def set_debt(self, part: float) -> None:
        """Lower the level to a debt of this part of a burst, so that the server's bucket fills up a little."""
        if self.rate < math.inf:
            self.level = min(self.level, -part * self.rate * self._burst_s)

    def hold_until(self, until: float) -> None:
        """Stop the inflow until then."""
        self._at = max(self._at, until)

    def throttled(self, now: float) -> None:
        """A 429 that the headers explain: too little remains."""
        self.wait_time(now, 0.0)
        if not self.shared:
            self.share.refused()
        self._resize()

    def _resize(self) -> None:
        self.rate = min(self.max_rate * self.share.factor, self._learned)
        self.capacity = max(self._smallest, self.rate * self._burst_s * (1 - _MARGIN))
        self.level = min(self.level, max(self.capacity, self.reserved))

    # Headers

    def observe(self, now: float, limit: RateLimit, sent_at: float, spent_when_sent: float) -> None:
        """Correct the bucket by the headers of a response.

        Args:
            now: monotonic seconds.
            limit: the rate limit of this quantity in the headers.
            sent_at: when the request was sent.
            spent_when_sent: ``spent`` at that moment.
        """
        self.wait_time(now, 0.0)
        self._update_limit(limit)
        remaining = _plausible(limit.remaining, _MAX_LIMIT)
        if remaining is not None and self.max_rate < math.inf:
            self._update_level(now, limit, remaining, sent_at, spent_when_sent)
        self._resize()

    def _update_limit(self, limit: RateLimit) -> None:
        allowance, window = _plausible(limit.limit, _MAX_LIMIT), _plausible(limit.window_s, _DAY)
        if not allowance or not window:
            return
        rate = allowance / window
        if self.max_rate < math.inf and rate * _SUSPICIOUS_DROP < self.max_rate:
            self._suspicious += 1
            if self._suspicious < _CONFIRMATIONS:
                return
        self._suspicious = 0
        self.server_limit = rate * 60
        self.max_rate = self._allowed(rate)
        self._resize()

    def _update_level(
        self, now: float, limit: RateLimit, remaining: float, sent_at: float, spent_when_sent: float
    ) -> None:
        burst = self.max_rate * self._burst_s
        expected = remaining + self.rate * (now - sent_at) - max(0.0, self.spent - spent_when_sent)
        if self.shared:
            self.level = max(min(self.level, expected), -self.capacity)
            return
        spent = spent_when_sent - self.refused_total + self._corrected
        self.share.update(
            QuotaSample(sent_at=sent_at, remaining=remaining, spent=spent, expected_remaining=expected),
            self.max_rate,
            burst,
        )
        safe = expected - (_MARGIN if self.share.uncontended else _CONTENDED_MARGIN) * burst
        if self.share.uncontended and self.share.bucket_fits(burst):
            self.level += _RAISE_STEP * max(0.0, min(safe, self.capacity) - self.level)
        self.level = max(min(self.level, safe), -self.capacity)
        self._full_at = now + self._renewal(limit)

    def _renewal(self, limit: RateLimit) -> float:
        window = _plausible(limit.window_s, _DAY) or _DAY
        reset = _plausible(limit.reset_s, _DAY)
        if reset is None:
            return max(window, self._burst_s)
        if not self.share.uncontended:
            # Others take from what flows in, too.
            reset = min(window, reset * _CONTENDED_RESET_FACTOR)
        return max(reset, self._burst_s)


def _plausible(value: float | None, maximum: float) -> float | None:
    """A number of the headers, None if it is negative, not a number or implausibly large."""
    return value if value is not None and 0 <= value <= maximum else None

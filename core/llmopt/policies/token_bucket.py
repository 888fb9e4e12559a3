"""A token bucket for one quantity (requests, or tokens): a copy of the one that the server keeps.

Levels are floats. A level may be negative, a debt from requests that cost more than was estimated, but
never by more than a whole burst. What is larger than a burst can be saved up for by the first in line.

What headers tell corrects the copy as in docs/development/resilience.md, with two additions. The formula there takes
all that was sent after the answered request off the rest it told, and counts nothing that flowed in meanwhile: with a
latency as long as a bucket lasts (a second, for requests) 43 to 75 % of the possible throughput were left in the
simulation, so the inflow is added (99 %). And while nobody else uses the quota the level is drawn up
to what headers tell, too, by small steps, so that no error costs throughput for ever (98.8 to 99.5 %).
"""

from __future__ import annotations

import math
from typing import Final

from attrs import frozen

from llmopt.values.calls import RateLimit

# The part of a rate limit that is ours, where clients that know nothing of each other use it too.
#
# The rest of the allowance that an answer's headers tell is a signal all of them see, and two things are read
# from it. First, what others use: between two answers the server's bucket gained what the limit gives and
# lost what we sent; the remainder is theirs. A client that finds itself alone takes the whole limit. Else a
# controller (proportional and integral, on the logarithm of the rate) holds the rest at a set
# point, so that a refusal is foreseen and not provoked. It is the idea of RCP (Dukkipati, "Rate Control Protocol",
# 2007), the rest standing where RCP has the router's queue. The set point is higher for
# who takes more, and since all see one remaining, that drives the shares together.
#
# Measured (tests/policies/test_rate_limiter_simulation.py): of the requests of four clients of one small bucket, 1 to
# 2 % were refused, and 98 % of the possible throughput reached; without this, each believing that
# the whole limit was its own, 45 to 49 % were refused.

_LOW_MARK: Final = 0.5
_HIGH_MARK: Final = 0.85
"""Set points of the remaining, as parts of the bucket, for a share of 0 and of 1."""
_INTEGRAL: Final = 0.5
"""Change of the share (its logarithm) per second and unit of error; the proportional gain is 1."""
_MAX_STEP_S: Final = 3.0
_MIN_SHARE: Final = 0.1
"""Share below which only refusals drive it: what is too small is overlooked by those who have the rest."""
_RECOVERY: Final = 0.05
"""Growth of the share per second where the rest tells nothing; refusals cut it."""
_VANISHING: Final = 0.01
_CUT: Final = 0.7
_MEMORY_S: Final = 5.0
"""Time constant of the estimate of what others use."""
_CONTENDED: Final = 0.1
"""Others are there when they use more than this part of the limit; they are gone below half of it."""


@frozen(kw_only=True)
class QuotaSample:
    """What one answer shows of the server's bucket.

    Attributes:
        sent_at: when its request was sent.
        remaining: what the server says is left.
        spent: what this client had taken in all when it sent the request.
        expected_remaining: what should be left by now, requests under way taken off.
    """

    sent_at: float
    remaining: float
    spent: float
    expected_remaining: float


class FairShare:
    """The share of one limit.

    Attributes:
        factor: the part of the limit that may be used now.
        uncontended: whether nobody else seems to use it.
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
        """Whether the server's bucket is no deeper than ours, as far as it was ever seen."""
        return self._max_remaining <= burst

    def update(self, sample: QuotaSample, rate: float, burst: float) -> None:
        """Learn from one answer.

        Args:
            sample: what it shows.
            rate: the whole limit, per second.
            burst: the limit's bucket as we keep it.
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
            # So shallow a bucket is always empty after a request. Its rest says nothing.
            self._share = min(1.0, self._share + _RECOVERY * min(span, _MAX_STEP_S))
            self._apply(0.0)

    def refused(self) -> None:
        """A refusal although our own model had room: others were quicker, or an estimate was too low."""
        self._others = max(0.0, self._others) + _CONTENDED / 2
        self.uncontended = self.uncontended and self._others < _CONTENDED
        if not self.uncontended:
            self._share = max(_VANISHING, self._share * _CUT)
            self._apply(0.0)

    def _first_sample(self, sample: QuotaSample, burst: float) -> None:
        # Taken as if the bucket had been full, and they had taken their part within one burst's time.
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
        # A bucket that may have run over meanwhile says nothing of use; for one that is alone it says
        # at most that there is none.
        if filled <= burst or self.uncontended:
            used = min(filled, depth) - sample.remaining - (sample.spent - last.spent)
            weight = math.exp(-span / _MEMORY_S)
            # It may come out below 0 for a moment, when requests overtook each other; the next answers
            # bring that back, and cutting it off here would turn noise into company.
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
"""Part of a burst that is left to the server: requests overtake each other on the way."""
_CONTENDED_MARGIN: Final = 0.15
_CONTENDED_RESET_FACTOR: Final = 10.0
_RAISE_STEP: Final = 0.02
_SUSPICIOUS_DROP: Final = 10.0
"""A limit that falls to less than a tenth is believed when ``_CONFIRMATIONS`` answers in a row say it."""
_CONFIRMATIONS: Final = 3
_MAX_LIMIT: Final = 1e9
_DAY: Final = 86_400.0


class TokenBucket:
    """The bucket of one quantity.

    Attributes:
        level: what may be taken now; infinite without a limit.
        rate: inflow per second in force.
        max_rate: inflow per second that is known to be allowed; infinite when nothing is known.
        capacity: the most that is saved up.
        reserved: what the first in line waits for; saved up even above the capacity.
        spent: all that was ever taken, by estimates.
        refused_total: what of it the server refused.
        share: what others leave of the limit.
        server_limit: the limit a minute as headers told it last, None before they do.
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
        "level",
        "max_rate",
        "rate",
        "refused_total",
        "reserved",
        "server_limit",
        "share",
        "spent",
    )

    def __init__(self, per_second: float | None, *, burst_s: float, smallest: float, now: float) -> None:
        """Start full.

        Args:
            per_second: the configured limit, None for none.
            burst_s: seconds' worth of inflow that can be saved up.
            smallest: the bucket is never smaller than this.
            now: seconds.
        """
        self._configured = math.inf if per_second is None else per_second
        self._burst_s = burst_s
        self._smallest = smallest
        self._learned = math.inf
        self._corrected = 0.0
        self._suspicious = 0
        self._full_at = math.inf
        self._at = now
        self.share = FairShare()
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
        """Seconds until ``cost`` can be taken; 0 when it can be now."""
        elapsed = now - self._at
        if elapsed > 0:
            self._flow_in(now, elapsed)
        short = cost - self.level
        if short <= _EPSILON:
            return 0.0
        return max(_EPSILON, min(short / self.rate, self._full_at - now))

    def take(self, cost: float) -> None:
        """Take it, whether it is there or not."""
        self.level -= cost
        self.spent += cost

    def reserve(self, cost: float) -> None:
        """The first in line needs this much now; what was saved up for another beyond that is gone."""
        if cost != self.reserved:
            self.reserved = cost
            self.level = min(self.level, max(self.capacity, cost))

    def refund(self, amount: float) -> None:
        """Return what was taken for a request that was not sent, or not counted by the server."""
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
            # By the server's own word it is whole again: whatever we believe, the next may try.
            self._full_at = math.inf
            self.level = max(self.level, self.reserved, self._smallest)

    # The rate

    def set_learned_rate(self, now: float, rate: float) -> None:
        """Go no faster than this, by what refusals taught; infinite to be free again."""
        self.wait_time(now, 0.0)
        self._learned = rate
        self._resize()

    def set_debt(self, part: float) -> None:
        """Fall short by this part of a burst at least, so that the server's bucket fills up a little."""
        if self.rate < math.inf:
            self.level = min(self.level, -part * self.rate * self._burst_s)

    def hold_until(self, until: float) -> None:
        """Let nothing flow in before then."""
        self._at = max(self._at, until)

    def throttled(self, now: float) -> None:
        """A refusal that the rest in the headers explains."""
        self.wait_time(now, 0.0)
        self.share.refused()
        self._resize()

    def _resize(self) -> None:
        self.rate = min(self.max_rate * self.share.factor, self._learned)
        self.capacity = max(self._smallest, self.rate * self._burst_s * (1 - _MARGIN))
        self.level = min(self.level, max(self.capacity, self.reserved))

    # Headers

    def observe(self, now: float, limit: RateLimit, sent_at: float, spent_when_sent: float) -> None:
        """Correct the bucket by the headers of an answer.

        Args:
            now: seconds.
            limit: what they tell of this quantity.
            sent_at: when the answered request was sent.
            spent_when_sent: ``spent`` when it was.
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
        self.max_rate = min(self._configured, rate)
        self._resize()

    def _update_level(
        self, now: float, limit: RateLimit, remaining: float, sent_at: float, spent_when_sent: float
    ) -> None:
        burst = self.max_rate * self._burst_s
        expected = remaining + self.rate * (now - sent_at) - max(0.0, self.spent - spent_when_sent)
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
            # Others take of what comes back, too.
            reset = min(window, reset * _CONTENDED_RESET_FACTOR)
        return max(reset, self._burst_s)


def _plausible(value: float | None, maximum: float) -> float | None:
    """What is negative, not a number or absurdly large counts as not told."""
    return value if value is not None and 0 <= value <= maximum else None

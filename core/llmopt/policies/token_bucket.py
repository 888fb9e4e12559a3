"""Token bucket for one quantity (requests or tokens): a copy of the bucket that the server keeps.

Levels are floats. A level may be negative, as a debt of requests that cost more than estimated, but by one burst at
most. For a request that is larger than a burst, the bucket saves up while it is the first in the queue.

The headers of responses correct the copy (docs/development/resilience.md), with two additions to the usual formula.
It subtracts all that was sent after the answered request from what the headers say remains, and ignores the inflow
since. With a latency as long as a bucket lasts (a second, for requests) that left 43 to 75 % of the possible throughput
in the simulation, so the inflow is added (99 %). And while no other client uses the quota, the level is also raised
towards the headers, so that no error costs throughput for ever (98.8 to 99.5 %), and the whole bank that a server keeps
for its clients can be spent at once: with a bucket that held a minute's limit, 75 s gave 99.6 % of the possible, and 56 %
while the copy never held more than one burst.

No I/O, no clock and no lock: the time is an argument, and the rate limiter calls it under its lock.
"""

from __future__ import annotations

import math
from typing import Final

from attrs import define, frozen

from llmopt.values.calls import RateLimit

_ZONE_S: Final = 3.0
"""The controller holds what remains between 0 and this many seconds of inflow, or in the whole bucket if that is
smaller. Four clients of a bucket of a minute had 98.7 % of the possible with 3 s and 98.4 % with 4 s, unrefused; with a
latency of 2 s instead of 0.4 s, 2 to 4 % of their requests were refused (5 % before)."""
_HELD_REQUESTS: Final = 24.0
_MIN_HELD_S: Final = 2.0
"""What is held in reserve covers the chance in arrivals, which is a number of requests, and the delay of the answers: no
more than both. The end of a bank is still approached from the whole zone. Four clients of a bucket of 5 s, 12 requests a
second: 98.2 to 98.5 % of the possible, and 97.7 to 98.1 % when all of the zone was the reserve; 28 requests left 97.8 %."""
_HIGH: Final = 0.8
"""The part of the reserve that remains when one client may use the whole limit."""
_SLOPE: Final = 5.0
"""Fall of the logarithm of the share from there to an empty bucket: four clients meet at about half of the reserve."""
_FAST_PART: Final = 0.25
_SETTLE_S: Final = 6.0
"""A quarter of a change acts at once, the rest with this time constant. A share that followed at once swung between
nothing and everything (four clients of a bucket of one second: 65 to 70 % of the possible, 8 % refused)."""
_GROW_S: Final = 1.0
_MAX_AIM: Final = 0.3
"""The time constant and the highest logarithm of the share while the bucket is nearly full. Going a little beyond the
whole limit shows a single client that it is alone (98.7 % of the possible instead of 97.3 % for a full bucket of a
second)."""
_FIRST_S: Final = 2.0
_SPEND_S: Final = 10.0
"""A client that does not know the others yet takes at most what remains over ``_FIRST_S``, and each of several spends a
bank beyond the zone with the time constant ``_SPEND_S``: eight then overspend nothing within a round trip."""
_MIN_SHARE: Final = 0.1
"""A newcomer takes at least this, so that a client which has believed to be alone notices it: with 0.07 it stayed
unnoticed in 3 of 8 runs. Only 429s lower it, for more than ten clients."""
_RECOVERY: Final = 0.02
_CUT: Final = 0.7
_MIN_CAUTION: Final = 0.05
_MEMORY_S: Final = 5.0
"""Time constant of the sums that the estimate of what others use is made of."""
_CONTENDED: Final = 0.07
"""The quota is contended when others use more than this part of the limit."""
_UNIT_REQUESTS: Final = 4.0
"""All times count from a second, or from the time in which this many requests flow in if that is longer."""
_FEW_REQUESTS: Final = 6.0
"""What remains of a bucket of fewer says too little: only 429s count there (additive increase, multiplicative decrease)."""
_COST_STEP: Final = 0.1
_FORGET: Final = 10.0
"""Without a sample for this many units of time, the estimate of the use by others starts anew."""


@frozen
class QuotaSample:
    """What the headers of one response show of the server's bucket.

    Attributes:
        sent_at: when the request was sent.
        remaining: what remains in the bucket, according to the server.
        spent: all that this client had taken when it sent the request.
        cost: that of the request.
        full: what the full bucket holds according to its reset time, 0 if that does not say.
        reset_s: seconds until its reset time, 0 if it states none.
    """

    sent_at: float
    remaining: float
    spent: float
    cost: float = 1.0
    full: float = 0.0
    reset_s: float = 0.0


@define(eq=False)
class FairShare:
    """This client's share of a rate limit that clients which know nothing of each other use together.

    All of them see in the headers what remains of the limit, and two things are derived from it. First, the use by
    others: between two responses the server's bucket gained what the limit gives and lost what this client sent; the
    difference is what others took. A client that finds itself alone takes all that remains at once. Second, a common
    price: among several clients, the rate of each is the same function of what remains, low when little does. Since all
    see the same number, all get the same rate, and what remains settles where the rates add up to the limit; a client
    that needs less leaves more to the others. This is RCP's one rate for all flows (Dukkipati, "Rate Control Protocol",
    2007) with what remains in place of the router's queue, and the price of Kelly's "Rate control for communication
    networks" (1998). The function acts through a lag-lead filter, as the answers are old by a round trip.

    Measured with four clients for two minutes (tests/policies/test_rate_limiter_simulation.py has the tests): of a
    bucket of one second 99.4 % of the possible, 0.2 % refused and the least client at 0.97 of the fair share; of one
    of a minute 98.7 %, none refused and 0.95. A controller that moved each client's own share by the same error, as
    the former one did, kept the shares that chance had set at the start: 0.5 to 0.7, with 0.9 % refused.

    Attributes:
        factor: the part of the limit that may be used now; more than 1 while a bank is spent.
        uncontended: whether no other client seems to use the limit. It is true before the first sample, too.
        starting: whether only one sample is known, and it shows no bank.
        cost: the usual cost of a request.
        deep: whether the server's bucket holds more than a few requests.
    """

    factor: float = 1.0
    uncontended: bool = True
    starting: bool = False
    cost: float = 0.0
    deep: bool = False
    _caution: float = 1.0
    _depth_s: float = 0.0  # the highest level seen or stated, in seconds of inflow
    # Sums with a fading memory: what flowed in, what others took of it, and what this client did.
    _inflow: float = 0.0
    _others: float = 0.0
    _own: float = 0.0
    _slow: float = 0.0  # the logarithm of the share, behind the filter
    _last: QuotaSample | None = None
    _windowed: bool = False  # whether the bucket is filled once per window, and not steadily

    def update(self, sample: QuotaSample, rate: float) -> None:
        """Learn from the headers of one response.

        Args:
            sample: what they show.
            rate: the whole limit, per second.
        """
        last, self._last = self._last, sample
        self.cost = sample.cost if last is None else self.cost + _COST_STEP * (sample.cost - self.cost)
        left = sample.remaining / rate
        if last is not None and sample.full:
            self._update_windowed(sample, last)
        self._depth_s = max(self._depth_s, left)
        depth_s = self._depth_s if self._windowed else max(self._depth_s, sample.full / rate)
        unit_s = max(1.0, _UNIT_REQUESTS * self.cost / rate)
        zone = min(depth_s, _ZONE_S * unit_s)
        span = max(sample.sent_at - last.sent_at, 1e-3) if last is not None else math.inf
        forgotten = span > _FORGET * unit_s
        self.starting = forgotten and left <= zone
        if last is None or forgotten:
            span = self._inflow = self._others = self._own = 0.0
            self._slow = math.log(max(_MIN_SHARE / 2, min(1.0, left / _FIRST_S)))
        else:
            self._estimate_others(sample, last, span, rate, zone, math.exp(-span / (_MEMORY_S * unit_s)))
        self._caution = min(1.0, self._caution + _RECOVERY * span)
        self.deep = depth_s * rate >= _FEW_REQUESTS * self.cost
        if not self.deep:
            self.uncontended = self.uncontended and self._caution >= 1.0
            self.factor = self._caution
        else:
            self.uncontended = self._inflow >= unit_s * rate and self._others <= _CONTENDED * self._inflow
            held_s = max(_MIN_HELD_S, _HELD_REQUESTS * self.cost / rate)
            self.factor = self._factor(left, zone, min(zone, held_s), span / unit_s)

    def refused(self) -> None:
        """A 429 although this client's copy had capacity: others were faster, or an estimate was too low."""
        self._caution = max(_MIN_CAUTION, self._caution * _CUT)

    def _update_windowed(self, sample: QuotaSample, last: QuotaSample) -> None:
        """The more remains, the sooner a steadily filled bucket is full; a window ends when it ends."""
        moved = (sample.remaining - last.remaining) * (sample.reset_s - last.reset_s)
        self._windowed = moved > 0 if moved else self._windowed

    def _estimate_others(
        self, sample: QuotaSample, last: QuotaSample, span: float, rate: float, zone: float, keep: float
    ) -> None:
        inflow, rise = rate * span, sample.remaining - last.remaining
        if rise > (0.0 if self._windowed else inflow + zone * rate):
            return  # A new window has begun.
        filled = last.remaining + (0.0 if self._windowed else inflow)
        if self.uncontended:
            # A full bucket loses what flows in, and that is nobody's use. Where others use the limit it is taken for
            # theirs, so that it takes a client that uses all to find itself alone.
            filled = min(filled, self._depth_s * rate)
        own = sample.spent - last.spent
        # Requests that overtook each other show here as use, and are cancelled by the next sample.
        self._others = self._others * keep + filled - sample.remaining - own
        self._own = self._own * keep + own
        self._inflow = self._inflow * keep + inflow

    def _factor(self, left: float, zone: float, held: float, elapsed: float) -> float:
        if self.uncontended:
            self._slow = 0.0
            return 1.0
        if left > zone:
            used = max(self._own, 1e-9)
            self._slow = math.log(max(_MIN_SHARE / 2, used / (used + max(0.0, self._others))))
            return 1 + (left - zone) / _SPEND_S
        aim = min(_MAX_AIM, _SLOPE * (left / held - _HIGH))
        lag = _SETTLE_S if aim < 0 else _GROW_S
        self._slow += (aim - self._slow) * (1 - math.exp(-min(elapsed, _ZONE_S) / lag))
        share = math.exp(_FAST_PART * aim + (1 - _FAST_PART) * self._slow)
        return max(_MIN_SHARE * self._caution, share)


_EPSILON: Final = 1e-6
"""Far below one token, far above what rounding does to a level."""
_MARGIN: Final = 0.1
"""Part of a burst that is not used, because requests overtake each other on the way to the server."""
_PACE_S: Final = 0.25
"""Capacity where others use the limit too, in seconds of inflow: a burst of each of them would empty the server's."""
_FRESH_S: Final = 5.0
"""A bank is used no longer after the last headers."""
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
        burst_s: capacity, in seconds of inflow.
        smallest: the lowest capacity.
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
        believed: whether what headers say remains is used. A refusal that contradicts them ends that.
    """

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
        self.burst_s = burst_s
        self.smallest = smallest
        self._corrected = 0.0
        self._suspicious = 0
        self._bank = 0.0
        self._full_at = math.inf
        self._due_at = math.inf
        self._at = now
        self.share = FairShare()
        self.shared = False
        self.believed = True
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

    @property
    def per_minute(self) -> float:
        """The limit that is never exceeded: the configured one; infinite where headers may state a higher one."""
        return self._configured * 60 if self.firm else math.inf

    @property
    def stated_rate(self) -> float:
        """Inflow per second of the limit that headers state; 0 where they state none."""
        return 0.0 if self.server_limit is None else self.max_rate

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
        if now >= self._due_at:
            self._due(now)

    def _due(self, now: float) -> None:
        if self._bank:
            self._bank = 0.0
            self._resize()
        if now >= self._full_at:
            # According to the server the bucket is full now, so the next request may be sent, whatever the level is.
            self._full_at = math.inf
            self.level = max(self.level, self.reserved, self.smallest)
        self._due_at = self._full_at

    # The rate

    def assume_limit(self, per_minute: float | None) -> None:
        """Take a limit for that of the server until its headers say another one; None for no limit of the server."""
        self.server_limit = per_minute
        self.max_rate = self._configured if per_minute is None else per_minute / 60
        if self.firm:
            self.max_rate = min(self.max_rate, self._configured)
        self._resize()

    def throttled(self, now: float) -> None:
        """A 429 that the headers explain: too little remains."""
        self.wait_time(now, 0.0)
        if not self.shared:
            self.share.refused()
        self._resize()

    def set_rate(self, now: float, per_second: float) -> None:
        """Let this much flow in from now on."""
        self.wait_time(now, 0.0)
        self.max_rate = per_second
        self._resize()

    def empty(self, now: float) -> None:
        """Nothing is known to be left."""
        self._at, self.level = now, 0.0

    def disbelieve(self) -> None:
        """A 429 although headers say that enough remains: send no more at once than without headers."""
        self.believed, self.share = False, FairShare()
        self._bank, self._full_at = 0.0, math.inf
        self._resize()

    def _resize(self) -> None:
        self.rate = self.max_rate * self.share.factor
        burst_s = self.burst_s * (1 - _MARGIN) if self.share.uncontended else min(self.burst_s, _PACE_S)
        self.capacity = max(self.smallest, self.rate * burst_s, self._bank)
        self.level = min(self.level, max(self.capacity, self.reserved))

    # Headers

    def observe(
        self, now: float, limit: RateLimit, sent_at: float, spent_when_sent: float, cost: float
    ) -> None:
        """Correct the bucket by the headers of a response.

        Args:
            now: monotonic seconds.
            limit: the rate limit of this quantity in the headers.
            sent_at: when the request was sent.
            spent_when_sent: ``spent`` at that moment.
            cost: what the request was to take.
        """
        self.wait_time(now, 0.0)
        self._update_limit(limit)
        remaining = _plausible(limit.remaining, _MAX_LIMIT) if self.believed else None
        if remaining is not None and self.max_rate < math.inf:
            inflow = min(self.rate, self.max_rate) * (now - sent_at)
            expected = remaining + inflow - max(0.0, self.spent - spent_when_sent)
            if self.shared:
                self.level = max(min(self.level, expected), -self.capacity)
            else:
                spent = spent_when_sent - self.refused_total + self._corrected
                reset = _plausible(limit.reset_s, _DAY)
                full = 0.0 if reset is None else self._full(limit.limit or 0.0, remaining, reset)
                sample = QuotaSample(sent_at, remaining, spent, cost, full, reset or 0.0)
                self.share.update(sample, self.max_rate)
                self._update_level(now, expected, self._renewal(limit, reset))
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
        self.assume_limit(rate * 60)

    def _update_level(self, now: float, expected: float, renewal: float) -> None:
        """Correct the level; ``expected`` is what should be left of the whole limit by now."""
        safe = expected - self._margin(self.max_rate * self.burst_s)
        self._bank = max(0.0, safe) if self._may_bank() else 0.0
        if self.share.uncontended:
            self._resize()
            # By steps, because the last of a burst may have overtaken the others on the way to the server.
            self.level += _RAISE_STEP * max(0.0, min(safe, self.capacity) - self.level)
        elif self.share.deep:
            # The share keeps the margin. At the first sample, others may have sent as much as this client.
            safe = 0.0 if self.share.starting else max(0.0, expected)
        self.level = max(min(self.level, safe), -self.capacity)
        self._full_at = now + renewal
        self._due_at = min(self._full_at, now + _FRESH_S)

    def _margin(self, burst: float) -> float:
        """What is left to the server because requests overtake each other, and cost more than estimated."""
        return max(_MARGIN * burst, self.share.cost) if self._bank else _MARGIN * burst

    def _may_bank(self) -> bool:
        """Whether more than a burst may be sent at once: a lower limit that is configured forbids it."""
        server = self.max_rate if self.server_limit is None else self.server_limit / 60
        return self.share.deep and self.share.uncontended and self._configured >= server

    def _full(self, limit: float, remaining: float, reset: float) -> float:
        """What the full bucket holds if ``reset`` is the time until then; whole seconds may be rounded up."""
        return min(limit, remaining + max(0.0, reset - (reset % 1 == 0)) * self.max_rate)

    def _renewal(self, limit: RateLimit, reset: float | None) -> float:
        window = _plausible(limit.window_s, _DAY) or _DAY
        if reset is None:
            return max(window, self.burst_s)
        if not self.share.uncontended:
            # Others take from what flows in, too.
            reset = min(window, reset * _CONTENDED_RESET_FACTOR)
        return max(reset, self.burst_s)


def _plausible(value: float | None, maximum: float) -> float | None:
    """A number of the headers, None if it is negative, not a number or implausibly large."""
    return value if value is not None and 0 <= value <= maximum else None

"""Adaptive rate: rates of requests and tokens that are learned from 429s alone, where no header states a limit.

The rate follows CUBIC (RFC 9438), which the AWS SDKs' adaptive mode uses for rates too: after a 429 it dips, returns to
that of the 429, stays near it for long, and only then probes higher. It differs in four ways, each because of a figure
from tests/policies/test_rate_limiter_simulation.py:

* **The rate to return to is measured.** Between two moments at which the server's bucket was empty, it granted
  exactly its inflow; over any other time at most the inflow and one burst. Both are lower bounds of its rate, and
  the larger one is used. With the rate at the moment of the 429, as in CUBIC, 33 % of all requests were refused; with
  the measured one 1 %. Until one measurement took four seconds, the rate doubles in 8 s instead, as in TCP's slow start:
  after a process was stopped for 5 s, 103 % of the refill were used in the next 15 s, and 32 % without it.
* **The curve is relative to that rate**, so that the same curve serves 1 and 10,000 requests a second. With the rate
  measured, a dip of a tenth is enough: 97 % of the possible throughput, 96 % with the AWS SDKs' 0.3.
* **Two hypotheses.** Few 429s say whether requests or tokens were too many. Both rates are then cut, and while requests
  are of the size that they had, both hold requests back. Once sizes change, a request waits only if both hypotheses let
  it wait; its answer refutes one of them. Ten batches of 4,800 tokens after 400 refused requests of one token take
  0.5 s, and 265 s without this.
* **Random 429s do not slow down.** A token bucket refuses nothing below its inflow. So 429s that come while less was sent
  than flowed in have another cause. After the second one the learned rate is dropped, as TCP undoes a spurious timeout
  (RFC 4015), and 429s are ignored until their share grows. If it grows at once, the limit was real, and twice as many are
  needed the next time. 400 requests of which 10 % were refused at random took 5.5 s, 3.6 s without any limit, and 34 s
  when three cuts had to leave the share as it was. A name is no proof: a gateway that fails by chance sends the words of
  a limit too, and 3 % of them slowed 48 requests a second down to 4. Refusals with and without a name are counted apart,
  because a server that has named the limit of one refusal means something else where it names none: then random 429s
  beside a limit left 90 % of the possible, and 38 % before.

No I/O, no clock and no lock: the time is an argument. All requests of one quota share a `CubicRate`, from any loop and
thread; the rate limiter calls it under its own lock.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, Literal

from attrs import define

from llmopt.policies.token_bucket import TokenBucket
from llmopt.values.calls import Dimension

if TYPE_CHECKING:
    from llmopt.policies.quota import Lease

Amounts = tuple[float, float]
"""Of requests and of tokens."""
Effect = Literal["cut", "undone", "tolerated", "none"]
"""Of a 429: the rate was cut, or it was dropped, or it is one of those that come at any rate, or none of these."""
DIMENSIONS: Final[tuple[Dimension, Dimension]] = ("requests", "tokens")

CUT_INTERVAL_S: Final = 1.0
"""One overload shows in many 429s; they count once a second."""
MIN_RATE: Final = 0.5
"""The lowest rate, in requests per second."""
BURST_S: Final = (1.0, 5.0)
"""Capacity of the buckets of requests and of tokens, in seconds of inflow (docs/development/resilience.md)."""
_DEBT: Final = 0.1
"""Part of a burst that is owed after a cut, so that the server's bucket fills up a little."""
_CUT: Final = 0.7
_AGAIN: Final = 0.85
_DIP: Final = 0.1
_RECOVERY_S: Final = 6.0
"""Seconds from a 429 back to its rate, or the time of ``_RECOVERY_REQUESTS`` if longer, up to a minute."""
_RECOVERY_REQUESTS: Final = 30.0
_MAX_RECOVERY_S: Final = 60.0
_DOUBLINGS: Final = 0.75
"""Doublings in the time of a recovery, before a measurement is trusted."""
_FORGOTTEN: Final = 1_000.0
_FALLEN: Final = 0.5
"""Below this part of the highest rate that was measured, refusals have another cause. Without it 3 % of random refusals left
8 to 17 % of 50 requests a second over 35 minutes, and 75 to 86 % with it; 0.7 is no better."""
_TOKEN_SLACK: Final = 1.1
"""Sizes of requests vary. Without this margin both limits bind in turn, and 3 % of the throughput is lost."""
_SOON_S: Final = 3.0
_MIN_CYCLE_S: Final = 4.0
_FEW: Final = 5
"""Nothing is measured with fewer requests."""
_OTHER_SIZES: Final = 3.0
"""Sizes have changed when their moving average did by this factor; sizes that only vary do not reach it."""
_AVERAGED: Final = 0.2
_MINORITY: Final = 0.3
"""A larger share of refusals is that of a limit: the rate may still be above it after a cut to 0.7."""
_MANY: Final = 0.05
"""Fewer refusals cost little, and sizes that vary explain them: then four times as many are needed. With twice as many a
limit of tokens was taken for noise, and 7 % were refused in place of 2 %."""
_TOLERANCE: Final = 1.5
_TOLERATED: Final = 2.0
_WINDOW: Final = 200
_NO_NOISE: Final = 0.005


_MIN_SPAN_S: Final = 0.5
_IDLE_S: Final = 1.0
"""After this long without a request that nothing held back, the limit was not in use, or the process was stopped."""
_SAMPLE_INTERVAL_S: Final = 0.5
_MAX_SAMPLES: Final = 60


class GrantSamples:
    """What was granted by some moments of the last 30 s, and the rate that it shows.

    Attributes:
        anchored: whether the server's bucket was empty at the first moment; otherwise it was perhaps full.
        next_at: when `add` should be called again.
        requests: number of requests that the last `rate` rests on.
    """

    def __init__(self) -> None:
        # When, the number of requests sent by then, and what was granted of both quantities.
        self._samples: deque[tuple[float, int, float, float]] = deque()
        self.anchored = False
        self.next_at = -math.inf
        self.requests = 0.0

    def add(self, now: float, sent: int, granted: Amounts, slowness: float, held_until: float) -> None:
        """Remember how much was granted by now; the interval is longer by the factor ``slowness`` for low rates."""
        if now - max(self.next_at, held_until) > _IDLE_S * slowness:
            self._samples.clear()
            self.anchored = False
        self._append(now, sent, granted, slowness)

    def restart(self, now: float, sent: int, granted: Amounts, slowness: float) -> None:
        """The server's bucket is empty now. The anchor stays for four seconds, to measure over a longer time."""
        if not self.anchored or self.span(now) >= _MIN_CYCLE_S:
            self._samples.clear()
            self.anchored = True
        self._append(now, sent, granted, slowness)

    def span(self, now: float) -> float:
        """Seconds since the first moment."""
        return now - self._samples[0][0] if self._samples else 0.0

    def since(self, granted: Amounts) -> Amounts:
        """What was granted since the first moment."""
        _, _, requests, tokens = self._samples[0] if self._samples else (0.0, 0, *granted)
        return granted[0] - requests, granted[1] - tokens

    def rate(self, now: float, granted: Amounts, units: Amounts) -> float:
        """The highest lower bound of the server's rate, in requests per second.

        Args:
            now: monotonic seconds.
            granted: what was granted by now.
            units: the amounts that make one request; infinite for what does not count.
        """
        best = MIN_RATE
        for index, (then, _, *before) in enumerate(self._samples):
            span = now - then
            for amount, start, unit, burst in zip(granted, before, units, BURST_S, strict=True):
                if index == 0 and self.anchored and span > _MIN_SPAN_S:
                    best = max(best, (amount - start) / unit / span)
                if index == 0 or span > BURST_S[0]:
                    best = max(best, (amount - start) / unit / (span + burst))
        return best

    def subtract(self, number: int, cost: Amounts) -> None:
        """Subtract a refused request from what was granted since it was sent."""
        if self._samples and self._samples[-1][1] >= number:
            self._samples = deque(
                (then, sent, requests - cost[0], tokens - cost[1])
                if sent >= number
                else (then, sent, requests, tokens)
                for then, sent, requests, tokens in self._samples
            )

    def _append(self, now: float, sent: int, granted: Amounts, slowness: float) -> None:
        self._samples.append((now, sent, *granted))
        self.next_at = now + _SAMPLE_INTERVAL_S * slowness
        if len(self._samples) > _MAX_SAMPLES:
            self._samples.popleft()
            self.anchored = False


@define
class UnexplainedRefusals:
    """Refusals that came while less was sent than the learned rate allows, and whether they come at any rate.

    They are counted against the requests sent, and not against the answers: they arrive faster than these.

    Attributes:
        needed: the number of refusals above which they count as random; doubled when that was wrong.
        noise: the share of requests that is refused at random, whatever the rate; 0 for none.
    """

    needed: int = 1
    noise: float = 0.0
    # Since the last cut that the rate explains.
    _refused: int = 0
    _sent: int = 0
    _sent_before: int = 0
    _last: int = -1

    def add(self, number: int, sent: int, *, neighbours: bool) -> None:
        """Count the refusal of a lease; that of the next lease too only if ``neighbours`` count."""
        self._refused += neighbours or number > self._last + 1
        self._last, self._sent = number, sent - self._sent_before

    def restart(self, sent: int) -> None:
        """Count from now on."""
        self._refused, self._sent_before = 0, sent

    def become_noise(self, sent: int) -> bool:
        """Take the refusals for random ones, if there are enough of them; whether that was done."""
        if self._refused > max(1.0, _MINORITY * self._sent):
            self.restart(sent)
            return False
        if self._refused <= self.needed * (1 if self._refused >= _MANY * self._sent else 4):
            return False
        self.noise = self._refused / self._sent
        self.restart(sent)
        return True

    def end_noise(self) -> None:
        """Take refusals for those of a limit again: there were more than the random ones explain."""
        self.noise = 0.0
        self.needed *= 2

    def tolerates(self, share: float) -> bool:
        """Whether no more than this share of the requests was refused."""
        return share > 0 and self._refused <= _TOLERATED + share * self._sent

    def forget(self, sent: int) -> None:
        """Keep the counts to the last requests, and lower `noise` with the share of the refusals."""
        if self._sent > _WINDOW:
            share, self.needed = self._refused / self._sent, 1
            self._refused, self._sent_before = round(share * _WINDOW / 2), sent - _WINDOW // 2
            if share < self.noise / 2:
                self.noise = share if share > _NO_NOISE else 0.0


class CubicRate:
    """The learned rates of one quota, and the token buckets that hold requests to them.

    Args:
        known: the buckets of the limits of requests and of tokens that are configured, or that headers state.

    Attributes:
        active: whether a rate has been learned and is still in force.
        undecided: whether both rates were cut and it is not known which of them is the limit.
        unnamed: the refusals that do not name their limit.
        named: those that do.
        plateau: requests and tokens per second that were learned; infinite where nothing was.
        cause: which of them held the last request back.
        buckets: that of requests and that of tokens; of use while `active`.
        samples: the measurements.
    """

    def __init__(self, known: tuple[TokenBucket, TokenBucket]) -> None:
        self._known = known
        self.active = self.undecided = False
        self.unnamed = UnexplainedRefusals()
        self.named = UnexplainedRefusals()
        self.cause: Dimension = "requests"
        self.samples = GrantSamples()
        self.plateau = [math.inf, math.inf]
        self.buckets = tuple(
            TokenBucket(None, burst_s=each.burst_s, smallest=each.smallest, now=0.0) for each in known
        )
        self._cut_at = -math.inf
        self._recovery_s = _RECOVERY_S
        self._trusted = False  # whether the last measurement took long enough
        self._each = 0.0  # tokens per request at the last cut; 0 when unknown
        self._mix = 0.0  # moving average of tokens per request
        self._best = [0.0, 0.0]  # the highest rates that were measured
        self._names = False  # whether a refusal has named its limit

    # The rates in force

    def wait_time(self, now: float, cost: Amounts) -> float:
        """Seconds until a request may be sent; 0 if it may be now. A rate beyond the known limit is forgotten."""
        factor = self._factor(now)
        waits: list[tuple[float, Dimension]] = []
        for i, bucket in enumerate(self.buckets):
            rate = self.plateau[i] * factor
            if rate == math.inf:
                continue
            if rate >= self._known[i].max_rate or factor > _FORGOTTEN:
                self.lift(*((0, 1) if self.undecided else (i,)))
                continue
            bucket.set_rate(now, rate)
            waits.append((bucket.wait_time(now, cost[i]), DIMENSIONS[i]))
        if not self.active:
            return 0.0
        # While it is not known which of them is the limit, the looser one decides about sizes that are new to both.
        wait, self.cause = min(waits) if self._sizes_changed(cost) else max(waits)
        return wait

    def add_sample(self, now: float, sent: int, held_until: float) -> None:
        """Remember how much was granted by now; see `GrantSamples.add`."""
        self.samples.add(now, sent, self._granted, self._recovery_s / _RECOVERY_S, held_until)

    @property
    def _granted(self) -> Amounts:
        requests, tokens = self._known
        return requests.spent - requests.refused_total, tokens.spent - tokens.refused_total

    def take(self, cost: Amounts) -> None:
        """A request is sent."""
        for bucket, amount in zip(self.buckets, cost, strict=True):
            bucket.take(amount)
        if cost[0]:
            self._mix += _AVERAGED * (cost[1] / cost[0] - self._mix)

    def give_back(self, cost: Amounts) -> None:
        """Return what was not spent."""
        for bucket, amount in zip(self.buckets, cost, strict=True):
            bucket.refund(amount)

    def lift(self, *indices: int) -> None:
        """The limits of these dimensions are no lower than known."""
        for i in indices:
            self.plateau[i] = self.buckets[i].rate = math.inf
        self.undecided = False
        self.active = min(self.plateau) < math.inf

    def resume(self, now: float, plateau: Amounts) -> None:
        """Begin at what `plateau` was in an earlier process, and grow from there, faster than after a 429.

        So a rate that is ten times too low by now is in the way for 10 s (60 s at a third of this speed).
        """
        self.plateau = list(plateau)
        self.active = min(plateau) < math.inf
        self.undecided = max(plateau) < math.inf
        self._each = plateau[1] / plateau[0] / _TOKEN_SLACK if self.undecided else 0.0
        self._mix = self._each
        for bucket in self.buckets:
            bucket.empty(now)
        self._recovery_s = _RECOVERY_S / 3
        self._cut_at = now - self._recovery_s

    def accepted(self, sent_at: float, cost: Amounts) -> None:
        """While undecided: the server accepted a request. One that a rate is far too low for refutes that rate."""
        for i in (0, 1):
            if self.undecided and sent_at >= self._cut_at and self._exceeded(i, cost[i]):
                self.lift(i)
                other = self.buckets[1 - i]
                other.level = max(other.level, -other.capacity)

    def _factor(self, now: float) -> float:
        recovered = (now - self._cut_at) / self._recovery_s
        x = recovered - 1
        factor = 1 + _DIP * x * x * x
        if self._trusted or recovered > _FORGOTTEN:
            return factor
        return max(factor, (1 - _DIP) * math.exp2(min(recovered * _DOUBLINGS, 10.0)))

    def _sizes_changed(self, cost: Amounts) -> bool:
        if not self.undecided or not cost[0]:
            return False
        mix = self._mix + _AVERAGED * (cost[1] / cost[0] - self._mix)
        return not self._each / _OTHER_SIZES < mix < self._each * _OTHER_SIZES

    def _exceeded(self, i: int, cost: float = 0.0) -> bool:
        return self.buckets[i].level + cost < -self.buckets[i].capacity

    # Refusals

    def refused(self, now: float, lease: Lease, sent: int, dimension: Dimension | None = None) -> Effect:
        """Slow down after a 429, unless it came of the same overload as the last one, or would come at any rate.

        Args:
            now: monotonic seconds.
            lease: that of the refused request; no headers explain the refusal.
            sent: number of requests that were sent so far.
            dimension: which limit the server names as exceeded, None if it does not say.
        """
        self.samples.subtract(lease.number, (lease.requests, lease.tokens))
        # Sent before the cut, or in the same burst: the rate could not hold it back.
        if lease.granted_at <= self._cut_at:
            if self.active and self.samples.requests > 1:
                # The measurement of the last cut had counted this request.
                kept = 1 - 1 / self.samples.requests
                self.plateau = [max(MIN_RATE, plateau * kept) for plateau in self.plateau]
                self.samples.requests -= 1
            return "tolerated" if self._tolerates(dimension) else "none"
        self._names = self._names or dimension is not None
        kind = self.unnamed if dimension is None else self.named
        # Two neighbours are one overload, as long as the question is whether there is one.
        kind.add(lease.number, sent, neighbours=self._names or kind.noise > 0)
        if self._tolerates(dimension):
            kind.forget(sent)
            return "tolerated"
        unexplained = self.active and not kind.noise and self._is_unexplained(now, lease)
        if unexplained and kind.become_noise(sent):
            self.lift(0, 1)
            self._cut_at = now
            return "undone"
        if now - self._cut_at < CUT_INTERVAL_S and not kind.noise:
            return "tolerated" if unexplained and dimension is None else "none"
        if kind.noise:
            kind.end_noise()
            self._best = [0.0, 0.0]
        if dimension is not None or not unexplained:
            self.unnamed.restart(sent)
        if not unexplained:
            self.named.restart(sent)
        return "cut" if self._cut(now, sent, self._blamed(dimension)) else "none"

    def _is_unexplained(self, now: float, lease: Lease) -> bool:
        """Whether less was sent since the server's bucket was empty than flowed in at the measured rate.

        A server that has granted twice as much refuses nothing below either: random refusals would cut the rate until the
        time between two of them is that of a recovery, as random losses do with TCP.
        """
        if self._factor(now) < 1 or any(
            each < _FALLEN * best for each, best in zip(self.plateau, self._best, strict=True)
        ):
            return True
        (requests, tokens), span = self.samples.since(self._granted), self.samples.span(now)
        # The bucket of a server that refuses a request may hold nearly its cost. Of a batch whose texts count as requests
        # each that is a hundred: two refusals among nine batches were taken for random ones, and batches were lost.
        requests += lease.requests - 1
        few = requests < self.plateau[0] * span and tokens < self.plateau[1] * span
        return self.samples.anchored and few

    def _tolerates(self, dimension: Dimension | None) -> bool:
        """Whether a refusal is one of those that come at any rate.

        A server that has named the limit of a refusal means something else where it names none.
        """
        if dimension is not None:
            return self.named.tolerates(_TOLERANCE * self.named.noise)
        return self.unnamed.tolerates(_MINORITY if self._names else _TOLERANCE * self.unnamed.noise)

    def _cut(self, now: float, sent: int, blamed: tuple[int, ...]) -> bool:
        each = self._each if 1 in blamed else math.inf
        units = (1.0 if 0 in blamed else math.inf, each)
        plateau = self._plateau(now, blamed, units)
        if plateau < math.inf:
            plateau = max(MIN_RATE, plateau)
            both = len(blamed) == 2
            for i in (0, 1):
                if i in blamed:
                    # Nothing flows into a bucket without a rate, and requests take from it.
                    if self.plateau[i] == math.inf:
                        self.buckets[i].empty(now)
                    slack = _TOKEN_SLACK if both and i == 1 else 1.0
                    # Headers that state a limit are believed: at most one cut below it.
                    self.plateau[i] = max(plateau * units[i] * slack, _CUT * self._known[i].stated_rate)
                    if self._trusted:
                        self._best[i] = max(self._best[i], self.plateau[i])
                elif self.undecided:
                    self.plateau[i] = math.inf
            self.undecided = both
            self._recovery_s = max(_RECOVERY_S, min(_MAX_RECOVERY_S, _RECOVERY_REQUESTS / plateau))
        self._cut_at = now
        self.samples.restart(now, sent, self._granted, self._recovery_s / _RECOVERY_S)
        if plateau == math.inf:
            # Too little was sent to derive a rate; the pause alone must do.
            return False
        if not self.active:
            self._mix = self._each
        self.active = True
        for i in blamed:
            bucket = self.buckets[i]
            bucket.set_rate(now, self.plateau[i] * self._factor(now))
            bucket.level = min(bucket.level, -_DEBT * bucket.rate * bucket.burst_s)
        return True

    def _blamed(self, dimension: Dimension | None) -> tuple[int, ...]:
        """The dimensions that may have been too many: that which the server names, or which the buckets show."""
        requests, tokens = self.samples.since(self._granted)
        if requests >= _FEW:
            self._each = max(0.0, tokens / requests)
        if dimension is not None and (self._each or dimension == "requests"):
            return (DIMENSIONS.index(dimension),)
        if not self._each:
            return (0,)
        if self.active and self.undecided:
            exceeded = [i for i in (0, 1) if self._exceeded(i)]
            return (exceeded[0],) if len(exceeded) == 1 else (0, 1)
        if self.active:
            finite = tuple(i for i in (0, 1) if self.plateau[i] < math.inf)
            binding = tuple(i for i in finite if self.buckets[i].level <= self.buckets[i].capacity / 2)
            # A rate that was far from used up does not explain the refusal, so the other dimension does.
            return binding or tuple(i for i in (0, 1) if i not in finite) or (0, 1)
        return (0, 1)

    def _plateau(self, now: float, blamed: tuple[int, ...], units: Amounts) -> float:
        """The rate to return to, in requests per second; infinite if nothing is known."""
        current = min(
            (
                min(self._known[i].max_rate, self.buckets[i].rate) / units[i]
                for i in blamed
                if not self._exceeded(i)
            ),
            default=math.inf,
        )
        last = self.plateau[blamed[0]] / units[blamed[0]]
        samples, span = self.samples, self.samples.span(now)
        counted = samples.since(self._granted)[0]
        soon = now - self._cut_at < _SOON_S or (not samples.anchored and span < _SOON_S)
        long = samples.anchored and span >= _MIN_CYCLE_S
        if soon and self._trusted and not long and last < math.inf:
            # A 429 leaves up to the cost of one request in the bucket. Over so short a time that error is larger than
            # what a measurement would show.
            return last * _AGAIN
        self._trusted = long
        samples.requests = counted
        if counted < _FEW:
            return current * _CUT
        return min(current * (_CUT if soon else 1.0), samples.rate(now, self._granted, units))

"""Quota of requests and tokens per minute: whether a request may be sent now, and if not, when.

A request needs capacity in two token buckets, and may be held back by a slow start or by a backoff after a 429.

A `Quota` only decides: no I/O, no awaiting, no randomness, and no clock, because the time is an argument. All calls
with a model at an endpoint share it; the lock, the queue and the timers are in `llmopt.policies.rate_limiter`, which
calls it under its lock, but reads rates and the pause without.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from attrs import Factory, define, field

from llmopt.policies.adaptive_rate import BURST_S, DIMENSIONS, Amounts, CubicRate, Effect
from llmopt.policies.token_bucket import TokenBucket
from llmopt.values.calls import Dimension, RateLimit, RateLimits

if TYPE_CHECKING:
    from llmopt.policies.rate_limiter import RateLimiter


class Refusal(NamedTuple):
    """What a 429 says.

    Attributes:
        retry_after: seconds that the server asks to wait, None if it does not say.
        limits: rate limits in its headers; they need no call of `Lease.observe`.
        dimension: which limit it names as exceeded, None if it does not say.
    """

    retry_after: float | None = None
    limits: RateLimits = RateLimits()
    dimension: Dimension | None = None


@define(eq=False, repr=False)
class Lease:
    """A rate-limit lease for one request. It ends once; later reports have no effect.

    Leaving the ``with`` block without a report settles it at its estimate. No method awaits, so a cancellation
    cannot interrupt a report.

    Attributes:
        tokens: the estimated tokens of the request.
        requests: what it counts under a limit of requests.
        number: counts the leases of this quota in the order of granting.
        granted_at: monotonic seconds when it was granted.
        requests_spent: requests taken from the quota so far, this one included.
        tokens_spent: tokens taken from the quota so far, likewise.
        waited: seconds that it waited in the queue.
        cause: why it waited, as of its arrival: "requests" or "tokens" (the limit), "pause" (backoff after a 429),
            "probe" (another request tests whether the server accepts requests again), "start" (slow start), "shared" (no
            block of a shared quota is left), or "" for no wait.
        open: whether its end has not been reported.
        accepted: whether its response has started.
    """

    _owner: RateLimiter
    tokens: float
    granted_at: float
    number: int
    requests_spent: float
    tokens_spent: float
    requests: float = 1.0
    waited: float = 0.0
    cause: str = ""
    open: bool = True
    accepted: bool = False

    def __repr__(self) -> str:
        return f"Lease(tokens={self.tokens:g}, waited={self.waited:.3f}, open={self.open})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.open:
            self._owner.settle(self, None)

    @property
    def wants_headers(self) -> bool:
        """Whether the headers of a good response are needed now; see `RateLimiter.wants_headers`."""
        return self._owner.wants_headers

    def settle(self, tokens: float | None = None) -> None:
        """The request was answered. ``tokens`` is its actual cost, None for the estimate."""
        self._owner.settle(self, tokens)

    def accept(self) -> None:
        """A response has started and may take long; its cost is settled later."""
        self._owner.accept(self)

    def refund(self) -> None:
        """The request was not sent: return its cost to the quota."""
        self._owner.refund(self)

    def observe(self, limits: RateLimits) -> bool:
        """Record the rate limits in the headers of the response.

        Settle first if the cost is known. The lease may have ended.

        Returns:
            Whether a limit was learned or has changed.
        """
        return self._owner.observe(limits, self)

    def throttled(self, refusal: Refusal) -> bool:
        """The server refused the request with a 429, which ends the lease: pause, and slow down unless headers explain it.

        Returns:
            As `observe`.
        """
        return self._owner.throttled(self, refusal)


_MAX_STATED_BACKOFF_S: Final = 3_600.0
_MAX_PLAUSIBLE_S: Final = 86_400.0
_IMPLAUSIBLE_BACKOFF_S: Final = 60.0
"""The backoff when a server asks for more than a day. The refused caller's error states the server's number."""
_BACKOFF_S: Final = 0.5
_MAX_DEFAULT_BACKOFF_S: Final = 30.0
_MAX_DOUBLINGS: Final = 16
"""Beyond the longest backoff already; 2.0 ** 1024 would overflow."""
_MIN_STATED_S: Final = 1.0
"""A shorter ``Retry-After`` is the time until one more request fits, and the server sends it to many callers."""
_PROBE_AFTER_S: Final = 2.0
_PROBE_AFTER_THROTTLES: Final = 3
_MIN_PROBE_WAIT_S: Final = 1.0
_ACCEPTED_PER_REFUSED: Final = 2
"""A 429 concerned its own request alone once more than this many later requests are accepted for each refused one."""


@define
class Backoff:
    """The pause of one quota after a 429, and the probe that tests whether it was long enough.

    A pause lasts as long as the server asks, one hour at most, or 0.5 s, doubled with each consecutive 429. A 429 to
    a request that was in flight when the pause began may prolong it, but does not count as consecutive. After a long
    pause, or the third consecutive 429, one request (the probe) goes first, and the others wait for its response, at
    most for another such pause. A pause ends early when the server accepts requests that were sent after the refused
    one, as TCP ends a recovery that later acknowledgements show to be spurious (F-RTO, RFC 5682).

    Attributes:
        until: no request is sent before.
        probe: the lease of the probe that is in flight, if there is one.
        wants_probe: whether the next request is a probe.
        server_stated: whether the server has stated the length of the pause, and nothing was sent since.
    """

    until: float = -math.inf
    probe: Lease | None = None
    wants_probe: bool = False
    server_stated: bool = False
    _consecutive_throttles: int = 0
    _began_at: float = -math.inf
    _length_s: float = 0.0
    _number: float = math.inf  # of the refused lease
    # Of the leases that were granted after it.
    _accepted_after: int = 0
    _refused_after: int = 0

    def remaining(self, now: float) -> float:
        """Seconds left of the pause; 0 while a probe is in flight."""
        return max(0.0, self.until - now) if self.probe is None else 0.0

    def probe_sent(self, now: float, lease: Lease) -> None:
        """A probe is sent; the others wait for its response until `until`."""
        self.probe = lease
        self.until = now + max(_MIN_PROBE_WAIT_S, self._length_s)

    def succeeded(self, lease: Lease) -> None:
        """A request was accepted by the server."""
        if lease.granted_at >= self._began_at:
            self._consecutive_throttles = 0
        if lease is self.probe:
            self.probe = None
            self.wants_probe = False
            self.until = -math.inf
        elif lease.number > self._number and self.probe is None:
            self._accepted_after += 1
            if self._accepted_after > _ACCEPTED_PER_REFUSED * self._refused_after:
                self.until = -math.inf
                self.wants_probe = self.server_stated = False
                self._consecutive_throttles = 0

    def not_sent(self, now: float, lease: Lease) -> None:
        """A granted request was not sent; if it was the probe, the next request is."""
        if lease is self.probe:
            self.probe = None
            self.until = now

    def throttled(self, now: float, retry_after: float | None, lease: Lease) -> None:
        """The server refused a request."""
        if lease is self.probe:
            self.probe = None
        new = lease.granted_at >= self._began_at
        if new:
            self._consecutive_throttles += 1
            self._began_at = now
            self._number = lease.number
            self._accepted_after = self._refused_after = 0
        elif lease.number > self._number:
            self._refused_after += 1
            if self._accepted_after > _ACCEPTED_PER_REFUSED * self._refused_after:
                return
        length = self._length(retry_after, new=new)
        if now + length > self.until:
            self.until = now + length
            self._length_s = length
            self.server_stated = retry_after is not None and retry_after >= _MIN_STATED_S
        if length >= _PROBE_AFTER_S or self._consecutive_throttles >= _PROBE_AFTER_THROTTLES:
            self.wants_probe = True

    def _length(self, retry_after: float | None, *, new: bool) -> float:
        if retry_after is not None and retry_after > _MAX_PLAUSIBLE_S:
            return _IMPLAUSIBLE_BACKOFF_S
        if retry_after is not None and retry_after > 0:
            return min(retry_after, _MAX_STATED_BACKOFF_S)
        doublings = min(self._consecutive_throttles - 1, _MAX_DOUBLINGS)
        return min(_BACKOFF_S * 2.0**doublings, _MAX_DEFAULT_BACKOFF_S) if new else 0.0


INITIAL_WINDOW: Final = 2
"""Requests in flight before the first answer."""
_WINDOW_WITHOUT_LIMIT: Final = 64
_MAX_WAIT_S: Final = 60.0
_MAX_STEP_S: Final = 1.0
"""The longest wait of a request that the window holds back; a longer one is a stop of the process."""
_MIN_HOLD_S: Final = 1e-3


@define
class SlowStart:
    """TCP's slow start for one quota: few requests at first, twice as many each second, one more for each response.

    The configured limits may be wrong, other clients may use the same quota, and the server's limits are known only
    from its first response on. Two requests find out what sixty would have been refused for, at the price of a round
    trip. The window grows with responses, so that a fast server gets full speed within milliseconds, and with time,
    so that a server that loads its model for a minute does not hold up all callers. Time counts only while a request
    waits: a process that was stopped for five seconds would otherwise send 64 requests at once.

    Args:
        window: requests in flight before the first response; 0 for no slow start.

    Attributes:
        finished: whether it no longer limits requests.
    """

    _window: int = INITIAL_WINDOW
    finished: bool = field(default=Factory(lambda self: self._window == 0, takes_self=True))
    _in_flight: int = 0
    _asked_at: float | None = None
    _elapsed: float = 0.0

    def wait_time(self, now: float) -> float:
        """Seconds to hold the next request back; 0 when it may go."""
        if self._asked_at is not None:
            # Bounded: after a minute nothing is held back, and the doublings of a day would overflow.
            self._elapsed = min(_MAX_WAIT_S, self._elapsed + min(now - self._asked_at, _MAX_STEP_S))
            self._asked_at = now
        if self._in_flight + 1 <= self._window * 2.0**self._elapsed:
            return 0.0
        return max(_MIN_HOLD_S, math.log2((self._in_flight + 1) / self._window) - self._elapsed)

    def sent(self, now: float) -> None:
        """A request is sent."""
        self._in_flight += 1
        if self._asked_at is None:
            self._asked_at = now

    def completed(self, *, answered: bool) -> None:
        """A request is no longer in flight."""
        self._in_flight = max(0, self._in_flight - 1)
        if answered:
            self._window += 1
            self.finished = self.finished or self._window >= _WINDOW_WITHOUT_LIMIT


class LearnedLimits(NamedTuple):
    """What was learned of a quota, for another process; None where nothing was. All are per minute.

    Attributes:
        stated_rpm: requests according to headers.
        stated_tpm: tokens according to headers.
        measured_rpm: requests according to 429s.
        measured_tpm: tokens according to 429s.
    """

    stated_rpm: float | None = None
    stated_tpm: float | None = None
    measured_rpm: float | None = None
    measured_tpm: float | None = None


_Stated = tuple[TokenBucket, RateLimit | None, float, float]
"""A bucket, what headers say of its limit, and the cost of the request and all that was spent then."""
_NEARLY_EMPTY: Final = 2.0
"""A quota with less left than the cost of this many requests explains a 429."""


class Quota:
    """The state of one quota: two token buckets, the slow start, the backoff and the learned rate.

    Attributes:
        requests: the bucket of requests.
        tokens: the bucket of tokens.
        backoff: the pause after a 429.
        cause: why the last request had to wait, as in `Lease.cause`.
    """

    def __init__(
        self,
        rpm: float | None,
        tpm: float | None,
        *,
        now: float,
        owner: RateLimiter,
        firm: tuple[bool, bool] = (True, True),
        initial_window: int = INITIAL_WINDOW,
    ) -> None:
        """Start with full buckets.

        Args:
            rpm: configured requests per minute, None when nothing is configured.
            tpm: configured tokens per minute, likewise.
            now: monotonic seconds.
            owner: what the leases report to.
            firm: see `RateLimiter`.
            initial_window: requests in flight before the first response; 0 for no slow start.
        """
        self.requests = TokenBucket(_per_second(rpm), burst_s=BURST_S[0], smallest=1.0, now=now)
        self.tokens = TokenBucket(_per_second(tpm), burst_s=BURST_S[1], smallest=0.0, now=now)
        self.backoff = Backoff()
        self.cause = ""
        self.requests.firm, self.tokens.firm = firm
        self._owner = owner
        self._initial_window = initial_window
        self._start = SlowStart(initial_window)
        self._learned = CubicRate((self.requests, self.tokens))
        self._assumed = False
        self._explained_at = self._held_until = -math.inf
        self._number = 0
        self._newest_observed = 0

    def __repr__(self) -> str:
        return f"Quota(requests={self.requests}, tokens={self.tokens}, learned={self._learned.plateau})"

    @property
    def learned(self) -> LearnedLimits:
        """What was learned so far."""
        measured = (rate * 60 if rate < math.inf else None for rate in self._learned.plateau)
        return LearnedLimits(self.requests.server_limit, self.tokens.server_limit, *measured)

    def restore(self, now: float, learned: LearnedLimits) -> None:
        """Begin with what an earlier process learned, where this one has learned nothing yet.

        The first response corrects it: a limit that its headers do not state is dropped.
        """
        stated = learned.stated_rpm, learned.stated_tpm
        for bucket, limit in zip((self.requests, self.tokens), stated, strict=True):
            if limit is not None and bucket.server_limit is None and not self._newest_observed:
                bucket.assume_limit(limit)
                self._assumed = True
        if not self._learned.active:
            measured = learned.measured_rpm, learned.measured_tpm
            requests, tokens = (math.inf if limit is None else limit / 60 for limit in measured)
            self._learned.resume(now, (requests, tokens))

    def never_fits(self, tokens: float, requests: float) -> str | None:
        """The configured limit under which a request of this size can never be granted, "rpm" or "tpm", or None.

        A request as large as the limit of a whole minute can: the bucket saves up for one larger than a burst.
        """
        if tokens > self.tokens.per_minute:
            return "tpm"
        return "rpm" if requests > max(1.0, self.requests.per_minute) else None

    # Granting

    def wait_time(self, now: float, tokens: float, requests: float = 1.0) -> float:
        """Seconds until a request of this size should be tried again; 0 if it may be sent now."""
        if now >= self._learned.samples.next_at:
            self._learned.add_sample(now, self._number, max(self.backoff.until, self._held_until))
        if now < self.backoff.until:
            self.cause = "pause" if self.backoff.probe is None else "probe"
            return self.backoff.until - now
        if not self._start.finished and (held := self._start.wait_time(now)) > 0:
            self.cause = "start"
            return held
        if self.backoff.server_stated:
            # The server has stated this moment, so one request is sent now, whatever the buckets hold.
            return 0.0
        waits = [
            (self.requests.wait_time(now, requests), "requests"),
            (self.tokens.wait_time(now, tokens), "tokens"),
        ]
        if self._learned.active:
            waits.append((self._learned.wait_time(now, (requests, tokens)), self._learned.cause))
        wait, self.cause = max(waits)
        self._held_until = now + wait
        return wait

    def take(self, now: float, tokens: float, requests: float = 1.0) -> Lease:
        """Grant a lease. To be called after `wait_time` has returned 0."""
        self.requests.take(requests)
        self.tokens.take(tokens)
        self._number += 1
        lease = Lease(
            self._owner, tokens, now, self._number, self.requests.spent, self.tokens.spent, requests
        )
        if not self._start.finished:
            self._start.sent(now)
        if self._learned.active:
            self._learned.take((requests, tokens))
        self.backoff.server_stated = False
        if self.backoff.wants_probe:
            self.backoff.probe_sent(now, lease)
        return lease

    def reserve(self, tokens: float, requests: float) -> None:
        """Save up for the first waiter's request of this size; 0 if nothing waits."""
        for buckets in ((self.requests, self.tokens), self._learned.buckets):
            buckets[0].reserve(requests)
            buckets[1].reserve(tokens)

    @property
    def rates(self) -> Amounts:
        """Requests and tokens per second in force; infinite without a limit. Other clients may leave less."""
        requests, tokens = self._learned.buckets
        return min(self.requests.max_rate, requests.rate), min(self.tokens.max_rate, tokens.rate)

    # The end of a lease

    def settle(self, lease: Lease, tokens: float | None) -> None:
        """See `Lease.settle`."""
        if tokens is not None and tokens != lease.tokens and 0 <= tokens < math.inf:
            self.tokens.correct(tokens - lease.tokens)
            if self._learned.active:
                self._learned.give_back((0.0, lease.tokens - tokens))
        self.accept(lease)

    def accept(self, lease: Lease) -> None:
        """See `Lease.accept`."""
        if lease.accepted:
            return
        lease.accepted = True
        if not self._start.finished:
            self._start.completed(answered=True)
        self.backoff.succeeded(lease)
        if self._learned.undecided:
            self._learned.accepted(lease.granted_at, (lease.requests, lease.tokens))

    def refund(self, lease: Lease, now: float) -> None:
        """See `Lease.refund`."""
        for bucket, cost in ((self.requests, lease.requests), (self.tokens, lease.tokens)):
            bucket.refund(cost)
            bucket.spent -= cost
        self._learned.give_back((lease.requests, lease.tokens))
        self._start.completed(answered=False)
        self.backoff.not_sent(now, lease)

    def observe(self, now: float, limits: RateLimits, lease: Lease) -> bool:
        """Correct the buckets by the headers of a response; see `Lease.observe`.

        The response to a request that was granted before that of the newest observed response is ignored.
        """
        if lease.number < self._newest_observed:
            return False
        self._newest_observed = lease.number
        before = self.requests.max_rate, self.tokens.max_rate
        for index, (bucket, limit, cost, spent) in enumerate(self._stated(limits, lease)):
            if self._assumed and (limit is None or not limit.limit):
                bucket.assume_limit(None)
            if limit is not None:
                bucket.observe(now, limit, lease.granted_at, spent, cost)
                if self._learned.active and lease.accepted and bucket.believed and _is_half_full(limit):
                    self._learned.lift(index)
        self._assumed = False
        return before != (self.requests.max_rate, self.tokens.max_rate)

    def _stated(self, limits: RateLimits, lease: Lease) -> tuple[_Stated, _Stated]:
        return (
            (self.requests, limits.requests, lease.requests, lease.requests_spent),
            (self.tokens, limits.tokens, lease.tokens, lease.tokens_spent),
        )

    def throttled(self, now: float, lease: Lease, refusal: Refusal) -> bool:
        """The server refused a request with a 429: pause, and slow down unless its headers explain it.

        Returns:
            As `observe`.
        """
        if not lease.accepted:
            self._start.completed(answered=False)
        self.requests.refused_total += lease.requests
        self.tokens.refused_total += lease.tokens
        self.tokens.refund(lease.tokens)
        self._learned.give_back((0.0, lease.tokens))
        changed = self.observe(now, refusal.limits, lease)
        effect: Effect = "none"
        if not self._explained_by_headers(now, refusal.limits, lease):
            effect = self._learned.refused(now, lease, self._number, refusal.dimension)
        if effect in ("cut", "none"):
            # Otherwise it is one of those that come at any rate, and concerns its own request alone.
            self.backoff.throttled(now, refusal.retry_after, lease)
        if effect == "cut":
            self._start.finished = True
            self._disbelieve(refusal, lease)
        elif effect == "undone":
            # The rate that was in force is void, and nothing is known in its place. One request at first: it may be wrong.
            self._start = SlowStart(min(self._initial_window, 1))
            self.requests.believed = self.tokens.believed = True
        return changed

    def _disbelieve(self, refusal: Refusal, lease: Lease) -> None:
        """The headers of a refusal say that enough remains of what it names, or of both if it names nothing."""
        contradicted = [
            bucket
            for (bucket, limit, _, _), name in zip(
                self._stated(refusal.limits, lease), DIMENSIONS, strict=True
            )
            if limit is not None and limit.remaining is not None and refusal.dimension in (None, name)
        ]
        if refusal.dimension is not None or len(contradicted) == 2:
            for bucket in contradicted:
                bucket.disbelieve()

    def _explained_by_headers(self, now: float, limits: RateLimits, lease: Lease) -> bool:
        """Whether the headers show too little left for such a request. Then there is no more to learn from the 429."""
        explained = False
        for bucket, limit, cost, _ in self._stated(limits, lease):
            if bucket.believed and bucket.max_rate < math.inf and _is_nearly_empty(limit, cost):
                explained = True
                # One overload shows in many 429s.
                if lease.granted_at >= self._explained_at:
                    self._explained_at = now
                    bucket.throttled(now)
        return explained


def _per_second(per_minute: float | None) -> float | None:
    return None if per_minute is None else per_minute / 60


def _is_nearly_empty(limit: RateLimit | None, cost: float) -> bool:
    return limit is not None and limit.remaining is not None and limit.remaining < _NEARLY_EMPTY * cost


def _is_half_full(limit: RateLimit | None) -> bool:
    return limit is not None and 2 * (limit.remaining or 0.0) > (limit.limit or math.inf)

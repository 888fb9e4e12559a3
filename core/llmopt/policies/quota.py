"""One quota, requests and tokens together: whether a request may go now, and if not, when.

Decisions only: no lock, no line, no timer (those are the limiter's), and the time is an argument.
A request needs room in two buckets, and may be held back besides by a slow start or by a pause.
"""

from __future__ import annotations

import math
from typing import Final, Protocol, Self

from llmopt.policies.adaptive_rate import BURST_S, CubicRate
from llmopt.policies.token_bucket import TokenBucket
from llmopt.values.calls import RateLimit, RateLimits

# Leave to send one request, with the tokens it was estimated at.


class LeaseOwner(Protocol):
    """Where a lease came from."""

    @property
    def wants_headers(self) -> bool:
        """Whether headers of good answers would tell anything new."""
        ...

    def settle(self, lease: Lease, tokens: float | None) -> None:
        """The request is answered, and cost so many tokens."""

    def refund(self, lease: Lease) -> None:
        """The request was not sent."""

    def accept(self, lease: Lease) -> None:
        """Its answer has begun."""

    def observe(self, limits: RateLimits, lease: Lease) -> bool:
        """The headers of its answer tell this."""
        ...

    def throttled(
        self, retry_after: float | None, lease: Lease, *, limits: RateLimits | None, tokens_counted: bool
    ) -> bool:
        """The server refused it for its rate."""
        ...


class Lease:
    """Leave to send one request. It ends once: later words of it have no effect.

    Leaving the ``with`` block without a word settles it at its estimate. Nothing here awaits, so that
    a cancellation cannot come between.

    Attributes:
        tokens: the estimate.
        number: place in the order of all leases of this quota.
        granted_at: when it was granted, on the clock's monotonic seconds.
        requests_spent: requests taken from the quota up to and with this one.
        tokens_spent: tokens likewise.
        waited: seconds spent in line.
        cause: what for, when it came: "requests" or "tokens" (the limit), "pause" (a refusal), "probe" (another request
            is trying whether the refusals are over), "start" (no answer has come yet), or "" for no wait.
        open: whether nothing was said of it so far.
        accepted: whether an answer to it has begun.
    """

    __slots__ = (
        "_owner",
        "accepted",
        "cause",
        "granted_at",
        "number",
        "open",
        "requests_spent",
        "tokens",
        "tokens_spent",
        "waited",
    )

    def __init__(
        self,
        owner: LeaseOwner,
        tokens: float,
        granted_at: float,
        number: int,
        requests_spent: float,
        tokens_spent: float,
    ) -> None:
        self._owner = owner
        self.tokens = tokens
        self.granted_at = granted_at
        self.number = number
        self.requests_spent = requests_spent
        self.tokens_spent = tokens_spent
        self.waited = 0.0
        self.cause = ""
        self.open = True
        self.accepted = False

    def __repr__(self) -> str:
        return f"Lease(tokens={self.tokens:g}, waited={self.waited:.3f}, open={self.open})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.open:
            self._owner.settle(self, None)

    @property
    def wants_headers(self) -> bool:
        """Whether the headers of a good answer would tell anything new; see `RateLimiter.wants_headers`."""
        return self._owner.wants_headers

    def settle(self, tokens: float | None = None) -> None:
        """The request was answered. ``tokens`` is what it really cost, None for "as estimated"."""
        self._owner.settle(self, tokens)

    def accept(self) -> None:
        """The answer has begun, and may take long: the request was let through. What it cost is settled later."""
        self._owner.accept(self)

    def refund(self) -> None:
        """The request was not sent: all of it goes back."""
        self._owner.refund(self)

    def observe(self, limits: RateLimits) -> bool:
        """What the headers of the answer tell; True when a limit was learned or has changed.

        Settle first if the cost is known. It may be said of a lease that has ended.
        """
        return self._owner.observe(limits, self)

    def throttled(
        self,
        retry_after: float | None = None,
        *,
        limits: RateLimits | None = None,
        tokens_counted: bool = False,
    ) -> bool:
        """The server refused the request for its rate (429), which ends the lease; True as `observe`.

        Args:
            retry_after: seconds it asks to wait, None if it does not say.
            limits: what the headers of the refusal tell, which need no `observe` then.
            tokens_counted: whether the server counts the tokens of what it refuses.
        """
        return self._owner.throttled(retry_after, self, limits=limits, tokens_counted=tokens_counted)


# The pause after a refusal, and the probe that tries whether it was long enough.
#
# A pause lasts as long as the server asks (an hour at most), or 0.5 s doubled with each refusal
# in a row. Requests that were under way when it began tell nothing new: their refusals may prolong it, but count
# for nothing else. After a long pause, or the third refusal in a row, one request goes first and the
# others wait for what becomes of it, at most for another such pause.

_MAX_STATED_BACKOFF_S: Final = 3_600.0
_MAX_PLAUSIBLE_S: Final = 86_400.0
_IMPLAUSIBLE_BACKOFF_S: Final = 60.0
"""After a hint of more than a day, which its caller is told of, the next caller asks again so soon."""
_BACKOFF_S: Final = 0.5
_MAX_DEFAULT_BACKOFF_S: Final = 30.0
_MAX_DOUBLINGS: Final = 16
"""Past the longest back-off already; some thousand in a row would leave the floats."""
_MIN_STATED_S: Final = 1.0
"""Shorter hints are the time until the next request of anybody fits; many are told the same."""
_PROBE_AFTER_S: Final = 2.0
_PROBE_AFTER_THROTTLES: Final = 3
_MIN_PROBE_WAIT_S: Final = 1.0


class Backoff:
    """The pause of one quota.

    Attributes:
        until: nothing goes out before.
        probe: the request that is trying, if one is.
        wants_probe: whether the next request is to be one.
        server_stated: whether the server said how long, and nothing went out since.
    """

    __slots__ = (
        "_began_at",
        "_consecutive_throttles",
        "_length_s",
        "probe",
        "server_stated",
        "until",
        "wants_probe",
    )

    def __init__(self) -> None:
        self.until = -math.inf
        self.probe: Lease | None = None
        self._length_s = 0.0
        self.wants_probe = False
        self.server_stated = False
        self._consecutive_throttles = 0
        self._began_at = -math.inf

    def __repr__(self) -> str:
        return f"Backoff(until={self.until:.3f}, consecutive_throttles={self._consecutive_throttles}, probe={self.probe})"

    def remaining(self, now: float) -> float:
        """Seconds that the server wants nothing; 0 while a probe is trying."""
        return max(0.0, self.until - now) if self.probe is None else 0.0

    def probe_sent(self, now: float, lease: Lease) -> None:
        """A probe goes out."""
        self.probe = lease
        self.until = now + max(_MIN_PROBE_WAIT_S, self._length_s)

    def succeeded(self, lease: Lease) -> None:
        """A request came through."""
        if lease.granted_at >= self._began_at:
            self._consecutive_throttles = 0
        if lease is self.probe:
            self.probe = None
            self.wants_probe = False
            self.until = -math.inf

    def not_sent(self, now: float, lease: Lease) -> None:
        """A request was not sent after all; if it was the probe, the next one is."""
        if lease is self.probe:
            self.probe = None
            self.until = now

    def throttled(self, now: float, sent_at: float, retry_after: float | None, lease: Lease | None) -> None:
        """The server refused a request that was sent at ``sent_at``."""
        if lease is not None and lease is self.probe:
            self.probe = None
        new = sent_at >= self._began_at
        if new:
            self._consecutive_throttles += 1
            self._began_at = now
        length = self._length(retry_after, new=new)
        if now + length > self.until:
            self.until = now + length
            self._length_s = length
            self.server_stated = retry_after is not None and retry_after >= _MIN_STATED_S
        if length >= _PROBE_AFTER_S or self._consecutive_throttles >= _PROBE_AFTER_THROTTLES:
            self.wants_probe = True

    def _length(self, retry_after: float | None, *, new: bool) -> float:
        if retry_after is not None and retry_after > 0:
            return (
                min(retry_after, _MAX_STATED_BACKOFF_S)
                if retry_after <= _MAX_PLAUSIBLE_S
                else _IMPLAUSIBLE_BACKOFF_S
            )
        doublings = min(self._consecutive_throttles - 1, _MAX_DOUBLINGS)
        return min(_BACKOFF_S * 2.0**doublings, _MAX_DEFAULT_BACKOFF_S) if new else 0.0


# Few requests at first, twice as many each second and one more for each answer: TCP's slow start.
#
# What is configured may be wrong, others may use the quota, and a server's limits are known from its first
# answer on. Two requests find out what sixty would have been refused for; the price is a round trip. It is
# clocked by answers, so that a fast server is at full speed within milliseconds, and by time, so that one that
# loads its model for a minute does not hold everybody up.

INITIAL_WINDOW: Final = 2
"""Requests in flight before the first answer."""
_WINDOW_WITHOUT_LIMIT: Final = 64
_MAX_WAIT_S: Final = 60.0
_MIN_HOLD_S: Final = 1e-3


class SlowStart:
    """The start of one quota.

    Attributes:
        finished: whether it is behind us.
    """

    __slots__ = ("_first_at", "_in_flight", "_window", "finished")

    def __init__(self, initial_window: int = INITIAL_WINDOW) -> None:
        """Begin with so many requests in flight; 0 for no slow start."""
        self.finished = initial_window == 0
        self._window = initial_window
        self._in_flight = 0
        self._first_at: float | None = None

    def __repr__(self) -> str:
        return f"SlowStart(finished={self.finished}, window={self._window}, in_flight={self._in_flight})"

    def wait_time(self, now: float) -> float:
        """Seconds to hold the next request back; 0 when it may go."""
        # Beyond the bound nobody is held back, and a day's doublings leave the floats.
        elapsed = 0.0 if self._first_at is None else min(now - self._first_at, _MAX_WAIT_S)
        if self._in_flight + 1 <= self._window * 2.0**elapsed:
            return 0.0
        return max(_MIN_HOLD_S, math.log2((self._in_flight + 1) / self._window) - elapsed)

    def sent(self, now: float) -> None:
        """A request goes out."""
        self._in_flight += 1
        if self._first_at is None:
            self._first_at = now

    def completed(self, *, answered: bool) -> None:
        """A request is no longer in flight."""
        self._in_flight -= 1
        if answered:
            self._window += 1
            self.finished = self.finished or self._window >= _WINDOW_WITHOUT_LIMIT


_SILENT: Final = RateLimits()
_DEBT_AFTER_REFUSAL: Final = 0.1
_NEARLY_EMPTY: Final = 2.0
"""A rest below the cost of so many requests explains a refusal."""


class Quota:
    """The state of one quota key.

    Attributes:
        requests: the bucket of requests.
        tokens: the bucket of tokens.
        backoff: whether the server wants nothing at all just now.
        cause: what held the last request back, as in `Lease.cause`.
    """

    __slots__ = (
        "_learned",
        "_newest_observed",
        "_number",
        "_owner",
        "_start",
        "_tpm",
        "backoff",
        "cause",
        "requests",
        "tokens",
    )

    def __init__(
        self,
        rpm: float | None,
        tpm: float | None,
        *,
        now: float,
        owner: LeaseOwner,
        initial_window: int = INITIAL_WINDOW,
    ) -> None:
        """Start with full buckets.

        Args:
            rpm: configured requests per minute, None when nothing is configured.
            tpm: configured tokens per minute, likewise.
            now: seconds.
            owner: whom the leases report to.
            initial_window: requests in flight before the first answer; 0 for as many as the buckets hold.
        """
        self.requests = TokenBucket(_per_second(rpm), burst_s=BURST_S[0], smallest=1.0, now=now)
        self.tokens = TokenBucket(_per_second(tpm), burst_s=BURST_S[1], smallest=0.0, now=now)
        self.backoff = Backoff()
        self.cause = ""
        self._tpm = math.inf if tpm is None else tpm
        self._owner = owner
        self._start = SlowStart(initial_window)
        self._learned = CubicRate()
        self._number = 0
        self._newest_observed = 0

    def __repr__(self) -> str:
        return f"Quota(requests={self.requests}, tokens={self.tokens}, {self._learned})"

    def fits(self, tokens: float) -> bool:
        """Whether a request of this size can ever be granted by the configured limit.

        A minute's worth can: what is more than a burst is saved up for.
        """
        return tokens <= self._tpm

    # Granting

    def wait_time(self, now: float, tokens: float) -> float:
        """Seconds until a request of this size is worth another look; 0 when it may go now."""
        if now < self.backoff.until:
            self.cause = "pause" if self.backoff.probe is None else "probe"
            return self.backoff.until - now
        if not self._start.finished and (held := self._start.wait_time(now)) > 0:
            self.cause = "start"
            return held
        if self._learned.active:
            self._apply_learned_rate(now)
        if self.backoff.server_stated:
            # The server has said when. Whatever our own books hold, the first may go then.
            return 0.0
        for_request = self.requests.wait_time(now, 1.0)
        for_tokens = self.tokens.wait_time(now, tokens)
        if for_request > for_tokens:
            self.cause = "requests"
            return for_request
        if for_tokens > 0:
            self.cause = "tokens"
        return for_tokens

    def take(self, now: float, tokens: float) -> Lease:
        """Grant it; `wait_time` has just said 0."""
        if now >= self._learned.next_sample_at:
            self._learned.add_sample(now, self._granted())
        self.requests.take(1.0)
        self.tokens.take(tokens)
        self._number += 1
        lease = Lease(self._owner, tokens, now, self._number, self.requests.spent, self.tokens.spent)
        if not self._start.finished:
            self._start.sent(now)
        self.backoff.server_stated = False
        if self.backoff.wants_probe:
            self.backoff.probe_sent(now, lease)
        return lease

    def reserve(self, tokens: float) -> None:
        """Save up for the first in line, of this size; 0 when nobody waits."""
        self.tokens.reserve(tokens)

    def _granted(self) -> tuple[float, float]:
        requests, tokens = self.requests, self.tokens
        return requests.spent - requests.refused_total, tokens.spent - tokens.refused_total

    def _apply_learned_rate(self, now: float) -> None:
        """Go along the learned curve, until it is above all that is known to be allowed."""
        requests, tokens = self._learned.rates(now)
        if requests >= self.requests.max_rate and tokens >= self.tokens.max_rate:
            self._learned.forget()
        if not self._learned.active:
            requests = tokens = math.inf
        self.requests.set_learned_rate(now, requests)
        self.tokens.set_learned_rate(now, tokens)

    # What became of a lease

    def settle(self, lease: Lease, tokens: float | None) -> None:
        """The request was answered, and cost so many tokens (None: as estimated)."""
        if tokens is not None and tokens != lease.tokens and 0 <= tokens < math.inf:
            self.tokens.correct(tokens - lease.tokens)
        self.accept(lease)

    def accept(self, lease: Lease) -> None:
        """The request was let through, and its answer has begun."""
        if lease.accepted:
            return
        lease.accepted = True
        if not self._start.finished:
            self._start.completed(answered=True)
        self.backoff.succeeded(lease)

    def refund(self, lease: Lease, now: float) -> None:
        """The request was not sent."""
        for bucket, cost in ((self.requests, 1.0), (self.tokens, lease.tokens)):
            bucket.refund(cost)
            bucket.spent -= cost
        self._start.completed(answered=False)
        self.backoff.not_sent(now, lease)

    def observe(self, now: float, limits: RateLimits, lease: Lease) -> bool:
        """Correct the buckets by headers; True when a limit was learned or has changed.

        An answer to a request older than the newest one heard is ignored.
        """
        if lease.number < self._newest_observed:
            return False
        self._newest_observed = lease.number
        before = self.requests.max_rate, self.tokens.max_rate
        if limits.requests is not None:
            self.requests.observe(now, limits.requests, lease.granted_at, lease.requests_spent)
        if limits.tokens is not None:
            self.tokens.observe(now, limits.tokens, lease.granted_at, lease.tokens_spent)
        return before != (self.requests.max_rate, self.tokens.max_rate)

    def throttled(
        self,
        now: float,
        retry_after: float | None,
        lease: Lease | None,
        *,
        limits: RateLimits = _SILENT,
        tokens_counted: bool = False,
    ) -> bool:
        """The server refused: pause, and slow down unless its headers explain it.

        Args:
            now: seconds.
            retry_after: seconds it asks to wait, None if it does not say.
            lease: the refused request, None if unknown.
            limits: what its headers tell.
            tokens_counted: whether the server counts its tokens all the same.

        Returns:
            As `observe`.
        """
        if lease is None:
            self.backoff.throttled(now, now, retry_after, None)
            self._slow_down(now, now, 0.0)
            return False
        self.backoff.throttled(now, lease.granted_at, retry_after, lease)
        if not lease.accepted:
            self._start.completed(answered=False)
        self.requests.refused_total += 1.0
        if not tokens_counted:
            self.tokens.refused_total += lease.tokens
            self.tokens.refund(lease.tokens)
        changed = self.observe(now, limits, lease)
        if not self._explained_by_headers(now, limits, lease.tokens):
            self._slow_down(now, lease.granted_at, lease.tokens)
        return changed

    def _explained_by_headers(self, now: float, limits: RateLimits, tokens: float) -> bool:
        """Whether the rest in the headers is too small for such a request; then that teaches all there is."""
        found = False
        for bucket, limit, cost in (
            (self.requests, limits.requests, 1.0),
            (self.tokens, limits.tokens, tokens),
        ):
            if bucket.max_rate < math.inf and _is_nearly_empty(limit, cost):
                bucket.throttled(now)
                found = True
        return found

    def _slow_down(self, now: float, sent_at: float, tokens: float) -> None:
        rates = self.requests.rate, self.tokens.rate
        if not self._learned.cut(now, sent_at, tokens, self._granted(), rates):
            return
        self._start.finished = True
        self._apply_learned_rate(now)
        for bucket in (self.requests, self.tokens):
            bucket.set_debt(_DEBT_AFTER_REFUSAL)
            if self._learned.repeated:
                # What flowed in during the pause would only go out at once again.
                bucket.hold_until(self.backoff.until)


def _per_second(per_minute: float | None) -> float | None:
    return None if per_minute is None else per_minute / 60


def _is_nearly_empty(limit: RateLimit | None, cost: float) -> bool:
    return limit is not None and limit.remaining is not None and limit.remaining < _NEARLY_EMPTY * cost

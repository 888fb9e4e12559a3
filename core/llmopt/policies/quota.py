"""One quota, requests and tokens together: whether a request may go now, and if not, when.

Decisions only: no lock, no line, no timer (those are the limiter's), and the time is an argument.

Three things hold a request back besides the two buckets. A **start**: until answers have come, few
requests are in the air, twice as many each second and one more for each answer (TCP's slow start), because
what is configured may be wrong and others may use the quota. A **pause** after a refusal, as long as the server
asks, or doubling. A **canary** after a long pause or several refusals: one request goes first and the others wait
for what becomes of it.
"""

from __future__ import annotations

import math
from typing import Final

from llmopt.policies.bucket import Bucket
from llmopt.policies.learned_rate import BURST_S, LearnedRate
from llmopt.policies.lease import Lease, Lender
from llmopt.values.limits import RateLimit, RateLimits

_NOTHING: Final = RateLimits()
_LONGEST_PAUSE_S: Final = 3_600.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 30.0
_CANARY_AFTER_PAUSE_S: Final = 2.0
_CANARY_AFTER_STRIKES: Final = 3
_CANARY_PATIENCE_S: Final = 1.0
_DEBT_AFTER_REFUSAL: Final = 0.1
_NEARLY_EMPTY: Final = 2.0
"""A rest below the cost of so many requests explains a refusal."""
SCOUTS: Final = 2
"""Requests in the air before the first answer."""
_STARTED: Final = 64


class Quota:
    """The state of one quota key.

    Attributes:
        requests: the bucket of requests.
        tokens: the bucket of tokens.
        cause: what the last refusal to grant was for, as in `Lease.cause`.
    """

    def __init__(
        self, rpm: float | None, tpm: float | None, *, now: float, lender: Lender, scouts: int = SCOUTS
    ) -> None:
        """Start with full buckets.

        Args:
            rpm: configured requests per minute, None when nothing is configured.
            tpm: configured tokens per minute, likewise.
            now: seconds.
            lender: whom the leases report to.
            scouts: requests in the air before the first answer; 0 for as many as the buckets hold.
        """
        self.requests = Bucket(_per_second(rpm), burst_s=BURST_S[0], smallest=1.0, now=now)
        self.tokens = Bucket(_per_second(tpm), burst_s=BURST_S[1], smallest=0.0, now=now)
        self.cause = ""
        self._largest = max(tpm, 0.0) if tpm is not None else math.inf
        self._lender = lender
        self._learned = LearnedRate()
        self._number = 0
        self._newest = 0
        self._told: tuple[int, RateLimits] = (0, _NOTHING)
        self._closed_until = -math.inf
        self._pause_s = 0.0
        self._wants_canary = False
        self._canary: Lease | None = None
        self._strikes = 0
        self._penalized_at = -math.inf
        self._starting = scouts > 0
        self._window = scouts
        self._in_air = 0
        self._first_at: float | None = None

    def __repr__(self) -> str:
        return f"Quota(requests={self.requests}, tokens={self.tokens}, {self._learned})"

    def fits(self, tokens: float) -> bool:
        """Whether a request of this size can ever be granted by the configured limit."""
        return tokens <= self._largest

    def paused(self, now: float) -> float:
        """Seconds that the pause after a refusal still lasts; 0 when there is none."""
        return 0.0 if self._canary is not None else max(0.0, self._closed_until - now)

    # Granting

    def wait(self, now: float, tokens: float) -> float:
        """Seconds until a request of this size is worth another look; 0 when it may go now."""
        if now < self._closed_until:
            self.cause = "pause" if self._canary is None else "canary"
            return self._closed_until - now
        if self._starting and (held := self._held_at_start(now)) > 0:
            self.cause = "start"
            return held
        if self._learned.active:
            self._follow(now)
        for_request = self.requests.wait(now, 1.0)
        for_tokens = self.tokens.wait(now, tokens)
        if for_request > for_tokens:
            self.cause = "requests"
            return for_request
        if for_tokens > 0:
            self.cause = "tokens"
        return for_tokens

    def take(self, now: float, tokens: float) -> Lease:
        """Grant it; `wait` has just said 0."""
        if now >= self._learned.next_note:
            self._learned.note(now, *self._granted())
        self.requests.take(1.0)
        self.tokens.take(tokens)
        self._number += 1
        self._in_air += 1
        if self._first_at is None:
            self._first_at = now
        lease = Lease(self._lender, tokens, now, self._number, self.requests.spent, self.tokens.spent)
        if self._wants_canary:
            self._canary = lease
            self._closed_until = now + max(_CANARY_PATIENCE_S, self._pause_s)
        return lease

    def save_up(self, tokens: float) -> None:
        """Save up for the first in line, of this size; 0 when nobody waits."""
        self.tokens.need = tokens

    def _held_at_start(self, now: float) -> float:
        elapsed = 0.0 if self._first_at is None else now - self._first_at
        if self._in_air < self._window * 2**elapsed:
            return 0.0
        return max(1e-3, math.log2((self._in_air + 1) / self._window) - elapsed)

    def _granted(self) -> tuple[float, float]:
        requests, tokens = self.requests, self.tokens
        return requests.spent - requests.refused, tokens.spent - tokens.refused

    def _follow(self, now: float) -> None:
        """Go along the learned curve, until it is above all that is known to be allowed."""
        requests, tokens = self._learned.rates(now)
        if requests >= self.requests.ceiling and tokens >= self.tokens.ceiling:
            self._learned.forget()
        if not self._learned.active:
            requests = tokens = math.inf
        self.requests.learn(now, requests)
        self.tokens.learn(now, tokens)

    # What became of a lease

    def settle(self, lease: Lease, tokens: float | None) -> None:
        """The request was answered, and cost so many tokens (None: as estimated)."""
        if tokens is not None and tokens != lease.tokens:
            self.tokens.correct(tokens - lease.tokens)
        self._in_air -= 1
        if self._starting:
            self._window += 1
            self._starting = self._window < _STARTED
        if lease.granted_at >= self._penalized_at:
            self._strikes = 0
        if lease is self._canary:
            self._canary = None
            self._wants_canary = False
            self._closed_until = -math.inf

    def refund(self, lease: Lease, now: float) -> None:
        """The request was not sent."""
        self._in_air -= 1
        for bucket, cost in ((self.requests, 1.0), (self.tokens, lease.tokens)):
            bucket.give_back(cost)
            bucket.spent -= cost
        if lease is self._canary:
            self._canary = None
            self._closed_until = now

    def observe(self, now: float, limits: RateLimits, lease: Lease) -> bool:
        """Correct the buckets by headers; True when a limit was learned or has changed.

        An answer to a request older than the newest one heard is ignored.
        """
        if lease.number < self._newest:
            return False
        self._newest = lease.number
        self._told = (lease.number, limits)
        before = self.requests.ceiling, self.tokens.ceiling
        if limits.requests is not None:
            self.requests.observe(now, limits.requests, lease.granted_at, lease.requests_mark)
        if limits.tokens is not None:
            self.tokens.observe(now, limits.tokens, lease.granted_at, lease.tokens_mark)
        return before != (self.requests.ceiling, self.tokens.ceiling)

    # Refusals

    def penalize(self, now: float, retry_after: float | None, lease: Lease | None, *, counted: bool) -> None:
        """The server refused: pause, and slow down unless its headers foretold it.

        Args:
            now: seconds.
            retry_after: seconds it asks to wait, None if it does not say.
            lease: the refused request, None if unknown.
            counted: whether the server counts its tokens all the same.
        """
        sent_at = now if lease is None else lease.granted_at
        tokens = 0.0 if lease is None else lease.tokens
        if lease is not None:
            self._in_air -= 1
            self.requests.refused += 1.0
            self.tokens.refused += tokens
            if lease is self._canary:
                self._canary = None
        self._pause(now, sent_at, retry_after)
        if not self._foretold(now, lease):
            self._slow_down(now, sent_at, tokens)
        if not counted:
            self.tokens.give_back(tokens)

    def _pause(self, now: float, sent_at: float, retry_after: float | None) -> None:
        news = sent_at >= self._penalized_at
        if news:
            self._strikes += 1
            self._penalized_at = now
        pause = 0.0
        if retry_after is not None:
            pause = min(retry_after, _LONGEST_PAUSE_S)
        elif news:
            pause = min(_FIRST_PAUSE_S * 2.0 ** (self._strikes - 1), _LONGEST_BACKOFF_S)
        if now + pause > self._closed_until:
            self._closed_until = now + pause
            self._pause_s = pause
        if pause >= _CANARY_AFTER_PAUSE_S or self._strikes >= _CANARY_AFTER_STRIKES:
            self._wants_canary = True

    def _foretold(self, now: float, lease: Lease | None) -> bool:
        if lease is None or self._told[0] != lease.number:
            return False
        limits = self._told[1]
        found = False
        for bucket, told, cost in (
            (self.requests, limits.requests, 1.0),
            (self.tokens, limits.tokens, lease.tokens),
        ):
            if _nearly_empty(told, cost) and bucket.ceiling < math.inf:
                bucket.refusal(now)
                found = True
        return found

    def _slow_down(self, now: float, sent_at: float, tokens: float) -> None:
        rates = self.requests.rate, self.tokens.rate
        if not self._learned.cut(now, sent_at, tokens, self._granted(), rates):
            return
        self._starting = False
        self._follow(now)
        for bucket in (self.requests, self.tokens):
            bucket.owe(_DEBT_AFTER_REFUSAL)
            if self._learned.soon:
                # What flowed in during the pause would only go out at once again.
                bucket.freeze(self._closed_until)


def _per_second(per_minute: float | None) -> float | None:
    return None if per_minute is None else per_minute / 60


def _nearly_empty(told: RateLimit | None, cost: float) -> bool:
    return told is not None and told.remaining is not None and told.remaining < _NEARLY_EMPTY * cost

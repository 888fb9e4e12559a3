"""One quota, requests and tokens together: whether a request may go now, and if not, when.

Decisions only: no lock, no line, no timer (those are the limiter's), and the time is an argument.
A request needs room in two buckets, and may be held back besides by a slow start or by a pause.
"""

from __future__ import annotations

import math
from typing import Final

from llmopt.policies.bucket import Bucket
from llmopt.policies.learned_rate import BURST_S, LearnedRate
from llmopt.policies.lease import Lease, Lender
from llmopt.policies.pause import Pause
from llmopt.policies.slow_start import SCOUTS, SlowStart
from llmopt.values.limits import RateLimit, RateLimits

_SILENT: Final = RateLimits()
_DEBT_AFTER_REFUSAL: Final = 0.1
_NEARLY_EMPTY: Final = 2.0
"""A rest below the cost of so many requests explains a refusal."""


class Quota:
    """The state of one quota key.

    Attributes:
        requests: the bucket of requests.
        tokens: the bucket of tokens.
        pause: whether the server wants nothing at all just now.
        cause: what held the last request back, as in `Lease.cause`.
    """

    __slots__ = (
        "_learned",
        "_lender",
        "_newest",
        "_number",
        "_start",
        "_tpm",
        "cause",
        "pause",
        "requests",
        "tokens",
    )

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
        self.pause = Pause()
        self.cause = ""
        self._tpm = math.inf if tpm is None else tpm
        self._lender = lender
        self._start = SlowStart(scouts)
        self._learned = LearnedRate()
        self._number = 0
        self._newest = 0

    def __repr__(self) -> str:
        return f"Quota(requests={self.requests}, tokens={self.tokens}, {self._learned})"

    def fits(self, tokens: float) -> bool:
        """Whether a request of this size can ever be granted by the configured limit.

        A minute's worth can: what is more than a burst is saved up for.
        """
        return tokens <= self._tpm

    # Granting

    def wait(self, now: float, tokens: float) -> float:
        """Seconds until a request of this size is worth another look; 0 when it may go now."""
        if now < self.pause.until:
            self.cause = "pause" if self.pause.canary is None else "canary"
            return self.pause.until - now
        if not self._start.over and (held := self._start.wait(now)) > 0:
            self.cause = "start"
            return held
        if self._learned.active:
            self._follow(now)
        if self.pause.keeps_its_word:
            # The server has said when. Whatever our own books hold, the first may go then.
            return 0.0
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
            self._learned.note(now, self._granted())
        self.requests.take(1.0)
        self.tokens.take(tokens)
        self._number += 1
        lease = Lease(self._lender, tokens, now, self._number, self.requests.spent, self.tokens.spent)
        if not self._start.over:
            self._start.sent(now)
        self.pause.keeps_its_word = False
        if self.pause.wants_canary:
            self.pause.sent(now, lease)
        return lease

    def save_up(self, tokens: float) -> None:
        """Save up for the first in line, of this size; 0 when nobody waits."""
        self.tokens.save_up(tokens)

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
        if tokens is not None and tokens != lease.tokens and 0 <= tokens < math.inf:
            self.tokens.correct(tokens - lease.tokens)
        self.accept(lease)

    def accept(self, lease: Lease) -> None:
        """The request was let through, and its answer has begun."""
        if lease.accepted:
            return
        lease.accepted = True
        if not self._start.over:
            self._start.returned(answered=True)
        self.pause.answered(lease)

    def refund(self, lease: Lease, now: float) -> None:
        """The request was not sent."""
        for bucket, cost in ((self.requests, 1.0), (self.tokens, lease.tokens)):
            bucket.give_back(cost)
            bucket.spent -= cost
        self._start.returned(answered=False)
        self.pause.returned(now, lease)

    def observe(self, now: float, limits: RateLimits, lease: Lease) -> bool:
        """Correct the buckets by headers; True when a limit was learned or has changed.

        An answer to a request older than the newest one heard is ignored.
        """
        if lease.number < self._newest:
            return False
        self._newest = lease.number
        before = self.requests.ceiling, self.tokens.ceiling
        if limits.requests is not None:
            self.requests.observe(now, limits.requests, lease.granted_at, lease.requests_mark)
        if limits.tokens is not None:
            self.tokens.observe(now, limits.tokens, lease.granted_at, lease.tokens_mark)
        return before != (self.requests.ceiling, self.tokens.ceiling)

    def penalize(
        self,
        now: float,
        retry_after: float | None,
        lease: Lease | None,
        *,
        limits: RateLimits = _SILENT,
        counted: bool = False,
    ) -> bool:
        """The server refused: pause, and slow down unless its headers explain it.

        Args:
            now: seconds.
            retry_after: seconds it asks to wait, None if it does not say.
            lease: the refused request, None if unknown.
            limits: what its headers tell.
            counted: whether the server counts its tokens all the same.

        Returns:
            As `observe`.
        """
        if lease is None:
            self.pause.refused(now, now, retry_after, None)
            self._slow_down(now, now, 0.0)
            return False
        self.pause.refused(now, lease.granted_at, retry_after, lease)
        if not lease.accepted:
            self._start.returned(answered=False)
        self.requests.refused += 1.0
        if not counted:
            self.tokens.refused += lease.tokens
            self.tokens.give_back(lease.tokens)
        changed = self.observe(now, limits, lease)
        if not self._explained(now, limits, lease.tokens):
            self._slow_down(now, lease.granted_at, lease.tokens)
        return changed

    def _explained(self, now: float, limits: RateLimits, tokens: float) -> bool:
        """Whether the rest in the headers is too small for such a request; then that teaches all there is."""
        found = False
        for bucket, told, cost in (
            (self.requests, limits.requests, 1.0),
            (self.tokens, limits.tokens, tokens),
        ):
            if bucket.ceiling < math.inf and _nearly_empty(told, cost):
                bucket.refusal(now)
                found = True
        return found

    def _slow_down(self, now: float, sent_at: float, tokens: float) -> None:
        rates = self.requests.rate, self.tokens.rate
        if not self._learned.cut(now, sent_at, tokens, self._granted(), rates):
            return
        self._start.over = True
        self._follow(now)
        for bucket in (self.requests, self.tokens):
            bucket.owe(_DEBT_AFTER_REFUSAL)
            if self._learned.soon:
                # What flowed in during the pause would only go out at once again.
                bucket.freeze(self.pause.until)


def _per_second(per_minute: float | None) -> float | None:
    return None if per_minute is None else per_minute / 60


def _nearly_empty(told: RateLimit | None, cost: float) -> bool:
    return told is not None and told.remaining is not None and told.remaining < _NEARLY_EMPTY * cost

"""The decision: may this request go now?"""

from __future__ import annotations

import math
from typing import Final

from llmopt.policies.bucket import Bucket
from llmopt.policies.lease import Lease
from llmopt.policies.learner import Learner
from llmopt.policies.pace import Pace
from llmopt.values.limits import RateLimits

_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 30.0
SCOUTS = 2
RESERVE = 0.1
_FLOOR: Final = 0.5
_CANARY_FROM_S: Final = 2.0
_IDLE_S: Final = 5.0


class Quota:
    def __init__(self, rpm: float | None, tpm: float | None, now: float) -> None:
        self.requests = Bucket(Pace(None if rpm is None else rpm / 60, 1.0), 1.0, now)
        self.tokens = Bucket(Pace(None if tpm is None else tpm / 60, 5.0), 0.0, now)
        self.cause = ""
        self.learner = Learner()
        self.number = 0
        self._closed_until = -math.inf
        self._pause_s = 0.0
        self._probing = False
        self.canary: Lease | None = None
        self._strikes = 0
        self._penalized_at = -math.inf
        self._newest = 0
        self._last = -math.inf
        self._window = SCOUTS
        self._starting = True
        self._began = math.inf
        self.flying = 0

    def wait(self, now: float, tokens: float) -> float:
        if now < self._closed_until:
            self.cause = "canary" if self._probing and self.canary else "pause"
            return self._closed_until - now
        if self._starting and self._began < math.inf and self.flying >= self._window * 2 ** (now - self._began):
            self.cause = "start"
            return max(1e-3, math.log2((self.flying + 1) / self._window) - (now - self._began))
        if self.learner.active:
            self._follow(now)
        short = self.requests.wait(now, 1.0)
        other = self.tokens.wait(now, tokens)
        if short > 0 or other > 0:
            self.cause = "requests" if short >= other else "tokens"
        return max(short, other)

    def take(self, now: float, tokens: float) -> Lease:
        self.requests.take(1.0)
        self.tokens.take(tokens)
        self.number += 1
        self.flying += 1
        if self._began == math.inf:
            self._began = now
        if now >= self.learner.next_note:
            self.learner.note(now, self.requests.spent - self.requests.refused -1, self.tokens.spent - self.tokens.refused-tokens)
        lease = Lease(self, tokens, now, self.number, self.requests.spent, self.tokens.spent)
        if self._probing:
            self.canary = lease
            self._closed_until = now + max(1.0, self._pause_s)
        return lease

    def _follow(self, now: float) -> None:
        factor = self.learner.factor(now)
        q, k = self.learner.peaks
        self.requests.wait(now, 0)
        self.tokens.wait(now, 0)
        if q * factor > self.requests.pace.ceiling and k * factor > self.tokens.pace.ceiling:
            self.learner.active = False
            factor = math.inf
        self.requests.pace.learn(now, q * factor)
        self.tokens.pace.learn(now, k * factor)
        self.requests.resize(now)
        self.tokens.resize(now)

    def observe(self, now: float, limits: RateLimits, lease: Lease) -> None:
        if lease.number < self._newest:
            return
        self._newest = lease.number
        if limits.requests is not None:
            self.requests.observe(now, limits.requests, lease.sent_at, self.requests.spent - lease.requests_mark, lease.requests_mark - self.requests.refused)
        if limits.tokens is not None:
            self.tokens.observe(now, limits.tokens, lease.sent_at, self.tokens.spent - lease.tokens_mark, lease.tokens_mark - self.tokens.refused + self.tokens.corrected)

    def answered(self, lease: Lease) -> None:
        self.flying -= 1
        self._window += 1
        if self._window > 64:
            self._starting = False
        self._strikes = 0
        if lease is self.canary:
            self.canary = None
            self._probing = False
            self._closed_until = -math.inf

    def penalize(self, now: float, retry_after: float | None, lease: Lease, limits: RateLimits | None) -> None:
        self.flying -= 1
        self.requests.refused += 1
        self.tokens.refused += lease.tokens
        news = lease.sent_at >= self._penalized_at
        if news:
            self._strikes += 1
            self._penalized_at = now
        if lease is self.canary:
            self.canary = None
        pause = retry_after
        if pause is None:
            pause = min(_BACKOFF_S * 2 ** (self._strikes - 1), _LONGEST_BACKOFF_S) if news else 0.0
        if now + pause > self._closed_until:
            self._closed_until = now + pause
            self._pause_s = pause
        self._probing = self._probing or pause >= _CANARY_FROM_S or self._strikes > 2
        explained = False
        if limits is not None:
            if limits.requests is not None and limits.requests.remaining is not None and limits.requests.remaining < 2 and self.requests.pace.ceiling < math.inf:
                self.requests.pace.yield_to_others(now)
                self.requests.resize(now)
                explained = True
            if limits.tokens is not None and limits.tokens.remaining is not None and limits.tokens.remaining < 2*lease.tokens and self.tokens.pace.ceiling < math.inf:
                self.tokens.pace.yield_to_others(now)
                self.tokens.resize(now)
                explained = True
        if not explained:
            r, k = self.requests, self.tokens
            if self.learner.cut(now, lease.sent_at, lease.tokens, r.spent - r.refused, k.spent - k.refused, (r.pace.rate, k.pace.rate), k.spent/r.spent):
                self._starting = False
                self._follow(now)
                for b in (r, k):
                    b.level = min(b.level, -RESERVE * b.pace.burst_s * b.pace.rate)
                    if self.learner.quick:
                        b._at = self._closed_until
        self.tokens.give_back(lease.tokens)

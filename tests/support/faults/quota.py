"""A provider that counts: requests and tokens per minute, in buckets that refill steadily."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from attrs import frozen

from tests.support.faults.openai import answer_openai, error_answer, inputs_of, tokens_of
from tests.support.faults.request import Request
from tests.support.faults.response import Answer, Header
from tests.support.faults.script import Reply, Responder

ROUNDING = 1e-9  # a client that waited exactly the stated time must find enough


class Bucket:
    """Holds `burst` seconds' worth of a rate per minute, full at first."""

    def __init__(self, per_minute: float, burst: float, now: float) -> None:
        self.per_minute = per_minute
        self.rate = per_minute / 60
        self.capacity = self.rate * burst
        self._level = self.capacity
        self._at = now

    def level(self, now: float) -> float:
        """Return its level."""
        return min(self.capacity, self._level + (now - self._at) * self.rate)

    def take(self, cost: float, now: float) -> None:
        """Withdraw a cost."""
        self._level, self._at = self.level(now) - cost, now

    def wait(self, cost: float, now: float) -> float:
        """Return the seconds until it can pay a cost; infinity for a cost above its capacity."""
        missing = cost - self.level(now) - ROUNDING
        if missing <= 0:
            return 0.0
        return missing / self.rate if cost <= self.capacity + ROUNDING else math.inf

    def refill(self, now: float) -> float:
        """Return the seconds until it is full."""
        return (self.capacity - self.level(now)) / self.rate


@frozen
class Grant:
    """One admitted request: its time and its tokens."""

    time: float
    tokens: int


class RateLimited:
    """A responder that answers 429 when requests or tokens run out; a refused request pays nothing.

    `grants` and `refusals` (times) record what happened, for the rule that grants in any window fit the limit.

    Args:
        inner: answers the admitted requests.
        rpm: requests per minute; None for no such limit.
        tpm: tokens per minute; None for no such limit.
        burst: seconds of each rate that a full bucket holds.
        clock: monotonic seconds.
        headers: send OpenAI's x-ratelimit headers, with correct values.
        hint: send retry-after-ms and retry-after with a refusal.
        count: tokens of one item.
    """

    def __init__(
        self,
        inner: Responder = answer_openai,
        *,
        rpm: float | None = None,
        tpm: float | None = None,
        burst: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        headers: bool = True,
        hint: bool = True,
        count: Callable[[object], int] = tokens_of,
    ) -> None:
        now = clock()
        limits = {"requests": rpm, "tokens": tpm}
        self.buckets = {
            name: Bucket(limit, burst, now) for name, limit in limits.items() if limit is not None
        }
        self.grants: list[Grant] = []
        self.refusals: list[float] = []
        self._inner = inner
        self._clock = clock
        self._headers = headers
        self._hint = hint
        self._count = count

    def __call__(self, request: Request) -> Reply:
        now = self._clock()
        costs = {"requests": 1, "tokens": self._tokens(request)}
        waits = {name: bucket.wait(costs[name], now) for name, bucket in self.buckets.items()}
        name = max(waits, key=lambda name: waits[name], default="requests")
        if waits.get(name, 0.0) > 0:
            self.refusals.append(now)
            return self._told(self._refusal(name, costs[name], waits[name], now), now)
        for name, bucket in self.buckets.items():
            bucket.take(costs[name], now)
        self.grants.append(Grant(now, costs["tokens"]))
        reply = self._inner(request)
        return self._told(reply, now) if isinstance(reply, Answer) else reply

    def _tokens(self, request: Request) -> int:
        return sum(map(self._count, inputs_of(request))) if request.path.endswith("/embeddings") else 0

    def _refusal(self, name: str, cost: int, wait: float, now: float) -> Answer:
        bucket, short = self.buckets[name], {"requests": "RPM", "tokens": "TPM"}[name]
        if math.isinf(wait):
            text = f"Request too large for model on {name} per min ({short}): Limit {bucket.capacity:.0f}, Requested {cost}."
            return error_answer(429, text, kind=name, code="rate_limit_exceeded")
        used = bucket.capacity - bucket.level(now)
        text = (
            f"Rate limit reached for model on {name} per min ({short}): Limit {bucket.per_minute:.0f}, "
            f"Used {used:.0f}, Requested {cost}. Please try again in {go_duration(wait)}."
        )
        return error_answer(
            429, text, kind=name, code="rate_limit_exceeded", headers=_hints(wait) if self._hint else ()
        )

    def _told(self, answer: Answer, now: float) -> Answer:
        if not self._headers:
            return answer
        headers: list[Header] = []
        for name, bucket in self.buckets.items():
            headers.append((f"x-ratelimit-limit-{name}", f"{bucket.per_minute:.0f}"))
            headers.append((f"x-ratelimit-remaining-{name}", f"{math.floor(bucket.level(now) + ROUNDING)}"))
            headers.append((f"x-ratelimit-reset-{name}", go_duration(bucket.refill(now))))
        return answer.plus(*headers)


def _hints(wait: float) -> list[Header]:
    return [("retry-after-ms", str(math.ceil(wait * 1000))), ("retry-after", str(math.ceil(wait)))]


def go_duration(seconds: float) -> str:
    """Write seconds as Go does, and OpenAI with it: `6m0s`, `1.5s`, `20ms`; rounded up to a millisecond."""
    millis = math.ceil(seconds * 1000 - ROUNDING)
    if millis < 1000:
        return f"{millis}ms"
    minutes, rest = divmod(millis, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}" if minutes else text

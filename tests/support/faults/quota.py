"""A provider that counts: requests and tokens per minute, in buckets that refill steadily or once per window."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from typing import Literal

from attrs import frozen

from tests.support.faults.openai import answer_openai, error_answer, inputs_of, tokens_of
from tests.support.faults.request import Request
from tests.support.faults.response import Answer, Header, json_answer
from tests.support.faults.script import Reply, Responder

ROUNDING = 1e-9  # a client that waited exactly the stated time must find enough


Headers = Literal["honest", "scaled", "requests", "none"]
"""What responses state: both limits; both, but of requests what would be left of a whole minute; requests alone; nothing."""
Hint = Literal["headers", "seconds", "text", "google", "none"]
"""Where a refusal states the wait: ``retry-after-ms`` and ``retry-after``, the latter alone, its message alone, the details
of an error in Google's format, nowhere."""


class Bucket:
    """Holds `burst` seconds' worth of a rate per minute, full at first.

    With ``windowed`` it is filled at the end of each window of `burst` seconds, and gains nothing in between.
    """

    def __init__(self, per_minute: float, burst: float, now: float, *, windowed: bool = False) -> None:
        self.per_minute = per_minute
        self.rate = per_minute / 60
        self.burst = burst
        self.capacity = self.rate * burst
        self._level = self.capacity
        self._at = now
        self._windowed = windowed

    def level(self, now: float) -> float:
        """Return its level."""
        return min(self.capacity, self._level + self.inflow(self._at, now))

    def inflow(self, since: float, now: float) -> float:
        """Return what it gains in a time if it is empty at the beginning."""
        if self._windowed:
            return (now // self.burst - since // self.burst) * self.capacity
        return max(0.0, now - since) * self.rate

    def fill(self, part: float, now: float) -> None:
        """Set the level to a part of the capacity."""
        self._level, self._at = part * self.capacity, now

    def take(self, cost: float, now: float) -> None:
        """Withdraw a cost."""
        self._level, self._at = self.level(now) - cost, now

    def wait(self, cost: float, now: float) -> float:
        """Return the seconds until it can pay a cost; infinity for a cost above its capacity."""
        missing = cost - self.level(now) - ROUNDING
        if missing <= 0:
            return 0.0
        if cost > self.capacity + ROUNDING:
            return math.inf
        return self._to_next_window(now) if self._windowed else missing / self.rate

    def refill(self, now: float) -> float:
        """Return the seconds until it is full."""
        if self._windowed:
            return self._to_next_window(now)
        return (self.capacity - self.level(now)) / self.rate

    def _to_next_window(self, now: float) -> float:
        return (now // self.burst + 1) * self.burst - now


@frozen
class Grant:
    """One admitted request: its time, its tokens, and what it cost of the limit of requests."""

    time: float
    tokens: int
    requests: int = 1


class RateLimited:
    """A responder that answers 429 when requests or tokens run out; a refused request pays nothing.

    `grants` and `refusals` (times) record what happened, for the rule that grants in any window fit the limit;
    `random_refusals` are the times of those that had no reason.

    Args:
        inner: answers the admitted requests.
        rpm: requests per minute; None for no such limit.
        tpm: tokens per minute; None for no such limit.
        burst: seconds of each rate that a full bucket holds; a number, or one for each name.
        windowed: whether the buckets are filled at the end of each `burst`, instead of steadily.
        clock: monotonic seconds.
        headers: which of OpenAI's x-ratelimit headers to send; True for "honest", False for "none".
        hint: where a refusal states the wait; True for "headers", False for "text".
        names_limit: whether the text of a refusal says which limit was reached.
        refused_at_random: part of the requests that is refused without a reason.
        items: whether the limit of requests counts the items of a request.
        count: tokens of one item.
        seed: of the random refusals.
    """

    def __init__(
        self,
        inner: Responder = answer_openai,
        *,
        rpm: float | None = None,
        tpm: float | None = None,
        burst: float | Mapping[str, float] = 60.0,
        windowed: bool = False,
        clock: Callable[[], float] = time.monotonic,
        headers: Headers | bool = True,
        hint: Hint | bool = True,
        names_limit: bool = True,
        refused_at_random: float = 0.0,
        items: bool = False,
        count: Callable[[object], int] = tokens_of,
        seed: int = 0,
    ) -> None:
        now = clock()
        limits = {"requests": rpm, "tokens": tpm}
        self.buckets = {
            name: Bucket(limit, burst[name] if isinstance(burst, Mapping) else burst, now, windowed=windowed)
            for name, limit in limits.items()
            if limit is not None
        }
        self.grants: list[Grant] = []
        self.refusals: list[float] = []
        self.random_refusals: list[float] = []
        self._inner = inner
        self._clock = clock
        self._headers: Headers = headers if isinstance(headers, str) else "honest" if headers else "none"
        self._hint: Hint = hint if isinstance(hint, str) else "headers" if hint else "text"
        self._names_limit = names_limit
        self._refused_at_random = refused_at_random
        self._items = items
        self._count = count
        self._random = random.Random(seed)

    def __call__(self, request: Request) -> Reply:
        now = self._clock()
        costs = self._costs(request)
        waits = {name: bucket.wait(costs[name], now) for name, bucket in self.buckets.items()}
        name = max(waits, key=lambda name: waits[name], default="requests")
        if waits.get(name, 0.0) > 0:
            self.refusals.append(now)
            return self._told(self._refusal(name, costs[name], waits[name], now), now)
        if self._random.random() < self._refused_at_random:
            self.random_refusals.append(now)
            return self._told(self._refused(None, "Too many requests, please slow down.", 1.0), now)
        for name, bucket in self.buckets.items():
            bucket.take(costs[name], now)
        self.grants.append(Grant(now, costs["tokens"], costs["requests"]))
        reply = self._inner(request)
        return self._told(reply, now) if isinstance(reply, Answer) else reply

    def levels(self) -> dict[str, float]:
        """Return what the buckets hold now."""
        now = self._clock()
        return {name: bucket.level(now) for name, bucket in self.buckets.items()}

    def share_of_possible(self, since: float, until: float, levels: Mapping[str, float]) -> float:
        """Return what was admitted in a time, as a part of what the narrower limit allows.

        Args:
            since: the beginning.
            until: the end.
            levels: what the buckets held at the beginning.
        """
        grants = [grant for grant in self.grants if since <= grant.time < until]
        used = {
            "requests": sum(grant.requests for grant in grants),
            "tokens": sum(grant.tokens for grant in grants),
        }
        return max(
            used[name] / (levels[name] + bucket.inflow(since, until)) for name, bucket in self.buckets.items()
        )

    def _costs(self, request: Request) -> dict[str, int]:
        if not request.path.endswith(("/embeddings", ":batchEmbedContents")):
            return {"requests": 1, "tokens": 0}
        inputs = inputs_of(request)
        return {
            "requests": len(inputs) if self._items else 1,
            "tokens": sum(map(self._count, inputs)),
        }

    def _refusal(self, name: str, cost: int, wait: float, now: float) -> Answer:
        bucket, short = self.buckets[name], {"requests": "RPM", "tokens": "TPM"}[name]
        if math.isinf(wait):
            text = f"Request too large for model on {name} per min ({short}): Limit {bucket.capacity:.0f}, Requested {cost}."
            return error_answer(429, text, kind=name, code="rate_limit_exceeded")
        if self._hint == "google":
            return _google_refusal(name, bucket.per_minute, wait)
        if not self._names_limit:
            return self._refused(None, "Rate limit exceeded.", wait)
        used = bucket.capacity - bucket.level(now)
        text = (
            f"Rate limit reached for model on {name} per min ({short}): Limit {bucket.per_minute:.0f}, "
            f"Used {used:.0f}, Requested {cost}."
        )
        return self._refused(name, text, wait)

    def _refused(self, name: str | None, text: str, wait: float) -> Answer:
        if self._hint != "none":
            text += f" Please try again in {go_duration(wait)}."
        return error_answer(
            429,
            text,
            kind=name or "rate_limit_error",
            code="rate_limit_exceeded",
            headers=_hints(self._hint, wait),
        )

    def _told(self, answer: Answer, now: float) -> Answer:
        if self._headers == "none":
            return answer
        headers: list[Header] = []
        for name, bucket in self.buckets.items():
            if name != "requests" and self._headers == "requests":
                continue
            scale = 60 / bucket.burst if self._headers == "scaled" and name == "requests" else 1.0
            headers.append((f"x-ratelimit-limit-{name}", f"{bucket.per_minute:.0f}"))
            headers.append(
                (f"x-ratelimit-remaining-{name}", f"{math.floor(bucket.level(now) * scale + ROUNDING)}")
            )
            headers.append((f"x-ratelimit-reset-{name}", go_duration(bucket.refill(now))))
        return answer.plus(*headers)


def _google_refusal(name: str, limit: float, wait: float) -> Answer:
    """A refusal as Gemini's API writes it."""
    rpc = "type.googleapis.com/google.rpc."
    metric = f"generativelanguage.googleapis.com/embed_content_{name}"
    counted = {"requests": "RequestsPerMinutePerProjectPerModel", "tokens": "InputTokensPerModelPerMinute"}
    text = (
        "You exceeded your current quota, please check your plan and billing details.\n"
        f"* Quota exceeded for metric: {metric}, limit: {limit:.0f}\nPlease retry in {wait:.9f}s."
    )
    violation = {"quotaMetric": metric, "quotaId": counted[name], "quotaValue": f"{limit:.0f}"}
    details = [
        {"@type": f"{rpc}QuotaFailure", "violations": [violation]},
        {"@type": f"{rpc}RetryInfo", "retryDelay": f"{math.ceil(wait)}s"},
    ]
    error = {"code": 429, "message": text, "status": "RESOURCE_EXHAUSTED", "details": details}
    return json_answer({"error": error}, status=429)


def _hints(hint: Hint, wait: float) -> list[Header]:
    seconds = ("retry-after", str(math.ceil(wait)))
    return {
        "headers": [("retry-after-ms", str(math.ceil(wait * 1000))), seconds],
        "seconds": [seconds],
    }.get(hint, [])


def go_duration(seconds: float) -> str:
    """Write seconds as Go does, and OpenAI with it: `6m0s`, `1.5s`, `20ms`; rounded up to a millisecond."""
    millis = math.ceil(seconds * 1000 - ROUNDING)
    if millis < 1000:
        return f"{millis}ms"
    minutes, rest = divmod(millis, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}" if minutes else text

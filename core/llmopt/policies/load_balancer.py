"""Which of several endpoints gets the next request: the better of two that were drawn.

Power of two choices (Mitzenmacher): comparing two drawn at random spreads load nearly as well as knowing
the least loaded of all, and does not send everybody to the same one at once. What is compared is load times
latency, as in Finagle's peak-EWMA balancer: requests in flight per allowed one, times a moving average
of what answers take (docs/development/resilience.md).

Weights count twice: they decide who is drawn, so that idle endpoints share by weight, and how much in
flight is much, so that busy ones do. The second of the pair wins only if it is clearly better:
otherwise the noise of the latencies, not the weights, would place every request of a quiet client.
Simulated with weights 3 and 1 and latencies that vary by 30 %: 71 % with one request at a time, 70 to
74 % with four to 24 at once, half with just two, because the second goes to whoever is idle.
"""

from __future__ import annotations

import math
import random
from collections.abc import Container, Sequence
from typing import Final

from attrs import frozen

from llmopt.policies.clock import Now, new_rng

_CLEARLY: Final = 0.75
_MEMORY_S: Final = 10.0
_FORGET_S: Final = 30.0


@frozen
class Candidate:
    """An endpoint whose breaker admits.

    Attributes:
        index: its place in the provider entry.
        in_flight: requests it works on or that wait for it.
        limit: how many it may work on at once.
    """

    index: int
    in_flight: int
    limit: float


class _Latency:
    """A moving average that weighs an observation by the time since the one before, not by their number."""

    __slots__ = ("at", "value")

    def __init__(self) -> None:
        self.value: float | None = None
        self.at = 0.0

    def add(self, seconds: float, now: float) -> None:
        if self.value is None:
            self.value = seconds
        else:
            keep = math.exp((self.at - now) / _MEMORY_S)
            self.value += (seconds - self.value) * (1.0 - keep)
        self.at = now


class LoadBalancer:
    """Chooses among the endpoints of one provider entry."""

    def __init__(self, weights: Sequence[float], *, now: Now, rng: random.Random | None = None) -> None:
        """Take the endpoints' weights, all above zero, in their order."""
        self._weights = tuple(weights)
        mean = sum(weights) / len(weights)
        self._shares = tuple(weight / mean for weight in weights)
        self._latencies = tuple(_Latency() for _ in weights)
        self._now = now
        self._rng = rng or new_rng()

    def record_latency(self, index: int, seconds: float) -> None:
        """A good answer took so long.

        Errors that come fast are no good sign, and time-outs are none of a second kind: while it lasts a hanging
        request counts as one in flight, then it lowers how many are allowed and tells the breaker. As an observation
        among answers of 0.2 s one of 60 s would keep everybody away for 200 s, whatever the endpoint does by then.
        """
        self._latencies[index].add(seconds, self._now())

    def choose(self, candidates: Sequence[Candidate], tried: Container[int] = ()) -> Candidate | None:
        """The one to ask next, None if there is none. Those tried before only when there is no other.

        Args:
            candidates: all endpoints that may be asked.
            tried: indices of those that this call has been at already.
        """
        fresh = [one for one in candidates if one.index not in tried] or candidates
        if not fresh:
            return None
        if len(fresh) == 1:
            return fresh[0]
        first = self._draw(fresh)
        second = self._draw([one for one in fresh if one is not first])
        return self._better(first, second, fresh)

    def _draw(self, among: Sequence[Candidate]) -> Candidate:
        if len(among) == 1:
            return among[0]
        return self._rng.choices(among, [self._weights[one.index] for one in among])[0]

    def _better(self, first: Candidate, second: Candidate, fresh: Sequence[Candidate]) -> Candidate:
        now = self._now()
        known = [value for one in fresh if (value := self._latencies[one.index].value) is not None]
        best = min(known, default=1.0)
        # What this request adds, as if all allowed the same: who is idle has room for it, however little is allowed.
        one_more = 1.0 / max(one.limit for one in fresh)
        costs = [(self._load(one) + one_more) * self._latency(one, best, now) for one in (first, second)]
        return second if costs[1] < _CLEARLY * costs[0] else first

    def _load(self, one: Candidate) -> float:
        return one.in_flight / self._shares[one.index] / one.limit

    def _latency(self, one: Candidate, best: float, now: float) -> float:
        """What is known of it, fading towards the best of all: who is never asked could never improve."""
        known = self._latencies[one.index]
        if known.value is None:
            return best
        return best + (known.value - best) * math.exp((known.at - now) / _FORGET_S)

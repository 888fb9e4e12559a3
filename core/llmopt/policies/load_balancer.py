"""Load balancer: choose one of several endpoints by power of two choices.

Of two endpoints drawn at random the less loaded one is chosen. That spreads load nearly as well as the least
loaded of all (Mitzenmacher), and does not send all requests to the same endpoint at once. Load is measured as
in Finagle's peak-EWMA balancer: requests in flight as a share of the limit, times a moving average of latency.

Weights count twice. They decide which endpoints are drawn, so that idle endpoints share by weight, and how
much load a request in flight is, so that busy ones do. The second of a pair wins only if it is clearly better;
otherwise noise in the latencies, not the weights, would place every request of a quiet client. Simulated with
weights 3 and 1 and latencies that vary by 30 %, the first endpoint gets 71 % with one request at a time, 70 to
74 % with 4 to 24 at once, and half with two, because the second request goes to the endpoint that is idle.

No I/O and no awaiting. The monotonic clock is passed in; the draws come from a random generator, which is passed in or
else its own and seeded anew in a forked child. All calls of a provider share the generator and the averages, also
from several threads, without a lock: two threads that record at once may lose a measurement or give one a slightly
wrong weight, and a choice may combine an average with the time of another measurement.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Callable, Container, Sequence
from itertools import accumulate
from typing import Final

from attrs import define, frozen

from llmopt.policies.clock import Now, new_rng

_CLEARLY_BETTER: Final = 0.75
"""Load of the second endpoint, as a part of the first one's, below which it is chosen."""
_AVERAGE_S: Final = 10.0
"""Time constant of the average of latencies."""
_MAX_DRAWS: Final = 4
"""Of each of the two, before all endpoints are looked at; half of them may be unusable, and 15 of 16 draws are enough."""
_FADE_S: Final = 30.0
"""Time constant by which an old average approaches the best of all."""


@frozen
class Candidate:
    """An endpoint whose circuits let a request through.

    Attributes:
        index: its index in the provider entry.
        in_flight: requests in flight and waiting for a slot.
        limit: how many may be in flight at once.
    """

    index: int
    in_flight: int
    limit: float


class LoadBalancer:
    """Chooses among the endpoints of one provider entry.

    Args:
        weights: one for each endpoint, in their order, all above zero.
        now: the monotonic clock.
        rng: source of the draws.
    """

    def __init__(self, weights: Sequence[float], *, now: Now, rng: random.Random | None = None) -> None:
        self._weights = tuple(weights)
        self._cumulative = tuple(accumulate(weights))
        mean = sum(weights) / len(weights)
        self._relative_weights = tuple(weight / mean for weight in weights)
        self._latencies = tuple(_Latency() for _ in weights)
        self._best: float | None = None
        self._now = now
        self._rng = rng or new_rng()

    def record_latency(self, index: int, seconds: float) -> None:
        """Record the latency of a good response.

        Errors and timeouts are not recorded. Errors that come fast would look good. A request that hangs counts as
        one in flight until its timeout, which then lowers the concurrency limit and is a failure for the circuit
        breaker; as a latency of 60 s among others of 0.2 s it would keep requests away for 200 s, however the
        endpoint does by then.
        """
        latency = self._latencies[index]
        was_best = latency.average is not None and latency.average == self._best
        average = latency.add(seconds, self._now())
        if self._best is None or average <= self._best:
            self._best = average
        elif was_best:
            # Only now all have to be looked at; an endpoint among many is seldom the best.
            self._best = min(each.average for each in self._latencies if each.average is not None)

    def choose(self, candidates: Sequence[Candidate], tried: Container[int] = ()) -> Candidate:
        """The endpoint to ask next.

        Args:
            candidates: all endpoints that may be asked, at least one.
            tried: indices of endpoints that this call has tried before; they are chosen only if there is no other.
        """
        # A retry goes to another endpoint: the one that has just failed is the likeliest to fail again.
        untried = [each for each in candidates if each.index not in tried] or candidates
        first = self._draw(untried)
        others = [each for each in untried if each is not first]
        return self._better(first, self._draw(others)) if others else first

    def choose_of_two(self, candidate: Callable[[int], Candidate | None]) -> Candidate | None:
        """The endpoint to ask next, as `choose` from all of them, without looking at more than those that are drawn.

        One that may not be asked is drawn again, a few times: the shares of the others stay as they are.

        Args:
            candidate: the endpoint of an index, None if it may not be asked now.

        Returns:
            None if too few may be asked, so that the caller has to look at all.
        """
        first = self._draw_one(candidate)
        second = None if first is None else self._draw_one(candidate, first.index)
        return None if first is None or second is None else self._better(first, second)

    def _draw_one(self, candidate: Callable[[int], Candidate | None], other: int = -1) -> Candidate | None:
        """One that may be asked, drawn by weight from all but the other."""
        cumulative, left_out = self._cumulative, 0.0 if other < 0 else self._weights[other]
        for _ in range(_MAX_DRAWS):
            point = self._rng.random() * (cumulative[-1] - left_out)
            if other >= 0 and point >= cumulative[other] - left_out:
                point += left_out
            # Rounding may reach the end.
            index = min(bisect(cumulative, point), len(cumulative) - 1)
            if index != other and (found := candidate(index)) is not None:
                return found
        return None

    def _draw(self, candidates: Sequence[Candidate]) -> Candidate:
        return self._rng.choices(candidates, [self._weights[each.index] for each in candidates])[0]

    def _better(self, first: Candidate, second: Candidate) -> Candidate:
        now = self._now()
        # The load of this request is the same for both, whatever their limits: an idle endpoint has room for it, and
        # a limit that was lowered after an overload only rises if it is used.
        added = 1.0 / max(first.limit, second.limit)
        costs = [(self._load(each) + added) * self._latency(each, now) for each in (first, second)]
        return second if costs[1] < _CLEARLY_BETTER * costs[0] else first

    def _load(self, candidate: Candidate) -> float:
        return candidate.in_flight / self._relative_weights[candidate.index] / candidate.limit

    def _latency(self, candidate: Candidate, now: float) -> float:
        # It fades towards the best of all, because an endpoint that is never chosen has no chance to improve.
        latency, best = self._latencies[candidate.index], 1.0 if self._best is None else self._best
        if latency.average is None or latency.average == best:
            return best
        return best + (latency.average - best) * math.exp((latency.at - now) / _FADE_S)


@define(eq=False)
class _Latency:
    """A moving average whose weights depend on the time between observations, not on their number."""

    average: float | None = None
    at: float = 0.0

    def add(self, seconds: float, now: float) -> float:
        average = seconds
        if self.average is not None:
            keep = math.exp((self.at - now) / _AVERAGE_S)
            average = self.average + (seconds - self.average) * (1.0 - keep)
        self.average, self.at = average, now
        return average

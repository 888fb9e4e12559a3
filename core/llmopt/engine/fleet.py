"""The endpoints of one provider entry, and which of them is asked next."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Final

from llmopt.engine.endpoint import LiveEndpoint
from llmopt.errors import CircuitOpen
from llmopt.policies.balance import Balance, Candidate
from llmopt.policies.clock import Clock
from llmopt.policies.recess import Recess
from llmopt.values.calls import Call


class Fleet:
    """All endpoints of an entry.

    Args:
        endpoints: at least one.
        clock: the time.
        recess: where those wait whose circuits are open.
    """

    def __init__(self, endpoints: tuple[LiveEndpoint, ...], clock: Clock, recess: Recess) -> None:
        self.endpoints: Final = endpoints
        self.recess: Final = recess
        self._balance: Final = Balance([endpoint.config.weight for endpoint in endpoints], now=clock.now)

    @property
    def in_process(self) -> bool:
        """Whether requests stay inside this process."""
        return self.endpoints[0].config.in_process

    def choose(self, call: Call, tried: Container[int]) -> LiveEndpoint:
        """The endpoint for the next attempt: one that admits, the better of two, elsewhere first.

        Raises:
            CircuitOpen: all endpoints are given a rest; ``retry_after`` is the shortest.
            QuotaExhausted, AuthError: every endpoint that is not at rest has had its credential refused.
        """
        if len(self.endpoints) == 1:
            return self._only(call)
        rests: list[float] = []
        candidates = []
        for index, endpoint in enumerate(self.endpoints):
            rest = endpoint.rest(call)
            if rest is not None:
                rests.append(rest)
            elif endpoint.guards.refusal() is None:
                candidates.append(self._candidate(index, endpoint))
        if not candidates:
            raise self._none_left(rests)
        if not self.endpoints[0].config.flags.balance:
            return self.endpoints[candidates[0].index]
        # One that asked for a pause, or whose rate is spent, would hold a request that another could take now.
        ready = [one for one in candidates if not self._paused(one.index, call)] or candidates
        free = [one for one in ready if self.endpoints[one.index].guards.pace(call).free]
        candidates = free or ready
        chosen = self._balance.choose(candidates, tried)
        return self.endpoints[(chosen or candidates[0]).index]

    def elsewhere(self, endpoint: LiveEndpoint, call: Call, tried: Container[int] = ()) -> bool:
        """Whether another endpoint, not tried yet, would take the call now."""
        return len(self.endpoints) > 1 and any(
            other is not endpoint
            and index not in tried
            and other.rest(call) is None
            and other.guards.refusal() is None
            and not self._paused(index, call)
            for index, other in enumerate(self.endpoints)
        )

    def _paused(self, index: int, call: Call) -> bool:
        return self.endpoints[index].guards.pace(call).paused > 0

    def rest(self, call: Call) -> float | None:
        """Seconds until one of the endpoints admits again, None when one does now."""
        return _soonest([endpoint.rest(call) for endpoint in self.endpoints])

    def patience(self, call: Call) -> float | None:
        """As `rest`, for one who is woken when there are news."""
        return _soonest([endpoint.patience(call) for endpoint in self.endpoints])

    def took(self, endpoint: LiveEndpoint, seconds: float) -> None:
        """An attempt at an endpoint took so long."""
        if len(self.endpoints) > 1:
            self._balance.took(endpoint.config.index, seconds)

    def _only(self, call: Call) -> LiveEndpoint:
        endpoint = self.endpoints[0]
        refusal = endpoint.guards.refusal()
        if refusal is not None:
            raise refusal.copy()
        rest = endpoint.rest(call)
        if rest is not None:
            raise self._none_left([rest])
        return endpoint

    def _candidate(self, index: int, endpoint: LiveEndpoint) -> Candidate:
        line = endpoint.guards.concurrency()
        return Candidate(index, line.in_flight + line.waiting, line.limit)

    def _none_left(self, rests: list[float]) -> Exception:
        if not rests:
            refusals = [endpoint.guards.refusal() for endpoint in self.endpoints]
            return next(refusal.copy() for refusal in refusals if refusal is not None)
        soonest = min(rests)
        when = f"for another {soonest:.1f} s" if math.isfinite(soonest) else "until it is released by hand"
        return CircuitOpen(
            f"{self.endpoints[0].config.provider!r} failed repeatedly and is given a rest {when}; "
            "nothing was sent. Try later, or pass when_open='wait'.",
            retry_after=soonest if math.isfinite(soonest) else None,
        )


def _soonest(rests: Sequence[float | None]) -> float | None:
    known = [rest for rest in rests if rest is not None and math.isfinite(rest)]
    return min(known) if len(known) == len(rests) else None

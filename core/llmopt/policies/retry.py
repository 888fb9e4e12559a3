"""Retry policy: whether and when a failed request is tried again.

One table decides for every kind of error. What a decision depends on besides the error is passed in: how often
this call was retried, whether repeating the request does harm, what the server said. Nothing here waits or
does I/O: `RetryPolicy.decide` returns a `RetryDecision` or a `GiveUp`, and `llmopt.policies.retry_loop` acts
on it. `RetryBudget` bounds the retries of all calls to an endpoint, `retry_guard` those of nested calls.

It reads no clock but the one in the `Deadline`, and draws jitter from a random generator of its own unless one is
passed in. All calls to an endpoint share its `RetryPolicy` with the generator and its `RetryBudget`, without a lock:
of two changes of a budget by two threads one may be lost. `retry_guard` sets a context variable, which tasks and
`asyncio.to_thread` started inside it inherit; a `RetryHistory` belongs to one call, or to one failed batch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Literal

from attrs import define, evolve, field, frozen

from llmopt import errors
from llmopt.policies.clock import Deadline, new_rng

BUDGET_CAPACITY: Final = 500
TRANSIENT_COST: Final = 14
"""The cost of a retry after a failure that says nothing about load."""
THROTTLED_COST: Final = 5
"""The cost of a retry that the server asked to delay; such a retry is cheap for the server."""
NO_COST: Final = 0
"""For a retry that adds no load, because nothing was sent or the server never saw the request."""
RetryReason = Literal[
    "asked", "circuit_open", "connect", "connection", "credential", "invalid_response", "local", "other_endpoint",
    "overloaded", "pool", "rate_limited", "server", "stale", "timeout",
]  # fmt: skip
"""Why a request is tried again."""
GiveUpReason = Literal[
    "ambiguous", "attempts", "budget", "circuit_open", "deadline", "final", "once", "retry_after", "vetoed"
]
"""Why a request is not tried again: the error is final by its kind, or a bound is reached."""


@frozen(kw_only=True)
class RetryDecision:
    """A decision to retry.

    Attributes:
        delay: seconds to wait first, finite and never negative.
        reason: why.
        cost: what the retry takes from the endpoint's budget.
        counted: whether it is one of the ``max_retries``.
        computed: whether the delay is the policy's own backoff, not one that the server asked for.
        ambiguous: whether the server may have carried out the request already.
    """

    delay: float
    reason: RetryReason
    cost: int = TRANSIENT_COST
    counted: bool = True
    computed: bool = True
    ambiguous: bool = False


@frozen(kw_only=True)
class GiveUp:
    """A decision not to retry.

    Attributes:
        reason: why.
        wait: seconds that a retry would have waited, None when no wait was computed.
    """

    reason: GiveUpReason
    wait: float | None = None


@frozen(kw_only=True)
class RetryFacts:
    """What a decision depends on besides the error and the history.

    Attributes:
        idempotent: whether doing the request twice does no harm: embeddings and lists of models, not chats.
        should_retry: the server's ``x-should-retry``, None if it did not send one.
        new_credential: whether the credential's provider has given another key since the attempt.
        wait_when_open: whether the call waits for an open circuit instead of failing.
        circuit_retry_in: seconds until the circuit lets a request through, None if it would now. The failure may
            have opened it.
        other_endpoint: whether another endpoint, not tried by this call yet, would take the request now; for
            `OTHER_ENDPOINT_MAY_SERVE` also after a pause.
    """

    idempotent: bool = True
    should_retry: bool | None = None
    new_credential: bool = False
    wait_when_open: bool = False
    circuit_retry_in: float | None = None
    other_endpoint: bool = False


@define(eq=False)
class RetryHistory:
    """The retries of one call so far.

    Attributes:
        counted: those that count towards ``max_retries``.
        ambiguous: those of a request that may have been carried out.
        backoffs: those that waited by the policy's own backoff.
        by_reason: their number for each reason.
    """

    counted: int = 0
    ambiguous: int = 0
    backoffs: int = 0
    by_reason: dict[RetryReason, int] = field(factory=dict)

    def add(self, decision: RetryDecision) -> None:
        """Record a retry that is being made."""
        self.counted += decision.counted
        self.ambiguous += decision.ambiguous
        self.backoffs += decision.computed
        self.by_reason[decision.reason] = self.by_reason.get(decision.reason, 0) + 1


_FINAL: Final = GiveUp(reason="final")
_FREE: Final = RetryDecision(delay=0.0, reason="other_endpoint", cost=NO_COST, counted=False, computed=False)
"""A retry at once, which takes neither attempts nor budget."""
_UNDECIDED: Final = -1.0
"""A delay that `RetryPolicy` still has to compute."""
_TABLE: Final[dict[type[errors.LLMOptError], RetryDecision]] = {
    errors.ConnectFailed: RetryDecision(delay=_UNDECIDED, reason="connect"),
    errors.OutOfResources: RetryDecision(delay=_UNDECIDED, reason="local"),
    errors.PoolTimeout: RetryDecision(delay=_UNDECIDED, reason="pool"),
    errors.ConnectionLost: RetryDecision(delay=_UNDECIDED, reason="connection"),
    errors.AttemptTimeout: RetryDecision(delay=_UNDECIDED, reason="timeout"),
    errors.ServerError: RetryDecision(delay=_UNDECIDED, reason="server"),
    errors.RequestTimeout: RetryDecision(delay=_UNDECIDED, reason="timeout"),
    errors.RateLimited: RetryDecision(delay=_UNDECIDED, reason="rate_limited", cost=THROTTLED_COST),
    errors.Overloaded: RetryDecision(delay=_UNDECIDED, reason="overloaded"),
    errors.InvalidResponse: RetryDecision(delay=_UNDECIDED, reason="invalid_response"),
}
"""The errors that may pass by themselves. Others are final unless a rule below says otherwise."""
_HEADER_MAY_ALLOW: Final = (errors.BadRequest, errors.NotFound)
"""Final errors that ``x-should-retry: true`` makes retryable, above all a 409. Billing, keys and permissions are
not among them, nor errors with a better answer than the same request again (too large, bad item, redirect)."""
_FINAL_INVALID_RESPONSES: Final = frozenset({"too_large", "decompression"})
"""Reasons of `InvalidResponse` that the same request would meet again, at the same price."""
_LOCAL_TO_ENDPOINT: Final[tuple[RetryReason, ...]] = ("rate_limited", "connect")
"""Reasons that say nothing about other endpoints."""
OTHER_ENDPOINT_MAY_SERVE: Final = (
    errors.AuthError,
    errors.QuotaExhausted,
    errors.NotFound,
    errors.PermissionDenied,
)
"""Final errors of one key, or of one endpoint's models: another endpoint has its own."""


@frozen(kw_only=True)
class RetryPolicy:
    """The bounds of retrying for one provider entry.

    Attributes:
        max_retries: n retries are n + 1 requests.
        retry_delay: first backoff in seconds; it doubles with each further one, and half of it is jitter.
        max_delay: the longest backoff in seconds.
        max_retry_after: the longest wait that a server may ask for; the call fails at once when it asks for more.
        throttle_delay: the shortest first backoff after a 429 without a hint (the AWS SDKs' base for throttling).
        min_attempt: seconds that must be left before the deadline for an attempt to be worth making.
        max_ambiguous: retries of a request that may have been carried out, where repeating does harm.
        rng: source of the jitter.
    """

    max_retries: int = 2
    retry_delay: float = 1.0
    max_delay: float = 16.0
    max_retry_after: float = 120.0
    throttle_delay: float = 1.0
    min_attempt: float = 1.0
    max_ambiguous: int = 1
    rng: random.Random = field(factory=new_rng, repr=False, eq=False)

    def decide(
        self,
        error: errors.LLMOptError,
        history: RetryHistory,
        deadline: Deadline,
        facts: RetryFacts = RetryFacts(),
    ) -> RetryDecision | GiveUp:
        """What to do after an error. The budget is not asked here: it pays only for retries that are made."""
        decision = _by_kind(error, history, facts)
        if isinstance(decision, GiveUp):
            return decision
        if error.local:
            # A retry is paid for to spare a server in trouble, and this one has none.
            decision = evolve(decision, cost=NO_COST)
        if decision.counted and history.counted >= self.max_retries:
            return GiveUp(reason="attempts")
        if decision.ambiguous and history.ambiguous >= self.max_ambiguous:
            return GiveUp(reason="ambiguous")
        if facts.other_endpoint:
            # Hint and backoff are for the endpoint that failed. The spread is for the calls that failed with it.
            spread = self.rng.uniform(0.0, self.retry_delay / 2)
            if decision.delay == _UNDECIDED:
                delay = 0.0 if decision.reason in _LOCAL_TO_ENDPOINT else spread
                decision = evolve(decision, delay=delay, computed=False)
            return self._with_delay(decision, None, history, deadline)
        return self._with_delay(decision, _hint(error), history, deadline)

    def _with_delay(
        self, decision: RetryDecision, hint: float | None, history: RetryHistory, deadline: Deadline
    ) -> RetryDecision | GiveUp:
        """The decision with its delay, unless the server asks for too long a wait or the deadline is too near."""
        if decision.delay == _UNDECIDED:
            if hint is not None and hint > self.max_retry_after:
                return GiveUp(reason="retry_after", wait=hint)
            if hint is None:
                delay = self._backoff(decision, history.backoffs)
            else:
                # Never less than the server asked for. The spread keeps callers with the same hint apart.
                delay = hint + self.rng.uniform(0.0, min(1.0, 0.1 * hint))
            decision = evolve(decision, delay=delay, computed=hint is None)
        if not deadline.leaves(decision.delay, spare=self.min_attempt):
            return GiveUp(reason="deadline", wait=decision.delay)
        return decision

    def _backoff(self, decision: RetryDecision, earlier: int) -> float:
        first = max(self.retry_delay, self.throttle_delay if decision.reason == "rate_limited" else 0.0)
        # Bounded, because 2.0 ** 1024 overflows, and long jobs retry that often; `max_delay` is reached before.
        backoff = min(self.max_delay, first * 2.0 ** min(earlier, 64))
        return backoff + self.rng.uniform(0.0, first / 2)


def _by_kind(error: errors.LLMOptError, history: RetryHistory, facts: RetryFacts) -> RetryDecision | GiveUp:
    """The table's row for an error, with the rules that a row alone cannot express."""
    if isinstance(error, errors.CircuitOpen):
        return _after_open_circuit(error, facts)
    if facts.other_endpoint and isinstance(error, OTHER_ENDPOINT_MAY_SERVE):
        # Each endpoint is tried once at most.
        return _FREE
    if isinstance(error, (errors.AuthError, errors.QuotaExhausted)):
        return _with_another_credential(error, history, facts)
    if facts.should_retry is False:
        return GiveUp(reason="vetoed")
    decision = next((_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE), None)
    if decision is not None:
        return _wait_for_circuit(_refined(decision, error, history, facts), error, facts)
    asked = facts.should_retry and isinstance(error, _HEADER_MAY_ALLOW)
    return RetryDecision(delay=_UNDECIDED, reason="asked") if asked else _FINAL


def _refined(
    decision: RetryDecision, error: errors.LLMOptError, history: RetryHistory, facts: RetryFacts
) -> RetryDecision | GiveUp:
    if isinstance(error, errors.ConnectFailed):
        return _FINAL if error.permanent else decision
    if isinstance(error, errors.InvalidResponse):
        if not error.retryable or error.reason in _FINAL_INVALID_RESPONSES:
            return _FINAL
        return decision if "invalid_response" not in history.by_reason else GiveUp(reason="once")
    if isinstance(error, errors.Overloaded):
        # A server that says when to return sheds load in an orderly way; the retry then is cheap for it.
        return evolve(decision, cost=THROTTLED_COST) if _hint(error) is not None else decision
    if isinstance(error, (errors.ConnectionLost, errors.AttemptTimeout, errors.OutOfResources)):
        return _after_lost_response(decision, error, history, facts)
    return decision


def _after_lost_response(
    decision: RetryDecision, error: errors.TransportError, history: RetryHistory, facts: RetryFacts
) -> RetryDecision:
    """After a request whose response was lost: the server may have carried it out.

    A pooled connection that the server has closed is not a failure: an idempotent request is sent again at once on a
    new connection, and that retry is not counted (httpcore#1171).
    """
    if not facts.idempotent:
        return evolve(decision, ambiguous=error.sent != "no")
    if isinstance(error, errors.ConnectionLost) and error.stale and "stale" not in history.by_reason:
        return evolve(_FREE, reason="stale")
    return decision


def _wait_for_circuit(
    decision: RetryDecision | GiveUp, error: errors.LLMOptError, facts: RetryFacts
) -> RetryDecision | GiveUp:
    """A retry after one of the failures that opened the circuit: it waits like calls that find the circuit open.

    Only where the request would be retried anyway. Otherwise a host name that does not exist, a chat that may have
    been carried out twice, or a response that stays invalid would wait for ever.
    """
    if (
        isinstance(decision, GiveUp)
        or isinstance(error, errors.InvalidResponse)
        or not error.counts_for_breaker
        or not facts.wait_when_open
        or facts.circuit_retry_in is None
    ):
        return decision
    return evolve(_FREE, delay=facts.circuit_retry_in, reason="circuit_open", ambiguous=decision.ambiguous)


def _after_open_circuit(error: errors.CircuitOpen, facts: RetryFacts) -> RetryDecision | GiveUp:
    if not facts.wait_when_open or _hint(error) is None:
        return GiveUp(reason="circuit_open")
    # Nothing is sent while waiting, so the wait takes neither attempts nor budget.
    return RetryDecision(delay=_UNDECIDED, reason="circuit_open", cost=NO_COST, counted=False)


def _with_another_credential(
    error: errors.LLMOptError, history: RetryHistory, facts: RetryFacts
) -> RetryDecision | GiveUp:
    if not facts.new_credential or not isinstance(error, errors.AuthError):
        return _FINAL
    if "credential" in history.by_reason:
        return GiveUp(reason="once")
    return RetryDecision(delay=0.0, reason="credential", cost=NO_COST, computed=False)


def _hint(error: errors.LLMOptError) -> float | None:
    """The wait in seconds that the server asked for, None if it is missing, zero, negative, NaN or infinite."""
    wait = error.retry_after
    return wait if wait is not None and math.isfinite(wait) and wait > 0 else None


class RetryBudget:
    """Bounds the retries of all calls to one endpoint during an outage. Not tied to an event loop.

    It is the retry quota of the AWS SDKs' standard mode (botocore.retries.standard): full at 500 tokens, a retry
    after a transient failure takes 14 and one after throttling 5; a call that needs none pays back 1. An endpoint that
    is down thus gets about 35 retries, whatever the number of callers. In one point it differs: a call that succeeds
    pays back what all its retries took, not the last one alone. So a server that fails a third of its requests at random
    is still retried (42/81 < 2/3: what lost calls take, against what calls without a retry pay back). With the last one
    alone a quarter empties the budget, and of 100,000 simulated calls 9 % fail instead of 0.4 %.

    Attributes:
        available: tokens that retries may take.
        full: whether no cost is outstanding, so that a success changes nothing.
    """

    def __init__(self, capacity: int = BUDGET_CAPACITY) -> None:
        self._capacity = capacity
        self.available = capacity
        # An attribute, because every successful request looks at it and most need nothing else.
        self.full = True

    def __repr__(self) -> str:
        return f"RetryBudget({self.available}/{self._capacity})"

    def acquire(self, cost: int) -> bool:
        """Take the cost of a retry; False, and nothing is taken, if there is less.

        There is no waiting: a retry that the budget refuses is not made (as in gRPC A6).
        """
        if cost > self.available:
            return False
        self.available -= cost
        self.full = self.available == self._capacity
        return True

    def release(self, cost: int) -> None:
        """Return the cost of a retry that was not made."""
        self.available = min(self._capacity, self.available + cost)
        self.full = self.available == self._capacity

    def succeeded(self, cost: int = 0) -> None:
        """Record a call that succeeded; ``cost`` is what all its retries took."""
        if not self.full:
            self.release(cost or 1)


_inside_attempt: Final[ContextVar[bool]] = ContextVar("llmopt_inside_attempt", default=False)


@contextmanager
def retry_guard() -> Iterator[None]:
    """Calls of llmopt that are made inside it do not retry, because attempts would multiply.

    The engine enters it where foreign code runs: around an attempt over a user's transport, around asking for
    another credential, and around every attempt after the first. A call of llmopt from there gets one attempt, and
    the outer call decides about retries (litellm#7262: (1 + N) x (1 + M) requests).
    """
    token = _inside_attempt.set(True)
    try:
        yield
    finally:
        _inside_attempt.reset(token)


def inside_attempt() -> bool:
    """Whether the code runs inside an attempt of another call, see `retry_guard`."""
    return _inside_attempt.get()

"""Whether and when a failed request is tried again.

One table says it for every error (docs/development/resilience.md); what it depends on besides the
error (how often this call was retried already, whether repeating does harm, what the server said) is
handed in. Nothing here waits, sends or counts requests: `RetryPolicy.decide` returns a
`RetryDecision` or a `GiveUp`, and ``stamina_loop`` acts on it.
"""

from __future__ import annotations

import math
import random
from contextvars import ContextVar, Token
from typing import Final, Literal, Self

from attrs import evolve, field, frozen

from llmopt import errors
from llmopt.policies.clock import Deadline, new_rng

# The retry budget of one endpoint: how many retries an outage may cost.
#
# The token bucket of the AWS SDKs' standard mode (botocore's retry quota; docs/development/resilience.md): full at 500,
# a retry after a transient failure takes 14, after throttling 5; a call that succeeds pays back what its
# last retry took, or 1 when it needed none. An endpoint that is down for everybody so gets about 35
# retries in all, whatever the number of callers, while one that fails now and then is never refused.

BUDGET_CAPACITY: Final = 500
TRANSIENT_COST: Final = 14
"""The price of a retry after a failure that says nothing of load."""
THROTTLED_COST: Final = 5
"""The price of a retry that the server asked to come later: it costs the server little."""
NO_COST: Final = 0
"""A retry that is no extra load: the request was never seen, or nothing was sent."""


class RetryBudget:
    """Tokens that retries take and successes bring back. One per endpoint; not tied to a loop."""

    __slots__ = ("_capacity", "_left")

    def __init__(self, capacity: int = BUDGET_CAPACITY) -> None:
        self._capacity = capacity
        self._left = capacity

    def __repr__(self) -> str:
        return f"RetryBudget({self._left}/{self._capacity})"

    @property
    def left(self) -> int:
        """Tokens in the bucket."""
        return self._left

    def take(self, cost: int) -> bool:
        """Take the price of a retry; False, and nothing taken, when it is not there.

        It never queues: a retry that the budget refuses is not made (gRPC A6 does the same).
        """
        if cost > self._left:
            return False
        self._left -= cost
        return True

    def release(self, cost: int) -> None:
        """Return what was taken for a retry that was not made after all."""
        self._left = min(self._capacity, self._left + cost)

    def succeeded(self, last_cost: int | None = None) -> None:
        """A call came through. ``last_cost`` is what its last retry took; None or 0 when it took nothing."""
        if self._left != self._capacity:
            self.release(last_cost or 1)


RetryReason = Literal[
    "asked", "circuit_open", "connect", "connection", "credential", "elsewhere", "invalid_response", "overloaded", "pool",
    "rate_limited", "server", "stale", "timeout",
]  # fmt: skip
"""Why a request is tried again."""
GiveUpReason = Literal[
    "ambiguous", "attempts", "budget", "circuit_open", "deadline", "final", "once", "retry_after", "vetoed"
]
"""Why it is not: the error is final by its kind, or a bound is reached."""


@frozen(kw_only=True)
class RetryDecision:
    """Try again.

    Attributes:
        delay: seconds to wait first, finite and never negative.
        reason: why.
        cost: what it takes from the endpoint's retry budget.
        counted: whether it is one of the ``max_retries``.
        computed: whether the delay is the policy's own back-off, not somebody else's wish.
        ambiguous: whether the request may have been carried out already.
    """

    delay: float
    reason: RetryReason
    cost: int = TRANSIENT_COST
    counted: bool = True
    computed: bool = True
    ambiguous: bool = False


@frozen(kw_only=True)
class GiveUp:
    """Do not try again. ``wait`` is what a retry would have waited, None when no wait was computed."""

    reason: GiveUpReason
    wait: float | None = None


@frozen(kw_only=True)
class RetryFacts:
    """What matters to a retry besides the error itself.

    Attributes:
        idempotent: whether doing the request twice does no harm: embeddings and catalogues, not chat.
        should_retry: the server's ``x-should-retry``, None when it did not say.
        new_credential: whether the credential's provider has given another key since the attempt.
        wait_when_open: whether to wait for an open circuit instead of failing.
        circuit_retry_in: seconds that the circuit, which the failure may have opened, stays open; None if it is closed.
        elsewhere: whether another endpoint, not tried yet, would take the request now.
    """

    idempotent: bool = True
    should_retry: bool | None = None
    new_credential: bool = False
    wait_when_open: bool = False
    circuit_retry_in: float | None = None
    elsewhere: bool = False


class RetryHistory:
    """What was retried in one call so far."""

    __slots__ = ("ambiguous", "backoffs", "counted", "last_cost", "times")

    def __init__(self) -> None:
        self.counted = 0
        self.ambiguous = 0
        self.backoffs = 0
        self.last_cost: int | None = None
        self.times: dict[RetryReason, int] = {}

    def note(self, decision: RetryDecision) -> None:
        """Remember a retry that is made."""
        self.counted += decision.counted
        self.ambiguous += decision.ambiguous
        self.backoffs += decision.computed
        self.last_cost = decision.cost
        self.times[decision.reason] = self.times.get(decision.reason, 0) + 1


_FINAL: Final = GiveUp(reason="final")
_UNDECIDED: Final = -1.0
_TABLE: Final[dict[type[errors.LLMOptError], RetryDecision]] = {
    errors.ConnectFailed: RetryDecision(delay=_UNDECIDED, reason="connect"),
    errors.PoolTimeout: RetryDecision(delay=_UNDECIDED, reason="pool"),
    errors.ConnectionLost: RetryDecision(delay=_UNDECIDED, reason="connection"),
    errors.AttemptTimeout: RetryDecision(delay=_UNDECIDED, reason="timeout"),
    errors.ServerError: RetryDecision(delay=_UNDECIDED, reason="server"),
    errors.RequestTimeout: RetryDecision(delay=_UNDECIDED, reason="timeout"),
    errors.RateLimited: RetryDecision(delay=_UNDECIDED, reason="rate_limited", cost=THROTTLED_COST),
    errors.Overloaded: RetryDecision(delay=_UNDECIDED, reason="overloaded"),
    errors.InvalidResponse: RetryDecision(delay=_UNDECIDED, reason="invalid_response"),
}
"""The kinds that may pass by themselves. What is not here is final unless a rule below says otherwise."""
_HEADER_MAY_ALLOW: Final = (errors.BadRequest, errors.NotFound)
"""Final kinds that ``x-should-retry: true`` turns: a 409 above all. Money, keys and permissions are not
among them, nor what has a better answer than the same request again (too large, a bad item, a redirect)."""
_HOPELESS_ANSWERS: Final = frozenset({"too_large", "decompression"})
"""Reasons of `InvalidResponse` that the same request would meet again at the same price."""
_ANOTHERS: Final[tuple[RetryReason, ...]] = ("rate_limited", "connect")
"""Reasons that say nothing of another endpoint at all."""
_FLOW_CONTROL: Final[tuple[RetryReason, ...]] = ("rate_limited", "overloaded")


@frozen(kw_only=True)
class RetryPolicy:
    """The bounds of retrying for one provider entry.

    Attributes:
        max_retries: n retries are n + 1 requests.
        retry_delay: first back-off in seconds.
        max_delay: where doubling stops.
        jitter: "half" adds U(0, retry_delay / 2) to the back-off; "full" takes U(0, back-off).
        max_retry_after: the longest wait that a server may ask for; above it the call fails at once.
        throttle_delay: least first back-off after a 429 without a hint (the AWS SDKs' throttling base).
        min_attempt: seconds an attempt needs to be worth starting before the deadline.
        flow_rounds: how many waits for 429 and 503 do not count as retries (20 for jobs).
        ambiguous: most retries of a request that may have been carried out, where that does harm.
        rng: source of the jitter.
    """

    max_retries: int = 2
    retry_delay: float = 1.0
    max_delay: float = 16.0
    jitter: Literal["half", "full"] = "half"
    max_retry_after: float = 120.0
    throttle_delay: float = 1.0
    min_attempt: float = 1.0
    flow_rounds: int = 0
    ambiguous: int = 1
    rng: random.Random = field(factory=new_rng, repr=False, eq=False)

    def decide(
        self,
        error: errors.LLMOptError,
        history: RetryHistory,
        deadline: Deadline,
        facts: RetryFacts = RetryFacts(),
    ) -> RetryDecision | GiveUp:
        """What to do after this error. The budget is asked afterwards: only for a retry that would be made."""
        plan = _plan(error, history, facts)
        if isinstance(plan, GiveUp):
            return plan
        plan = self._count(plan, history)
        if plan.counted and history.counted >= self.max_retries:
            return GiveUp(reason="attempts")
        if plan.ambiguous and history.ambiguous >= self.ambiguous:
            return GiveUp(reason="ambiguous")
        if facts.elsewhere:
            # Hints and back-off are for the endpoint that failed. The spread is for those who come with us.
            spread = self.rng.uniform(0.0, self.retry_delay / 2)
            if plan.delay == _UNDECIDED:
                plan = evolve(plan, delay=0.0 if plan.reason in _ANOTHERS else spread, computed=False)
            return self._timed(plan, None, history, deadline)
        return self._timed(plan, _hint(error), history, deadline)

    def _count(self, plan: RetryDecision, history: RetryHistory) -> RetryDecision:
        if plan.reason not in _FLOW_CONTROL:
            return plan
        rounds = sum(history.times.get(reason, 0) for reason in _FLOW_CONTROL)
        return evolve(plan, counted=False) if rounds < self.flow_rounds else plan

    def _timed(
        self, plan: RetryDecision, hint: float | None, history: RetryHistory, deadline: Deadline
    ) -> RetryDecision | GiveUp:
        """The plan with its delay, unless that is longer than anybody may ask for or than the call has."""
        if plan.delay == _UNDECIDED:
            if hint is not None and hint > self.max_retry_after:
                return GiveUp(reason="retry_after", wait=hint)
            delay = self._backoff(plan, history.backoffs) if hint is None else self._after(hint)
            plan = evolve(plan, delay=delay, computed=hint is None)
        if not deadline.leaves(plan.delay, spare=self.min_attempt):
            return GiveUp(reason="deadline", wait=plan.delay)
        return plan

    def _after(self, hint: float) -> float:
        # Never less than asked for; the spread keeps all who were told the same from coming back together.
        return hint + self.rng.uniform(0.0, min(1.0, 0.1 * hint))

    def _backoff(self, plan: RetryDecision, before: int) -> float:
        least = self.throttle_delay if plan.reason == "rate_limited" else 0.0
        first = max(self.retry_delay, least)
        # 2 ** before leaves the floats after 1,023 rounds of a long job; doubling has stopped long before.
        grown = min(self.max_delay, first * 2.0 ** min(before, 64))
        if self.jitter == "full":
            return self.rng.uniform(0.0, grown)
        return grown + self.rng.uniform(0.0, first / 2)


def _plan(error: errors.LLMOptError, history: RetryHistory, facts: RetryFacts) -> RetryDecision | GiveUp:
    """The table's row for an error, with the rules that one row alone cannot say."""
    if isinstance(error, errors.CircuitOpen):
        return _wait_for_circuit(error, facts)
    if isinstance(error, (errors.AuthError, errors.QuotaExhausted)):
        return _with_another_credential(error, history, facts)
    if facts.should_retry is False:
        return GiveUp(reason="vetoed")
    plan = next((_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE), None)
    if plan is not None:
        return _resting(_refined(plan, error, history, facts), error, facts)
    if facts.should_retry and isinstance(error, _HEADER_MAY_ALLOW):
        return RetryDecision(delay=_UNDECIDED, reason="asked")
    return _FINAL


def _refined(
    plan: RetryDecision, error: errors.LLMOptError, history: RetryHistory, facts: RetryFacts
) -> RetryDecision | GiveUp:
    if isinstance(error, errors.ConnectFailed):
        return _FINAL if error.permanent else plan
    if isinstance(error, errors.InvalidResponse):
        if error.reason in _HOPELESS_ANSWERS:
            return _FINAL
        return plan if history.times.get("invalid_response", 0) == 0 else GiveUp(reason="once")
    if isinstance(error, errors.Overloaded):
        # With a hint the server is shedding load in good order, and the retry comes when it said.
        return evolve(plan, cost=THROTTLED_COST) if _hint(error) is not None else plan
    if isinstance(error, (errors.ConnectionLost, errors.AttemptTimeout)):
        return _broken(plan, error, history, facts)
    return plan


def _resting(
    plan: RetryDecision | GiveUp, error: errors.LLMOptError, facts: RetryFacts
) -> RetryDecision | GiveUp:
    """A retry after one of the failures that opened a circuit, or kept it open: it waits with the others.

    Only where it would be tried again anyway, and for as long as that: a name that does not exist, a chat that
    may have been carried out twice, an answer that stays unusable would otherwise wait for ever.
    """
    if isinstance(plan, GiveUp) or isinstance(error, errors.InvalidResponse) or not error.counts_for_breaker:
        return plan
    if not facts.wait_when_open or facts.circuit_retry_in is None:
        return plan
    return evolve(
        plan, delay=facts.circuit_retry_in, reason="circuit_open", cost=NO_COST, counted=False, computed=False
    )


def _broken(
    plan: RetryDecision,
    error: errors.ConnectionLost | errors.AttemptTimeout,
    history: RetryHistory,
    facts: RetryFacts,
) -> RetryDecision:
    """A request that broke under way: the server may have done it already, and may do it again.

    A kept connection that the server closed is nobody's failure: an idempotent request is sent
    once more at once, on a fresh connection, and not counted (httpcore #1171; docs/development/resilience.md).
    """
    if not facts.idempotent:
        return evolve(plan, ambiguous=error.sent != "no")
    if isinstance(error, errors.ConnectionLost) and error.stale and "stale" not in history.times:
        return RetryDecision(delay=0.0, reason="stale", cost=NO_COST, counted=False, computed=False)
    return plan


def _wait_for_circuit(error: errors.CircuitOpen, facts: RetryFacts) -> RetryDecision | GiveUp:
    if not facts.wait_when_open or _hint(error) is None:
        return GiveUp(reason="circuit_open")
    # Nothing is sent while waiting, so it takes neither attempts nor budget.
    return RetryDecision(delay=_UNDECIDED, reason="circuit_open", cost=NO_COST, counted=False)


def _with_another_credential(
    error: errors.LLMOptError, history: RetryHistory, facts: RetryFacts
) -> RetryDecision | GiveUp:
    if facts.elsewhere:
        # Another endpoint has a key and a quota of its own, and each is tried once at most.
        return RetryDecision(delay=0.0, reason="elsewhere", cost=NO_COST, counted=False, computed=False)
    if not facts.new_credential or not isinstance(error, errors.AuthError):
        return _FINAL
    if "credential" in history.times:
        return GiveUp(reason="once")
    return RetryDecision(delay=0.0, reason="credential", cost=NO_COST, computed=False)


def _hint(error: errors.LLMOptError) -> float | None:
    """The wait that was asked for, None when it is none: absent, zero, negative, NaN or infinite."""
    wait = error.retry_after
    return wait if wait is not None and math.isfinite(wait) and wait > 0 else None


# One retrier per request, also when a call of llmopt is made inside another one's attempt.

_inside: Final[ContextVar[bool]] = ContextVar("llmopt_inside_attempt", default=False)


class retry_guard:  # noqa: N801 - used like a function, as contextlib.suppress is
    """While it is entered, llmopt calls made inside do not retry: attempts would multiply.

    The engine enters it where somebody else's code runs: around an attempt that a transport of the user's carries, around
    asking for another key, and around every attempt after the first. What calls llmopt from
    there gets one attempt, and the outer call decides (litellm #7262: (1 + N) x (1 + M) requests).
    """

    __slots__ = ("_token",)
    _token: Token[bool]

    def __enter__(self) -> Self:
        self._token = _inside.set(True)
        return self

    def __exit__(self, *_: object) -> None:
        _inside.reset(self._token)


def inside_attempt() -> bool:
    """Whether this code runs inside an attempt of llmopt's."""
    return _inside.get()

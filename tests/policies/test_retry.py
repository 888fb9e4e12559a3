"""The retry policy: which failures are retried, when, and at what cost (docs/development/resilience.md)."""

from __future__ import annotations

import inspect
import math
import os
import random
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llmopt import errors as e
from llmopt.policies import clock as jitter
from llmopt.policies.clock import Deadline
from llmopt.policies.retry import GiveUp, RetryDecision, RetryFacts, RetryHistory, RetryPolicy
from llmopt.testing.clock import SimulatedClock
from llmopt.values.http import EXCEPTION_OF, VerdictKind


class FixedJitter(random.Random):
    """A random generator that always returns the same share of a range."""

    def __init__(self, share: float) -> None:
        super().__init__(0)
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.share


NO_JITTER = FixedJitter(0.0)
FOREVER = Deadline.after(None, SimulatedClock().now)
CHAT = RetryFacts(idempotent=False)
NO_FACTS = RetryFacts()


def error(
    kind: type[Any], *, status: int | None = None, retry_after: float | None = None, **more: Any
) -> Any:
    result = kind("m", retry_after=retry_after, **more)
    if status is not None:
        result.status = status
    return result


def decide(
    failure: Any,
    history: RetryHistory | None = None,
    facts: RetryFacts = NO_FACTS,
    *,
    left: Any = None,
    **policy: Any,
) -> Any:
    deadline = Deadline.after(left, SimulatedClock(start=0.0).now)
    return RetryPolicy(**{"rng": NO_JITTER, **policy}).decide(
        failure, history or RetryHistory(), deadline, facts
    )


def after(*decisions: RetryDecision) -> RetryHistory:
    history = RetryHistory()
    for decision in decisions:
        history.add(decision)
    return history


def retried(reason: Any, **more: Any) -> RetryDecision:
    return RetryDecision(delay=1.0, reason=reason, **more)


# --- the table of errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason", "cost"),
    [
        (e.ConnectFailed, "connect", 14),
        (e.PoolTimeout, "pool", 14),
        (e.ConnectionLost, "connection", 14),
        (e.AttemptTimeout, "timeout", 14),
        (e.ServerError, "server", 14),
        (e.RequestTimeout, "timeout", 14),
        (e.RateLimited, "rate_limited", 5),
        (e.Overloaded, "overloaded", 14),
        (e.InvalidResponse, "invalid_response", 14),
    ],
)
def test_transient_failures_are_retried(kind: type[e.LLMOptError], reason: Any, cost: int) -> None:
    """After the first back-off, counted as an attempt, at the price of their kind."""
    assert decide(error(kind)) == RetryDecision(delay=1.0, reason=reason, cost=cost)


@pytest.mark.parametrize(
    "kind",
    [
        e.ConfigError, e.InvalidInput, e.UnknownProvider, e.PluginError, e.PluginConflict, e.PluginLoadError,
        e.PluginContractError, e.LocalRejection, e.DeadlineExceeded, e.QueueFull, e.CostNeverFits,
        e.ClientClosed, e.QuotaExhausted, e.RequestTooLarge, e.ItemTooLong, e.ItemRejected,
        e.ContentFiltered, e.AuthError, e.PermissionDenied, e.NotFound, e.BadRequest, e.UnexpectedStatus,
        e.StreamError, e.StreamInterrupted, e.StreamIdle, e.ProviderError, e.LLMOptError,
    ],
)  # fmt: skip
def test_permanent_failures_are_final(kind: type[e.LLMOptError]) -> None:
    """A second request cannot help."""
    assert decide(error(kind)) == GiveUp(reason="final")


def test_partial_failure_is_final() -> None:
    """Its items were retried on their own."""
    nothing: Any = None
    assert decide(e.PartialFailure("m", result=nothing)) == GiveUp(reason="final")


def test_every_retryable_error_is_retried() -> None:
    """Except those that the caller's options or the configuration decide."""
    kinds: list[Any] = [k for _, k in inspect.getmembers(e, inspect.isclass) if issubclass(k, e.LLMOptError)]
    makes: dict[Any, dict[str, Any]] = {e.PartialFailure: {"result": None}}

    again = {k for k in kinds if isinstance(decide(k("m", **makes.get(k, {}))), RetryDecision)}

    claimed = {k for k in kinds if k.retryable}
    # TransportError is only ever raised as one of its subclasses.
    assert claimed - again == {e.CircuitOpen, e.QueueFull, e.SharedStateUnavailable, e.TransportError}
    assert again <= claimed


@pytest.mark.parametrize("kind", list(VerdictKind))
def test_every_verdict_is_retried_or_final_as_documented(kind: VerdictKind) -> None:
    """docs/development/resilience.md: five kinds are retried, ten are not."""
    again = {
        VerdictKind.TRANSIENT,
        VerdictKind.TIMEOUT,
        VerdictKind.RATE_LIMITED,
        VerdictKind.OVERLOADED,
        VerdictKind.INVALID_RESPONSE,
    }

    assert isinstance(decide(error(EXCEPTION_OF[kind])), RetryDecision) == (kind in again)


def test_a_subclass_is_treated_as_its_base_class() -> None:
    """A plugin may derive its own error from ours."""

    class Busy(e.Overloaded):
        pass

    assert decide(Busy("m")).reason == "overloaded"


# --- the number of attempts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1, 3])
def test_n_retries_allow_n_plus_one_requests(most: Any) -> None:
    """Then the last error is raised."""
    history = RetryHistory()
    for _ in range(most):
        history.add(decide(error(e.ServerError), history, max_retries=most))

    assert decide(error(e.ServerError), history, max_retries=most) == GiveUp(reason="attempts")
    history.add(retried("server"))
    assert decide(error(e.ServerError), history, max_retries=most) == GiveUp(reason="attempts")


def test_all_failures_share_one_count_of_retries() -> None:
    """Whatever the reason of each."""
    history = after(retried("server"), retried("rate_limited"), retried("connect"))

    assert decide(error(e.ServerError), history, max_retries=3) == GiveUp(reason="attempts")


# --- rules of single kinds ----------------------------------------------------------------------------------


def test_permanent_connect_failures_are_final() -> None:
    """An unknown host name and an invalid certificate do not change (N13, N14)."""
    assert decide(error(e.ConnectFailed, permanent=True, cause="dns")) == GiveUp(reason="final")


def test_an_unusable_response_is_retried_once() -> None:
    """Then the faulty item is searched for instead."""
    failure = error(e.InvalidResponse, reason="count")

    assert decide(failure).reason == "invalid_response"
    assert decide(failure, after(retried("invalid_response"))) == GiveUp(reason="once")
    assert decide(failure, after(retried("server"))).reason == "invalid_response"


@pytest.mark.parametrize("reason", ["too_large", "decompression"])
def test_decompression_bombs_are_not_retried(reason: str) -> None:
    """The same request would get the same response."""
    assert decide(error(e.InvalidResponse, reason=reason)) == GiveUp(reason="final")


def test_overload_with_retry_after_costs_little_budget() -> None:
    """Such a server sheds load in good order."""
    assert decide(error(e.Overloaded, retry_after=3.0)).cost == 5
    assert decide(error(e.Overloaded, retry_after=math.nan)).cost == 14
    assert decide(error(e.ServerError, retry_after=3.0)).cost == 14


def test_a_stale_connection_is_replaced_at_once_for_free() -> None:
    """Once a call: a second stale connection counts as a lost connection (N15)."""
    failure = error(e.ConnectionLost, stale=True, sent="maybe")
    free = RetryDecision(delay=0.0, reason="stale", cost=0, counted=False, computed=False)

    assert decide(failure) == free
    assert decide(failure, max_retries=0) == free
    assert decide(failure, after(free)) == RetryDecision(delay=1.0, reason="connection")
    assert decide(failure, after(free), max_retries=0) == GiveUp(reason="attempts")


def test_a_stale_connection_of_a_chat_is_ambiguous() -> None:
    """It is retried like any request that may have been carried out: once, after the back-off."""
    failure = error(e.ConnectionLost, stale=True, sent="maybe")

    assert decide(failure, facts=CHAT) == RetryDecision(delay=1.0, reason="connection", ambiguous=True)


@pytest.mark.parametrize("kind", [e.ConnectionLost, e.AttemptTimeout])
@pytest.mark.parametrize("sent", ["maybe", "yes"])
def test_an_ambiguous_chat_is_repeated_once(kind: type[e.LLMOptError], sent: Any) -> None:
    """Paid work that may have been carried out is repeated at most once."""
    first = decide(error(kind, sent=sent), facts=CHAT, max_retries=9)
    assert first.ambiguous

    assert decide(error(kind, sent=sent), after(first), CHAT, max_retries=9) == GiveUp(reason="ambiguous")
    assert decide(error(kind, sent=sent), facts=CHAT, max_ambiguous=0) == GiveUp(reason="ambiguous")
    assert decide(error(kind, sent=sent), after(first), CHAT, max_ambiguous=0) == GiveUp(reason="ambiguous")
    assert decide(error(e.ServerError, sent="yes"), after(first), CHAT, max_retries=9).reason == "server"


@pytest.mark.parametrize("kind", [e.ConnectionLost, e.AttemptTimeout])
def test_an_unsent_request_is_not_ambiguous(kind: type[e.LLMOptError]) -> None:
    """Nor is a request that does no harm when it is repeated."""
    twice = after(*[retried("timeout", ambiguous=True)] * 2)

    assert isinstance(decide(error(kind, sent="no"), twice, CHAT, max_retries=9), RetryDecision)
    embedding = decide(error(kind, sent="maybe"), twice, max_retries=9)
    assert isinstance(embedding, RetryDecision)
    assert not embedding.ambiguous


@pytest.mark.parametrize("kind", [e.ConnectFailed, e.ServerError, e.RateLimited])
def test_only_requests_without_a_response_are_ambiguous(kind: type[e.LLMOptError]) -> None:
    """A response is certain, and so is a failed connect."""
    assert not decide(error(kind), facts=CHAT).ambiguous


def test_an_open_circuit_fails_by_default() -> None:
    """A caller that chose to wait pays neither attempts nor budget."""
    waiting = RetryFacts(wait_when_open=True)

    assert decide(error(e.CircuitOpen, retry_after=4.0)) == GiveUp(reason="circuit_open")
    assert decide(error(e.CircuitOpen, retry_after=4.0), facts=waiting, max_retries=0) == RetryDecision(
        delay=4.0, reason="circuit_open", cost=0, counted=False, computed=False
    )
    assert decide(error(e.CircuitOpen, retry_after=math.inf), facts=waiting) == GiveUp(reason="circuit_open")
    assert decide(error(e.CircuitOpen), facts=waiting) == GiveUp(reason="circuit_open")


RESTING = RetryFacts(wait_when_open=True, circuit_retry_in=7.0)


@pytest.mark.parametrize(
    "kind",
    [e.ServerError, e.Overloaded, e.RequestTimeout, e.AttemptTimeout, e.ConnectFailed, e.ConnectionLost],
)
def test_a_failure_that_opened_the_circuit_waits_too(kind: type[e.LLMOptError]) -> None:
    """Until the next probe, without an attempt or a price."""
    assert decide(error(kind), facts=RESTING, max_retries=0) == RetryDecision(
        delay=7.0, reason="circuit_open", cost=0, counted=False, computed=False
    )


@pytest.mark.parametrize("facts", [RetryFacts(circuit_retry_in=7.0), RetryFacts(wait_when_open=True)])
def test_without_an_open_circuit_a_failure_is_retried_normally(facts: RetryFacts) -> None:
    """The same where the caller chose not to wait, and where the circuit has no end."""
    assert decide(error(e.ServerError), facts=facts) == RetryDecision(delay=1.0, reason="server")


def test_a_final_failure_does_not_wait_for_a_circuit() -> None:
    """It would wait for ever, from probe to probe."""
    chat = evolve(RESTING, idempotent=False)
    first = decide(error(e.AttemptTimeout, sent="maybe"), facts=chat)
    unusable = error(e.InvalidResponse, reason="non_finite")

    assert decide(error(e.ConnectFailed, permanent=True), facts=RESTING) == GiveUp(reason="final")
    assert decide(error(e.ServerError), facts=evolve(RESTING, should_retry=False)) == GiveUp(reason="vetoed")
    assert decide(error(e.InvalidResponse, reason="too_large"), facts=RESTING) == GiveUp(reason="final")
    assert decide(unusable, facts=RESTING).reason == "invalid_response"
    assert decide(unusable, after(retried("invalid_response")), RESTING) == GiveUp(reason="once")
    assert (first.reason, first.ambiguous) == ("circuit_open", True)
    assert decide(error(e.AttemptTimeout, sent="maybe"), after(first), chat) == GiveUp(reason="ambiguous")
    assert decide(error(e.RateLimited), facts=RESTING).reason == "rate_limited"


def test_the_wait_for_a_circuit_keeps_the_deadline() -> None:
    assert decide(error(e.ServerError), facts=RESTING, left=7.5) == GiveUp(reason="deadline", wait=7.0)


def test_a_changed_credential_is_tried_once() -> None:
    """A 401 is final unless the credential's provider has another key now."""
    fresh = RetryFacts(new_credential=True)
    once = RetryDecision(delay=0.0, reason="credential", cost=0, computed=False)

    assert decide(error(e.AuthError), facts=fresh) == once
    assert decide(error(e.AuthError), after(once), fresh) == GiveUp(reason="once")
    assert decide(error(e.PermissionDenied), facts=fresh) == GiveUp(reason="final")
    assert decide(error(e.AuthError), facts=fresh, max_retries=0) == GiveUp(reason="attempts")


# --- x-should-retry (H12) -----------------------------------------------------------------------------------


@pytest.mark.row("H12")
@pytest.mark.parametrize("kind", [e.ServerError, e.RateLimited, e.Overloaded, e.RequestTimeout, e.BadRequest])
def test_x_should_retry_false_forbids_a_retry(kind: type[e.LLMOptError]) -> None:
    """The server knows that a retry cannot help."""
    assert decide(error(kind), facts=RetryFacts(should_retry=False)) == GiveUp(reason="vetoed")


@pytest.mark.row("H12")
@pytest.mark.parametrize("kind", [e.BadRequest, e.NotFound])
def test_x_should_retry_true_allows_a_retry(kind: type[e.LLMOptError]) -> None:
    """Of a 409, for example."""
    allowed = decide(error(kind, status=409), facts=RetryFacts(should_retry=True))

    assert allowed == RetryDecision(delay=1.0, reason="asked", cost=14)


@pytest.mark.row("H12")
@pytest.mark.parametrize(
    "kind",
    [
        e.QuotaExhausted, e.AuthError, e.PermissionDenied, e.RequestTooLarge, e.ItemTooLong, e.ItemRejected,
        e.ContentFiltered, e.UnexpectedStatus, e.ConfigError, e.StreamInterrupted,
    ],
)  # fmt: skip
def test_x_should_retry_true_does_not_allow_everything(kind: type[e.LLMOptError]) -> None:
    """Never for quota, keys and permissions, nor where another request is the solution."""
    assert decide(error(kind), facts=RetryFacts(should_retry=True)) == GiveUp(reason="final")


@pytest.mark.row("H12")
def test_x_should_retry_true_adds_no_retries() -> None:
    """It allows a retry within the limits."""
    once = after(retried("server"))

    assert (
        decide(error(e.ServerError), once, RetryFacts(should_retry=True), max_retries=1).reason == "attempts"
    )
    assert decide(error(e.ServerError), facts=RetryFacts(should_retry=True)).reason == "server"


# --- back-off -----------------------------------------------------------------------------------------------


def backoffs(kind: type[e.LLMOptError], share: float, rounds: int = 8, **policy: Any) -> list[float]:
    history = RetryHistory()
    delays = []
    for _ in range(rounds):
        decision = decide(error(kind), history, max_retries=99, rng=FixedJitter(share), **policy)
        history.add(decision)
        delays.append(decision.delay)
    return delays


@pytest.mark.parametrize(
    ("kind", "policy", "share", "expected"),
    [
        (e.ServerError, {}, 0.0, [1, 2, 4, 8, 16, 16, 16, 16]),
        (e.ServerError, {}, 1.0, [1.5, 2.5, 4.5, 8.5, 16.5, 16.5, 16.5, 16.5]),
        (e.ServerError, {"retry_delay": 0.2}, 0.0, [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 16]),
        (e.ServerError, {"retry_delay": 0.2}, 1.0, [0.3, 0.5, 0.9, 1.7, 3.3, 6.5, 12.9, 16.1]),
        (e.ServerError, {"max_delay": 3}, 0.0, [1, 2, 3, 3, 3, 3, 3, 3]),
        # Throttling starts at a second even for a provider on the same machine.
        (e.RateLimited, {"retry_delay": 0.2}, 0.0, [1, 2, 4, 8, 16, 16, 16, 16]),
        (e.RateLimited, {"retry_delay": 0.2}, 1.0, [1.5, 2.5, 4.5, 8.5, 16.5, 16.5, 16.5, 16.5]),
        (e.RateLimited, {"retry_delay": 3.0}, 0.0, [3, 6, 12, 16, 16, 16, 16, 16]),
        (e.Overloaded, {"retry_delay": 0.2}, 0.0, [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 16]),
    ],
)
def test_back_off(kind: type[e.LLMOptError], policy: Any, share: int, expected: Any) -> None:
    """min(16, retry_delay * 2^n) + U(0, retry_delay / 2), or all of it random."""
    assert backoffs(kind, share, **policy) == pytest.approx(expected)


def test_back_off_of_a_long_job_stays_finite() -> None:
    """2^n exceeds the range of a float long before a job gives up."""
    history = RetryHistory()
    history.backoffs = 100_000

    assert decide(error(e.ServerError), history).delay == 16.0


def test_only_computed_waits_grow() -> None:
    """A wait that the server chose does not show that ours was too short."""
    history = after(
        decide(error(e.RateLimited, retry_after=7.0)),
        decide(error(e.ConnectionLost, stale=True)),
        decide(error(e.ServerError)),
    )

    assert history.backoffs == 1
    assert decide(error(e.ServerError), history, max_retries=9).delay == 2.0


def test_jitter_is_seeded() -> None:
    """The same seed gives the same waits, within the range of the formula."""
    first, second = ([decide(error(e.ServerError), rng=random.Random(7)).delay for _ in "ab"] for _ in "ab")

    assert first == second
    assert all(1.0 <= delay <= 1.5 for delay in first)


# --- Retry-After (H01-H03) ----------------------------------------------------------------------------------


@pytest.mark.row("H01")
@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [(1.0, 1.0, 1.1), (1.5, 1.5, 1.65), (0.25, 0.25, 0.275), (2.0, 2.0, 2.2), (10.0, 10, 11), (60.0, 60, 61), (120.0, 120, 121)],
)  # fmt: skip
@pytest.mark.parametrize("kind", [e.RateLimited, e.Overloaded, e.ServerError, e.RequestTimeout])
def test_retry_after_is_obeyed(
    kind: type[e.LLMOptError], retry_after: float | None, least: float, most: Any
) -> None:
    """Never a shorter wait, and at most a tenth or a second longer."""
    assert decide(error(kind, retry_after=retry_after), rng=FixedJitter(0.0)).delay == pytest.approx(least)
    assert decide(error(kind, retry_after=retry_after), rng=FixedJitter(1.0)).delay == pytest.approx(most)


@pytest.mark.row("H02")
@pytest.mark.parametrize("retry_after", [0.0, -5.0, math.nan, math.inf, -math.inf, None])
def test_an_invalid_retry_after_is_ignored(retry_after: float | None) -> None:
    """The computed back-off applies."""
    decision = decide(error(e.RateLimited, retry_after=retry_after))

    assert (decision.delay, decision.computed) == (1.0, True)


@pytest.mark.row("H03")
@pytest.mark.parametrize("retry_after", [120.001, 121.0, 1e9])
def test_a_retry_after_above_the_maximum_fails_at_once(retry_after: float | None) -> None:
    """The caller gets the wait in the error."""
    assert decide(error(e.RateLimited, retry_after=retry_after)) == GiveUp(
        reason="retry_after", wait=retry_after
    )


@pytest.mark.row("H03")
def test_a_job_may_wait_longer() -> None:
    """The maximum belongs to the policy."""
    assert decide(error(e.RateLimited, retry_after=1800.0), max_retry_after=3600.0).delay == 1800.0


def test_attempts_are_checked_before_retry_after() -> None:
    """A call without retries left says so, however long the wait would be."""
    assert decide(error(e.RateLimited, retry_after=1e6), max_retries=0) == GiveUp(reason="attempts")


# --- deadline -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "fits"), [(2.0, True), (1.999, False), (1.0, False), (0.0, False), (None, True)]
)
def test_no_wait_exceeds_the_deadline(left: Any, fits: bool) -> None:
    """The wait and a second for the attempt must fit."""
    decision = decide(error(e.ServerError), left=left)

    assert decision == (
        RetryDecision(delay=1.0, reason="server") if fits else GiveUp(reason="deadline", wait=1.0)
    )


def test_a_retry_after_beyond_the_deadline_fails_at_once() -> None:
    """Ninety seconds with thirty left; the error says what the wait would have been."""
    assert decide(error(e.RateLimited, retry_after=90.0), left=30) == GiveUp(reason="deadline", wait=90.0)


def test_an_immediate_retry_needs_time_before_the_deadline() -> None:
    """A second, unless the policy says otherwise."""
    failure = error(e.ConnectionLost, stale=True)

    assert decide(failure, left=1.0).reason == "stale"
    assert decide(failure, left=0.9) == GiveUp(reason="deadline", wait=0.0)
    assert decide(failure, left=0.9, min_attempt=0.5).reason == "stale"


# --- the history --------------------------------------------------------------------------------------------


def test_the_history_adds_up() -> None:
    """The counted attempts and the computed waits."""
    history = after(
        retried("server", cost=14),
        retried("timeout", cost=14, ambiguous=True),
        retried("server", cost=5, computed=False),
        retried("stale", cost=0, counted=False, computed=False),
    )

    assert (history.counted, history.ambiguous, history.backoffs) == (3, 1, 2)
    assert history.by_reason == {"server": 2, "timeout": 1, "stale": 1}


KINDS = [e.ServerError, e.RateLimited, e.Overloaded, e.ConnectionLost, e.AttemptTimeout, e.ConnectFailed]


@given(
    seed=st.integers(0, 2**32),
    kinds=st.lists(st.sampled_from(KINDS), max_size=30),
    retry_afters=st.lists(st.one_of(st.none(), st.floats()), min_size=30, max_size=30),
    left=st.one_of(st.none(), st.floats(0, 1e4)),
    retry_delay=st.floats(0.001, 30),
    chat=st.booleans(),
)
def test_every_decision_is_safe(
    seed: int, kinds: Any, retry_afters: Any, left: Any, retry_delay: Any, chat: Any
) -> None:
    """Waits are finite, limited, at least Retry-After and within the deadline; a call ends; repeats are few."""
    policy = RetryPolicy(
        max_retries=4,
        retry_delay=retry_delay,
        rng=random.Random(seed),
    )
    deadline = Deadline.after(left, SimulatedClock(start=0.0).now)
    history = RetryHistory()
    for kind, retry_after in zip(kinds, retry_afters, strict=False):
        decision = policy.decide(
            error(kind, retry_after=retry_after, sent="maybe"),
            history,
            deadline,
            RetryFacts(idempotent=not chat),
        )
        if isinstance(decision, GiveUp):
            break
        assert 0 <= decision.delay <= 121 + retry_delay / 2 + max(0.0, retry_delay - 16)
        assert decision.delay + 1.0 <= deadline.at
        if retry_after is not None and 0 < retry_after < math.inf:
            assert retry_after <= decision.delay <= retry_after + 1.0
        history.add(decision)
    assert history.counted <= 4
    assert history.ambiguous <= (1 if chat else 0)


def test_the_defaults() -> None:
    """The values of docs/development/resilience.md."""
    policy = RetryPolicy()

    assert repr(policy) == (
        "RetryPolicy(max_retries=2, retry_delay=1.0, max_delay=16.0, max_retry_after=120.0, "
        "throttle_delay=1.0, min_attempt=1.0, max_ambiguous=1)"
    )
    assert policy == RetryPolicy(rng=random.Random(1))


def test_a_forked_child_has_its_own_jitter() -> None:
    """Parent and child share a server, but not their delays; the application's own random state is unchanged."""
    random.seed(5)
    expected = random.random()
    random.seed(5)
    policy = RetryPolicy()
    before = policy.rng.getstate()
    assert random.random() == expected

    jitter._reseed()

    assert policy.rng.getstate() != before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_only_the_child_is_reseeded() -> None:
    """By a real fork in a separate process."""
    program = """
        import os
        from llmopt.policies.retry import RetryPolicy
        policy = RetryPolicy()
        before = policy.rng.getstate()
        child = os.fork()
        if child == 0:
            os._exit(policy.rng.getstate() == before)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert policy.rng.getstate() == before
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


def test_decisions_are_frozen_values() -> None:
    """With the usual case as defaults."""
    assert RetryDecision(delay=1.0, reason="server") == evolve(
        RetryDecision(delay=2.0, reason="server"), delay=1.0
    )
    assert (
        retried("server").cost,
        retried("server").counted,
        retried("server").computed,
        retried("server").ambiguous,
    ) == (14, True, True, False)
    assert repr(GiveUp(reason="budget")) == "GiveUp(reason='budget', wait=None)"

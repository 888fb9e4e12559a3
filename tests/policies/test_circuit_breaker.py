"""The circuit breaker, and the pair of breakers that each request passes (docs/development/resilience.md)."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt import errors as e
from llmopt.policies.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerOptions,
    CircuitBreakerRegistry,
    CircuitPair,
    FailureWindow,
    Permit,
    counts_as_timeout,
    results_of,
)
from llmopt.testing.clock import SimulatedClock
from llmopt.values.events import BreakerChanged


class FixedJitter(random.Random):
    """A random generator that always returns the same share of a range."""

    def __init__(self, share: float = 0.5) -> None:
        super().__init__(0)
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.share


class Call:
    """One request that a single circuit has admitted."""

    def __init__(self, breaker: CircuitBreaker, timeout_s: float = 60.0) -> None:
        permit = breaker.acquire(timeout_s)
        assert permit is not None
        self.breaker, self.permit = breaker, permit

    def success(self) -> None:
        self.breaker.report(self.permit, "success")

    def failure(self) -> None:
        self.breaker.report(self.permit, "failure")

    def neutral(self) -> None:
        self.breaker.report(self.permit, "neutral")


def granted(pair: CircuitPair, timeout_s: float = 60.0) -> Permit:
    permit = pair.acquire(timeout_s)
    assert permit is not None
    return permit


def single(clock: SimulatedClock, break_duration_s: float) -> CircuitBreaker:
    """A circuit that one failure opens for `break_duration_s`."""
    options = CircuitBreakerOptions(
        consecutive_failures=1, break_duration_s=break_duration_s, max_break_duration_s=1e6
    )
    return CircuitBreaker(options=options, now=clock.now, rng=FixedJitter())


class BreakerFixture:
    """A breaker, its clock, and the transitions it reported."""

    def __init__(self, jitter: float = 0.5, **options: Any) -> None:
        self.clock = SimulatedClock(start=1000.0)
        self.changes: list[BreakerChanged] = []
        self.breaker = CircuitBreaker(
            "e",
            CircuitBreakerOptions(**options),
            now=self.clock.now,
            rng=FixedJitter(jitter),
            on_transition=self.changes.append,
        )

    def permit(self, timeout_s: float = 60.0) -> Call:
        return Call(self.breaker, timeout_s)

    def refused_for(self) -> float | None:
        """The seconds for which the circuit refuses requests."""
        assert self.breaker.acquire() is None
        return self.breaker.retry_in()

    def run(self, results: str) -> None:
        """Make one call after the other: s, f or n for success, failure or neutral."""
        for letter in results:
            permit = self.permit()
            {"s": permit.success, "f": permit.failure, "n": permit.neutral}[letter]()

    def opened(self) -> None:
        self.run("f" * 10)
        assert self.state() == "open"

    def half_open(self) -> None:
        self.opened()
        self.clock.advance(5)

    def state(self) -> str:
        return self.breaker.state

    def wait(self) -> float:
        """Seconds until a request would be admitted."""
        wait = self.breaker.retry_in()
        assert wait is not None
        return wait

    @property
    def states(self) -> list[str]:
        return [change.new for change in self.changes]


def test_the_defaults() -> None:
    """The values of docs/development/resilience.md."""
    assert repr(CircuitBreakerOptions()) == (
        "CircuitBreakerOptions(window_s=30.0, buckets=10, minimum_calls=10, failure_ratio=0.5, consecutive_failures=None, break_duration_s=5.0, break_growth=1.5, "
        "max_break_duration_s=8.0, jitter=0.2, reset_after_s=60.0, half_open_calls=2, probe_grace_s=5.0, probe_retry_in_s=0.5)"
    )


# --- opening ------------------------------------------------------------------------------------------------


def test_a_circuit_starts_closed() -> None:
    """It admits calls without a permit to return."""
    circuit = BreakerFixture()

    assert circuit.state() == "closed"
    assert circuit.breaker.retry_in() is None
    assert repr(circuit.breaker) == "CircuitBreaker('e', closed, 0/0 failed)"


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ("f" * 9, "closed"),  # too few calls
        ("f" * 10, "open"),
        ("sssss" + "fffff", "open"),  # half of ten
        ("ssssss" + "ffff", "closed"),
        ("ssssss" + "fffff", "closed"),  # 5 of 11
        ("ssssss" + "ffffff", "open"),  # 6 of 12
        ("f" * 9 + "n" * 50, "closed"),  # neutral results do not count as calls
        ("f" * 9 + "n" * 50 + "f", "open"),
        ("ffff" + "s" * 7, "closed"),
        ("f" * 5 + "s" * 5, "closed"),  # a success never opens
        ("f" * 5 + "s" * 5 + "f", "open"),
    ],
)
def test_half_of_ten_calls_failing_opens_the_circuit(results: str, state: str) -> None:
    """Ten calls in the window, half of them failures, and the last call a failure."""
    circuit = BreakerFixture()
    circuit.run(results)

    assert circuit.state() == state


@pytest.mark.row("H10")
@pytest.mark.parametrize(("share", "state"), [(49, "closed"), (51, "open")])
def test_failures_below_half_keep_the_circuit_closed_and_above_half_open_it(share: int, state: str) -> None:
    """49 % and 51 % of 100 calls."""
    circuit = BreakerFixture()
    failed = 0
    for n in range(1, 101):
        bad = failed + 1 <= n * share / 100
        failed += bad
        if circuit.state() == "closed":
            circuit.run("f" if bad else "s")

    assert circuit.state() == state


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ("ffff", "closed"),
        ("fffff", "open"),
        ("ffffsf", "closed"),
        ("ffffnf", "open"),
        ("sssssssssfffff", "open"),
    ],
)
def test_consecutive_failures_open_the_circuit(results: str, state: str) -> None:
    """Five in a row, where that rule is set; a neutral result neither adds to the row nor ends it."""
    circuit = BreakerFixture(consecutive_failures=5)
    circuit.run(results)

    assert circuit.state() == state


def test_results_leave_the_window_after_30_seconds() -> None:
    circuit = BreakerFixture()
    circuit.run("f" * 9)
    circuit.clock.advance(26.9)
    circuit.run("s")
    assert (circuit.breaker._window.calls, circuit.breaker._window.failures) == (10, 9)

    circuit.clock.advance(3.1)
    circuit.run("f")

    assert (circuit.breaker._window.calls, circuit.breaker._window.failures) == (2, 1)
    assert circuit.state() == "closed"


def test_the_window_counts_a_call_when_it_ends() -> None:
    """The start of a call does not matter."""
    circuit = BreakerFixture(minimum_calls=2)
    slow = circuit.permit()
    circuit.clock.advance(600)
    circuit.run("f")
    slow.failure()

    assert circuit.state() == "open"


def test_the_window_drops_one_bucket_at_a_time() -> None:
    """A long idle time empties all buckets."""
    window = FailureWindow(30.0, 10)
    for second in range(0, 30, 3):
        window.add(second, failed=second % 2 == 0)
    assert (window.calls, window.failures) == (10, 5)

    window.add(30.0, failed=False)
    assert (window.calls, window.failures) == (10, 4)
    window.add(38.9, failed=True)
    assert (window.calls, window.failures) == (9, 4)
    window.add(1e6, failed=True)
    assert (window.calls, window.failures) == (1, 1)
    window.clear()
    assert (window.calls, window.failures) == (0, 0)
    window.add(1e6, failed=False)
    assert (window.calls, window.failures) == (1, 0)


def test_the_ring_of_buckets_wraps_exactly() -> None:
    """An idle time of the whole window empties it; one bucket less keeps the newest."""
    for jump, left in ((27.0, 2), (29.9, 2), (30.0, 1), (33.0, 1), (60.0, 1)):
        window = FailureWindow(30.0, 10)
        window.add(300.0, failed=False)
        window.add(300.0 + jump, failed=False)
        assert window.calls == left, jump


# --- open ---------------------------------------------------------------------------------------------------


def test_an_open_circuit_refuses_and_gives_the_remaining_time() -> None:
    """5 s without jitter."""
    circuit = BreakerFixture()
    circuit.opened()

    assert circuit.refused_for() == 5.0
    circuit.clock.advance(4.5)
    assert circuit.breaker.retry_in() == 0.5
    assert circuit.refused_for() == 0.5
    circuit.clock.advance(0.5)
    assert circuit.breaker.retry_in() is None
    assert circuit.state() == "open"  # retry_in() changes nothing


@pytest.mark.parametrize(("jitter", "duration"), [(0.0, 4.0), (0.5, 5.0), (1.0, 6.0)])
def test_the_break_duration_is_jittered(jitter: float, duration: float) -> None:
    """By a fifth in both directions, so that clients do not return in step."""
    circuit = BreakerFixture(jitter)
    circuit.opened()

    assert circuit.refused_for() == pytest.approx(duration)
    assert circuit.changes[0].break_duration_s == pytest.approx(duration)


def durations_of_failed_probes(circuit: BreakerFixture, rounds: int) -> list[float]:
    durations = []
    for _ in range(rounds):
        durations.append(circuit.wait())
        circuit.clock.advance(durations[-1])
        circuit.permit().failure()
    return durations


def test_break_durations_grow_to_a_maximum() -> None:
    """5 s, 7.5 s, then 8 s each time: a server that is back is noticed within 10 s."""
    circuit = BreakerFixture()
    circuit.opened()

    assert durations_of_failed_probes(circuit, 100) == pytest.approx([5.0, 7.5] + [8.0] * 98)


def test_the_maximum_break_duration_is_jittered_too() -> None:
    """At most 9.6 s."""
    circuit = BreakerFixture(jitter=1.0)
    circuit.opened()

    assert durations_of_failed_probes(circuit, 4) == pytest.approx([6.0, 9.0, 9.6, 9.6])


def test_circuits_of_jobs_open_for_up_to_a_minute() -> None:
    circuit = BreakerFixture(max_break_duration_s=60.0)
    circuit.opened()

    assert durations_of_failed_probes(circuit, 8) == pytest.approx(
        [5, 7.5, 11.25, 16.875, 25.3125, 37.96875, 56.953125, 60]
    )


def test_growth_is_limited_before_it_overflows() -> None:
    """1.5 to the power of 2,000 is no float."""
    circuit = BreakerFixture(max_break_duration_s=1.0)
    circuit.opened()

    assert durations_of_failed_probes(circuit, 2000)[-1] == 1.0


@pytest.mark.parametrize(("closed_s", "duration"), [(59.9, 7.5), (60.0, 5.0)])
def test_a_closed_minute_resets_the_growth(closed_s: float, duration: float) -> None:
    """Within that minute a new outage counts as the old one."""
    circuit = BreakerFixture()
    circuit.half_open()
    circuit.run("ss")
    assert circuit.state() == "closed"

    circuit.clock.advance(closed_s)
    circuit.opened()

    assert circuit.breaker.retry_in() == pytest.approx(duration)


def test_the_first_outage_does_not_grow() -> None:
    """However recently the process started."""
    clock = SimulatedClock(start=0.0)
    breaker = CircuitBreaker(now=clock.now, rng=FixedJitter())
    for _ in range(10):
        Call(breaker).failure()

    assert breaker.retry_in() == 5.0


# --- late results -------------------------------------------------------------------------------------------


def test_results_from_before_the_circuit_opened_are_ignored() -> None:
    """They neither extend the break, nor close the circuit, nor count afterwards."""
    circuit = BreakerFixture()
    early = [circuit.permit() for _ in range(6)]
    circuit.opened()

    early[0].failure()
    early[1].success()
    assert circuit.breaker.retry_in() == 5.0

    circuit.clock.advance(5)
    probe = circuit.permit()
    early[2].failure()
    early[3].success()
    assert circuit.state() == "half_open"
    assert circuit.breaker.acquire() is None  # the probe is still in flight
    probe.success()
    circuit.run("s")
    assert circuit.state() == "closed"

    early[4].failure()
    assert circuit.breaker._window.calls == 0
    assert circuit.states == ["open", "half_open", "closed"]


def test_results_from_before_an_earlier_break_are_ignored() -> None:
    """However often the circuit opened and closed since."""
    circuit = BreakerFixture()
    kept = []
    for _ in range(4):
        kept.append(circuit.permit())
        circuit.opened()
        circuit.clock.advance(circuit.wait())
        circuit.run("ss")
        circuit.opened()
        for permit in kept:
            permit.success()
            permit.failure()
        assert (circuit.breaker._window.calls, circuit.state()) == (10, "open")
        circuit.clock.advance(circuit.wait())
        circuit.run("ss")
        kept.append(circuit.permit())


# --- half open ----------------------------------------------------------------------------------------------


def test_a_half_open_circuit_admits_one_probe_at_a_time() -> None:
    """Other callers get a short time until the next check."""
    circuit = BreakerFixture()
    circuit.half_open()
    probe = circuit.permit()

    assert circuit.state() == "half_open"
    assert circuit.refused_for() == 0.5
    assert circuit.breaker.retry_in() == 0.5
    probe.success()
    assert circuit.breaker.retry_in() is None
    assert circuit.state() == "half_open"


def test_two_successful_probes_close_the_circuit() -> None:
    """In a row; the window starts empty."""
    circuit = BreakerFixture()
    circuit.half_open()
    circuit.run("ss")

    assert circuit.state() == "closed"
    circuit.run("f" * 9)
    assert circuit.state() == "closed"
    circuit.run("f")
    assert circuit.state() == "open"


def test_consecutive_failures_start_at_zero_after_closing() -> None:
    """Neither the probes nor the earlier failures count."""
    circuit = BreakerFixture(consecutive_failures=5)
    circuit.run("f" * 5)
    circuit.clock.advance(5)
    circuit.run("ss" + "ffff")

    assert circuit.state() == "closed"
    circuit.run("f")
    assert circuit.state() == "open"


def test_a_failed_probe_opens_the_circuit_again() -> None:
    """At once; an earlier successful probe is forgotten."""
    circuit = BreakerFixture()
    circuit.half_open()
    circuit.run("sf")
    assert (circuit.state(), circuit.breaker.retry_in()) == ("open", 7.5)

    circuit.clock.advance(7.5)
    circuit.run("s")
    assert circuit.state() == "half_open"
    circuit.run("s")
    assert circuit.state() == "closed"


def test_a_neutral_probe_lets_the_next_probe_start() -> None:
    """It neither counts as a success nor restarts the count."""
    circuit = BreakerFixture()
    circuit.half_open()
    circuit.run("nn")

    assert circuit.state() == "half_open"
    circuit.run("sn")
    circuit.run("s")
    assert circuit.state() == "closed"


def test_a_probe_that_never_reports_expires() -> None:
    """After the attempt's timeout and 5 s; its later result is ignored."""
    circuit = BreakerFixture()
    circuit.half_open()
    lost = circuit.permit(timeout_s=10.0)

    circuit.clock.advance(14.75)
    assert circuit.breaker.retry_in() == 0.25
    circuit.clock.advance(0.25)
    assert circuit.breaker.retry_in() is None
    probe = circuit.permit(timeout_s=1.0)
    lost.failure()
    assert circuit.state() == "half_open"
    assert circuit.breaker.retry_in() == 0.5
    probe.success()
    lost.success()
    circuit.run("s")
    assert circuit.state() == "closed"


def test_a_probe_expires_after_65_seconds_by_default() -> None:
    """A minute, and five seconds more."""
    circuit = BreakerFixture()
    circuit.half_open()
    circuit.breaker.acquire()
    circuit.clock.advance(64.75)

    assert circuit.breaker.retry_in() == 0.25


def test_an_expired_probe_counts_until_another_probe_starts() -> None:
    circuit = BreakerFixture()
    circuit.half_open()
    late = circuit.permit(timeout_s=1.0)
    circuit.clock.advance(100)
    late.failure()

    assert circuit.state() == "open"


# --- events -------------------------------------------------------------------------------------------------


def test_transitions_are_reported() -> None:
    """All of them, with the duration of the break."""
    circuit = BreakerFixture()
    circuit.run("ss" + "f" * 8)
    circuit.clock.advance(5)
    circuit.run("ss")

    assert circuit.changes == [
        BreakerChanged(circuit="e", old="closed", new="open", break_duration_s=5.0),
        BreakerChanged(circuit="e", old="open", new="half_open"),
        BreakerChanged(circuit="e", old="half_open", new="closed"),
    ]


def test_a_listener_is_optional() -> None:
    clock = SimulatedClock()
    breaker = CircuitBreaker(now=clock.now)
    for _ in range(10):
        Call(breaker).failure()

    assert breaker.state == "open"


def test_a_listener_sees_the_new_state() -> None:
    """The transition is complete when the listener is called."""
    seen = []
    clock = SimulatedClock()
    breaker = CircuitBreaker(
        options=CircuitBreakerOptions(consecutive_failures=1),
        now=clock.now,
        on_transition=lambda _: seen.append(breaker.state),
    )
    Call(breaker).failure()

    assert seen == ["open"]


# --- the pair -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "origin", "model"),
    [
        (None, "success", "success"),
        (e.ConnectFailed("m"), "failure", "neutral"),
        (e.ConnectFailed("m", cause="tls", permanent=True), "failure", "neutral"),
        (e.ConnectionLost("m"), "failure", "neutral"),
        (e.ConnectionLost("m", stale=True), "neutral", "neutral"),
        (e.AttemptTimeout("m"), "neutral", "failure"),
        (e.PoolTimeout("m"), "neutral", "neutral"),
        (e.ServerError("m"), "success", "failure"),
        (e.Overloaded("m"), "success", "failure"),
        (e.RequestTimeout("m"), "success", "failure"),
        (e.InvalidResponse("m"), "success", "failure"),
        (e.StreamInterrupted("m"), "neutral", "failure"),
        (e.StreamIdle("m"), "neutral", "failure"),
        (e.RateLimited("m"), "success", "neutral"),
        (e.QuotaExhausted("m"), "success", "neutral"),
        (e.AuthError("m"), "success", "neutral"),
        (e.BadRequest("m"), "success", "neutral"),
        (e.RequestTooLarge("m"), "success", "neutral"),
        (e.UnexpectedStatus("m"), "success", "neutral"),
        (e.CircuitOpen("m"), "neutral", "neutral"),
        (e.DeadlineExceeded("m"), "neutral", "neutral"),
        (e.InvalidInput("m"), "neutral", "neutral"),
        (asyncio.CancelledError(), "neutral", "neutral"),
        (ValueError(), "neutral", "neutral"),
    ],
)
def test_which_outcomes_count_for_which_circuit(error: Any, origin: Any, model: Any) -> None:
    """Connections count for the origin, responses for the model, and the caller's own errors for neither."""
    assert results_of(error) == (origin, model)


@pytest.mark.parametrize(
    ("ran", "timeout", "counts"),
    [(9.9, 60, False), (10.0, 60, True), (4.9, 5, False), (5.0, 5, True), (30, 60, True)],
)
def test_an_expired_deadline_counts_after_ten_seconds_or_the_whole_timeout(
    ran: float, timeout: float, counts: bool
) -> None:
    assert counts_as_timeout(ran, timeout) is counts


class PairFixture:
    def __init__(self) -> None:
        self.clock = SimulatedClock()
        self.changes: list[BreakerChanged] = []
        self.breakers = CircuitBreakerRegistry(
            now=self.clock.now, rng=FixedJitter(), on_transition=self.changes.append
        )

    def pair(
        self,
        origin: Any = "https://a",
        credential: str = "k",
        model: Any = "m",
        operation: str = "embeddings",
    ) -> CircuitPair:
        return self.breakers.pair(origin, credential, model, operation)

    def fail(self, error: Any, times: int, **names: str) -> None:
        for _ in range(times):
            granted(self.pair(**names)).failed(error)


def test_a_dead_origin_opens_for_all_its_models() -> None:
    """Five failed connections in a row, whichever model was requested."""
    circuit = PairFixture()
    for model in "abcd":
        circuit.fail(e.ConnectFailed("m"), 1, model=model)
    assert circuit.pair(model="z").retry_in() is None
    circuit.fail(e.ConnectFailed("m"), 1, model="e")

    assert circuit.pair(model="z").retry_in() == 5.0
    assert circuit.pair(model="z").acquire() is None
    assert [change.circuit for change in circuit.changes] == ["https://a"]
    assert circuit.pair(origin="https://b").retry_in() is None


@pytest.mark.parametrize("other", [{"model": "x"}, {"credential": "x"}, {"operation": "x"}, {"origin": "x"}])
def test_a_failing_model_leaves_other_circuits_closed(other: dict[str, str]) -> None:
    """Circuits differ by origin, credential, model and operation."""
    circuit = PairFixture()
    circuit.fail(e.ServerError("m"), 10)

    assert circuit.pair().acquire() is None
    assert circuit.pair().retry_in() == 5.0
    assert circuit.pair(**other).retry_in() is None
    assert [change.circuit for change in circuit.changes] == ["https://a m embeddings"]


REASONS = ("count", "index", "dimensions", "json", "html", "base64", "type", "a reason of a plugin")


@pytest.mark.row("F03")
@given(st.sampled_from(REASONS), st.lists(st.booleans(), min_size=40, max_size=80))
def test_invalid_responses_of_one_reason_do_not_open_a_circuit(reason: str, unusable: list[bool]) -> None:
    """They do not fit the request: a server that is down answers in other ways."""
    circuit = PairFixture()
    for each in unusable:
        permit = granted(circuit.pair())
        if each:
            permit.failed(e.InvalidResponse("m", reason=reason))
        else:
            permit.success()
    assert circuit.changes == []


@pytest.mark.row("F03")
@given(st.lists(st.sampled_from(REASONS), min_size=2, max_size=4, unique=True))
def test_invalid_responses_of_changing_reasons_open_a_circuit(reasons: list[str]) -> None:
    circuit = PairFixture()
    for number in range(32):
        if (permit := circuit.pair().acquire()) is not None:
            permit.failed(e.InvalidResponse("m", reason=reasons[number % len(reasons)]))
    assert [change.new for change in circuit.changes] == ["open"]


@pytest.mark.parametrize("reason", ["truncated", "http", "decompression"])
def test_responses_that_do_not_arrive_whole_open_a_circuit(reason: str) -> None:
    circuit = PairFixture()
    circuit.fail(e.InvalidResponse("m", reason=reason), 10)
    assert [change.new for change in circuit.changes] == ["open"]


@pytest.mark.row("F01")
def test_a_transition_names_provider_endpoint_model_and_cause() -> None:
    """The cause is a copy without its own cause, whose traceback would keep frames alive."""
    circuit = PairFixture()
    error = e.ServerError("down", status=500)
    error.__cause__ = OSError()
    for _ in range(10):
        granted(circuit.breakers.pair("https://a", "k", "m", "chat", provider="p")).failed(error)
    (change,) = circuit.changes
    assert (change.provider, change.endpoint, change.model) == ("p", "https://a", "m")
    assert (change.cause, change.message) == ("ServerError", "down")
    cause = circuit.breakers.pair("https://a", "k", "m", "chat", provider="p").cause
    assert str(cause) == "down"
    assert cause is not None
    assert (cause.__cause__, cause.__traceback__) == (None, None)


def test_a_circuit_that_several_entries_share_names_none_of_them() -> None:
    circuit = PairFixture()
    for provider in ("p", "q", "p", "q", "p"):
        granted(circuit.breakers.pair("https://a", provider, "m", "chat", provider=provider)).failed(
            e.ConnectFailed("m")
        )
    assert [(change.circuit, change.provider) for change in circuit.changes] == [("https://a", "")]


def test_sixteen_consecutive_failures_open_the_circuit_of_a_model() -> None:
    """However many calls succeeded before; five open the circuit of an origin."""
    circuit = PairFixture()
    for _ in range(100):
        granted(circuit.pair()).success()
    circuit.fail(e.ServerError("m"), 15)
    assert circuit.pair().retry_in() is None
    circuit.fail(e.ServerError("m"), 1)

    assert circuit.pair().retry_in() == 5.0
    assert circuit.pair().origin.retry_in() is None


def test_a_pair_waits_for_the_later_circuit() -> None:
    """Both circuits must admit the request."""
    clock = SimulatedClock()
    for origin_s, model_s in ((3.0, None), (3.0, 9.0), (20.0, 9.0), (None, 4.0)):
        pair = CircuitPair(single(clock, origin_s or 1.0), single(clock, model_s or 1.0))
        if origin_s is not None:
            Call(pair.origin).failure()
        if model_s is not None:
            Call(pair.model).failure()
        assert pair.retry_in() == pair.retry_in(notified=True) == max(origin_s or 0.0, model_s or 0.0)


def opened_pair(clock: SimulatedClock, origin_s: float, model_s: float) -> CircuitPair:
    """A pair whose two circuits are open, for one duration each."""
    pair = CircuitPair(single(clock, origin_s), single(clock, model_s))
    origin, model = Call(pair.origin), Call(pair.model)
    origin.failure()
    model.failure()
    return pair


def test_a_pair_that_refuses_returns_the_probe_of_its_origin() -> None:
    """The circuit of the model refuses."""
    clock = SimulatedClock()
    pair = opened_pair(clock, 1.0, 10.0)
    clock.advance(1)

    assert pair.acquire() is None
    assert pair.origin.retry_in() is None


def test_both_circuits_of_a_pair_probe_with_one_request() -> None:
    """Both expire with the attempt's timeout, and both learn from one response."""
    clock = SimulatedClock()
    pair = opened_pair(clock, 1.0, 1.0)
    clock.advance(1)
    pair.acquire(10.0)
    assert pair.half_open
    assert pair.retry_in() == 0.5
    assert pair.retry_in(notified=True) == 15.0
    clock.advance(14.9)
    assert [pair.origin.retry_in(), pair.model.retry_in()] == pytest.approx([0.1, 0.1])
    clock.advance(0.2)
    for _ in "ab":
        granted(pair).success()

    assert pair.stats() == {"origin": "closed", "model": "closed"}
    assert not pair.half_open


def test_only_the_first_report_of_a_permit_counts() -> None:
    """For both circuits."""
    circuit = PairFixture()
    pair = circuit.pair()
    permit = granted(pair)
    permit.failed(e.ServerError("m"))
    permit.failed(e.ConnectFailed("m"))
    permit.success()
    permit.neutral()
    neutral = granted(pair)
    neutral.neutral()
    neutral.success()

    assert (pair.origin._window.calls, pair.origin._window.failures) == (1, 0)
    assert (pair.model._window.calls, pair.model._window.failures) == (1, 1)
    assert repr(pair).startswith("CircuitPair(origin=CircuitBreaker('https://a', closed")


def test_the_same_request_gets_the_same_circuits() -> None:
    circuit = PairFixture()

    assert circuit.pair().origin is circuit.pair(model="other").origin
    assert circuit.pair().model is circuit.pair().model


def test_successful_responses_keep_both_circuits_closed() -> None:
    circuit = PairFixture()
    pair = circuit.pair()
    for _ in range(20):
        granted(pair).success()

    assert (pair.origin.state, pair.model.state) == ("closed", "closed")
    assert pair.origin._streak == pair.model._streak == 0


def test_the_number_of_circuits_is_limited() -> None:
    """Closed circuits are dropped first; open ones are kept, because they hold information."""
    circuit = PairFixture()
    circuit.fail(e.ServerError("m"), 10, credential="tenant 0")
    for n in range(10_000):
        circuit.pair(credential=f"tenant {n}")

    assert 3072 <= len(circuit.breakers._models) <= 4096
    assert circuit.pair(credential="tenant 0").retry_in() is not None

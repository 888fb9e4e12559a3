"""The circuit breaker and the pair of them that a request passes (docs/development/resilience.md)."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from llmopt import errors as e
from llmopt.policies.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerOptions,
    CircuitBreakerRegistry,
    CircuitPair,
    CircuitTransition,
    FailureWindow,
    Permit,
    counts_as_timeout,
    results_of,
)
from llmopt.testing.clock import SimulatedClock


class FixedJitter(random.Random):
    """The same share of every range."""

    def __init__(self, share: float = 0.5) -> None:
        super().__init__(0)
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.share


class Ticket:
    """One request that a single circuit has let through."""

    def __init__(self, breaker: CircuitBreaker, timeout_s: float = 60.0) -> None:
        ticket = breaker.acquire(timeout_s)
        assert ticket is not None
        self.breaker, self.ticket = breaker, ticket

    def success(self) -> None:
        self.breaker.report(self.ticket, "success")

    def failure(self) -> None:
        self.breaker.report(self.ticket, "failure")

    def neutral(self) -> None:
        self.breaker.report(self.ticket, "neutral")


def granted(pair: CircuitPair, timeout_s: float = 60.0) -> Permit:
    permit = pair.acquire(timeout_s)
    assert permit is not None
    return permit


def single(clock: SimulatedClock, break_duration_s: float) -> CircuitBreaker:
    """A circuit that one failure opens for so long."""
    options = CircuitBreakerOptions(
        consecutive_failures=1, break_duration_s=break_duration_s, max_break_duration_s=1e6
    )
    return CircuitBreaker(options=options, now=clock.now, rng=FixedJitter())


class Bench:
    """A breaker, its clock, and the changes it reported."""

    def __init__(self, jitter: float = 0.5, **options: Any) -> None:
        self.clock = SimulatedClock(start=1000.0)
        self.changes: list[CircuitTransition] = []
        self.breaker = CircuitBreaker(
            "e",
            CircuitBreakerOptions(**options),
            now=self.clock.now,
            rng=FixedJitter(jitter),
            on_transition=self.changes.append,
        )

    def permit(self, timeout_s: float = 60.0) -> Ticket:
        return Ticket(self.breaker, timeout_s)

    def refused_for(self) -> float | None:
        """Seconds that it refuses requests for."""
        assert self.breaker.acquire() is None
        return self.breaker.retry_in()

    def run(self, results: str) -> None:
        """One call each, one after the other: s, f or n."""
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
    """docs/development/resilience.md."""
    assert repr(CircuitBreakerOptions()) == (
        "CircuitBreakerOptions(window_s=30.0, buckets=10, minimum_calls=10, failure_ratio=0.5, consecutive_failures=None, break_duration_s=5.0, break_growth=1.5, "
        "max_break_duration_s=8.0, jitter=0.2, reset_after_s=60.0, half_open_calls=2, probe_grace_s=5.0, probe_retry_in_s=0.5)"
    )


# --- opening ----------------------------------------------------------------------------------------------


def test_starts_closed() -> None:
    """And admits without taking anything."""
    bench = Bench()

    assert bench.state() == "closed"
    assert bench.breaker.retry_in() is None
    assert repr(bench.breaker) == "CircuitBreaker('e', closed, 0/0 failed)"


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ("f" * 9, "closed"),  # too few calls to tell
        ("f" * 10, "open"),
        ("sssss" + "fffff", "open"),  # half of ten
        ("ssssss" + "ffff", "closed"),
        ("ssssss" + "fffff", "closed"),  # 5 of 11
        ("ssssss" + "ffffff", "open"),  # 6 of 12
        ("f" * 9 + "n" * 50, "closed"),  # neutral results are no calls
        ("f" * 9 + "n" * 50 + "f", "open"),
        ("ffff" + "s" * 7, "closed"),
        ("f" * 5 + "s" * 5, "closed"),  # a success never opens
        ("f" * 5 + "s" * 5 + "f", "open"),
    ],
)
def test_opens_at_half_of_ten_calls(results: str, state: str) -> None:
    """Ten calls in the window, half of them failures, and the last one a failure."""
    bench = Bench()
    bench.run(results)

    assert bench.state() == state


@pytest.mark.row("H10")
@pytest.mark.parametrize(("share", "state"), [(49, "closed"), (51, "open")])
def test_failures_below_and_above_half(share: int, state: str) -> None:
    """49 % of failures are borne for ever, 51 % are not."""
    bench = Bench()
    failed = 0
    for n in range(1, 101):
        bad = failed + 1 <= n * share / 100
        failed += bad
        if bench.state() == "closed":
            bench.run("f" if bad else "s")

    assert bench.state() == state


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
def test_failures_in_a_row(results: str, state: str) -> None:
    """Five in a row open where the rule is set; a neutral result neither adds nor breaks the row."""
    bench = Bench(consecutive_failures=5)
    bench.run(results)

    assert bench.state() == state


def test_the_window_slides() -> None:
    """After 30 s the oldest results have left it."""
    bench = Bench()
    bench.run("f" * 9)
    bench.clock.advance(26.9)
    bench.run("s")
    assert (bench.breaker._window.calls, bench.breaker._window.failures) == (10, 9)

    bench.clock.advance(3.1)
    bench.run("f")

    assert (bench.breaker._window.calls, bench.breaker._window.failures) == (2, 1)
    assert bench.state() == "closed"


def test_the_window_counts_by_completion() -> None:
    """A call counts when it ends, not when it began."""
    bench = Bench(minimum_calls=2)
    slow = bench.permit()
    bench.clock.advance(600)
    bench.run("f")
    slow.failure()

    assert bench.state() == "open"


def test_the_window_forgets_bucket_by_bucket() -> None:
    """Each part leaves at its time, and a long silence empties it all."""
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


def test_no_buckets_are_lost_over_a_turn() -> None:
    """A jump of exactly one turn empties everything, one bucket less leaves the newest."""
    for jump, left in ((27.0, 2), (29.9, 2), (30.0, 1), (33.0, 1), (60.0, 1)):
        window = FailureWindow(30.0, 10)
        window.add(300.0, failed=False)
        window.add(300.0 + jump, failed=False)
        assert window.calls == left, jump


# --- resting ----------------------------------------------------------------------------------------------


def test_open_refuses_and_says_how_long() -> None:
    """For 5 s, without a jitter."""
    bench = Bench()
    bench.opened()

    assert bench.refused_for() == 5.0
    bench.clock.advance(4.5)
    assert bench.breaker.retry_in() == 0.5
    assert bench.refused_for() == 0.5
    bench.clock.advance(0.5)
    assert bench.breaker.retry_in() is None
    assert bench.state() == "open"  # peeking took nothing and changed nothing


@pytest.mark.parametrize(("jitter", "rest"), [(0.0, 4.0), (0.5, 5.0), (1.0, 6.0)])
def test_the_rest_is_jittered(jitter: float, rest: float) -> None:
    """By a fifth either way, so that clients do not come back in step."""
    bench = Bench(jitter)
    bench.opened()

    assert bench.refused_for() == pytest.approx(rest)
    assert bench.changes[0].break_duration_s == pytest.approx(rest)


def fail_probes(bench: Bench, rounds: int) -> list[float]:
    rests = []
    for _ in range(rounds):
        rests.append(bench.wait())
        bench.clock.advance(rests[-1])
        bench.permit().failure()
    return rests


def test_rests_grow_to_a_cap() -> None:
    """5 s, 7.5 s, then 8 s however long it lasts: a server that is back is noticed within 10 s."""
    bench = Bench()
    bench.opened()

    assert fail_probes(bench, 100) == pytest.approx([5.0, 7.5] + [8.0] * 98)


def test_the_cap_is_jittered_too() -> None:
    """No more than 9.6 s."""
    bench = Bench(jitter=1.0)
    bench.opened()

    assert fail_probes(bench, 4) == pytest.approx([6.0, 9.0, 9.6, 9.6])


def test_jobs_rest_longer() -> None:
    """Up to a minute."""
    bench = Bench(max_break_duration_s=60.0)
    bench.opened()

    assert fail_probes(bench, 8) == pytest.approx([5, 7.5, 11.25, 16.875, 25.3125, 37.96875, 56.953125, 60])


def test_growth_is_bounded_before_it_overflows() -> None:
    """1.5 to the 2,000th is no float."""
    bench = Bench(max_break_duration_s=1.0)
    bench.opened()

    assert fail_probes(bench, 2000)[-1] == 1.0


@pytest.mark.parametrize(("calm", "rest"), [(59.9, 7.5), (60.0, 5.0)])
def test_a_minute_of_calm_resets_the_growth(calm: float, rest: float) -> None:
    """Before that a new outage is taken for the old one."""
    bench = Bench()
    bench.half_open()
    bench.run("ss")
    assert bench.state() == "closed"

    bench.clock.advance(calm)
    bench.opened()

    assert bench.breaker.retry_in() == pytest.approx(rest)


def test_the_first_outage_is_a_first_one() -> None:
    """However young the process is."""
    clock = SimulatedClock(start=0.0)
    breaker = CircuitBreaker(now=clock.now, rng=FixedJitter())
    for _ in range(10):
        Ticket(breaker).failure()

    assert breaker.retry_in() == 5.0


# --- late results -----------------------------------------------------------------------------------------


def test_results_of_before_the_break_are_ignored() -> None:
    """They neither extend the rest, nor close, nor count afterwards."""
    bench = Bench()
    early = [bench.permit() for _ in range(6)]
    bench.opened()

    early[0].failure()
    early[1].success()
    assert bench.breaker.retry_in() == 5.0

    bench.clock.advance(5)
    probe = bench.permit()
    early[2].failure()
    early[3].success()
    assert bench.state() == "half_open"
    assert bench.breaker.acquire() is None  # the probe is still under way
    probe.success()
    bench.run("s")
    assert bench.state() == "closed"

    early[4].failure()
    assert bench.breaker._window.calls == 0
    assert bench.states == ["open", "half_open", "closed"]


def test_results_of_an_earlier_break_stay_late() -> None:
    """However often it opened and closed since."""
    bench = Bench()
    kept = []
    for _ in range(4):
        kept.append(bench.permit())
        bench.opened()
        bench.clock.advance(bench.wait())
        bench.run("ss")
        bench.opened()
        for permit in kept:
            permit.success()
            permit.failure()
        assert (bench.breaker._window.calls, bench.state()) == (10, "open")
        bench.clock.advance(bench.wait())
        bench.run("ss")
        kept.append(bench.permit())


# --- half open --------------------------------------------------------------------------------------------


def test_one_probe_at_a_time() -> None:
    """While it is under way others are told to look again soon."""
    bench = Bench()
    bench.half_open()
    probe = bench.permit()

    assert bench.state() == "half_open"
    assert bench.refused_for() == 0.5
    assert bench.breaker.retry_in() == 0.5
    probe.success()
    assert bench.breaker.retry_in() is None
    assert bench.state() == "half_open"


def test_two_good_probes_close() -> None:
    """In a row; the window starts empty."""
    bench = Bench()
    bench.half_open()
    bench.run("ss")

    assert bench.state() == "closed"
    bench.run("f" * 9)
    assert bench.state() == "closed"
    bench.run("f")
    assert bench.state() == "open"


def test_failures_in_a_row_start_anew_after_closing() -> None:
    """Neither the good probes nor the failures of before count into the row."""
    bench = Bench(consecutive_failures=5)
    bench.run("f" * 5)
    bench.clock.advance(5)
    bench.run("ss" + "ffff")

    assert bench.state() == "closed"
    bench.run("f")
    assert bench.state() == "open"


def test_a_bad_probe_opens_again() -> None:
    """At once, and the good one before it is forgotten."""
    bench = Bench()
    bench.half_open()
    bench.run("sf")
    assert (bench.state(), bench.breaker.retry_in()) == ("open", 7.5)

    bench.clock.advance(7.5)
    bench.run("s")
    assert bench.state() == "half_open"
    bench.run("s")
    assert bench.state() == "closed"


def test_a_neutral_probe_frees_its_place() -> None:
    """It neither adds to the successes nor starts them over."""
    bench = Bench()
    bench.half_open()
    bench.run("nn")

    assert bench.state() == "half_open"
    bench.run("sn")
    bench.run("s")
    assert bench.state() == "closed"


def test_the_watchdog_frees_a_probe_that_never_reports() -> None:
    """After the attempt's timeout and 5 s; what it says after that is late."""
    bench = Bench()
    bench.half_open()
    lost = bench.permit(timeout_s=10.0)

    bench.clock.advance(14.75)
    assert bench.breaker.retry_in() == 0.25
    bench.clock.advance(0.25)
    assert bench.breaker.retry_in() is None
    probe = bench.permit(timeout_s=1.0)
    lost.failure()
    assert bench.state() == "half_open"
    assert bench.breaker.retry_in() == 0.5
    probe.success()
    lost.success()
    bench.run("s")
    assert bench.state() == "closed"


def test_the_watchdog_waits_a_minute_by_default() -> None:
    """And the five seconds to spare."""
    bench = Bench()
    bench.half_open()
    bench.breaker.acquire()
    bench.clock.advance(64.75)

    assert bench.breaker.retry_in() == 0.25


def test_a_late_probe_still_counts_while_nobody_took_its_place() -> None:
    """Its news is the only news there is."""
    bench = Bench()
    bench.half_open()
    late = bench.permit(timeout_s=1.0)
    bench.clock.advance(100)
    late.failure()

    assert bench.state() == "open"


# --- events -----------------------------------------------------------------------------------------------


def test_changes_are_reported() -> None:
    """With what led to them."""
    bench = Bench()
    bench.run("ss" + "f" * 8)
    bench.clock.advance(5)
    bench.run("ss")

    assert bench.changes == [
        CircuitTransition(name="e", old="closed", new="open", break_duration_s=5.0, calls=10, failures=8),
        CircuitTransition(name="e", old="open", new="half_open", calls=10, failures=8),
        CircuitTransition(name="e", old="half_open", new="closed"),
    ]


def test_nobody_needs_to_listen() -> None:
    """The usual case."""
    clock = SimulatedClock()
    breaker = CircuitBreaker(now=clock.now)
    for _ in range(10):
        Ticket(breaker).failure()

    assert breaker.state == "open"


def test_a_listener_sees_the_new_state() -> None:
    """The change is complete when it is told."""
    seen = []
    clock = SimulatedClock()
    breaker = CircuitBreaker(
        options=CircuitBreakerOptions(consecutive_failures=1),
        now=clock.now,
        on_transition=lambda _: seen.append(breaker.state),
    )
    Ticket(breaker).failure()

    assert seen == ["open"]


# --- the pair ---------------------------------------------------------------------------------------------


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
def test_evidence(error: Any, origin: Any, model: Any) -> None:
    """Connections speak of the origin, answers of the model, and neither of what the caller did."""
    assert results_of(error) == (origin, model)


@pytest.mark.parametrize(
    ("ran", "timeout", "counts"),
    [(9.9, 60, False), (10.0, 60, True), (4.9, 5, False), (5.0, 5, True), (30, 60, True)],
)
def test_a_deadline_that_was_patient_counts(ran: float, timeout: float, counts: bool) -> None:
    """One who waited 10 s or the whole timeout has learned something of the server."""
    assert counts_as_timeout(ran, timeout) is counts


class PairBench:
    def __init__(self, **more: Any) -> None:
        self.clock = SimulatedClock()
        self.changes: list[CircuitTransition] = []
        self.breakers = CircuitBreakerRegistry(
            now=self.clock.now, rng=FixedJitter(), on_transition=self.changes.append, **more
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
    """Five failed connections in a row, whatever was asked for."""
    bench = PairBench()
    for model in "abcd":
        bench.fail(e.ConnectFailed("m"), 1, model=model)
    assert bench.pair(model="z").retry_in() is None
    bench.fail(e.ConnectFailed("m"), 1, model="e")

    assert bench.pair(model="z").retry_in() == 5.0
    assert bench.pair(model="z").acquire() is None
    assert [change.name for change in bench.changes] == ["https://a"]
    assert bench.pair(origin="https://b").retry_in() is None


@pytest.mark.parametrize("other", [{"model": "x"}, {"credential": "x"}, {"operation": "x"}, {"origin": "x"}])
def test_a_broken_model_leaves_its_neighbours_alone(other: dict[str, str]) -> None:
    """Circuits differ by origin, credential, model and operation."""
    bench = PairBench()
    bench.fail(e.ServerError("m"), 10)

    assert bench.pair().acquire() is None
    assert bench.pair().retry_in() == 5.0
    assert bench.pair(**other).retry_in() is None
    assert [change.name for change in bench.changes] == ["https://a m embeddings"]


def test_sixteen_failures_in_a_row_open_a_model() -> None:
    """However much went well before them; five open an origin alone."""
    bench = PairBench()
    for _ in range(100):
        granted(bench.pair()).success()
    bench.fail(e.ServerError("m"), 15)
    assert bench.pair().retry_in() is None
    bench.fail(e.ServerError("m"), 1)

    assert bench.pair().retry_in() == 5.0
    assert bench.pair().origin.retry_in() is None


def test_the_longer_wait_is_the_pairs() -> None:
    """Both must admit."""
    clock = SimulatedClock()
    for origin_s, model_s in ((3.0, None), (3.0, 9.0), (20.0, 9.0), (None, 4.0)):
        pair = CircuitPair(single(clock, origin_s or 1.0), single(clock, model_s or 1.0))
        if origin_s is not None:
            Ticket(pair.origin).failure()
        if model_s is not None:
            Ticket(pair.model).failure()
        assert pair.retry_in() == pair.retry_in(notified=True) == max(origin_s or 0.0, model_s or 0.0)


def opened_pair(clock: SimulatedClock, origin_s: float, model_s: float) -> CircuitPair:
    """A pair whose circuits both have opened, for so long each."""
    pair = CircuitPair(single(clock, origin_s), single(clock, model_s))
    origin, model = Ticket(pair.origin), Ticket(pair.model)
    origin.failure()
    model.failure()
    return pair


def test_a_refused_pair_keeps_no_probe() -> None:
    """The origin's place is free again when the model refuses."""
    clock = SimulatedClock()
    pair = opened_pair(clock, 1.0, 10.0)
    clock.advance(1)

    assert pair.acquire() is None
    assert pair.origin.retry_in() is None


def test_a_pair_of_probes() -> None:
    """Both are watched by the attempt's timeout, and both learn from one answer."""
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


def test_the_first_report_of_a_permit_counts() -> None:
    """Later ones do nothing, for neither of the circuits."""
    bench = PairBench()
    pair = bench.pair()
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
    assert repr(pair).startswith("CircuitPair(CircuitBreaker('https://a', closed")


def test_the_same_circuits_for_the_same_request() -> None:
    """Made once."""
    bench = PairBench()

    assert bench.pair().origin is bench.pair(model="other").origin
    assert bench.pair().model is bench.pair().model


def test_good_answers_keep_both_closed() -> None:
    """A row of any length."""
    bench = PairBench()
    pair = bench.pair()
    for _ in range(20):
        granted(pair).success()

    assert (pair.origin.state, pair.model.state) == ("closed", "closed")
    assert pair.origin._streak == pair.model._streak == 0


def test_rules_are_passed_on() -> None:
    """For both levels."""
    bench = PairBench(options=CircuitBreakerOptions(minimum_calls=2, break_duration_s=1.0))
    bench.fail(e.ServerError("m"), 2)

    assert bench.pair().retry_in() == 1.0


def test_circuits_of_many_tenants_are_bounded() -> None:
    """Closed ones make room; open ones are kept, for they say something."""
    bench = PairBench()
    bench.fail(e.ServerError("m"), 10, credential="tenant 0")
    for n in range(10_000):
        bench.pair(credential=f"tenant {n}")

    assert 3072 <= len(bench.breakers._models) <= 4096
    assert bench.pair(credential="tenant 0").retry_in() is not None

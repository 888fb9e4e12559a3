"""The adaptive batch size (docs/development/resilience.md)."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmopt.operations.batch_size import AdaptiveBatchSize
from llmopt.testing.clock import SimulatedClock
from tests.support.scale import scaled

DAY = 86_400.0


def adaptive_size(
    maximum: int = 2048, clock: SimulatedClock | None = None, state: Any = None, **more: Any
) -> AdaptiveBatchSize:
    return AdaptiveBatchSize(maximum, wall=(clock or SimulatedClock()).wall, state=state, **more)


def clean(size: AdaptiveBatchSize, batches: int) -> None:
    for _ in range(batches):
        size.succeeded(size.size)


def embed(size: AdaptiveBatchSize, texts: int, accepts: int, states: int | None = None) -> int:
    """Count the requests that deliver all texts to a server that accepts `accepts` texts in one request."""
    requests, todo = 0, [texts]
    while todo:
        count = todo.pop(0)
        if count > size.size:
            todo = [size.size, count - size.size, *todo]
            continue
        requests += 1
        if count <= accepts:
            size.succeeded(count)
        else:
            size.too_large(count, stated=states)
            todo.insert(0, count)
    return requests


def test_the_size_starts_at_the_maximum() -> None:
    size = adaptive_size(96)

    assert size.size == 96
    assert size.changes == 0
    assert repr(size) == "AdaptiveBatchSize(96, maximum=96, largest_good=0, too_large=None)"


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maximum", "count", "expected"),
    [(2048, 2048, 1024), (2048, 200, 100), (2048, 201, 100), (3, 3, 1), (2, 2, 1)],
)
def test_a_refusal_halves_the_refused_size(maximum: int, count: int, expected: int) -> None:
    """Not the current size: a refused batch of 200 makes the size 100, though 2,048 were allowed."""
    size = adaptive_size(maximum)

    assert size.too_large(count)
    assert (size.size, size.changes) == (expected, 1)


def test_a_refused_single_text_changes_nothing() -> None:
    """One text cannot be split."""
    size = adaptive_size(10)

    assert not size.too_large(1)
    assert (size.size, size.changes, size.state()["refused"]) == (10, 0, None)


def test_late_refusals_do_not_halve_again() -> None:
    """Ten refused batches that were in flight together count as one refusal."""
    size = adaptive_size(1000)
    for _ in range(10):
        size.too_large(1000)

    assert size.size == 500


def test_too_large_returns_whether_the_size_changed() -> None:
    """A later expiry of the same refusal is no change."""
    size = adaptive_size(1000)

    assert [size.too_large(1000), size.too_large(1000), size.too_large(600), size.too_large(600)] == [
        True,
        False,
        True,
        False,
    ]
    assert (size.size, size.changes) == (300, 2)


def test_a_late_refusal_of_a_larger_batch_does_not_raise_the_size() -> None:
    size = adaptive_size(1000)
    size.too_large(100)
    size.too_large(1000)

    assert size.size == 50
    assert size.state()["refused"] == 100


def test_a_refusal_falls_back_to_the_largest_good_size() -> None:
    """Where that is more than half of the refused size."""
    size = adaptive_size(1000)
    size.succeeded(90)

    size.too_large(100)

    assert size.size == 90


def test_a_good_size_that_is_refused_is_halved() -> None:
    """The server accepts less than before."""
    size = adaptive_size(1000)
    size.succeeded(100)

    size.too_large(100)
    assert size.size == 50
    size.too_large(50)
    assert size.size == 25


def test_a_refusal_below_the_largest_good_size_forgets_it() -> None:
    size = adaptive_size(1000)
    size.succeeded(100)
    size.too_large(60)

    assert (size.size, size.state()["good"]) == (30, 0)


def test_a_good_size_below_half_of_the_refused_size_is_ignored() -> None:
    size = adaptive_size(1000)
    size.succeeded(10)
    size.too_large(100)

    assert size.size == 50


# --- stated limits ------------------------------------------------------------------------------------------


def test_a_stated_limit_is_used_at_once() -> None:
    """Successful batches do not raise the size above it."""
    size = adaptive_size(2048)

    assert size.too_large(200, stated=64)
    assert size.size == 64
    clean(size, 1000)
    assert size.size == 64


def test_a_stated_limit_replaces_guesses() -> None:
    """A size that was halved too far rises to the stated limit."""
    size = adaptive_size(2048)
    size.too_large(200)
    size.too_large(100)
    size.too_large(200, stated=64)

    assert size.size == 64


@pytest.mark.parametrize("stated", [200, 5000, 0, -1])
def test_a_stated_limit_that_does_not_explain_the_refusal_is_ignored(stated: int) -> None:
    """The batch was within the stated limit, or the limit is no number of texts: the size is halved."""
    size = adaptive_size(2048)
    size.too_large(200, stated=stated)

    assert size.size == 100


def test_a_stated_limit_does_not_raise_the_configured_maximum() -> None:
    size = adaptive_size(50)
    size.too_large(100, stated=64)

    assert size.size == 50


def test_a_stated_limit_of_one_is_kept() -> None:
    size = adaptive_size(50)
    size.too_large(50, stated=1)

    assert size.size == 1
    clean(size, 100)
    assert size.size == 1


# --- timeouts -----------------------------------------------------------------------------------------------


def test_two_timeouts_in_a_row_halve_the_size() -> None:
    """The first timeout alone changes nothing."""
    size = adaptive_size(1000)

    assert [size.timed_out(1000), size.timed_out(1000)] == [False, True]
    assert (size.size, size.changes) == (500, 1)
    assert [size.timed_out(1000), size.timed_out(1000)] == [False, False]
    assert [size.timed_out(500), size.timed_out(500)] == [False, True]
    assert (size.size, size.changes) == (250, 2)


def test_a_successful_batch_restarts_the_count_of_timeouts() -> None:
    """A small batch does, too."""
    size = adaptive_size(1000)
    for _ in range(5):
        size.timed_out(1000)
        size.succeeded(3)

    assert size.size == 1000


def test_timeouts_of_small_batches_do_not_count() -> None:
    """Their size was not the reason."""
    size = adaptive_size(1000)
    for _ in range(10):
        assert not size.timed_out(500)
    assert size.size == 1000
    size.timed_out(501)
    size.timed_out(501)
    assert size.size == 250


def test_late_timeouts_do_not_halve_again() -> None:
    """Timeouts of batches that were sent together count once."""
    size = adaptive_size(1000)
    for _ in range(20):
        size.timed_out(1000)

    assert size.size == 500


def test_timeouts_of_a_single_text_change_nothing() -> None:
    size = adaptive_size(1)

    assert not any(size.timed_out(1) for _ in range(10))
    assert size.size == 1


def test_timeouts_are_no_refusals() -> None:
    """The size grows past the size that timed out."""
    size = adaptive_size(100)
    size.timed_out(100)
    size.timed_out(100)
    clean(size, 100)

    assert size.size == 100


# --- growth -------------------------------------------------------------------------------------------------


def test_ten_full_batches_in_a_row_add_a_tenth() -> None:
    size = adaptive_size(1000)
    size.timed_out(200)
    size._set(100)
    clean(size, 9)
    assert size.size == 100
    clean(size, 1)
    assert size.size == 110
    clean(size, 9)
    assert size.size == 110
    clean(size, 1)
    assert size.size == 121


def test_batches_larger_than_the_current_size_count_as_full() -> None:
    """They were planned before the size fell."""
    size = adaptive_size(1000)
    size._set(100)
    for _ in range(10):
        size.succeeded(150)

    assert size.size == 110


def test_batches_that_are_not_full_do_not_count() -> None:
    """They do not show that full batches are accepted."""
    size = adaptive_size(1000)
    size._set(100)
    for _ in range(100):
        size.succeeded(99)

    assert size.size == 100


@pytest.mark.parametrize("trouble", ["too_large", "timed_out"])
def test_a_refusal_or_timeout_restarts_the_count(trouble: str) -> None:
    size = adaptive_size(1000)
    size._set(100)
    clean(size, 9)
    getattr(size, trouble)(1000)
    clean(size, 9)
    assert size.size == 100
    clean(size, 1)
    assert size.size == 110


def test_sizes_below_ten_grow_by_one() -> None:
    size = adaptive_size(4)
    size._set(1)
    grown = []
    for _ in range(5):
        clean(size, 10)
        grown.append(size.size)

    assert grown == [2, 3, 4, 4, 4]


def test_growth_stops_below_the_refused_size() -> None:
    """The limit is found exactly, at the price of two refused requests: 66 and 65."""
    size = adaptive_size(2048)
    embed(size, 200, accepts=64)
    refusals = 0
    for _ in range(1000):
        if size.size > 64:
            refusals += 1
            size.too_large(size.size)
        else:
            size.succeeded(size.size)

    assert size.size == 64
    assert refusals == 2


# --- expiry -------------------------------------------------------------------------------------------------


def test_a_refusal_expires_after_a_day() -> None:
    """Then a larger size is tried again."""
    clock = SimulatedClock()
    size = adaptive_size(100, clock)
    size.too_large(100, stated=50)
    clean(size, 10)
    assert size.size == 50

    clock.advance(DAY - 1)
    clean(size, 10)
    assert size.size == 50
    clock.advance(1)
    clean(size, 10)
    assert size.size == 55
    assert size.state()["refused"] is None


def test_another_refusal_renews_the_expiry() -> None:
    """The smallest refused size is kept."""
    clock = SimulatedClock()
    size = adaptive_size(100, clock, expiry_s=10.0)
    size.too_large(60)
    clock.advance(9)
    size.too_large(80)
    assert size.state()["refused"] == 60
    assert size.state()["refused_until"] == clock.wall() + 10.0
    clock.advance(9)
    clean(size, 1000)
    assert size.size == 59


def test_an_expired_refusal_does_not_lower_a_new_one() -> None:
    """The server may have been reconfigured."""
    clock = SimulatedClock()
    size = adaptive_size(100, clock, expiry_s=10.0)
    size.too_large(40)
    clock.advance(10)
    size.too_large(80)

    assert size.state()["refused"] == 80


def test_a_refusal_from_the_future_is_forgotten() -> None:
    """The wall clock was set back, so its age is unknown."""
    clock = SimulatedClock()
    size = adaptive_size(100, clock)
    size.too_large(100, stated=50)
    clock.set_wall(clock.wall() - 10 * DAY)
    clean(size, 10)

    assert size.size == 55


def test_a_successful_batch_of_the_refused_size_removes_the_refusal() -> None:
    """The refusal had another reason, longer texts for example."""
    size = adaptive_size(100)
    for count in (40, 50):
        size.too_large(40)
        changes = size.changes
        size.succeeded(39)
        assert size.state()["refused"] == 40
        size.succeeded(count)

        assert size.state()["refused"] is None
        assert size.changes == changes + 1
        clean(size, 1000)
        assert size.size == 100


# --- a server that accepts 64 texts -------------------------------------------------------------------------


def test_an_unstated_limit_of_64_costs_at_most_7_requests_for_200_texts() -> None:
    """The plugin declares 2,048. The next call needs 4 requests, in a new process too."""
    clock = SimulatedClock()
    first = adaptive_size(2048, clock)
    assert embed(first, 200, accepts=64) <= 7

    kept = json.loads(json.dumps(first.state()))
    clock.advance(3600)

    assert embed(adaptive_size(2048, clock, kept), 200, accepts=64) == 4
    assert embed(first, 200, accepts=64) == 4


def test_a_stated_limit_of_64_costs_one_refused_request() -> None:
    assert embed(adaptive_size(2048), 200, accepts=64, states=64) == 5


# --- state --------------------------------------------------------------------------------------------------


def test_state_is_plain_json_and_complete() -> None:
    clock = SimulatedClock(epoch=1000.0)
    size = adaptive_size(100, clock)
    size.succeeded(30)
    size.too_large(80)

    assert size.state() == {
        "version": 1,
        "size": 40,
        "maximum": 100,
        "good": 30,
        "refused": 80,
        "refused_until": 1000.0 + DAY,
    }
    assert adaptive_size(100, clock, size.state()).state() == size.state()


@pytest.mark.parametrize(("refused", "size"), [(None, 128), (50, 49), (200, 128)])
def test_a_maximum_that_was_raised_counts_where_nothing_lowered_the_size(
    refused: int | None, size: int
) -> None:
    """The saved size was the old maximum, not something that a server taught; a refused size still bounds it."""
    state = {
        "version": 1, "size": 32, "maximum": 32, "good": 32, "refused": refused, "refused_until": 1000.0 + DAY,
    }  # fmt: skip
    assert adaptive_size(128, SimulatedClock(epoch=1000.0), state).size == size
    assert adaptive_size(128, state=state | {"size": 20, "refused": None}).size == 20


def test_a_restored_state_is_limited_to_a_smaller_maximum() -> None:
    """The user's setting may have changed."""
    size = adaptive_size(
        20, state={"version": 1, "size": 40, "good": 30, "refused": None, "refused_until": 0.0}
    )

    assert (size.size, size.state()["good"]) == (20, 20)


def test_a_smaller_maximum_limits_growth_after_a_restore() -> None:
    """Though larger sizes were good before, and the refused size is far above."""
    clock = SimulatedClock()
    state = {"version": 1, "size": 1, "good": 30, "refused": 80, "refused_until": clock.wall() + 1000}
    size = adaptive_size(20, clock, state)
    assert size.size == 1
    clean(size, 1000)

    assert size.size == 20


def test_the_maximum_is_reached_again_after_an_expiry() -> None:
    clock = SimulatedClock()
    size = adaptive_size(20, clock)
    size.too_large(20)
    clock.advance(DAY)
    clean(size, 1000)

    assert size.size == 20


def test_a_restored_expired_refusal_is_dropped() -> None:
    """The size stays."""
    clock = SimulatedClock()
    state = {"version": 1, "size": 40, "good": 0, "refused": 50, "refused_until": clock.wall() - 1}
    size = adaptive_size(100, clock, state)

    assert (size.size, size.state()["refused"]) == (40, None)


def test_a_restored_size_stays_below_the_refused_size() -> None:
    clock = SimulatedClock()
    state = {"version": 1, "size": 60, "good": 0, "refused": 50, "refused_until": clock.wall() + 1}

    assert adaptive_size(100, clock, state).size == 49


def test_a_restored_refusal_of_one_text_leaves_a_size_of_one() -> None:
    clock = SimulatedClock()
    state = {"version": 1, "size": 60, "good": 0, "refused": 1, "refused_until": clock.wall() + 1}

    assert adaptive_size(100, clock, state).size == 1


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"version": 2, "size": 5, "good": 0},
        {"version": 1},
        {"version": 1, "size": 0, "good": 0},
        {"version": 1, "size": True, "good": 0},
        {"version": 1, "size": "5", "good": 0},
        {"version": 1, "size": 5.0, "good": 0},
        {"version": 1, "size": 5, "good": -1},
        {"version": 1, "size": 5, "good": None},
        {"version": 1, "size": -3, "good": 0, "refused": 3, "refused_until": math.inf},
    ],
)
def test_a_damaged_state_is_ignored(state: dict[str, Any]) -> None:
    assert adaptive_size(100, state=state).state() == adaptive_size(100).state()


@pytest.mark.parametrize(
    ("refused", "until"),
    [("50", 1e12), (0, 1e12), (None, None), (50, None), (50, "x"), (50, math.inf), (50, math.nan)],
)
def test_a_damaged_refusal_is_ignored(refused: object, until: object) -> None:
    """The restored size is still used."""
    size = adaptive_size(
        100, state={"version": 1, "size": 5, "good": 3, "refused": refused, "refused_until": until}
    )

    assert size.size == 5
    assert size.state()["refused"] is None


junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)


@given(
    st.fixed_dictionaries(
        {"version": st.one_of(st.just(1), junk)},
        optional={"size": junk, "good": junk, "refused": junk, "refused_until": junk},
    )
)
def test_no_restored_state_breaks_the_limits(state: dict[str, Any]) -> None:
    """A state file may contain anything."""
    size = adaptive_size(100, state=state)
    size.too_large(100)
    clean(size, 30)
    size.timed_out(size.size)

    assert 1 <= size.size <= 100


# --- against a server ---------------------------------------------------------------------------------------


class BatchSizeMachine(RuleBasedStateMachine):
    """A server with a limit that it does not state, and batches that finish in any order."""

    @initialize(maximum=st.integers(1, 300), accepts=st.integers(1, 300))
    def start(self, maximum: int, accepts: int) -> None:
        self.clock = SimulatedClock()
        self.maximum, self.accepts = maximum, accepts
        self.size = adaptive_size(maximum, self.clock, expiry_s=100.0)
        self.in_flight: list[int] = []
        self.refusals: dict[int, float] = {}

    @rule(share=st.sampled_from([0.1, 0.5, 1.0, 1.0, 1.0]))
    def send(self, share: float) -> None:
        self.in_flight.append(max(1, int(self.size.size * share)))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def answer(self, data: Any) -> None:
        count = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        before = self.size.size
        if count <= self.accepts:
            self.size.succeeded(count)
            assert before <= self.size.size <= max(before + 1, before * 1.1)
            for refused, until in self.refusals.items():
                if count >= refused or self.clock.wall() >= until:
                    continue
                # Grown only to below every refusal that is remembered.
                assert self.size.size == before or self.size.size < refused or refused not in self.live()
        else:
            self.size.too_large(count)
            assert self.size.size <= before
            if count > 1:
                assert self.size.size < count
                self.refusals = {k: v for k, v in self.refusals.items() if v > self.clock.wall()}
                self.refusals[min([count, *self.refusals])] = self.clock.wall() + 100.0

    def live(self) -> set[int]:
        smallest = min((k for k, v in self.refusals.items() if v > self.clock.wall()), default=None)
        return {smallest} if smallest is not None else set()

    @rule(seconds=st.sampled_from([1.0, 60.0, 101.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def restart(self) -> None:
        self.size = adaptive_size(
            self.maximum, self.clock, json.loads(json.dumps(self.size.state())), expiry_s=100.0
        )
        self.in_flight.clear()

    @rule()
    def timeout(self) -> None:
        before = self.size.size
        self.size.timed_out(before)
        self.size.timed_out(before)
        assert self.size.size == (before // 2 if before > 1 else 1)

    @invariant()
    def within_bounds(self) -> None:
        if hasattr(self, "size"):
            assert 1 <= self.size.size <= self.maximum


TestBatchSize = BatchSizeMachine.TestCase
TestBatchSize.settings = settings(max_examples=scaled(60, nightly=150), stateful_step_count=50, deadline=None)


@given(maximum=st.integers(1, 3000), accepts=st.integers(1, 3000), texts=st.integers(1, 3000))
@settings(max_examples=scaled(100, nightly=200), deadline=None)
def test_the_limit_of_any_server_is_found_in_few_requests(maximum: int, accepts: int, texts: int) -> None:
    """First at maximum two extra requests per halving, then at maximum twice the fewest possible requests."""
    size = adaptive_size(maximum)
    first = embed(size, texts, accepts)
    best = math.ceil(texts / min(maximum, accepts, texts))
    again = embed(size, texts, accepts)

    assert again <= 2 * best + 1
    assert first <= 2 * best + 1 + 2 * math.ceil(math.log2(texts) + 1)

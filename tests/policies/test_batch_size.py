"""The adaptive batch size (docs/development/resilience.md)."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmopt.policies.batch_size import AdaptiveBatchSize
from llmopt.testing.clock import SimulatedClock
from tests.support.scale import scaled

DAY = 86_400.0


def made(
    most: int = 2048, clock: SimulatedClock | None = None, state: Any = None, **more: Any
) -> AdaptiveBatchSize:
    return AdaptiveBatchSize(most, wall=(clock or SimulatedClock()).wall, state=state, **more)


def clean(size: AdaptiveBatchSize, batches: int) -> None:
    for _ in range(batches):
        size.succeeded(size.size)


def embed(size: AdaptiveBatchSize, texts: int, takes: int, states: int | None = None) -> int:
    """How many requests it takes to get all the texts through a server that takes so many at once."""
    requests, todo = 0, [texts]
    while todo:
        count = todo.pop(0)
        if count > size.size:
            todo = [size.size, count - size.size, *todo]
            continue
        requests += 1
        if count <= takes:
            size.succeeded(count)
        else:
            size.too_large(count, stated=states)
            todo.insert(0, count)
    return requests


def test_starts_at_the_limit() -> None:
    """As many as are allowed."""
    size = made(96)

    assert size.size == 96
    assert size.changes == 0
    assert repr(size) == "AdaptiveBatchSize(96, maximum=96, largest_good=0, too_large=None)"


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "count", "expected"),
    [(2048, 2048, 1024), (2048, 200, 100), (2048, 201, 100), (3, 3, 1), (2, 2, 1)],
)
def test_a_refusal_halves_what_was_refused(most: int, count: int, expected: int) -> None:
    """Not what was allowed: 200 of 2,048 become 100."""
    size = made(most)

    assert size.too_large(count)
    assert (size.size, size.changes) == (expected, 1)


def test_one_text_alone_teaches_nothing() -> None:
    """There is nothing to split."""
    size = made(10)

    assert not size.too_large(1)
    assert (size.size, size.changes, size.state()["refused"]) == (10, 0, None)


def test_late_refusals_do_not_halve_again() -> None:
    """Ten batches in flight are refused, and it is one piece of news."""
    size = made(1000)
    for _ in range(10):
        size.too_large(1000)

    assert size.size == 500


def test_a_refusal_says_whether_it_was_news() -> None:
    """A later moment of expiry is none."""
    size = made(1000)

    assert [size.too_large(1000), size.too_large(1000), size.too_large(600), size.too_large(600)] == [
        True,
        False,
        True,
        False,
    ]
    assert (size.size, size.changes) == (300, 2)


def test_a_size_that_was_smaller_stays() -> None:
    """An old large batch that is refused does not raise it."""
    size = made(1000)
    size.too_large(100)
    size.too_large(1000)

    assert size.size == 50
    assert size.state()["refused"] == 100


def test_goes_back_to_what_is_known_to_be_good() -> None:
    """When that is more than the half."""
    size = made(1000)
    size.succeeded(90)

    size.too_large(100)

    assert size.size == 90


def test_what_was_good_need_not_stay_so() -> None:
    """A server that takes less than it did."""
    size = made(1000)
    size.succeeded(100)

    size.too_large(100)
    assert size.size == 50
    size.too_large(50)
    assert size.size == 25


def test_a_refusal_far_below_what_was_good() -> None:
    """What was good is forgotten there too."""
    size = made(1000)
    size.succeeded(100)
    size.too_large(60)

    assert (size.size, size.state()["good"]) == (30, 0)


def test_good_below_the_half_does_not_matter() -> None:
    """The half is more."""
    size = made(1000)
    size.succeeded(10)
    size.too_large(100)

    assert size.size == 50


# --- stated limits ------------------------------------------------------------------------------------------


def test_a_stated_limit_is_taken_at_once() -> None:
    """And kept to."""
    size = made(2048)

    assert size.too_large(200, stated=64)
    assert size.size == 64
    clean(size, 1000)
    assert size.size == 64


def test_a_stated_limit_replaces_guesses() -> None:
    """What was halved too far rises to it."""
    size = made(2048)
    size.too_large(200)
    size.too_large(100)
    size.too_large(200, stated=64)

    assert size.size == 64


@pytest.mark.parametrize("stated", [200, 5000, 0, -1])
def test_a_stated_limit_that_explains_nothing(stated: int) -> None:
    """The batch kept to it, or it is no number of texts: halved as without."""
    size = made(2048)
    size.too_large(200, stated=stated)

    assert size.size == 100


def test_a_stated_limit_does_not_raise_ours() -> None:
    """The user's own setting stands."""
    size = made(50)
    size.too_large(100, stated=64)

    assert size.size == 50


def test_a_stated_limit_of_one() -> None:
    """Then it is one."""
    size = made(50)
    size.too_large(50, stated=1)

    assert size.size == 1
    clean(size, 100)
    assert size.size == 1


# --- timeouts ----------------------------------------------------------------------------------------------


def test_repeated_time_outs_halve() -> None:
    """Two in a row; the first is borne."""
    size = made(1000)

    assert [size.timed_out(1000), size.timed_out(1000)] == [False, True]
    assert (size.size, size.changes) == (500, 1)
    assert [size.timed_out(1000), size.timed_out(1000)] == [False, False]
    assert [size.timed_out(500), size.timed_out(500)] == [False, True]
    assert (size.size, size.changes) == (250, 2)


def test_a_clean_batch_breaks_the_row() -> None:
    """Also a small one."""
    size = made(1000)
    for _ in range(5):
        size.timed_out(1000)
        size.succeeded(3)

    assert size.size == 1000


def test_small_batches_that_time_out_do_not_count() -> None:
    """Theirs was not a timeout of being large."""
    size = made(1000)
    for _ in range(10):
        assert not size.timed_out(500)
    assert size.size == 1000
    size.timed_out(501)
    size.timed_out(501)
    assert size.size == 250


def test_late_time_outs_do_not_halve_again() -> None:
    """A burst of old large ones is one piece of news."""
    size = made(1000)
    for _ in range(20):
        size.timed_out(1000)

    assert size.size == 500


def test_a_text_that_times_out_alone_is_not_split() -> None:
    """One is the least."""
    size = made(1)

    assert not any(size.timed_out(1) for _ in range(10))
    assert size.size == 1


def test_time_outs_are_no_refusals() -> None:
    """The size grows back past where they were."""
    size = made(100)
    size.timed_out(100)
    size.timed_out(100)
    clean(size, 100)

    assert size.size == 100


# --- growth -------------------------------------------------------------------------------------------------


def test_ten_clean_batches_add_a_tenth() -> None:
    """In a row, and full ones."""
    size = made(1000)
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


def test_larger_batches_than_now_add() -> None:
    """They were planned before the size fell."""
    size = made(1000)
    size._set(100)
    for _ in range(10):
        size.succeeded(150)

    assert size.size == 110


def test_batches_that_are_not_full_do_not_add() -> None:
    """They say nothing about fuller ones."""
    size = made(1000)
    size._set(100)
    for _ in range(100):
        size.succeeded(99)

    assert size.size == 100


@pytest.mark.parametrize("trouble", ["too_large", "timed_out"])
def test_trouble_starts_the_count_anew(trouble: str) -> None:
    """Ten clean ones after it."""
    size = made(1000)
    size._set(100)
    clean(size, 9)
    getattr(size, trouble)(1000)
    clean(size, 9)
    assert size.size == 100
    clean(size, 1)
    assert size.size == 110


def test_small_sizes_grow_by_one() -> None:
    """A tenth of less than ten is nothing."""
    size = made(4)
    size._set(1)
    grown = []
    for _ in range(5):
        clean(size, 10)
        grown.append(size.size)

    assert grown == [2, 3, 4, 4, 4]


def test_never_past_a_refused_size() -> None:
    """The limit is found from below, to the very text, and at the price of two requests: 66 and 65."""
    size = made(2048)
    embed(size, 200, takes=64)
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


def test_a_refusal_is_remembered_for_a_day() -> None:
    """Then a larger size is tried again."""
    clock = SimulatedClock()
    size = made(100, clock)
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


def test_a_further_refusal_renews_the_memory() -> None:
    """And keeps the smallest size."""
    clock = SimulatedClock()
    size = made(100, clock, expiry_s=10.0)
    size.too_large(60)
    clock.advance(9)
    size.too_large(80)
    assert size.state()["refused"] == 60
    assert size.state()["refused_until"] == clock.wall() + 10.0
    clock.advance(9)
    clean(size, 1000)
    assert size.size == 59


def test_an_expired_refusal_does_not_lower_a_new_one() -> None:
    """The server may have been set up anew."""
    clock = SimulatedClock()
    size = made(100, clock, expiry_s=10.0)
    size.too_large(40)
    clock.advance(10)
    size.too_large(80)

    assert size.state()["refused"] == 80


def test_a_calendar_that_was_set_back() -> None:
    """A refusal from the future is of unknown age."""
    clock = SimulatedClock()
    size = made(100, clock)
    size.too_large(100, stated=50)
    clock.set_wall(clock.wall() - 10 * DAY)
    clean(size, 10)

    assert size.size == 55


def test_a_clean_batch_of_a_refused_size_refutes_it() -> None:
    """That refusal was about something else: longer texts, say."""
    size = made(100)
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


# --- what the issue asks for --------------------------------------------------------------------------------


def test_two_hundred_texts_to_a_server_that_takes_64() -> None:
    """At most 7 requests though its plugin declares 2,048, and 4 the next time, in a new process too."""
    clock = SimulatedClock()
    first = made(2048, clock)
    assert embed(first, 200, takes=64) <= 7

    kept = json.loads(json.dumps(first.state()))
    clock.advance(3600)

    assert embed(made(2048, clock, kept), 200, takes=64) == 4
    assert embed(first, 200, takes=64) == 4


def test_two_hundred_texts_to_a_server_that_says_so() -> None:
    """One refusal, then four."""
    assert embed(made(2048), 200, takes=64, states=64) == 5


# --- state --------------------------------------------------------------------------------------------------


def test_state_is_plain() -> None:
    """And complete."""
    clock = SimulatedClock(epoch=1000.0)
    size = made(100, clock)
    size.succeeded(30)
    size.too_large(80)

    assert size.state() == {
        "version": 1,
        "size": 40,
        "good": 30,
        "refused": 80,
        "refused_until": 1000.0 + DAY,
    }
    assert made(100, clock, size.state()).state() == size.state()


def test_state_is_cut_to_a_smaller_limit() -> None:
    """The user's setting may have changed."""
    size = made(20, state={"version": 1, "size": 40, "good": 30, "refused": None, "refused_until": 0.0})

    assert (size.size, size.state()["good"]) == (20, 20)


def test_a_smaller_limit_bounds_growth_too() -> None:
    """Though larger sizes were once good, and the refused one is far above."""
    clock = SimulatedClock()
    state = {"version": 1, "size": 1, "good": 30, "refused": 80, "refused_until": clock.wall() + 1000}
    size = made(20, clock, state)
    assert size.size == 1
    clean(size, 1000)

    assert size.size == 20


def test_the_limit_is_reached_again_after_an_expiry() -> None:
    """To the last text."""
    clock = SimulatedClock()
    size = made(20, clock)
    size.too_large(20)
    clock.advance(DAY)
    clean(size, 1000)

    assert size.size == 20


def test_state_of_an_expired_refusal() -> None:
    """The size stays, the bar is gone."""
    clock = SimulatedClock()
    state = {"version": 1, "size": 40, "good": 0, "refused": 50, "refused_until": clock.wall() - 1}
    size = made(100, clock, state)

    assert (size.size, size.state()["refused"]) == (40, None)


def test_state_that_contradicts_itself() -> None:
    """A refused size is not used, whatever the size says."""
    clock = SimulatedClock()
    state = {"version": 1, "size": 60, "good": 0, "refused": 50, "refused_until": clock.wall() + 1}

    assert made(100, clock, state).size == 49


def test_a_refused_size_of_one_is_no_reason_to_stop() -> None:
    """One text at a time is the least."""
    clock = SimulatedClock()
    state = {"version": 1, "size": 60, "good": 0, "refused": 1, "refused_until": clock.wall() + 1}

    assert made(100, clock, state).size == 1


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
    """As if there were none."""
    assert made(100, state=state).state() == made(100).state()


@pytest.mark.parametrize(
    ("refused", "until"),
    [("50", 1e12), (0, 1e12), (None, None), (50, None), (50, "x"), (50, math.inf), (50, math.nan)],
)
def test_a_damaged_memory_is_ignored(refused: object, until: object) -> None:
    """The size is still worth having."""
    size = made(100, state={"version": 1, "size": 5, "good": 3, "refused": refused, "refused_until": until})

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
def test_no_state_breaks_it(state: dict[str, Any]) -> None:
    """A file may hold anything."""
    size = made(100, state=state)
    size.too_large(100)
    clean(size, 30)
    size.timed_out(size.size)

    assert 1 <= size.size <= 100


# --- against a server ---------------------------------------------------------------------------------------


class BatchSizeMachine(RuleBasedStateMachine):
    """A server with a limit that nobody states, and batches that come back in any order."""

    @initialize(most=st.integers(1, 300), takes=st.integers(1, 300))
    def start(self, most: int, takes: int) -> None:
        self.clock = SimulatedClock()
        self.most, self.takes = most, takes
        self.size = made(most, self.clock, expiry_s=100.0)
        self.flying: list[int] = []
        self.refusals: dict[int, float] = {}

    @rule(share=st.sampled_from([0.1, 0.5, 1.0, 1.0, 1.0]))
    def send(self, share: float) -> None:
        self.flying.append(max(1, int(self.size.size * share)))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def answer(self, data: Any) -> None:
        count = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        before = self.size.size
        if count <= self.takes:
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
        self.size = made(self.most, self.clock, json.loads(json.dumps(self.size.state())), expiry_s=100.0)
        self.flying.clear()

    @rule()
    def time_out(self) -> None:
        before = self.size.size
        self.size.timed_out(before)
        self.size.timed_out(before)
        assert self.size.size == (before // 2 if before > 1 else 1)

    @invariant()
    def within_bounds(self) -> None:
        if hasattr(self, "size"):
            assert 1 <= self.size.size <= self.most


TestBatchSize = BatchSizeMachine.TestCase
TestBatchSize.settings = settings(max_examples=scaled(60, nightly=150), stateful_step_count=50, deadline=None)


@given(most=st.integers(1, 3000), takes=st.integers(1, 3000), texts=st.integers(1, 3000))
@settings(max_examples=scaled(100, nightly=200), deadline=None)
def test_every_server_is_found_out_in_few_requests(most: int, takes: int, texts: int) -> None:
    """At most two requests per halving more than with half the limit known, and then within twice the best."""
    size = made(most)
    first = embed(size, texts, takes)
    best = math.ceil(texts / min(most, takes, texts))
    again = embed(size, texts, takes)

    assert again <= 2 * best + 1
    assert first <= 2 * best + 1 + 2 * math.ceil(math.log2(texts) + 1)

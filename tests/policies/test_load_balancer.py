"""The load balancer over several endpoints (docs/development/resilience.md)."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.policies.load_balancer import Candidate, LoadBalancer
from llmopt.testing.clock import SimulatedClock


def made(*weights: float, seed: int = 1, clock: SimulatedClock | None = None) -> LoadBalancer:
    return LoadBalancer(weights, now=(clock or SimulatedClock()).now, rng=random.Random(seed))


def idle(count: int) -> list[Candidate]:
    return [Candidate(index, 0, 16) for index in range(count)]


def shares(balance: LoadBalancer, candidates: list[Candidate], rounds: int = 4000) -> list[float]:
    counted = Counter(balance.choose(candidates).index for _ in range(rounds))  # type: ignore[union-attr]
    return [counted[one.index] / rounds for one in candidates]


def test_nobody_to_choose() -> None:
    """Every breaker is open."""
    assert made(1, 1).choose([]) is None


def test_only_one() -> None:
    """However busy."""
    only = Candidate(1, 100, 16)

    assert made(1, 1).choose([only]) is only
    assert made(1, 1).choose([only], tried={1}) is only


def test_equal_endpoints_share_equally() -> None:
    """By chance, not by their order."""
    assert shares(made(1, 1, 1), idle(3)) == pytest.approx([1 / 3] * 3, abs=0.03)


def test_idle_endpoints_share_by_weight() -> None:
    """Three to one."""
    assert shares(made(3, 1), idle(2)) == pytest.approx([0.75, 0.25], abs=0.03)
    assert shares(made(30, 10), idle(2)) == pytest.approx([0.75, 0.25], abs=0.03)


def test_who_is_idle_is_asked_however_little_is_allowed() -> None:
    """A limit is lowered after an overload and rises by being used: who were never asked could not rise."""
    clock, noise = SimulatedClock(), random.Random(2)
    balance, asked = made(1, 1, clock=clock), Counter[int]()
    for _ in range(1000):
        chosen = balance.choose([Candidate(0, 0, 16), Candidate(1, 0, 4)])
        assert chosen is not None
        asked[chosen.index] += 1
        clock.advance(0.1)
        balance.record_latency(chosen.index, noise.uniform(0.18, 0.22))
    assert asked[1] / 1000 == pytest.approx(0.5, abs=0.05)


def test_the_less_loaded_of_two_wins() -> None:
    """By requests in flight per allowed one."""
    balance = made(1, 1)

    assert shares(balance, [Candidate(0, 8, 16), Candidate(1, 2, 16)], 50) == [0.0, 1.0]
    assert shares(balance, [Candidate(0, 8, 64), Candidate(1, 8, 16)], 50) == [1.0, 0.0]


def test_load_is_measured_by_weight() -> None:
    """Three times the weight bears three times the requests."""
    balance = made(3, 1)

    assert shares(balance, [Candidate(0, 12, 16), Candidate(1, 4, 16)]) == pytest.approx(
        [0.75, 0.25], abs=0.03
    )
    assert shares(balance, [Candidate(0, 9, 16), Candidate(1, 6, 16)], 50) == [1.0, 0.0]


def test_a_small_difference_decides_nothing() -> None:
    """Less than a quarter is noise."""
    balance = made(1, 1)

    assert shares(balance, [Candidate(0, 9, 16), Candidate(1, 8, 16)]) == pytest.approx([0.5, 0.5], abs=0.03)
    assert shares(balance, [Candidate(0, 9, 16), Candidate(1, 7, 16)]) == pytest.approx(
        [0.5, 0.5], abs=0.03
    )  # 8/10
    assert shares(balance, [Candidate(0, 9, 16), Candidate(1, 6, 16)], 50) == [0.0, 1.0]


def test_the_faster_of_two_wins() -> None:
    """Latency times load."""
    balance = made(1, 1)
    balance.record_latency(0, 1.0)
    balance.record_latency(1, 3.0)

    assert shares(balance, idle(2), 50) == [1.0, 0.0]
    assert shares(balance, [Candidate(0, 5, 16), Candidate(1, 0, 16)], 50) == [0.0, 1.0]
    assert shares(balance, [Candidate(0, 1, 16), Candidate(1, 0, 16)], 50) == [1.0, 0.0]


def test_an_unknown_endpoint_is_taken_for_the_best() -> None:
    """It gets its chance to be known."""
    balance = made(1, 1, 1)
    balance.record_latency(0, 4.0)
    balance.record_latency(1, 1.0)

    assert shares(balance, idle(3))[2] == pytest.approx(0.5, abs=0.04)


def test_what_was_tried_is_left_out() -> None:
    """While there is another one."""
    balance = made(1, 1, 1)

    for _ in range(30):
        assert balance.choose(idle(3), tried={0, 2}).index == 1  # type: ignore[union-attr]
        assert balance.choose(idle(3), tried=[1]).index != 1  # type: ignore[union-attr]
    assert shares(made(1, 1), idle(2), 300) == pytest.approx([0.5, 0.5], abs=0.1)
    assert {balance.choose(idle(2), tried={0, 1}).index for _ in range(50)} == {0, 1}  # type: ignore[union-attr]


def test_two_are_drawn_never_the_same() -> None:
    """The worst of three is never taken while it is clearly the worst."""
    balance = made(5, 1, 1)
    loads = [Candidate(0, 15, 16), Candidate(1, 0, 16), Candidate(2, 0, 16)]

    assert shares(balance, loads, 500)[0] == 0.0


def test_latency_is_an_average_over_time() -> None:
    """After 10 s an old value counts for a third, whatever the number of new ones."""
    clock = SimulatedClock()
    balance = made(1, 1, clock=clock)
    latency = balance._latencies[0]
    balance.record_latency(0, 1.0)
    clock.advance(10)
    balance.record_latency(0, 2.0)
    assert latency.average == pytest.approx(2 - math.exp(-1))

    before = latency.average
    assert before is not None
    for _ in range(10):
        clock.advance(0.01)
        balance.record_latency(0, 100.0)
    assert latency.average == pytest.approx(100 + (before - 100) * math.exp(-0.01))


def test_an_old_value_fades_towards_the_best() -> None:
    """Who was slow once is tried again after a while."""
    clock = SimulatedClock()
    balance = made(1, 1, clock=clock)
    balance.record_latency(0, 1.0)
    balance.record_latency(1, 3.0)
    assert shares(balance, idle(2), 100)[1] == 0.0

    clock.advance(30)
    assert balance._latency(Candidate(1, 0, 16), 1.0, clock.now()) == pytest.approx(1 + 2 * math.exp(-1))
    assert shares(balance, idle(2), 100)[1] == 0.0
    clock.advance(90)
    assert shares(balance, idle(2), 1000)[1] > 0.3


def simulate(
    weights: tuple[float, ...], seconds: tuple[float, ...], at_once: int, seed: int = 3
) -> list[float]:
    """A closed loop of callers against servers that take so long; the share of each."""
    clock = SimulatedClock(start=0.0)
    rng = random.Random(seed)
    balance = LoadBalancer(weights, now=clock.now, rng=rng)
    flying = [0] * len(weights)
    counted = [0] * len(weights)
    events: list[tuple[float, int, int, float]] = []
    for number in range(3000):
        if len(events) == at_once:
            end, _, index, took = heapq.heappop(events)
            clock.advance_to(end)
            flying[index] -= 1
            balance.record_latency(index, took)
        chosen = balance.choose([Candidate(i, flying[i], 16) for i in range(len(weights))])
        assert chosen is not None
        took = seconds[chosen.index] * rng.lognormvariate(0, 0.3)
        flying[chosen.index] += 1
        counted[chosen.index] += 1
        heapq.heappush(events, (clock.now() + took, number, chosen.index, took))
    return [count / 3000 for count in counted]


@pytest.mark.parametrize("at_once", [1, 4, 8, 24])
def test_weights_hold_quiet_and_busy(at_once: int) -> None:
    """Three to one, with latencies that vary."""
    assert simulate((3, 1), (1.0, 1.0), at_once)[0] == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("at_once", [2, 8, 24])
def test_a_slow_endpoint_gets_little(at_once: int) -> None:
    """One of three takes 20 times as long."""
    assert simulate((1, 1, 1), (1.0, 1.0, 20.0), at_once)[2] < 0.03


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    data=st.data(),
    seed=st.integers(0, 1000),
)
def test_every_choice_is_a_candidate(weights: list[float], data: st.DataObject, seed: int) -> None:
    """Whatever the weights, loads and latencies: one of those that may be asked, a fresh one if there is one."""
    clock = SimulatedClock()
    balance = LoadBalancer(weights, now=clock.now, rng=random.Random(seed))
    indices = data.draw(st.sets(st.integers(0, len(weights) - 1)))
    candidates = [
        Candidate(i, data.draw(st.integers(0, 1000)), data.draw(st.floats(1, 256))) for i in sorted(indices)
    ]
    for index in range(len(weights)):
        if data.draw(st.booleans()):
            balance.record_latency(index, data.draw(st.floats(0, 1e6)))
            clock.advance(data.draw(st.floats(0, 1e5)))
    tried = data.draw(st.sets(st.integers(0, len(weights) - 1)))

    chosen = balance.choose(candidates, tried)

    if not candidates:
        assert chosen is None
    else:
        assert chosen in candidates
        assert chosen.index not in tried or indices <= tried

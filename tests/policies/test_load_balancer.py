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


def balancer(*weights: float, seed: int = 1, clock: SimulatedClock | None = None) -> LoadBalancer:
    return LoadBalancer(weights, now=(clock or SimulatedClock()).now, rng=random.Random(seed))


def idle(count: int) -> list[Candidate]:
    return [Candidate(index, 0, 16) for index in range(count)]


def shares(balance: LoadBalancer, candidates: list[Candidate], rounds: int = 4000) -> list[float]:
    counted = Counter(balance.choose(candidates).index for _ in range(rounds))
    return [counted[one.index] / rounds for one in candidates]


def test_a_single_candidate_is_chosen() -> None:
    only = Candidate(1, 100, 16)

    assert balancer(1, 1).choose([only]) is only
    assert balancer(1, 1).choose([only], tried={1}) is only


def test_equal_endpoints_share_equally() -> None:
    """By chance, not by their order."""
    assert shares(balancer(1, 1, 1), idle(3)) == pytest.approx([1 / 3] * 3, abs=0.03)


def test_idle_endpoints_share_by_weight() -> None:
    """Weights of three to one."""
    assert shares(balancer(3, 1), idle(2)) == pytest.approx([0.75, 0.25], abs=0.03)
    assert shares(balancer(30, 10), idle(2)) == pytest.approx([0.75, 0.25], abs=0.03)


def test_an_idle_endpoint_is_chosen_whatever_its_limit() -> None:
    """A limit falls after an overload and rises by use: an endpoint without requests could not recover."""
    clock, noise = SimulatedClock(), random.Random(2)
    balance, chosen_counts = balancer(1, 1, clock=clock), Counter[int]()
    for _ in range(1000):
        chosen = balance.choose([Candidate(0, 0, 16), Candidate(1, 0, 4)])
        assert chosen is not None
        chosen_counts[chosen.index] += 1
        clock.advance(0.1)
        balance.record_latency(chosen.index, noise.uniform(0.18, 0.22))
    assert chosen_counts[1] / 1000 == pytest.approx(0.5, abs=0.05)


def test_the_less_loaded_of_two_wins() -> None:
    """The load is the requests in flight divided by the limit."""
    balance = balancer(1, 1)

    assert shares(balance, [Candidate(0, 8, 16), Candidate(1, 2, 16)], 50) == [0.0, 1.0]
    assert shares(balance, [Candidate(0, 8, 64), Candidate(1, 8, 16)], 50) == [1.0, 0.0]


def test_load_is_divided_by_weight() -> None:
    """Three times the weight carries three times the requests."""
    balance = balancer(3, 1)

    assert shares(balance, [Candidate(0, 12, 16), Candidate(1, 4, 16)]) == pytest.approx(
        [0.75, 0.25], abs=0.03
    )
    assert shares(balance, [Candidate(0, 9, 16), Candidate(1, 6, 16)], 50) == [1.0, 0.0]


def test_a_difference_below_a_quarter_is_ignored() -> None:
    """It is noise."""
    balance = balancer(1, 1)

    assert shares(balance, [Candidate(0, 9, 16), Candidate(1, 8, 16)]) == pytest.approx([0.5, 0.5], abs=0.03)
    assert shares(balance, [Candidate(0, 9, 16), Candidate(1, 7, 16)]) == pytest.approx(
        [0.5, 0.5], abs=0.03
    )  # 8/10
    assert shares(balance, [Candidate(0, 9, 16), Candidate(1, 6, 16)], 50) == [0.0, 1.0]


def test_the_faster_of_two_wins() -> None:
    """The cost is latency times load."""
    balance = balancer(1, 1)
    balance.record_latency(0, 1.0)
    balance.record_latency(1, 3.0)

    assert shares(balance, idle(2), 50) == [1.0, 0.0]
    assert shares(balance, [Candidate(0, 5, 16), Candidate(1, 0, 16)], 50) == [0.0, 1.0]
    assert shares(balance, [Candidate(0, 1, 16), Candidate(1, 0, 16)], 50) == [1.0, 0.0]


def test_an_endpoint_without_a_latency_counts_as_the_best() -> None:
    """So that its latency is measured."""
    balance = balancer(1, 1, 1)
    balance.record_latency(0, 4.0)
    balance.record_latency(1, 1.0)

    assert shares(balance, idle(3))[2] == pytest.approx(0.5, abs=0.04)


def test_endpoints_already_tried_are_left_out() -> None:
    """As long as there is another endpoint."""
    balance = balancer(1, 1, 1)

    for _ in range(30):
        assert balance.choose(idle(3), tried={0, 2}).index == 1
        assert balance.choose(idle(3), tried=[1]).index != 1
    assert shares(balancer(1, 1), idle(2), 300) == pytest.approx([0.5, 0.5], abs=0.1)
    assert {balance.choose(idle(2), tried={0, 1}).index for _ in range(50)} == {0, 1}


def test_the_two_drawn_endpoints_differ() -> None:
    """The worst of three is never chosen while it is clearly the worst."""
    balance = balancer(5, 1, 1)
    loads = [Candidate(0, 15, 16), Candidate(1, 0, 16), Candidate(2, 0, 16)]

    assert shares(balance, loads, 500)[0] == 0.0


def test_latency_is_an_average_over_time() -> None:
    """After 10 s an old value counts for a third, whatever the number of new values."""
    clock = SimulatedClock()
    balance = balancer(1, 1, clock=clock)
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


def test_an_old_latency_fades_towards_the_best() -> None:
    """An endpoint that was slow once is tried again after a while."""
    clock = SimulatedClock()
    balance = balancer(1, 1, clock=clock)
    balance.record_latency(0, 1.0)
    balance.record_latency(1, 3.0)
    assert shares(balance, idle(2), 100)[1] == 0.0

    clock.advance(30)
    assert balance._latency(Candidate(1, 0, 16), clock.now()) == pytest.approx(1 + 2 * math.exp(-1))
    assert shares(balance, idle(2), 100)[1] == 0.0
    clock.advance(90)
    assert shares(balance, idle(2), 1000)[1] > 0.3


def simulate(
    weights: tuple[float, ...], seconds: tuple[float, ...], at_once: int, seed: int = 3, *, drawn: bool = True
) -> list[float]:
    """Run a closed loop of callers against servers with these latencies; return the share of each server.

    Two are drawn and looked at, or all are looked at.
    """
    clock = SimulatedClock(start=0.0)
    rng = random.Random(seed)
    balance = LoadBalancer(weights, now=clock.now, rng=rng)
    flying = [0] * len(weights)
    counted = [0] * len(weights)
    events: list[tuple[float, int, int, float]] = []
    for number in range(3000):
        if len(events) == at_once:
            end, _, index, latency = heapq.heappop(events)
            clock.advance_to(end)
            flying[index] -= 1
            balance.record_latency(index, latency)
        candidates = [Candidate(i, flying[i], 16) for i in range(len(weights))]
        chosen = balance.choose_of_two(candidates.__getitem__) if drawn else balance.choose(candidates)
        assert chosen is not None
        latency = seconds[chosen.index] * rng.lognormvariate(0, 0.3)
        flying[chosen.index] += 1
        counted[chosen.index] += 1
        heapq.heappush(events, (clock.now() + latency, number, chosen.index, latency))
    return [count / 3000 for count in counted]


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("at_once", [1, 4, 8, 24])
def test_weights_hold_at_low_and_high_load(at_once: int, drawn: bool) -> None:
    """Weights of three to one, with latencies that vary."""
    assert simulate((3, 1), (1.0, 1.0), at_once, drawn=drawn)[0] == pytest.approx(0.75, abs=0.05)


def test_two_are_looked_at_of_a_thousand() -> None:
    """By weight; the second is never the first."""
    balance = balancer(*([1.0] * 999), 999.0)
    looked: list[int] = []

    def candidate(index: int) -> Candidate:
        looked.append(index)
        return Candidate(index, 0, 16)

    for _ in range(2000):
        assert balance.choose_of_two(candidate) is not None
    assert len(looked) == 4000
    assert all(first != second for first, second in zip(looked[::2], looked[1::2], strict=True))
    assert looked[::2].count(999) / 2000 == pytest.approx(0.5, abs=0.04)


def test_one_that_may_not_be_asked_is_drawn_again() -> None:
    """The shares of the others stay as they are; if too few may be asked, nothing is chosen."""
    balance = balancer(6, 2, 1, 1)
    counted = Counter(
        chosen.index
        for _ in range(6000)
        if (chosen := balance.choose_of_two(lambda at: Candidate(at, 0, 16) if at != 1 else None))
    )
    assert counted[1] == 0
    assert counted[0] / counted.total() == pytest.approx(6 / 8, abs=0.03)
    assert balance.choose_of_two(lambda _: None) is None
    assert balance.choose_of_two(lambda at: Candidate(0, 0, 16) if at == 0 else None) is None


@pytest.mark.parametrize("at_once", [2, 8, 24])
def test_a_slow_endpoint_gets_few_requests(at_once: int) -> None:
    """One of three is 20 times as slow."""
    assert simulate((1, 1, 1), (1.0, 1.0, 20.0), at_once)[2] < 0.03


@given(
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    data=st.data(),
    seed=st.integers(0, 1000),
)
def test_every_choice_is_a_candidate(weights: list[float], data: st.DataObject, seed: int) -> None:
    """Whatever the weights, loads and latencies; an endpoint that was not tried yet is preferred."""
    clock = SimulatedClock()
    balance = LoadBalancer(weights, now=clock.now, rng=random.Random(seed))
    indices = data.draw(st.sets(st.integers(0, len(weights) - 1), min_size=1))
    candidates = [
        Candidate(i, data.draw(st.integers(0, 1000)), data.draw(st.floats(1, 256))) for i in sorted(indices)
    ]
    for index in range(len(weights)):
        if data.draw(st.booleans()):
            balance.record_latency(index, data.draw(st.floats(0, 1e6)))
            clock.advance(data.draw(st.floats(0, 1e5)))
    tried = data.draw(st.sets(st.integers(0, len(weights) - 1)))

    chosen = balance.choose(candidates, tried)

    assert chosen in candidates
    assert chosen.index not in tried or indices <= tried

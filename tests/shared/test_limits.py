"""Several whole clients over one simulated store, in simulated time; the judge is the emulated provider.

The bounds are those of docs/shared-limits.md.
"""

from __future__ import annotations

import pytest
from attrs import evolve

from llmopt.values.events import SharedDegraded
from tests.limits.rows import LARGE, SHALLOW
from tests.limits.simulation import Report, Scenario, run
from tests.shared.scenarios import Store
from tests.support.scale import NIGHTLY

RPM, TPM = (1_200.0, 300_000.0) if NIGHTLY else (600.0, 150_000.0)
FOUR = Scenario(
    rpm=RPM,
    tpm=TPM,
    burst=SHALLOW,
    busy=4,
    workers=8,
    of_refill=True,
    measured_from=5.0,
    seconds=125.0 if NIGHTLY else 35.0,
)
CASES = [FOUR, evolve(FOUR, headers="none", configured=1.0)]
IDS = ["headers", "configured"]
if NIGHTLY:
    CASES += [evolve(case, seed=2) for case in CASES]
    IDS += [f"{name}, seed 2" for name in IDS]


def play(scenario: Scenario, store: Store) -> Report:
    return run(evolve(scenario, options=store.options))


@pytest.mark.parametrize("scenario", CASES, ids=IDS)
def test_four_clients_use_the_limit_evenly(scenario: Scenario) -> None:
    """At least 99 % of the refill, each its part, and next to nothing refused once the limit is known."""
    report = play(scenario, Store())
    assert report.share_of_possible >= 0.99, report
    # Before the first headers all clients take the provider's usual limit, which is five times this one.
    assert report.refused <= (0.03 if scenario.configured is None else 0.005), report
    assert report.least_share >= 0.8, report
    assert report.lost == 0


@pytest.mark.parametrize("hangs", [False, True], ids=["refuses", "hangs"])
def test_a_store_that_is_killed_and_comes_back(hangs: bool) -> None:
    """The limit is used as before, and every client says when it went on alone, and when no longer."""
    store = Store(stops_at=20.0, starts_at=25.0, hangs=hangs)
    report = play(CASES[1], store)
    assert report.share_of_possible >= 0.99, report
    assert report.refused <= 0.02, report
    assert report.lost == 0
    changes = [event.degraded for event in store.events if isinstance(event, SharedDegraded)]
    assert sorted(changes) == [False] * 4 + [True] * 4


@pytest.mark.parametrize("texts", [FOUR.texts, LARGE], ids=["requests bind", "tokens bind"])
def test_a_store_that_is_dead_for_a_minute(texts: object) -> None:
    """The clients together send at most the limit and 5 %, and use nearly all of it."""
    # A provider that refuses nothing counts what would have been sent.
    deep = evolve(
        FOUR, texts=texts, burst=3_600.0, headers="none", configured=1.0, seconds=85.0, measured_from=20.0
    )
    report = play(deep, Store(stops_at=20.0))
    assert 0.95 <= report.share_of_possible <= 1.05, report
    assert report.lost == 0


def test_two_busy_and_two_idle_clients() -> None:
    """Idle clients return their blocks, so that the busy ones have the limit to themselves."""
    store = Store()
    report = play(evolve(FOUR, busy=2, idle=2), store)
    assert report.share_of_possible >= 0.98, report
    assert report.least_share >= 0.9, report
    assert store.server.calls["refund"] >= 2 * FOUR.seconds / 10 - 4


def test_the_clock_of_the_store_does_not_matter() -> None:
    """It is an hour ahead of the clients."""
    report = play(CASES[1], Store(skew_s=3_600.0))
    assert report.share_of_possible >= 0.99, report
    assert report.refused <= 0.005, report


def test_lost_calls_cost_little() -> None:
    """With 2 % of the calls lost, what is lost is the blocks of lost answers; nothing is sent twice."""
    report = play(CASES[1], Store(loss=0.02))
    assert report.share_of_possible >= 0.96, report
    assert report.refused <= 0.005, report


def test_a_distant_store_costs_nothing() -> None:
    """Blocks are reserved ahead, so 0.1 to 0.2 s of delay are not seen."""
    report = play(CASES[1], Store(delay_s=(0.05, 0.1)))
    assert report.share_of_possible >= 0.99, report


def test_a_bank_is_left_alone() -> None:
    """Each client sees what remains for all; none takes it for itself."""
    store = Store()
    report = play(evolve(FOUR, burst=60.0), store)
    assert 0.98 <= report.share_of_possible <= 1.02, report
    assert report.refused == 0


def test_a_block_serves_several_requests() -> None:
    """The store is asked less than once for each request."""
    store = Store()
    report = play(
        evolve(FOUR, rpm=6_000.0, tpm=None, workers=32, seconds=9.0, texts=evolve(FOUR.texts, tokens=20.0)),
        store,
    )
    assert store.server.calls["reserve"] <= report.admitted / 4

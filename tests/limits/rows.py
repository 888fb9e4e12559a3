"""The rows of the table of limits: what must be reached, and the scenarios that measure it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from attrs import evolve, field, frozen

from tests.limits.simulation import Latency, Report, Scenario, Texts, run, run_phases
from tests.shared.scenarios import Store

SHALLOW: Final = {"requests": 1.0, "tokens": 5.0}
"""Seconds of inflow in the buckets of a provider that keeps no bank."""
LARGE: Final = Texts(tokens=400.0)
"""Texts of which the limit of tokens allows fewer than the limit of requests."""


@frozen(kw_only=True)
class Bounds:
    """What a report must keep."""

    share: float | None = None
    most: float | None = None
    refused: float | None = None
    lost: int | None = 0
    least_share: float | None = None
    seconds: float | None = None

    def broken(self, report: Report) -> list[str]:
        """What is not kept, in words."""
        checks = [
            (
                self.share is None or report.share_of_possible >= self.share,
                f"{report.share_of_possible:.1%} of the possible",
            ),
            (
                self.most is None or report.share_of_possible <= self.most,
                f"{report.share_of_possible:.1%} of what is allowed",
            ),
            (self.refused is None or report.refused <= self.refused, f"{report.refused:.2%} refused"),
            (
                self.lost is None or report.lost <= self.lost,
                f"{report.lost} calls lost: {dict(report.errors)}",
            ),
            (
                self.least_share is None or report.least_share >= self.least_share,
                f"the least share is {report.least_share:.2f}",
            ),
            (self.seconds is None or report.seconds <= self.seconds, f"{report.seconds:.1f} s"),
        ]
        return [text for kept, text in checks if not kept]


@frozen(kw_only=True)
class Case:
    """One way to measure a row: a scenario, and how it is played."""

    scenario: Scenario
    play: Callable[[Scenario], Report] = run

    @property
    def name(self) -> str:
        """The name of the scenario."""
        return self.scenario.name

    def report(self) -> Report:
        """Play it."""
        return self.play(self.scenario)


@frozen(kw_only=True)
class Row:
    """One row of the table.

    Attributes:
        name: what happens.
        bounds: what must be kept in every case.
        cases: the ways to measure it.
        quick: how many of them are in every test run; none of those that tests/shared has in a shorter form.
    """

    name: str
    bounds: Bounds
    cases: Sequence[Case] = field(converter=tuple)
    quick: int = 1

    def selected(self, *, nightly: bool) -> list[Case]:
        """All cases at night; otherwise the first ones, with half of the requests."""
        return list(self.cases) if nightly else [_halved(case) for case in self.cases[: self.quick]]


def _halved(case: Case) -> Case:
    scenario = case.scenario
    if case.play is not run or scenario.rpm is None or scenario.tpm is None:
        return case
    half = evolve(scenario, rpm=scenario.rpm / 2, tpm=scenario.tpm / 2, workers=scenario.workers // 2)
    return evolve(case, scenario=half)


def _cases(*scenarios: Scenario, seeds: Sequence[int] = (1,)) -> list[Case]:
    return [
        Case(
            scenario=evolve(
                scenario, name=f"{scenario.name}, seed {seed}" if len(seeds) > 1 else scenario.name, seed=seed
            )
        )
        for seed in seeds
        for scenario in scenarios
    ]


_STEADY = Scenario(name="requests bind", filled=0.2, measured_from=25.0, of_refill=True)
_BANK = Scenario(name="requests bind")
_NO_HEADERS = Scenario(name="requests bind", headers="none", burst=SHALLOW)
_FOUR = Scenario(name="requests bind", busy=4, workers=16)


def _stored(scenario: Scenario, **store: Any) -> Case:
    """A case whose clients share a simulated store: a new one for each run."""
    return Case(scenario=scenario, play=lambda given: run(evolve(given, options=Store(**store).options)))


_STORED = evolve(
    _FOUR, burst=SHALLOW, headers="none", configured=1.0, workers=8, of_refill=True, measured_from=5.0
)


def _stall(number: int, *, later: bool = False, **other: object) -> Case:
    rng = random.Random(f"stall {number}")
    # Most of them before the first answers, when nothing is known of the limits.
    at, seconds = 3.0 * rng.random() ** 2, rng.uniform(2.0, 6.0)
    if later:
        at += 15.0
    scenario = Scenario(
        name=f"{seconds:.1f} s after {at:.1f} s",
        burst=1.0,
        seconds=at + seconds + 35.0,
        measured_from=at + seconds,
        stalls=[(at, seconds)],
        latency=Latency(median=rng.uniform(0.3, 1.0)),
        joins=0.0,
        texts=Texts(tokens=30.0),
        seed=number,
    )
    return Case(scenario=evolve(scenario, **other))


_ITEMS: Final = Scenario(
    name="Gemini, the limit configured",
    model="google/gemini-embedding-001",
    rpm=3_000.0,
    tpm=None,
    burst=3.0,
    items=True,
    headers="none",
    hint="google",
    configured=1.0,
    joins=0.0,
    latency=Latency(median=0.1),
)
_THOUSAND: Final = [Texts(each=1_000, tokens=30.0)]
_PATIENT: Final = {"max_retries": 8}
_SMALL_CALLS = [Texts(tokens=4.0, spread=0.0)] * 400
_LARGE_CALLS = [Texts(each=32, tokens=150.0, spread=0.0)] * 10
_GATEWAY = Scenario(
    name="no headers, Retry-After: 1",
    tpm=None,
    burst=0.3,
    headers="none",
    hint="seconds",
    names_limit=False,
    joins=0.0,
    latency=Latency(there=0.005, median=0.03),
)
_RANDOM = Scenario(
    name="no hint",
    rpm=60_000.0,
    tpm=None,
    headers="none",
    hint="none",
    names_limit=False,
    configured=1.0,
    refused_at_random=0.1,
    latency=Latency(there=0.005, median=0.03),
    joins=0.0,
    entry=_PATIENT,
)

ROWS: Final = (
    Row(
        name="one process, steady, of the refill",
        bounds=Bounds(share=0.99, refused=0.0),
        cases=_cases(_STEADY, evolve(_STEADY, name="tokens bind", texts=LARGE), seeds=(1, 2)),
    ),
    Row(
        name="75 s with a full bank",
        bounds=Bounds(share=0.97, refused=0.005),
        cases=_cases(_BANK, evolve(_BANK, name="tokens bind", texts=LARGE), seeds=(1, 2)),
    ),
    Row(
        name="headers that overstate what remains",
        # They state what a minute would leave of the requests, while the bucket holds one second of them.
        bounds=Bounds(share=0.97, refused=0.01),
        cases=_cases(
            evolve(_BANK, burst=SHALLOW, headers="scaled"),
            evolve(_BANK, name="tokens bind", burst=SHALLOW, headers="scaled", texts=LARGE),
        ),
        quick=0,
    ),
    Row(
        name="no headers, limits configured",
        bounds=Bounds(share=0.98, refused=0.01),
        cases=_cases(
            evolve(_NO_HEADERS, configured=1.0),
            evolve(_NO_HEADERS, name="tokens bind", configured=1.0, texts=LARGE),
            seeds=(1, 2),
        ),
    ),
    Row(
        name="neither headers nor limits",
        bounds=Bounds(share=0.94, refused=0.03),
        cases=_cases(
            _NO_HEADERS,
            evolve(
                _NO_HEADERS,
                name="tokens bind, no hint, no words",
                texts=LARGE,
                hint="none",
                names_limit=False,
            ),
            evolve(_NO_HEADERS, name="no hint, no words", hint="none", names_limit=False),
            evolve(_NO_HEADERS, name="tokens bind, Retry-After in seconds", texts=LARGE, hint="seconds"),
            seeds=(1, 2),
        ),
    ),
    Row(
        name="four processes, headers",
        bounds=Bounds(share=0.98, refused=0.005, least_share=0.8),
        cases=_cases(
            _FOUR,
            evolve(_FOUR, name="tokens bind", texts=LARGE),
            evolve(_FOUR, name="shallow buckets", burst=SHALLOW),
            evolve(_FOUR, name="shallow buckets, tokens bind", burst=SHALLOW, texts=LARGE),
            seeds=(1, 2),
        ),
    ),
    Row(
        name="two busy and two idle processes, headers",
        bounds=Bounds(share=0.95, refused=0.005, least_share=0.8),
        cases=_cases(
            evolve(_FOUR, busy=2, idle=2),
            evolve(_FOUR, name="shallow buckets", busy=2, idle=2, burst=SHALLOW),
        ),
    ),
    Row(
        name="four processes over a store, killed half way and back",
        bounds=Bounds(share=0.99, refused=0.01, least_share=0.8),
        cases=[
            _stored(evolve(_STORED, name="it refuses connections for 5 s"), stops_at=35.0, starts_at=40.0),
            _stored(evolve(_STORED, name="it hangs for 5 s"), stops_at=35.0, starts_at=40.0, hangs=True),
            _stored(
                evolve(_STORED, name="headers", headers="honest", configured=None),
                stops_at=35.0,
                starts_at=40.0,
            ),
        ],
        quick=0,
    ),
    Row(
        name="four processes, their store is dead for 60 s",
        # A provider that refuses nothing counts what they would have sent.
        bounds=Bounds(share=0.95, most=1.05),
        cases=[
            _stored(evolve(_STORED, burst=3_600.0, seconds=85.0, measured_from=20.0), stops_at=20.0),
            _stored(
                evolve(
                    _STORED, name="tokens bind", texts=LARGE, burst=3_600.0, seconds=85.0, measured_from=20.0
                ),
                stops_at=20.0,
            ),
        ],
        quick=0,
    ),
    Row(
        name="two busy and two idle processes over a store",
        bounds=Bounds(share=0.95, refused=0.005, least_share=0.8),
        cases=[
            _stored(evolve(_STORED, busy=2, idle=2)),
            _stored(evolve(_STORED, name="headers", headers="honest", configured=None, busy=2, idle=2)),
        ],
        quick=0,
    ),
    Row(
        name="eight processes, headers",
        bounds=Bounds(share=0.98, refused=0.005, least_share=0.8),
        cases=_cases(
            evolve(_FOUR, name="a bank of a minute", busy=8, workers=8),
            evolve(_FOUR, name="shallow buckets", busy=8, workers=8, burst=SHALLOW),
        ),
        quick=0,
    ),
    Row(
        name="buckets filled once per window, headers",
        bounds=Bounds(share=0.9, refused=0.02),
        cases=_cases(
            evolve(_BANK, name="windows of 2 s", windowed=True, burst=2.0, seconds=40.0),
            evolve(_BANK, name="windows of 10 s", windowed=True, burst=10.0, seconds=60.0),
            evolve(_BANK, name="windows of a minute", windowed=True, burst=60.0, seconds=130.0),
        ),
    ),
    Row(
        name="requests-only gateway, then large batches",
        bounds=Bounds(seconds=2.0),
        cases=[
            Case(scenario=_GATEWAY, play=partial(run_phases, phases=(_SMALL_CALLS, _LARGE_CALLS))),
            Case(
                scenario=evolve(_GATEWAY, name="headers of requests", headers="requests"),
                play=partial(run_phases, phases=(_SMALL_CALLS, _LARGE_CALLS)),
            ),
        ],
    ),
    Row(
        name="texts counted as requests, 1,000 texts in a call",
        # 17 s at the least: 150 at once, and 50 a second.
        bounds=Bounds(seconds=25.0, refused=0.0),
        cases=[Case(scenario=_ITEMS, play=partial(run_phases, phases=(_THOUSAND,)))],
    ),
    Row(
        name="texts counted as requests, the limit unknown",
        # The first refusals teach it.
        bounds=Bounds(seconds=25.0, refused=0.25),
        cases=[
            Case(
                scenario=evolve(_ITEMS, name="Gemini, unknown", configured=None),
                play=partial(run_phases, phases=(_THOUSAND,)),
            ),
        ],
    ),
    Row(
        name="stall in the first 3 s, the rest of the run",
        bounds=Bounds(share=0.9),
        cases=[
            *(_stall(number, headers="scaled") for number in range(20)),
            *(_stall(number) for number in range(20)),
        ],
        quick=2,
    ),
    Row(
        name="stall later, the rest of the run",
        bounds=Bounds(share=0.9),
        cases=[
            *(_stall(number, headers="none", hint="seconds", later=True) for number in range(10)),
            *(_stall(number, headers="scaled", later=True) for number in range(10)),
        ],
    ),
    Row(
        name="a tenth refused at random, 400 calls",
        bounds=Bounds(seconds=6.0),
        cases=[
            Case(scenario=_RANDOM, play=partial(run_phases, phases=([Texts(tokens=30.0)] * 400,))),
            Case(
                scenario=evolve(_RANDOM, name="Retry-After: 1", hint="seconds"),
                play=partial(run_phases, phases=([Texts(tokens=30.0)] * 400,)),
            ),
        ],
    ),
    Row(
        name="a tenth refused at random, and limits",
        bounds=Bounds(share=0.9, refused=0.01),
        cases=_cases(
            evolve(_NO_HEADERS, name="headers", headers="honest", refused_at_random=0.1, entry=_PATIENT),
            evolve(_NO_HEADERS, name="no headers", refused_at_random=0.1, entry=_PATIENT),
        ),
    ),
)

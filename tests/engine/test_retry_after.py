"""H01 to H06: what a server may say of when to come back, in simulated time over real sockets."""

from __future__ import annotations

from typing import Any

import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import RequestRetry
from tests.support.faults import Answer, FaultServer, answer_openai, faults_of, find_fault, retry_after
from tests.support.faults.fault import Fault

MODEL = "server/m"


def config(server: FaultServer, **more: Any) -> dict[str, Any]:
    entry = {"plugin": "local", "base_url": server.base_url, "retry_delay": 1.0, "max_retries": 3, **more}
    return {"providers": {"server": entry}}


def waited(fault: Fault | Answer, **options: Any) -> tuple[float, list[RequestRetry], int]:
    """Meet a fault once: seconds that the call took, its retry events, requests that the server saw."""
    events: list[Any] = []

    async def main(clock: SimulatedClock) -> tuple[float, int]:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server), clock=clock, on_event=events.append) as client,
        ):
            server.default(answer_openai)
            await client.embed(MODEL, ["warm"])
            started = clock.elapsed
            before = len(server.requests)
            fault.inject(server) if isinstance(fault, Fault) else server.play(fault)
            found = await client.embed(MODEL, ["a", "b"], **options)
            assert found.vectors.shape == (2, 4)
            return clock.elapsed - started, len(server.requests) - before

    seconds, requests = run_simulated(main)
    return seconds, [event for event in events if isinstance(event, RequestRetry)], requests


@pytest.mark.parametrize(("name", "least"), [("1 s", 1.0), ("1.5 s", 1.5), ("250 ms", 0.25)])
def test_h01_a_hint_is_kept_to(name: str, least: float) -> None:
    """Never sooner, at most a second later, told of once."""
    seconds, retries, requests = waited(find_fault("H01", name))
    assert least <= seconds <= least + 1
    assert [retry.cause for retry in retries] == ["RateLimited"]
    assert least <= retries[0].delay <= seconds
    assert requests == 2


def test_h01_retry_after_two_is_two_seconds_and_one_event() -> None:
    """2.0 to 2.3 s."""
    for _ in range(20):
        seconds, retries, requests = waited(retry_after("2"))
        assert 2.0 <= seconds <= 2.3
        assert (len(retries), requests) == (1, 2)


@pytest.mark.parametrize("fault", faults_of("H02"), ids=str)
def test_h02_an_absurd_hint_is_no_hint(fault: Fault) -> None:
    """The own back-off counts; the one that is a number with spaces around it is that number."""
    seconds, retries, requests = waited(fault)
    least, most = (3.0, 4.0) if fault.name == "Retry-After ' 3 '" else (1.0, 1.6)
    assert least <= seconds <= most
    assert (len(retries), requests) == (1, 2)


@pytest.mark.parametrize("fault", faults_of("H03"), ids=str)
def test_h03_more_than_two_minutes_fails_at_once(fault: Fault) -> None:
    """With the value, so that the caller may come back then."""
    with pytest.raises(llmopt.RateLimited) as caught:
        waited(fault)
    assert caught.value.retry_after == (121.0 if fault.name == "just too long" else 1e9)
    assert len(caught.value.attempts) == 1


DATES = {
    "past": (1.0, 1.6),
    "in 30 s": (30.0, 31.1),
    "RFC 850": (30.0, 31.1),
    "asctime": (30.0, 31.1),
    "wrong weekday": (30.0, 31.1),
    "no time zone": (1.0, 1.6),
    "skewed by an hour": (29.0, 31.1),
}


@pytest.mark.parametrize(("name", "bounds"), DATES.items(), ids=DATES)
def test_h04_dates_are_taken_from_the_servers_own_clock(name: str, bounds: tuple[float, float]) -> None:
    """In all three forms; a moment that is past is no hint, nor is one that is in none of the forms."""
    seconds, retries, requests = waited(find_fault("H04", name))
    assert bounds[0] <= seconds <= bounds[1]
    assert (len(retries), requests) == (1, 2)


def test_h04_the_year_9999_is_too_long() -> None:
    """A date is a number of seconds like any other."""
    with pytest.raises(llmopt.RateLimited) as caught:
        waited(find_fault("H04", "year 9999"))
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 1e9


@pytest.mark.parametrize(("name", "least"), [("several", 3.0), ("ms and s disagree", 0.5)])
def test_h05_of_several_hints_the_largest_and_of_two_units_the_finer(name: str, least: float) -> None:
    """A proxy may have added one of its own."""
    seconds, retries, requests = waited(find_fault("H05", name))
    assert least <= seconds <= least + 1
    assert (len(retries), requests) == (1, 2)


def test_h06_five_refusals_without_a_hint() -> None:
    """The back-off doubles, and the call comes through where retries allow."""

    async def main(clock: SimulatedClock) -> tuple[float, int]:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, max_retries=5), clock=clock) as client,
        ):
            server.default(answer_openai)
            find_fault("H06", "no hint").inject(server, times=5)
            await client.embed(MODEL, ["a"])
            return clock.elapsed, len(server.requests)

    seconds, requests = run_simulated(main)
    # 1, 2, 4, 8 and 16 s, each up to half a second more.
    assert 31 <= seconds <= 34
    assert requests == 6


def test_h06_refusals_for_ever_end_with_the_retries() -> None:
    """n retries are n + 1 requests."""

    async def main(clock: SimulatedClock) -> int:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server), clock=clock) as client,
        ):
            find_fault("H06", "no hint").inject(server, times=100)
            with pytest.raises(llmopt.RateLimited):
                await client.embed(MODEL, ["a"])
            return len(server.requests)

    assert run_simulated(main) == 4


def test_h03_ninety_seconds_do_not_fit_a_deadline_of_thirty() -> None:
    """That is told at once, with the number."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server), clock=clock) as client,
        ):
            server.default(retry_after("90"))
            with pytest.raises(llmopt.DeadlineExceeded, match="90 s") as caught:
                await client.embed(MODEL, ["a"], deadline=30)
            assert caught.value.retry_after == 90
            assert isinstance(caught.value.__cause__, llmopt.RateLimited)
            assert clock.elapsed < 0.1
            assert len(server.requests) == 1

    run_simulated(main)

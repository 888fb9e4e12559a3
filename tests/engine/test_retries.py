"""How often a request is sent, counted at the server."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import RequestRetry
from tests.support.configuration import provider_config
from tests.support.faults import Answer, FaultServer, answer_openai, faults_of, find_fault, retry_after
from tests.support.faults.fault import Fault

QUICK = {"retry_delay": 0.001, "timeouts": {"connect": 0.5, "read": 0.5, "pool": 0.5}}


config = functools.partial(provider_config, **QUICK)


def error(status: int, code: str | None = None, **headers: str) -> Answer:
    body = json.dumps({"error": {"message": "no", "type": "t", "param": None, "code": code}}).encode()
    pairs = [("content-type", "application/json"), *((k.replace("_", "-"), v) for k, v in headers.items())]
    return Answer(status, body, pairs)


@pytest.mark.row("H08")
async def test_three_retries_are_four_requests() -> None:
    """503 for ever; the error tells of all four."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_retries=3)) as client:
        server.default(bytes(error(503)))
        with pytest.raises(llmopt.Overloaded) as caught:
            await client.embed("server/m", ["a"])
    assert len(server.requests) == 4
    assert [attempt.outcome for attempt in caught.value.attempts] == ["Overloaded"] * 4


async def test_a_transient_failure_is_retried() -> None:
    """One retry is enough."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(bytes(error(500)))
        server.default(answer_openai)
        found = await client.embed("server/m", ["a"])
    assert found.vectors.shape == (1, 4)
    assert len(server.requests) == 2


@pytest.mark.row("H07", "H08", "H11", "H12")
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (error(429, "insufficient_quota"), llmopt.QuotaExhausted),
        (error(402), llmopt.QuotaExhausted),
        (error(401), llmopt.AuthError),
        (error(403), llmopt.PermissionDenied),
        (error(404), llmopt.NotFound),
        (error(409), llmopt.BadRequest),
        (error(501), llmopt.BadRequest),
        (error(505), llmopt.BadRequest),
        (error(600), llmopt.UnexpectedStatus),
        (error(503, x_should_retry="false"), llmopt.Overloaded),
        (error(429, "insufficient_quota", x_should_retry="true"), llmopt.QuotaExhausted),
        (error(429, retry_after="121"), llmopt.RateLimited),
    ],
    ids=lambda value: str(getattr(value, "status", value)),
)
async def test_permanent_failures_are_sent_once(answer: Answer, kind: type[Exception]) -> None:
    """Money, keys, permissions, vetoes, and waits that are too long."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_retries=3)) as client:
        server.default(bytes(answer))
        with pytest.raises(kind):
            await client.embed("server/m", ["a"])
    assert len(server.requests) == 1


@pytest.mark.row("H12")
async def test_a_conflict_is_retried_if_the_server_asks_for_it() -> None:
    """OpenAI's servers send the header."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(bytes(error(409, x_should_retry="true")))
        server.default(answer_openai)
        assert len(await client.embed("server/m", ["a", "b"])) == 2
    assert len(server.requests) == 2


@pytest.mark.row("H03")
async def test_a_too_long_retry_after_is_in_the_error() -> None:
    """The caller learns how long."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(bytes(error(429, retry_after="1000000000")))
        with pytest.raises(llmopt.RateLimited) as caught:
            await client.embed("server/m", ["a"])
    assert caught.value.retry_after == 1e9


async def test_a_wait_that_does_not_fit_the_deadline_fails_at_once() -> None:
    """And says so."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(bytes(error(429, retry_after="90")))
        with pytest.raises(llmopt.DeadlineExceeded, match="90"):
            await client.embed("server/m", ["a"], deadline=30)
    assert len(server.requests) == 1


async def test_an_exhausted_quota_blocks_the_next_call() -> None:
    """The refusal stands for a while; nothing is sent."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, api_key="test-key")) as client:
        server.default(bytes(error(429, "insufficient_quota")))
        for _ in range(3):
            with pytest.raises(llmopt.QuotaExhausted):
                await client.embed("server/m", ["a"])
    assert len(server.requests) == 1


async def test_retry_off_sends_once() -> None:
    """The flag switches it off alone."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server), flags={"retry": False}) as client:
        server.default(bytes(error(503)))
        with pytest.raises(llmopt.Overloaded):
            await client.embed("server/m", ["a"])
    assert len(server.requests) == 1


# What a server may say of when to come back, in simulated time over real sockets.

MODEL = "server/m"


hint_config = functools.partial(provider_config, retry_delay=1.0, max_retries=3)


def waited(fault: Fault | Answer, **options: Any) -> tuple[float, list[RequestRetry], int]:
    """Meet a fault once: seconds that the call took, its retry events, requests that the server saw."""
    events: list[Any] = []

    async def main(clock: SimulatedClock) -> tuple[float, int]:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(hint_config(server), clock=clock, on_event=events.append) as client,
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


@pytest.mark.row("H01")
@pytest.mark.parametrize(("name", "least"), [("1 s", 1.0), ("1.5 s", 1.5), ("250 ms", 0.25)])
def test_a_retry_waits_for_retry_after(name: str, least: float) -> None:
    """Never sooner, at most a second later, told of once."""
    seconds, retries, requests = waited(find_fault("H01", name))
    assert least <= seconds <= least + 1
    assert [retry.cause for retry in retries] == ["RateLimited"]
    assert least <= retries[0].delay <= seconds
    assert requests == 2


@pytest.mark.row("H01")
def test_retry_after_two_is_two_seconds_and_one_event() -> None:
    """2.0 to 2.3 s."""
    for _ in range(20):
        seconds, retries, requests = waited(retry_after("2"))
        assert 2.0 <= seconds <= 2.3
        assert (len(retries), requests) == (1, 2)


@pytest.mark.row("H02")
@pytest.mark.parametrize("fault", faults_of("H02"), ids=str)
def test_an_absurd_retry_after_is_ignored(fault: Fault) -> None:
    """The own back-off counts; the one that is a number with spaces around it is that number."""
    seconds, retries, requests = waited(fault)
    least, most = (3.0, 4.0) if fault.name == "Retry-After ' 3 '" else (1.0, 1.6)
    assert least <= seconds <= most
    assert (len(retries), requests) == (1, 2)


@pytest.mark.row("H03")
@pytest.mark.parametrize("fault", faults_of("H03"), ids=str)
def test_a_retry_after_of_more_than_two_minutes_fails_at_once(fault: Fault) -> None:
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


@pytest.mark.row("H04")
@pytest.mark.parametrize(("name", "bounds"), DATES.items(), ids=DATES)
def test_retry_after_dates_use_the_clock_of_the_server(name: str, bounds: tuple[float, float]) -> None:
    """In all three forms; a moment that is past is no hint, nor is one that is in none of the forms."""
    seconds, retries, requests = waited(find_fault("H04", name))
    assert bounds[0] <= seconds <= bounds[1]
    assert (len(retries), requests) == (1, 2)


@pytest.mark.row("H04")
def test_a_retry_after_in_the_year_9999_fails_at_once() -> None:
    """A date is a number of seconds like any other."""
    with pytest.raises(llmopt.RateLimited) as caught:
        waited(find_fault("H04", "year 9999"))
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 1e9


@pytest.mark.row("H05")
@pytest.mark.parametrize(("name", "least"), [("several", 3.0), ("ms and s disagree", 0.5)])
def test_the_largest_hint_and_the_finer_unit_are_used(name: str, least: float) -> None:
    """A proxy may have added one of its own."""
    seconds, retries, requests = waited(find_fault("H05", name))
    assert least <= seconds <= least + 1
    assert (len(retries), requests) == (1, 2)


@pytest.mark.row("H06")
def test_five_rate_limit_errors_without_retry_after() -> None:
    """The back-off doubles, and the call comes through where retries allow."""

    async def main(clock: SimulatedClock) -> tuple[float, int]:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(hint_config(server, max_retries=5), clock=clock) as client,
        ):
            server.default(answer_openai)
            find_fault("H06", "no hint").inject(server, times=5)
            await client.embed(MODEL, ["a"])
            return clock.elapsed, len(server.requests)

    seconds, requests = run_simulated(main)
    # 1, 2, 4, 8 and 16 s, each up to half a second more.
    assert 31 <= seconds <= 34
    assert requests == 6


@pytest.mark.row("H06")
def test_endless_rate_limit_errors_end_after_max_retries() -> None:
    """n retries are n + 1 requests."""

    async def main(clock: SimulatedClock) -> int:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(hint_config(server), clock=clock) as client,
        ):
            find_fault("H06", "no hint").inject(server, times=100)
            with pytest.raises(llmopt.RateLimited):
                await client.embed(MODEL, ["a"])
            return len(server.requests)

    assert run_simulated(main) == 4


@pytest.mark.row("H03")
def test_a_retry_after_beyond_the_deadline_fails_at_once() -> None:
    """That is told at once, with the number."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(hint_config(server), clock=clock) as client,
        ):
            server.default(retry_after("90"))
            with pytest.raises(llmopt.DeadlineExceeded, match="90 s") as caught:
                await client.embed(MODEL, ["a"], deadline=30)
            assert caught.value.retry_after == 90
            assert isinstance(caught.value.__cause__, llmopt.RateLimited)
            assert clock.elapsed < 0.1
            assert len(server.requests) == 1

    run_simulated(main)

"""Rate limits through the whole client, in simulated time over real sockets."""

from __future__ import annotations

import asyncio
import functools
import itertools

import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import Event, LimitLearned, RequestWait
from tests.support.configuration import provider_config
from tests.support.faults import Answer, FaultServer, OutageSchedule, RateLimited, answer_openai
from tests.support.scale import nightly_only, scaled

MODEL = "server/m"
SECONDS = scaled(60, nightly=120)
RPM, TPM = 600.0, 100_000.0
BURST_S = {"requests": 1.0, "tokens": 5.0}


def refusal(**headers: str) -> bytes:
    body = b'{"error":{"message":"slow down","type":"requests","code":"rate_limit_exceeded"}}'
    told = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return bytes(Answer(429, body, [("content-type", "application/json"), *told]))


config = functools.partial(provider_config, max_batch_size=1)


def provider(clock: SimulatedClock, *, headers: bool) -> RateLimited:
    """One that keeps 600 requests and 100,000 tokens a minute, in shallow buckets."""
    return RateLimited(rpm=RPM, tpm=TPM, burst=BURST_S, clock=clock.now, headers=headers, hint=headers)


async def busy(client: llmopt.AsyncClient, numbers: itertools.count[int]) -> None:
    """A worker that always has a text, of 20 to 300 tokens."""
    while True:
        number = next(numbers)
        text = f"{number} " + "word " * (16 + number * 97 % 280)
        await client.embed(MODEL, [text])


def part_of_possible(limits: RateLimited) -> float:
    """Of the narrower bucket, how much was used."""
    requests = len(limits.grants) / (RPM / 60 * (BURST_S["requests"] + SECONDS))
    tokens = sum(grant.tokens for grant in limits.grants) / (TPM / 60 * (BURST_S["tokens"] + SECONDS))
    return max(requests, tokens)


@pytest.mark.parametrize(
    ("clients", "headers", "limits", "least", "refused"),
    [
        (1, True, {"rpm": RPM, "tpm": TPM}, 0.98, 1 / 200),
        (1, True, {}, 0.98, 1 / 200),
        (4, True, {}, 0.85, 1 / 20),
        (1, False, {}, 0.90, 1 / 20),
    ],
    ids=["limits known", "honest headers", "four clients", "refusals alone"],
)
def test_a_limited_provider_is_used_fully_with_few_refusals(
    clients: int, headers: bool, limits: dict[str, float], least: float, refused: float
) -> None:
    """Nearly all that it lets through is used, and next to nothing is refused."""

    async def main(clock: SimulatedClock) -> RateLimited:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            kept = provider(clock, headers=headers)
            server.default(kept)
            numbers = itertools.count()
            several = [
                llmopt.AsyncClient(config(server, max_concurrency=8, **limits), clock=clock)
                for _ in range(clients)
            ]
            try:
                async with asyncio.timeout(SECONDS):
                    await asyncio.gather(*(busy(client, numbers) for client in several for _ in range(8)))
            except TimeoutError:
                pass
            for client in several:
                await client.aclose()
            return kept

    kept = run_simulated(main)
    used = part_of_possible(kept)
    rate = len(kept.refusals) / (len(kept.refusals) + len(kept.grants))
    print(f"{used:.3f} of the possible, {rate:.4f} refused")
    assert used >= least
    assert rate <= refused


WAITING_CALLS = scaled(800, nightly=2_000)
LONG_OUTAGE = (10, scaled(30, nightly=70))


def test_queued_calls_do_not_go_into_an_outage_one_by_one() -> None:
    """Of the calls that wait for the rate limit, only probes reach the server while it is down."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, rpm=1_200, max_retries=3), clock=clock) as client,
        ):
            outage = OutageSchedule([LONG_OUTAGE], clock=clock.now)
            server.default(outage)
            started = clock.now()
            calls = [
                asyncio.create_task(client.embed(MODEL, [f"text {number}"], when_open="wait"))
                for number in range(WAITING_CALLS)
            ]
            await asyncio.gather(*calls)
            during = [
                request
                for request in server.requests
                if LONG_OUTAGE[0] <= request.time - started < LONG_OUTAGE[1]
            ]
            print(f"{len(during)} requests in the outage, all done after {clock.now() - started:.0f} s")
            assert 0 < len(during) <= 50
            # The work at 20 calls a second, and the outage; it goes on soon after the server is back.
            outage_s = LONG_OUTAGE[1] - LONG_OUTAGE[0]
            assert clock.now() - started < WAITING_CALLS / 20 + outage_s + 15

    run_simulated(main)


# Waiting callers are also in the test above, with retries.
@pytest.mark.parametrize("when_open", ["fail", pytest.param("wait", marks=nightly_only)])
def test_queued_calls_send_nothing_to_a_dead_server(when_open: str) -> None:
    """Without retries, and with ``when_open="fail"``: they fail as soon as the circuit is open."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, rpm=1_200, max_retries=0), clock=clock) as client,
        ):
            server.default(OutageSchedule([LONG_OUTAGE], clock=clock.now))
            started = clock.now()
            calls = [
                asyncio.create_task(client.embed(MODEL, [f"text {number}"], when_open=when_open))
                for number in range(WAITING_CALLS)
            ]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            during = [
                request
                for request in server.requests
                if LONG_OUTAGE[0] <= request.time - started < LONG_OUTAGE[1]
            ]
            assert 0 < len(during) <= 50
            if when_open == "fail":
                assert (
                    sum(isinstance(outcome, llmopt.CircuitOpen) for outcome in outcomes) > WAITING_CALLS / 2
                )

    run_simulated(main)


@pytest.mark.row("H01")
def test_retry_after_pauses_only_its_quota() -> None:
    """Who comes meanwhile waits as well; another model's calls do not."""

    async def main(clock: SimulatedClock) -> None:
        events: list[Event] = []
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server), clock=clock, on_event=events.append) as client,
        ):
            server.default(answer_openai)
            await client.embed(MODEL, ["warm"])
            server.play(refusal(retry_after="2"))
            started = clock.now()
            first = asyncio.create_task(client.embed(MODEL, ["first"]))
            await clock.sleep(0.1)
            second = asyncio.create_task(client.embed(MODEL, ["second"]))
            await client.embed("server/other", ["third"])
            assert clock.now() - started < 0.2
            await first
            assert 2.0 <= clock.now() - started <= 2.3
            await second
            assert clock.now() - started <= 3.0
            assert len(server.requests) == 5
            assert [event.name for event in events].count("request.retry") == 1
            waits = [event for event in events if isinstance(event, RequestWait)]
            assert "limiter" in {event.cause for event in waits}

    run_simulated(main)


@pytest.mark.row("H03")
def test_a_pause_of_an_hour_fails_calls_at_once() -> None:
    """The first call says so, and so do those that come later."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server), clock=clock) as client,
        ):
            server.default(answer_openai)
            server.play(refusal(retry_after="1800"))
            with pytest.raises(llmopt.RateLimited) as told:
                await client.embed(MODEL, ["text"])
            assert (told.value.retry_after, told.value.sent) == (1_800, "yes")
            await clock.sleep(10)
            with pytest.raises(llmopt.RateLimited, match="longer than llmopt waits") as remembered:
                await client.embed(MODEL, ["text"])
            assert remembered.value.retry_after == pytest.approx(1_790)
            assert remembered.value.sent == "no"
            assert len(server.requests) == 1
            await clock.sleep(1_800)
            await client.embed(MODEL, ["text"])

    run_simulated(main)


def test_another_endpoint_takes_over_while_one_is_paused() -> None:
    """A pause is one endpoint's, and nobody stands in its line while another is free."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as tired,
            FaultServer(sleep=clock.sleep, clock=clock.now) as fresh,
        ):
            tired.default(refusal(retry_after="60"))
            fresh.default(answer_openai)
            async with llmopt.AsyncClient(config(tired, fresh, max_retries=1), clock=clock) as client:
                started = clock.now()
                await asyncio.gather(*(client.embed(MODEL, [f"text {number}"]) for number in range(100)))
                # Those that were under way when it refused wait their minute and go elsewhere.
                assert clock.now() - started < 70
                assert len(tired.requests) <= 8
                started = clock.now()
                for number in range(50):
                    await client.embed(MODEL, [f"later {number}"])

    run_simulated(main)


def test_a_batch_fits_the_burst_of_the_rate_limit() -> None:
    """With 1,200 tokens a minute configured, a hundred texts of some 20 tokens are many requests, not one refused."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, tpm=1_200, max_batch_size=1_000), clock=clock) as client,
        ):
            server.default(answer_openai)
            found = await client.embed(MODEL, [f"{number} " + "word " * 15 for number in range(100)])
            assert found.vectors.shape[0] == 100
            assert len(server.requests) >= 15
            assert clock.elapsed > 60

    run_simulated(main)


def test_a_text_above_the_token_rate_is_one_clear_error() -> None:
    """The others come back."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, tpm=600, max_batch_size=1_000), clock=clock) as client,
        ):
            server.default(answer_openai)
            found = await client.embed(MODEL, ["short", "word " * 2_000, "also short"], errors="return")
            assert list(found.errors) == [1]
            assert isinstance(found.errors[1], llmopt.CostNeverFits)
            assert "tpm" in str(found.errors[1])

    run_simulated(main)


def test_the_limiter_flag_switches_rate_limiting_off() -> None:
    """Nothing is paced, nobody pauses."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(
                config(server, rpm=60, max_retries=0), clock=clock, flags={"limiter": False}
            ) as client,
        ):
            server.default(answer_openai)
            server.play(refusal(retry_after="50"))
            with pytest.raises(llmopt.RateLimited):
                await client.embed(MODEL, ["text"])
            await asyncio.gather(*(client.embed(MODEL, [f"text {number}"]) for number in range(100)))
            assert clock.elapsed < 1

    run_simulated(main)


def test_stats_and_an_event_report_learned_limits() -> None:
    """An operator sees why it waits."""

    async def main(clock: SimulatedClock) -> None:
        events: list[Event] = []
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server), clock=clock, on_event=events.append) as client,
        ):
            server.default(provider(clock, headers=True))
            for number in range(5):
                await client.embed(MODEL, [f"text {number}"])
                await clock.sleep(0.5)  # for longer than it takes to see that no other client uses the limit
            (endpoint,) = client.stats()["server"].values()
            limiter = endpoint["limiters"]["m"]
            assert limiter["rpm"] == pytest.approx(RPM)
            assert limiter["tpm"] == pytest.approx(TPM)
            assert limiter["waiting"] == 0
            learned = [event for event in events if isinstance(event, LimitLearned)]
            assert {(event.limit, event.value, event.source) for event in learned} == {
                ("rpm", RPM, "headers"),
                ("tpm", TPM, "headers"),
            }

    run_simulated(main)

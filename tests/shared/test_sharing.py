"""What clients tell each other through a store: pauses, limits, open circuits; and what they keep to themselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import httpx
import pytest

import llmopt
from llmopt.testing import SimulatedClock, SimulatedStore, run_simulated
from llmopt.values.events import BreakerChanged, Event, SharedDegraded

KEY: Final = "sk-the-key-itself-0123456789"
MODEL: Final = "openai/text-embedding-3-small"
Answer = Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """All clients have one secret."""
    monkeypatch.setenv("LLMOPT_SHARED_SECRET", "one secret for all")


def vectors(request: httpx.Request, **headers: str) -> httpx.Response:
    texts = __import__("json").loads(request.content)["input"]
    body = {"data": [{"index": i, "embedding": [1.0, 2.0]} for i in range(len(texts))], "model": "m"}
    return httpx.Response(
        200, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


def refused(request: httpx.Request) -> httpx.Response:
    return httpx.Response(429, json={"error": {"message": "slow down"}}, headers={"retry-after": "20"})


def client_of(
    clock: SimulatedClock,
    store: SimulatedStore | llmopt.SharedState,
    answer: Answer = vectors,
    *,
    events: list[Event] | None = None,
    shared: Mapping[str, Any] | None = None,
    key: str = KEY,
    **entry: Any,
) -> llmopt.AsyncClient:
    config = {
        "providers": {
            "openai": {"api_key": key, "base_url": "https://p.example/v1", "max_retries": 0, **entry}
        },
        "shared": dict(shared or {}),
    }
    connection = store.connect() if isinstance(store, SimulatedStore) else store
    return llmopt.AsyncClient(
        config,
        transport=httpx.MockTransport(answer),  # type: ignore[arg-type] # either kind of function
        cache="off",
        clock=clock,
        shared=connection,
        on_event=None if events is None else events.append,
    )


def play(main: Callable[[SimulatedClock, SimulatedStore], Awaitable[None]]) -> None:
    async def run(clock: SimulatedClock) -> None:
        await main(clock, SimulatedStore(clock, delay_s=(0.001, 0.002)))

    run_simulated(run)


def test_a_pause_of_one_process_stops_all() -> None:
    """As soon as another one needs its next block."""

    async def main(clock: SimulatedClock, store: SimulatedStore) -> None:
        async with (
            client_of(clock, store, refused, rpm=6_000) as one,
            client_of(clock, store, rpm=6_000) as two,
        ):
            await two.embed(MODEL, ["first"])
            with pytest.raises(llmopt.RateLimited):
                await one.embed(MODEL, ["refused"])
            await clock.sleep(1.0)
            before = clock.now()
            await two.embed(MODEL, ["later"])
            assert clock.now() - before == pytest.approx(19.0, abs=0.5)

    play(main)


def test_a_short_pause_is_not_shared() -> None:
    """It is the time until one more request fits."""

    async def main(clock: SimulatedClock, store: SimulatedStore) -> None:
        def short(_: httpx.Request) -> httpx.Response:
            return httpx.Response(429, json={"error": {"message": "slow"}}, headers={"retry-after-ms": "300"})

        async with client_of(clock, store, short, rpm=6_000) as one:
            with pytest.raises(llmopt.RateLimited):
                await one.embed(MODEL, ["refused"])
            await clock.sleep(0.1)
            assert "pause" not in store.calls

    play(main)


def test_limits_of_headers_reach_other_processes_before_their_first_response() -> None:
    """A process that has no answer yet knows what another one was told."""

    async def main(clock: SimulatedClock, store: SimulatedStore) -> None:
        def stated(request: httpx.Request) -> httpx.Response:
            return vectors(request, x_ratelimit_limit_requests="1200", x_ratelimit_remaining_requests="1199")

        async def slow(request: httpx.Request) -> httpx.Response:
            await clock.sleep(5.0)
            return stated(request)

        async with client_of(clock, store, stated) as one, client_of(clock, store, slow) as two:
            await one.embed(MODEL, ["a"])
            await clock.sleep(2.0)
            await one.embed(MODEL, ["b"])
            await clock.sleep(2.0)
            call = asyncio.create_task(two.embed(MODEL, ["c"]))
            await clock.sleep(0.5)
            (limiter,) = limiters(two)
            assert limiter["rpm"] == 1200
            await call

    play(main)


def limiters(client: llmopt.AsyncClient) -> list[Any]:
    (endpoint,) = client.stats()["openai"].values()
    return list(endpoint["limiters"].values())


def test_a_circuit_that_opens_elsewhere_is_tested_here() -> None:
    """One probe at a time goes through; when two have succeeded, the circuit is closed, whatever others see."""

    async def main(clock: SimulatedClock, store: SimulatedStore) -> None:
        def broken(_: httpx.Request) -> httpx.Response:
            return httpx.Response(500, json={"error": {"message": "down"}})

        events: list[Event] = []
        async with (
            client_of(clock, store, broken, rpm=60_000) as one,
            client_of(clock, store, rpm=60_000, events=events) as two,
        ):
            await two.embed(MODEL, ["warm"])
            for number in range(20):
                with pytest.raises(llmopt.LLMOptError):
                    await one.embed(MODEL, [f"{number}"])
            await clock.sleep(0.2)
            for number in range(40):
                await two.embed(MODEL, [f"{number}"])
                await clock.sleep(0.1)
            changes = [event for event in events if isinstance(event, BreakerChanged)]
            assert [(event.old, event.new) for event in changes] == [
                ("closed", "open"),
                ("open", "half_open"),
                ("half_open", "closed"),
            ]
            assert changes[0].cause == "ServerError"

    play(main)


def test_names_in_the_store_tell_nothing() -> None:
    """Neither keys nor models; other keys, models and secrets give other names."""

    async def main(clock: SimulatedClock, store: SimulatedStore) -> None:
        for key in (KEY, KEY + "x"):
            for model in (MODEL, MODEL + "x"):
                async with client_of(clock, store, rpm=600, key=key) as client:
                    await client.embed(model, ["a"])
        names = [*store._buckets, *store._records]
        assert len(store._buckets) == 4
        assert all(len(name) == 32 for name in names)
        dump = repr((store._buckets, store._records))
        assert KEY not in dump
        assert "text-embedding" not in dump

    play(main)


def test_processes_with_one_key_share_one_quota() -> None:
    """Together they get a burst at once, and no more."""

    async def main(clock: SimulatedClock, store: SimulatedStore) -> None:
        sent: list[float] = []

        def answer(request: httpx.Request) -> httpx.Response:
            sent.append(clock.now())
            return vectors(request)

        clients = [client_of(clock, store, answer, rpm=600, max_batch_size=1) for _ in range(3)]
        await asyncio.gather(
            *(
                client.embed(MODEL, [f"{number} {i}" for i in range(20)])
                for number, client in enumerate(clients)
            )
        )
        assert len(sent) == 60
        for start in sent:
            assert sum(start <= moment < start + 2.0 for moment in sent) <= 9 + 2 * 10 + 1
        for client in clients:
            await client.aclose()

    play(main)


def test_a_client_returns_its_blocks_when_it_is_closed() -> None:
    """The next one finds the bucket as it was."""

    async def main(clock: SimulatedClock, store: SimulatedStore) -> None:
        async with client_of(clock, store, rpm=600) as client:
            await client.embed(MODEL, ["a"])
        (bucket,) = store._buckets.values()
        assert bucket.levels[0] == pytest.approx(9 - 1, abs=0.1)

    play(main)


def test_idle_clients_return_their_blocks_within_a_second() -> None:
    """Without being closed."""

    async def main(clock: SimulatedClock, store: SimulatedStore) -> None:
        async with client_of(clock, store, rpm=60_000, max_batch_size=1) as client:
            await client.embed(MODEL, [f"{number}" for number in range(64)])
            await clock.sleep(1.0)
            assert store.calls["refund"] >= 1
            (bucket,) = store._buckets.values()
            assert bucket.total[0] > 64
            calls = dict(store.calls)
            await clock.sleep(60.0)
            assert store.calls == calls

    play(main)


def test_required_fails_closed_with_one_clear_error(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is sent; when the store is back, requests are, too."""

    async def main(clock: SimulatedClock, store: SimulatedStore) -> None:
        events: list[Event] = []
        async with client_of(clock, store, rpm=600, shared={"required": True}, events=events) as client:
            await client.embed(MODEL, ["a"])
            await clock.sleep(2.0)
            store.stop()
            for text in ("b", "c", "d", "e"):
                await clock.sleep(1.0)
                with pytest.raises(llmopt.SharedStateUnavailable, match="required = true"):
                    await client.embed(MODEL, [text])
            store.start(keep=False)
            await clock.sleep(1.1)
            await client.embed(MODEL, ["f"])
            changes = [event for event in events if isinstance(event, SharedDegraded)]
            assert [event.degraded for event in changes] == [True, False]
            assert changes[0].cause == "ConnectionError"
            assert changes[1].seconds > 3

    with caplog.at_level(logging.WARNING, "llmopt"):
        play(main)
    assert [record.getMessage()[:40] for record in caplog.records] == [
        "the shared store does not answer (Connec",
        "the shared store answers again after 4.1",
    ] or len(caplog.records) == 2


def test_statistics_show_the_state_of_the_store() -> None:
    """Degraded or not, why, and how many clients there are."""

    async def main(clock: SimulatedClock, store: SimulatedStore) -> None:
        async with client_of(clock, store, rpm=600) as one, client_of(clock, store, rpm=600) as two:
            await one.embed(MODEL, ["a"])
            await two.embed(MODEL, ["b"])
            (endpoint,) = two.stats()["openai"].values()
            assert endpoint["shared"] == {"degraded": False, "cause": "", "clients": 2}
            # What is on its way when the store stops gets no answer, which is a timeout.
            await clock.sleep(0.1)
            store.stop()
            for number in range(5):
                await two.embed(MODEL, [f"{number}"])
            (endpoint,) = two.stats()["openai"].values()
            assert endpoint["shared"]["degraded"]
            assert endpoint["shared"]["cause"] == "ConnectionError"

    play(main)


class Wrong:
    """A store whose answers make no sense."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.closed = 0

    async def reserve(self, *_: object, **__: object) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def refund(self, *_: object) -> None:
        raise OSError

    async def pause(self, *_: object) -> None:
        raise OSError

    async def publish(self, *_: object) -> None:
        raise OSError

    async def read(self, *_: object) -> Any:
        return "no record"

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("answer", [None, "granted", {"granted": 1}, ValueError("x"), SystemError()])
def test_a_store_that_answers_nonsense_is_one_that_does_not_answer(answer: object) -> None:
    """Calls succeed with the client's own part of the limit; the store of the user is not closed."""

    async def main(clock: SimulatedClock, _: SimulatedStore) -> None:
        wrong = Wrong(answer)
        async with client_of(clock, wrong, rpm=600) as client:
            await client.embed(MODEL, ["a"])
            await client.embed(MODEL, ["b"])
            (endpoint,) = client.stats()["openai"].values()
            assert endpoint["shared"]["degraded"]
        assert wrong.closed == 0

    play(main)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_a_reservation_with_a_number_that_makes_no_sense_cannot_be_made(number: float) -> None:
    """It would block a quota, or open it."""
    with pytest.raises(ValueError, match="granted must be a number"):
        llmopt.Reservation(granted=llmopt.SharedCost(1.0, number))
    with pytest.raises(ValueError, match="delay_s must be a number"):
        llmopt.Reservation(delay_s=number)

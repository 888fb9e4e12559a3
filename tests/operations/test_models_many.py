"""Many providers at once: each with its own answer or its own error, ten in flight, none waiting for the worst."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import CatalogBatch, CatalogDiscover
from tests.support.faults import (
    Answer,
    FaultServer,
    Respond,
    Script,
    Stall,
    Wait,
    answer_openai,
    error_answer,
    json_answer,
    models_payload,
    refused_port,
    serving,
)

PROVIDERS = 60
DELAY_S = 0.2
BAD: dict[int, Any] = {
    7: (error_answer(401, "bad key"), llmopt.AuthError),
    18: (error_answer(404, "no such path"), llmopt.NotFound),
    29: (Answer(200, b"<html>gateway</html>", [("content-type", "text/html")]), llmopt.InvalidResponse),
    40: (Answer(200, b'{"data": [{"id": "a', [("content-type", "application/json")]), llmopt.InvalidResponse),
    51: (None, llmopt.ConnectFailed),
}


def test_sixty_providers_of_which_five_fail(tmp_path: Path) -> None:
    """All in the ideal time for ten in flight, each tied to its provider; then from memory, from disk, without a net."""

    async def main(clock: SimulatedClock) -> None:
        servers = [FaultServer() for _ in range(PROVIDERS)]
        in_flight: set[int] = set()
        most = 0

        def answering(number: int, answer: Answer) -> Any:
            def reply(_: object) -> Script:
                nonlocal most
                in_flight.add(number)
                most = max(most, len(in_flight))

                def done(_: object) -> Answer:
                    in_flight.discard(number)
                    return answer

                return Script([Wait(DELAY_S), Respond(done)])

            return reply

        providers = {}
        for number, server in enumerate(servers):
            await server.start()
            answer, _ = BAD.get(
                number, (json_answer(models_payload([f"{number}-{n}" for n in range(100)])), None)
            )
            if answer is not None:
                server.default(answering(number, answer))
            providers[f"p{number:02}"] = {"plugin": "local", "base_url": server.base_url}
        await servers[51].stop()
        settings = {"cache_dir": str(tmp_path), "providers": providers}
        events: list[Any] = []
        options: dict[str, Any] = {"clock": clock, "flags": {"retry": False}, "on_event": events.append}
        try:
            async with llmopt.AsyncClient(settings, **options) as client:
                started = clock.now()
                found = await client.batch_list_models(list(providers))
                assert clock.now() - started <= 1.05 * PROVIDERS / 10 * DELAY_S
                assert most == 10
                _check(found)
                asked = sum(len(server.requests) for server in servers)
                assert asked == PROVIDERS - 1
                # Once more: nobody is asked, not even those that failed a moment ago.
                before = clock.now()
                _check(await client.batch_list_models(list(providers)))
                assert clock.now() == before
                assert sum(len(server.requests) for server in servers) == asked
            batches = [each for each in events if isinstance(each, CatalogBatch)]
            assert [(each.providers, each.failures) for each in batches] == [(60, 5)] * 2
            assert sum(isinstance(each, CatalogDiscover) for each in events) == 60 + 55
            good = [name for name in providers if int(name[1:]) not in BAD]
            async with llmopt.AsyncClient(settings, **options) as client:
                again = await client.batch_list_models(good)
                assert not any(each.stale for each in again.values())  # type: ignore[union-attr] # lists
                assert sum(len(server.requests) for server in servers) == asked
            for server in servers:
                await server.stop()
            clock.advance(2 * 24 * 3600)
            async with llmopt.AsyncClient(settings, **options) as client:
                left = await client.batch_list_models(good)
                assert all(isinstance(each, llmopt.Catalog) and each.stale for each in left.values())
        finally:
            for server in servers:
                await server.aclose()

    run_simulated(main)


def _check(found: Any) -> None:
    assert list(found) == [f"p{number:02}" for number in range(PROVIDERS)]
    for number, (name, each) in enumerate(found.items()):
        if number in BAD:
            assert type(each) is BAD[number][1]
            assert each.provider == name
        else:
            assert [model.id for model in each] == [f"{number}-{n}" for n in range(100)]
            assert {model.provider for model in each} == {name}


def test_a_provider_that_hangs_does_not_delay_the_others(tmp_path: Path) -> None:
    """All in under ten seconds, with what is configured by default."""

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer() as good, FaultServer() as hanging:
            good.default(answer_openai)
            hanging.default(Script([Stall()]))
            providers = {f"p{number}": {"plugin": "local", "base_url": good.base_url} for number in range(20)}
            providers["hangs"] = {"plugin": "local", "base_url": hanging.base_url}
            async with llmopt.AsyncClient({"providers": providers}, clock=clock) as client:
                started = clock.now()
                found = await client.batch_list_models(list(providers))
                assert clock.now() - started < 10
                errors = {name: each for name, each in found.items() if isinstance(each, llmopt.LLMOptError)}
                assert list(errors) == ["hangs"]
                assert isinstance(errors["hangs"], (llmopt.DeadlineExceeded, llmopt.AttemptTimeout))
                # Of its own time for each, and of the whole call.
                for options, most in (({"timeout": 2.0}, 2.0), ({"deadline": 1.0}, 1.0)):
                    before = clock.now()
                    found = await client.batch_list_models(list(providers), cached="refresh", **options)
                    assert clock.now() - before == pytest.approx(most, abs=0.1)
                    assert isinstance(found["hangs"], llmopt.DeadlineExceeded)
                    assert isinstance(found["p7"], llmopt.Catalog)

    run_simulated(main)


def test_a_failed_provider_is_requested_again_after_five_seconds(tmp_path: Path) -> None:
    """By this call; `list_models` asks at once."""

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer() as server:
            settings = {
                "providers": {"s": {"plugin": "local", "base_url": server.base_url, "max_retries": 0}}
            }
            async with llmopt.AsyncClient(settings, clock=clock) as client:
                server.default(error_answer(500, "sorry"))
                found = [(await client.batch_list_models(["s"]))["s"] for _ in range(2)]
                assert [type(each) for each in found] == [llmopt.ServerError] * 2
                found.append((await client.batch_list_models(["s"]))["s"])
                assert len({id(each) for each in found}) == 3
                assert len(server.requests) == 1
                with pytest.raises(llmopt.ServerError):
                    await client.list_models("s")
                assert len(server.requests) == 2
                server.default(answer_openai)
                clock.advance(5.1)
                assert isinstance((await client.batch_list_models(["s"]))["s"], llmopt.Catalog)

    run_simulated(main)


async def test_a_provider_that_cannot_be_requested_has_its_own_error(tmp_path: Path) -> None:
    """An unknown provider, one without its key, one whose address is wrong."""
    async with FaultServer() as server:
        server.default(answer_openai)
        with refused_port() as port:
            settings = {
                "cache_dir": str(tmp_path),
                "providers": {
                    "good": {"plugin": "local", "base_url": server.base_url},
                    "keyless": {"plugin": "openai"},
                    "dead": {"plugin": "local", "base_url": f"http://127.0.0.1:{port}", "max_retries": 0},
                },
            }
            async with llmopt.AsyncClient(settings) as client:
                found = await client.batch_list_models(["keyless", "good", "nobody", "dead", "good"])
        assert list(found) == ["keyless", "good", "nobody", "dead"]
        assert len(found["good"]) == 1  # type: ignore[arg-type] # a list
        assert isinstance(found["keyless"], llmopt.ConfigError)
        assert isinstance(found["nobody"], llmopt.UnknownProvider)
        assert isinstance(found["dead"], llmopt.ConnectFailed)


async def test_invalid_arguments_are_refused(tmp_path: Path) -> None:
    """Before any request is sent."""
    async with llmopt.AsyncClient({}) as client:
        with pytest.raises(llmopt.ConfigError, match="list of names"):
            await client.batch_list_models("local")
        with pytest.raises(llmopt.ConfigError, match="timeout must be"):
            await client.batch_list_models(["local"], timeout=float("nan"))
        with pytest.raises(llmopt.ConfigError, match="cached must be"):
            await client.batch_list_models(["local"], cached="x")  # type: ignore[arg-type] # the point
        assert await client.batch_list_models([]) == {}


async def test_a_closed_client_raises() -> None:
    """Neither from the cache."""
    client = llmopt.AsyncClient({})
    await client.list_models("local")
    await client.aclose()
    with pytest.raises(llmopt.ClientClosed):
        await client.list_models("local")
    with pytest.raises(llmopt.ClientClosed):
        await client.batch_list_models(["local"])


async def test_warm_fetches_the_lists(tmp_path: Path) -> None:
    """At start-up: later calls do not wait, and failures are returned."""
    async with FaultServer() as server:
        server.default(answer_openai)
        settings = {
            "cache_dir": str(tmp_path),
            "providers": {"s": {"plugin": "local", "base_url": server.base_url}},
        }
        async with llmopt.AsyncClient(settings) as client:
            found = await client.warm(["s", "nobody"])
            assert isinstance(found["nobody"], llmopt.UnknownProvider)
            await client.list_models("s")
            assert len(server.requests) == 1


def test_the_sync_client_lists_models_in_threads(tmp_path: Path) -> None:
    """The mirror: one request for many threads, and lists at hand without crossing to the loop."""
    from concurrent.futures import ThreadPoolExecutor

    with serving() as server:
        server.server.default(answer_openai)
        settings = {
            "cache_dir": str(tmp_path),
            "providers": {"s": {"plugin": "local", "base_url": server.server.base_url}},
        }
        with llmopt.Client(settings) as client:
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(lambda _: client.list_models("s"), range(200)))
            assert {len(each) for each in found} == {1}
            assert len(server.server.requests) == 1
            assert client.list_models("s").age < 60
            client.invalidate("s")
            assert isinstance(client.warm(["s"])["s"], llmopt.Catalog)
            assert len(server.server.requests) == 2
        with pytest.raises(llmopt.ClientClosed):
            client.list_models("s")


def test_the_sync_client_refreshes_in_the_background(tmp_path: Path) -> None:
    """What is not fresh any more, or due, goes the long way, on which somebody sees to it."""
    clock = SimulatedClock()
    with serving() as server:
        server.server.default(answer_openai)
        entry = {"plugin": "local", "base_url": server.server.base_url}
        settings = {"cache_dir": str(tmp_path), "providers": {"s": entry}}
        with llmopt.Client(settings, clock=clock) as client:
            for _ in range(6):
                assert not client.list_models("s").stale
            # Due for every time to live there is, and fresh for every one.
            clock.advance(3_200)
            assert not client.list_models("s").stale
            server.run(server.server.wait_requests(2))
            while client.list_models("s").age > 0:
                time.sleep(0.001)
            clock.advance(7_200)
            assert client.list_models("s").age > 7_000
            server.run(server.server.wait_requests(3))


async def test_lists_are_refreshed_in_consecutive_event_loops(tmp_path: Path) -> None:
    """What one loop was refreshing when it ended, the next one refreshes."""

    def run(work: Any) -> Any:
        return asyncio.run(work)

    async def serve() -> None:
        async with FaultServer() as server:
            gate = asyncio.Event()
            server.default(answer_openai)
            clock = SimulatedClock()
            settings = {
                "cache_dir": str(tmp_path),
                "providers": {"s": {"plugin": "local", "base_url": server.base_url}},
            }
            client = llmopt.AsyncClient(settings, clock=clock)
            await asyncio.to_thread(run, client.list_models("s"))
            clock.advance(7_200)
            server.play(Script([Wait(gate), Respond(answer_openai)]))
            for _ in range(2):
                # The refresh begins, and ends with its loop.
                found = await asyncio.to_thread(run, client.list_models("s"))
                assert found.stale
            gate.set()

            async def until_fresh() -> None:
                while (await client.list_models("s")).stale:
                    await asyncio.sleep(0.01)
                await client.aclose()

            await asyncio.to_thread(run, until_fresh())

    await serve()

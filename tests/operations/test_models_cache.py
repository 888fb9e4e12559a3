"""Lists of models, kept: fresh, stale, refused, gone; over real sockets, in simulated time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve

import llmopt
from llmopt.cache.store import write_record
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import CacheEvent, CatalogDiscover
from tests.support.faults import (
    Answer,
    Close,
    FaultServer,
    Request,
    Reset,
    Respond,
    Script,
    Stall,
    Wait,
    error_answer,
    json_answer,
    models_payload,
)
from tests.support.scale import scaled

HOUR = 3600.0
DAY = 24 * HOUR


@define
class World:
    """A server whose list says how often it was asked, a client, and time."""

    server: FaultServer
    clock: SimulatedClock
    folder: Path
    events: list[Any]

    def config(self, **more: Any) -> dict[str, Any]:
        entry = {"plugin": "local", "base_url": self.server.base_url, "max_retries": 0, **more}
        return {"cache_dir": str(self.folder), "providers": {"s": entry}}

    def client(self, **options: Any) -> llmopt.AsyncClient:
        entry = options.pop("entry", {})
        return llmopt.AsyncClient(
            self.config(**entry), clock=self.clock, on_event=self.events.append, **options
        )

    @property
    def requests(self) -> int:
        return len(self.server.requests)

    async def settle(self, seconds: float = 2.0) -> None:
        """Let what goes on beside the callers come to its end."""
        for _ in range(100):
            await asyncio.sleep(seconds / 100)

    def event_names(self, kind: type = CacheEvent) -> list[str]:
        return [each.name for each in self.events if isinstance(each, kind) and each.name != "cache.size"]


def numbered(world: World) -> Callable[[Request], Answer]:
    return lambda _: json_answer(models_payload([f"model-{world.requests}"]))


def simulated(tmp_path: Path, main: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def run(clock: SimulatedClock) -> None:
        async with FaultServer() as server:
            world = World(server, clock, tmp_path / "kept", [])
            server.default(numbered(world))
            await main(world)

    run_simulated(run)


def first(catalog: llmopt.Catalog) -> str:
    return catalog[0].id


def test_a_list_is_fresh_for_an_hour(tmp_path: Path) -> None:
    """Within it no request is sent; the age is reported."""

    async def main(world: World) -> None:
        async with world.client() as client:
            found = await client.list_models("s")
            assert (first(found), found.age, found.stale) == ("model-1", 0.0, False)
            for _ in range(3):
                world.clock.advance(1_000)
                found = await client.list_models("s")
            assert (first(found), found.age, found.stale) == ("model-1", 3_000.0, False)
            assert world.requests == 1
            assert world.event_names() == ["cache.miss", "cache.hit", "cache.hit", "cache.hit"]
            assert [
                (each.source, each.models) for each in world.events if isinstance(each, CatalogDiscover)
            ] == [
                ("provider", 1),
                *[("cache", 1)] * 3,
            ]

    simulated(tmp_path, main)


def test_a_stale_list_is_returned_while_it_is_refreshed(tmp_path: Path) -> None:
    """Nobody waits: the old list at once, marked, and the new one to whoever comes later."""

    async def main(world: World) -> None:
        async with world.client() as client:
            await client.list_models("s")
            world.clock.advance(20 * HOUR)
            found = await asyncio.gather(*(client.list_models("s") for _ in range(1_000)))
            assert {(first(each), each.stale) for each in found} == {("model-1", True)}
            assert found[0].age >= 20 * HOUR
            await world.settle()
            assert world.requests == 2
            new = await client.list_models("s")
            assert (first(new), new.stale) == ("model-2", False)
            assert world.event_names()[-2:] == ["cache.refresh", "cache.hit"]
            assert world.event_names().count("cache.stale") == 1_000
            # A call of its own, which may outlast those that got the old list.
            (refresh,) = (each for each in world.events if each.name == "cache.refresh")
            assert refresh.call_id not in {
                each.call_id for each in world.events if each.name == "cache.stale"
            }
            own = [each.name for each in world.events if each.call_id == refresh.call_id]
            assert own[:2] == ["call.start", "request.start"]
            assert own[-2:] == ["cache.refresh", "call.end"]

    simulated(tmp_path, main)


PASSING: dict[str, Any] = {
    "refused": None,
    "500": error_answer(500, "sorry"),
    "503": error_answer(503, "full"),
    "429": error_answer(429, "slow down"),
    "408": error_answer(408, "late"),
    "reset": Script([Reset()]),
    "closed": Script([Close()]),
    "html": Answer(200, b"<html>portal</html>", [("content-type", "text/html")]),
    "hangs": Script([Stall()]),
}
LASTING: dict[str, tuple[Any, type[llmopt.LLMOptError]]] = {
    "401": (error_answer(401, "who are you"), llmopt.AuthError),
    "403": (error_answer(403, "not for you"), llmopt.PermissionDenied),
    "404": (error_answer(404, "no such path"), llmopt.NotFound),
}


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("age", [20 * HOUR, 3 * DAY])
def test_a_stale_list_is_returned_when_the_provider_fails(fault: str, age: float, tmp_path: Path) -> None:
    """While the provider is away: at once in the first day, after one try in the first week."""

    async def main(world: World) -> None:
        async with world.client() as client:
            await client.list_models("s")
            world.clock.advance(age)
            if PASSING[fault] is None:
                await world.server.stop()
            else:
                world.server.default(PASSING[fault])
            found = await client.list_models("s")
            assert (first(found), found.stale) == ("model-1", True)
            assert found.age >= age
            await world.settle()
            tried = world.requests
            # For half a minute nobody tries again.
            for _ in range(10):
                world.clock.advance(1)
                assert (await client.list_models("s")).stale
            await world.settle()
            assert world.requests == tried
            if not world.server.up:
                await world.server.start()
            world.server.default(numbered(world))
            # What hangs, hangs for half a minute, and is given a rest for another.
            await world.settle(70)
            await client.list_models("s")
            await world.settle()
            assert not (await client.list_models("s")).stale

    simulated(tmp_path, main)


@pytest.mark.parametrize("fault", LASTING)
@pytest.mark.parametrize("age", [20 * HOUR, 3 * DAY])
def test_a_refused_credential_gets_no_stale_list(fault: str, age: float, tmp_path: Path) -> None:
    """It is not ours any more: neither from memory nor from disk."""
    answer, error = LASTING[fault]

    async def main(world: World) -> None:
        async with world.client() as client:
            await client.list_models("s")
            world.clock.advance(age)
            world.server.default(answer)
            if age < DAY:
                # Given once more, while it is asked for; then it is known.
                assert (await client.list_models("s")).stale
                await world.settle()
            for _ in range(3):
                with pytest.raises(error):
                    await client.list_models("s")
        # That the key was refused is remembered by each client for itself.
        async with world.client() as client:
            with pytest.raises(error):
                await client.list_models("s")

    simulated(tmp_path, main)


@pytest.mark.parametrize("fault", ["refused", "500", "html"])
def test_a_list_expires_after_a_week(fault: str, tmp_path: Path) -> None:
    """Then there is the error."""

    async def main(world: World) -> None:
        async with world.client() as client:
            await client.list_models("s")
            world.clock.advance(7 * DAY + 1.2 * HOUR)
            if PASSING[fault] is None:
                await world.server.stop()
            else:
                world.server.default(PASSING[fault])
            with pytest.raises(llmopt.LLMOptError):
                await client.list_models("s")

    simulated(tmp_path, main)


def test_not_found_is_cached_for_a_minute(tmp_path: Path) -> None:
    """No other failure is."""

    async def main(world: World) -> None:
        async with world.client() as client:
            world.server.default(error_answer(404, "no such path"))
            for _ in range(5):
                with pytest.raises(llmopt.NotFound):
                    await client.list_models("s")
            assert world.requests == 1
            world.clock.advance(61)
            world.server.default(error_answer(500, "sorry"))
            for _ in range(3):
                with pytest.raises(llmopt.ServerError):
                    await client.list_models("s")
            assert world.requests == 4
            world.server.default(numbered(world))
            assert first(await client.list_models("s")) == "model-5"

    simulated(tmp_path, main)


def test_each_caller_gets_its_own_exception(tmp_path: Path) -> None:
    """Also of one that is remembered."""

    async def main(world: World) -> None:
        async with world.client() as client:
            world.server.default(error_answer(404, "no such path"))
            found = []
            for _ in range(3):
                try:
                    await client.list_models("s")
                except llmopt.NotFound as error:
                    found.append(error)
            assert len({id(each) for each in found}) == 3
            assert len({each.message for each in found}) == 1

    simulated(tmp_path, main)


@pytest.mark.parametrize("every", [60.0, 300.0])
def test_frequent_calls_are_refreshed_ahead_of_expiry(every: float, tmp_path: Path) -> None:
    """For six hours (a day at night): refreshed ahead, about once in fifty minutes."""
    hours = scaled(6, nightly=24)

    async def main(world: World) -> None:
        async with world.client() as client:
            await client.list_models("s")
            waited = 0
            for _ in range(int(hours * HOUR / every)):
                await asyncio.sleep(every)
                before = world.clock.now()
                found = await client.list_models("s")
                waited += world.clock.now() > before
                assert not found.stale
            assert waited == 0
            assert hours <= world.requests <= hours * 33 / 24 + 1

    simulated(tmp_path, main)


def test_most_calls_of_a_long_tailed_pattern_are_hits(tmp_path: Path) -> None:
    """Twenty providers, called by a long-tailed pattern for eight hours (a day at night), some of them failing now and then."""
    import random

    async def main(world: World) -> None:
        chance = random.Random(11)
        names = [f"p{number}" for number in range(20)]
        entry = {"plugin": "local", "base_url": world.server.base_url, "max_retries": 0}
        settings = {"cache_dir": str(world.folder), "providers": dict.fromkeys(names, entry)}
        weights = [1 / (rank + 1) for rank in range(20)]

        def answer(request: Request) -> Answer:
            failed = chance.random() < 0.05
            return error_answer(503, "now and then") if failed else json_answer(models_payload())

        world.server.default(answer)
        async with llmopt.AsyncClient(settings, clock=world.clock, on_event=world.events.append) as client:
            await client.warm()
            world.events.clear()
            per_day = 1_200
            asked = scaled(per_day // 3, nightly=per_day)
            for _ in range(asked):
                await asyncio.sleep(chance.expovariate(per_day / DAY))
                with suppress(llmopt.LLMOptError):
                    await client.list_models(chance.choices(names, weights)[0])
            names_seen = world.event_names()
            # All but some that are given while they are asked for anew; those that nobody asks for in an hour.
            assert names_seen.count("cache.hit") + names_seen.count("cache.stale") > 0.98 * asked
            assert names_seen.count("cache.hit") > 0.65 * asked

    simulated(tmp_path, main)


def test_another_process_reads_it_from_disk(tmp_path: Path) -> None:
    """No request, the age is right, and refreshing goes on there."""

    async def main(world: World) -> None:
        async with world.client() as client:
            await client.list_models("s")
        world.clock.advance(1_000)
        async with world.client() as client:
            found = await client.list_models("s")
            assert (first(found), found.stale) == ("model-1", False)
            assert 999 < found.age < 1_100
            assert world.requests == 1
        world.clock.advance(2 * DAY)
        await world.server.stop()
        async with world.client() as client:
            found = await client.list_models("s")
            assert (first(found), found.stale) == ("model-1", True)

    simulated(tmp_path, main)


@pytest.mark.row("C10")
@pytest.mark.parametrize("jump", [-10 * 365 * DAY, -DAY, -HOUR, 10 * 365 * DAY, HOUR])
def test_a_jump_of_the_wall_clock_changes_nothing(jump: float, tmp_path: Path) -> None:
    """No call fails. What lies on disk from a time to come is not believed."""

    async def main(world: World) -> None:
        async with world.client() as client:
            await client.list_models("s")
            world.clock.set_wall(world.clock.wall() + jump)
            assert len(await client.list_models("s")) == 1
            await world.server.stop()
            # In this process it is as old as it is.
            assert len(await client.list_models("s")) == 1
            await world.server.start()
        requests = world.requests
        async with world.client() as client:
            assert len(await client.list_models("s")) == 1
        if jump <= -HOUR:
            assert world.requests == requests + 1

    simulated(tmp_path, main)


@pytest.mark.row("K06")
def test_a_hanging_refresh_does_not_block_calls(tmp_path: Path) -> None:
    """It has half a minute; meanwhile and afterwards the old list is given, and it is one at a time."""

    async def main(world: World) -> None:
        async with world.client(entry={"timeouts": {"catalog": 500, "total": 500}}) as client:
            await client.list_models("s")
            world.clock.advance(2 * HOUR)
            world.server.default(Script([Stall()]))
            started = world.clock.now()
            while world.clock.now() < started + 100:
                assert (await client.list_models("s")).stale
                await asyncio.sleep(1)
            # Thirty seconds of hanging, thirty of pause, and the second.
            assert world.requests == 1 + 2

    simulated(tmp_path, main)


@pytest.mark.row("K06")
def test_closing_the_client_cancels_a_refresh(tmp_path: Path) -> None:
    """At once, without a task left behind; the next client finds the old list."""

    async def main(world: World) -> None:
        gate = asyncio.Event()
        client = world.client()
        await client.list_models("s")
        world.clock.advance(2 * HOUR)
        world.server.play(Script([Wait(gate), Respond(numbered(world))]))
        assert (await client.list_models("s")).stale
        await world.server.wait_requests(2)
        before = world.clock.now()
        await client.aclose()
        assert world.clock.now() - before < 1
        assert len(asyncio.all_tasks()) <= 3
        with pytest.raises(llmopt.ClientClosed):
            await client.list_models("s")
        gate.set()
        async with world.client() as other:
            assert first(await other.list_models("s")) == "model-1"

    simulated(tmp_path, main)


@pytest.mark.row("K06")
def test_refreshes_are_four_at_a_time(tmp_path: Path) -> None:
    """However many lists went stale together."""

    async def main(world: World) -> None:
        names = [f"p{number}" for number in range(20)]
        entry = {"plugin": "local", "base_url": world.server.base_url}
        settings = {"cache_dir": str(world.folder), "providers": dict.fromkeys(names, entry)}
        async with llmopt.AsyncClient(settings, clock=world.clock) as client:
            await client.warm(names)
            world.clock.advance(2 * HOUR)
            gates = [asyncio.Event() for _ in range(20)]
            world.server.play(*(Script([Wait(gate), Respond(numbered(world))]) for gate in gates))
            found = await client.batch_list_models(names)
            assert all(each.stale for each in found.values())  # type: ignore[union-attr] # all are lists
            for done in range(0, 20, 4):
                await world.settle()
                assert world.requests == 20 + done + 4
                for gate in gates[done : done + 4]:
                    gate.set()
            await world.settle()
            assert not any(each.stale for each in (await client.batch_list_models(names)).values())  # type: ignore[union-attr] # as above

    simulated(tmp_path, main)


def test_closing_the_client_cancels_queued_refreshes(tmp_path: Path) -> None:
    """None of them is left, and no coroutine was never awaited."""

    async def main(world: World) -> None:
        names = [f"p{number}" for number in range(9)]
        entry = {"plugin": "local", "base_url": world.server.base_url}
        settings = {"cache_dir": str(world.folder), "providers": dict.fromkeys(names, entry)}
        client = llmopt.AsyncClient(settings, clock=world.clock)
        await client.warm(names)
        world.clock.advance(2 * HOUR)
        world.server.default(Script([Stall()]))
        await client.batch_list_models(names)
        await client.aclose()
        assert len(asyncio.all_tasks()) <= 1 + 4 + 1

    simulated(tmp_path, main)


def with_etag(world: World, etag: str = '"one"') -> Callable[[Request], Answer]:
    def answer(request: Request) -> Answer:
        if request.header("if-none-match") == etag:
            return Answer(304, b"", [("etag", etag)])
        return json_answer(models_payload(["a", "b"]), headers=[("etag", etag)])

    return answer


def test_an_etag_is_sent_and_not_modified_extends_the_list(tmp_path: Path) -> None:
    """The provider says that nothing changed: the list is as good as new, here and on disk."""

    async def main(world: World) -> None:
        world.server.default(with_etag(world))
        async with world.client() as client:
            assert len(await client.list_models("s")) == 2
            assert world.server.requests[0].header("if-none-match") is None
            world.clock.advance(2 * HOUR)
            await client.list_models("s")
            await world.settle()
            assert world.server.requests[1].header("if-none-match") == '"one"'
            found = await client.list_models("s")
            assert (len(found), found.stale) == (2, False)
            assert [each.outcome for each in world.events if each.name == "cache.refresh"] == ["unchanged"]
        async with world.client() as client:
            world.clock.advance(3 * DAY)
            # A new process knows it too, also when it must ask first.
            assert [model.id for model in await client.list_models("s")] == ["a", "b"]
            assert world.server.requests[2].header("if-none-match") == '"one"'
            # And when it is told to.
            found = await client.list_models("s", cached="refresh")
            assert (len(found), found.age) == (2, 0.0)
            assert world.requests == 4

    simulated(tmp_path, main)


def test_a_changed_etag_replaces_the_list(tmp_path: Path) -> None:
    """The new list comes with a new one."""

    async def main(world: World) -> None:
        world.server.default(with_etag(world))
        async with world.client() as client:
            await client.list_models("s")
            world.server.default(lambda _: json_answer(models_payload(["c"]), headers=[("etag", 'W/"two"')]))
            assert [model.id for model in await client.list_models("s", cached="refresh")] == ["c"]
            await client.list_models("s", cached="refresh")
            assert world.server.requests[2].header("if-none-match") == 'W/"two"'

    simulated(tmp_path, main)


@pytest.mark.parametrize("etag", ["no quotes", '"' + "x" * 300 + '"', '"caf\xe9"', ""])
def test_an_invalid_etag_is_not_sent(etag: str, tmp_path: Path) -> None:
    """It is left alone."""

    async def main(world: World) -> None:
        world.server.default(
            lambda _: json_answer(models_payload(), headers=[("etag", etag.encode("latin-1"))])
        )
        async with world.client() as client:
            await client.list_models("s")
            await client.list_models("s", cached="refresh")
            assert world.server.requests[1].header("if-none-match") is None

    simulated(tmp_path, main)


def test_an_unrequested_not_modified_is_an_error(tmp_path: Path) -> None:
    """An answer as wrong as any other."""

    async def main(world: World) -> None:
        world.server.default(Answer(304))
        async with world.client() as client:
            with pytest.raises(llmopt.UnexpectedStatus):
                await client.list_models("s")

    simulated(tmp_path, main)


def test_invalidate_during_a_not_modified_response(tmp_path: Path) -> None:
    """Then the list is asked for in full."""

    async def main(world: World) -> None:
        gate = asyncio.Event()
        world.server.default(with_etag(world))
        async with world.client() as client:
            await client.list_models("s")
            world.server.play(Script([Wait(gate), Respond(with_etag(world))]))
            asking = asyncio.create_task(client.list_models("s", cached="refresh"))
            await world.server.wait_requests(2)
            await client.invalidate("s")
            gate.set()
            assert len(await asking) == 2
            assert world.requests == 3

    simulated(tmp_path, main)


def test_invalidate_removes_the_list(tmp_path: Path) -> None:
    """One provider, or all; in memory, on disk and for others who share it."""

    async def main(world: World) -> None:
        entry = {"plugin": "local", "base_url": world.server.base_url}
        settings = {"cache_dir": str(world.folder), "providers": {"s": entry, "t": entry}}
        async with llmopt.AsyncClient(settings, clock=world.clock, cache=world.folder) as client:
            await client.warm(["s", "t"])
            await client.embed("s/m", ["a"])
            assert world.requests == 3
            await client.invalidate("s")
            await client.warm(["s", "t"])
            assert world.requests == 4
            await client.invalidate()
            await client.invalidate("nobody")
        async with llmopt.AsyncClient(settings, clock=world.clock, cache=world.folder) as client:
            await client.warm(["s", "t"])
            assert world.requests == 6
            # Vectors are another matter.
            await client.embed("s/m", ["a"])
            assert world.requests == 6

    def answer(world: World) -> None:
        from tests.support.faults import answer_openai

        world.server.default(answer_openai)

    async def prepared(world: World) -> None:
        answer(world)
        await main(world)

    simulated(tmp_path, prepared)


def test_offline_returns_only_cached_lists(tmp_path: Path) -> None:
    """What is kept, however old; else an error that says so. No request is sent."""

    async def main(world: World) -> None:
        async with world.client() as client:
            with pytest.raises(llmopt.NotCached, match="no list of models of 's' is cached"):
                await client.list_models("s", cached="offline")
            assert world.requests == 0
            await client.list_models("s")
            assert not (await client.list_models("s", cached="offline")).stale
            world.clock.advance(6 * DAY)
            found = await client.list_models("s", cached="offline")
            assert (found.stale, found.age >= 6 * DAY) == (True, True)
            await world.settle()
            assert world.requests == 1
        async with world.client(cache=False) as client:
            with pytest.raises(llmopt.NotCached):
                await client.list_models("s", cached="offline")

    simulated(tmp_path, main)


def test_refresh_requests_the_list_again(tmp_path: Path) -> None:
    """Whatever is kept; a failure is raised, and what is kept stays."""

    async def main(world: World) -> None:
        async with world.client() as client:
            await client.list_models("s")
            assert first(await client.list_models("s", cached="refresh")) == "model-2"
            world.server.default(error_answer(500, "sorry"))
            with pytest.raises(llmopt.ServerError):
                await client.list_models("s", cached="refresh")
            assert first(await client.list_models("s")) == "model-2"
            with pytest.raises(llmopt.ConfigError, match="cached must be"):
                await client.list_models("s", cached="never")  # type: ignore[arg-type] # the point

    simulated(tmp_path, main)


def test_a_custom_transport_caches_nothing_on_disk(tmp_path: Path) -> None:
    """Unless he says so: who answers there is not told by any address."""
    from llmopt.testing import FakeProvider

    async def main() -> None:
        with FakeProvider() as fake:
            for cache, there in ((None, False), (tmp_path / "named", True)):
                async with llmopt.AsyncClient(fake.config, transport=fake.transport, cache=cache) as client:
                    for _ in range(3):
                        assert len(await client.list_models("fake")) == 2
                assert (tmp_path / "named" / "cache-1.db").exists() == there
            assert len(fake.calls) == 2

    asyncio.run(main())


def test_a_list_of_several_pages_is_cached_completely(tmp_path: Path) -> None:
    """And asked for without an etag."""

    async def main(world: World) -> None:
        def answer(request: Request) -> Answer:
            entries = models_payload(["b" if "after=a" in str(request.target) else "a"])["data"]
            more = "after=a" not in str(request.target)
            page = {"data": entries, "has_more": more, "last_id": "a"}
            return json_answer(page, headers=[("etag", '"page"')])

        world.server.default(answer)
        async with world.client() as client:
            assert [model.id for model in await client.list_models("s")] == ["a", "b"]
            assert [model.id for model in await client.list_models("s")] == ["a", "b"]
            assert world.requests == 2
            await client.list_models("s", cached="refresh")
            assert world.server.requests[2].header("if-none-match") is None

    simulated(tmp_path, main)


def test_a_list_read_from_the_store_equals_the_original(tmp_path: Path) -> None:
    """Every field of every model, and the raw entry."""
    entries = [
        {
            "id": "a",
            "object": "model",
            "created": 5,
            "max_model_len": 4096,
            "novel": {"deep": [1, None, "ä"]},
        },
        {"id": "b", "object": "model", "owned_by": "x"},
    ]

    async def main(world: World) -> None:
        world.server.default(json_answer({"data": [*entries, {"object": "no id"}, 7]}))
        async with world.client() as client:
            fresh = await client.list_models("s")
            again = await client.list_models("s")
        async with world.client() as client:
            stored = await client.list_models("s")
        assert tuple(fresh) == tuple(again) == tuple(stored)
        assert fresh.dropped == stored.dropped == 2
        assert [dict(model.raw) for model in stored] == entries
        assert stored[0].context_length == 4096
        assert {model.provider for model in stored} == {"s"}

    simulated(tmp_path, main)


class Kept(llmopt.MemoryStore):
    """A store in memory that shows what was stored, and that may change it before."""

    def __init__(self, change: Callable[[llmopt.CacheItem], bytes] = lambda item: item.value) -> None:
        super().__init__()
        self.values: list[bytes] = []
        self._change = change

    async def put(self, items: Sequence[llmopt.CacheItem]) -> None:
        changed = [evolve(item, value=self._change(item)) for item in items]
        self.values += [item.value for item in changed]
        await super().put(changed)


def test_the_store_keeps_what_the_server_sent(tmp_path: Path) -> None:
    """Byte by byte, and the headers for the plugin, but no cookie."""
    body = b'{"data" : [{"id":"a", "x": 1.50}, {"id":"b"}]}'
    headers = [("x-models", "2"), ("set-cookie", "session=secret"), ("content-type", "application/json")]

    class Reads:
        @llmopt.hookimpl(wrapper=True)
        def parse_catalog(
            self, response: llmopt.HttpResponse
        ) -> Generator[None, llmopt.CatalogPage, llmopt.CatalogPage]:
            page = yield
            count = response.headers["x-models"]
            return evolve(page, models=tuple(evolve(each, name=count) for each in page.models))

    async def main(world: World) -> None:
        world.server.default(Answer(200, body, headers))
        store = Kept()
        async with world.client(plugins=[Reads()], cache=store) as client:
            fresh = await client.list_models("s")
        assert body in store.values[0]
        assert b"session" not in store.values[0]
        async with world.client(plugins=[Reads()], cache=store) as client:
            stored = await client.list_models("s", cached="offline")
        assert tuple(stored) == tuple(fresh)
        assert [each.name for each in stored] == ["2", "2"]

    simulated(tmp_path, main)


@pytest.mark.parametrize("key", ["test-key-0123456789", "word"])
def test_a_stored_list_holds_no_key_that_the_server_repeats(key: str, tmp_path: Path) -> None:
    """In a header or in the list; a key that is a plain word is no secret, and would damage what is stored."""
    body = json.dumps({"data": [{"id": "a", "description": f"for {key} alone"}]}).encode()

    async def main(world: World) -> None:
        world.server.default(Answer(200, body, [("content-type", "application/json"), ("x-served-to", key)]))
        store = Kept()
        async with world.client(entry={"api_key": key}, cache=store) as client:
            await client.list_models("s")
        assert (key.encode() in store.values[0]) == (key == "word")
        async with world.client(entry={"api_key": key}, cache=store) as client:
            assert first(await client.list_models("s", cached="offline")) == "a"
        assert world.requests == 1

    simulated(tmp_path, main)


@pytest.mark.parametrize("form", ["earlier format", "an error"])
def test_a_stored_list_that_cannot_be_read_any_more_is_fetched_again(form: str, tmp_path: Path) -> None:
    """One of an earlier version, and one that the plugin takes for an error."""
    kind, body = (
        (b"LOM1", b'[{"id":"old"}]') if form == "earlier format" else (b"LOM2", b'{"error":{"message":"no"}}')
    )
    head = b'{"etag":null,"dropped":0,"pages":[[{},%d]]}' % len(body)

    async def main(world: World) -> None:
        store = Kept(lambda item: write_record(kind, item.key, world.clock.wall(), head, body))
        for _ in range(2):
            async with world.client(cache=store) as client:
                assert first(await client.list_models("s")) == f"model-{world.requests}"
        assert world.requests == 2

    simulated(tmp_path, main)


def test_a_long_list_is_read_from_the_store(tmp_path: Path) -> None:
    """In a thread, so that other calls go on."""

    async def main(world: World) -> None:
        world.server.default(json_answer(models_payload([f"m{number}" for number in range(9_000)])))
        async with world.client() as client:
            fresh = await client.list_models("s")
        async with world.client() as client:
            stored = await client.list_models("s", cached="offline")
        assert len(stored) == 9_000
        assert [stored[0], stored[-1]] == [fresh[0], fresh[-1]]

    simulated(tmp_path, main)


@pytest.mark.row("C01")
def test_a_cached_list_call_can_be_cancelled_at_every_loop_iteration(tmp_path: Path) -> None:
    """The next call succeeds, and gives the right list."""

    async def main(world: World) -> None:
        for prepare in ("cold", "disk", "stale"):
            for turns in range(0, 60, scaled(5, nightly=1)):
                folder = tmp_path / f"{prepare}{turns}"
                world = World(world.server, world.clock, folder, [])
                if prepare != "cold":
                    async with world.client() as client:
                        await client.list_models("s")
                if prepare == "stale":
                    world.clock.advance(2 * HOUR)
                async with world.client() as client:
                    task = asyncio.create_task(client.list_models("s"))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    over = not task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    assert len(await client.list_models("s")) == 1
                if over and turns > 3:
                    break

    simulated(tmp_path, main)


def test_an_invalid_model_from_a_plugin_is_a_contract_error(tmp_path: Path) -> None:
    """It is the plugin's mistake, and said as such."""

    class Wrong:
        @llmopt.hookimpl(wrapper=True)
        def parse_catalog(self) -> Generator[None, llmopt.CatalogPage, llmopt.CatalogPage]:
            page = yield
            return evolve(page, models=tuple(evolve(each, context_length="8k") for each in page.models))

    async def main(world: World) -> None:
        async with world.client(plugins=[Wrong()]) as client:
            with pytest.raises(llmopt.PluginContractError, match=r"'s' returned a model.*context_length"):
                await client.list_models("s")
        async with world.client(plugins=[Wrong()], cache=False) as client:
            assert first(await client.list_models("s")) == "model-2"

    simulated(tmp_path, main)

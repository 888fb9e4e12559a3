"""What was learned of rate limits is kept for the next process, expires, and never hurts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest

import llmopt
from llmopt.cache.store import CacheItem, MemoryStore, read_record, write_record
from llmopt.policies.quota import LearnedLimits
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.calls import EmbedCall
from tests.support.configuration import provider_config
from tests.support.faults import FaultServer, RateLimited, Respond, Script, Wait, answer_openai
from tests.support.faults.quota import Bucket
from tests.support.scale import scaled

MODEL = "server/m"
KIND = b"LOB1"
CALL = EmbedCall(model="m")


class KeptStore(MemoryStore):
    """A store that outlives its clients, and shows the one record of learned rates in it."""

    def __init__(self) -> None:
        super().__init__()
        self.items: dict[bytes, CacheItem] = {}

    async def put(self, items: Any) -> None:
        self.items.update((item.key, item) for item in items)
        await super().put(items)

    def records(self) -> list[tuple[CacheItem, dict[str, Any]]]:
        """Without those of batch sizes, which have no endpoints."""
        return [
            (item, msgspec.json.decode(record.body))
            for item in self.items.values()
            if (record := read_record(KIND, item.key, item.value)) is not None
            and "0" in msgspec.json.decode(record.body)
        ]

    def record(self) -> tuple[CacheItem, dict[str, Any]]:
        (found,) = self.records()
        return found

    async def replace(self, body: bytes, *, created: float) -> None:
        item, _ = self.record()
        value = write_record(KIND, item.key, created, b"", body)
        await self.put([CacheItem(key=item.key, group=item.group, value=value, expires_at=created + 1e6)])


def limited(clock: SimulatedClock, rpm: float, *, headers: bool) -> RateLimited:
    limits = RateLimited(rpm=rpm, clock=clock.now, headers=headers, hint=headers)
    limits.buckets = {"requests": Bucket(rpm, 1.0, clock.now())}
    return limits


def client_of(server: FaultServer, clock: SimulatedClock, store: Any, **entry: Any) -> llmopt.AsyncClient:
    config = provider_config(server, **{"max_batch_size": 1, "max_concurrency": 32, **entry})
    return llmopt.AsyncClient(config, cache=store, clock=clock)


async def work(client: llmopt.AsyncClient, numbers: itertools.count[int], seconds: float) -> None:
    """Workers that always have a text, for so long."""

    async def busy() -> None:
        while True:
            await client.embed(MODEL, [f"text {next(numbers)}"])

    tasks = [asyncio.create_task(busy()) for _ in range(32)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def limiter_of(client: llmopt.AsyncClient) -> RateLimiter:
    components = client._components
    (endpoint,) = components.engine.endpoints(components.registry.get("server"))
    limiter = endpoint.policies.rate_limiter(CALL)
    assert isinstance(limiter, RateLimiter)
    return limiter


def limits_of(client: llmopt.AsyncClient) -> dict[str, Any]:
    (endpoint,) = client.stats()["server"].values()
    limits: dict[str, Any] = endpoint["limiters"]["m"]
    return limits


async def first_rpm(
    server: FaultServer, client: llmopt.AsyncClient, call: Coroutine[Any, Any, Any] | None = None
) -> float | None:
    """The limit in force before the first answer to a client; the call then goes on."""
    gate = asyncio.Event()
    server.play(Script([Wait(gate), Respond(answer_openai)]))
    task = asyncio.create_task(client.embed(MODEL, ["first"]) if call is None else call)
    await asyncio.sleep(0.001)
    rpm: float | None = limits_of(client)["rpm"]
    gate.set()
    await asyncio.gather(task, return_exceptions=True)
    return rpm


def test_limits_that_headers_state_are_known_to_the_next_process() -> None:
    """From its first request on; the record names neither key nor address."""

    async def main(clock: SimulatedClock) -> None:
        store = KeptStore()
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.default(limited(clock, 600, headers=True))
            async with client_of(server, clock, store, api_key="key-of-account-1") as client:
                await client.embed(MODEL, ["a"])
                await asyncio.sleep(0)
                # At once, so that a process that is killed has kept it.
                item, saved = store.record()
            assert saved == {"0": [600.0, None, None, None]}
            assert item.group == "limits/server"
            assert b"key-of" not in item.value
            assert server.base_url.encode() not in item.value
            async with client_of(server, clock, store, api_key="key-of-account-1") as client:
                assert await first_rpm(server, client) == 600
            async with client_of(server, clock, store, api_key="key-of-account-2") as client:
                assert await first_rpm(server, client) is None, "another account has other limits"

    run_simulated(main)


def test_a_chat_begins_with_what_was_learned_too() -> None:
    """A stream as well."""

    async def main(clock: SimulatedClock) -> None:
        store = KeptStore()
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.default(limited(clock, 600, headers=True))
            async with client_of(server, clock, store) as client:
                await client.embed(MODEL, ["a"])
            question = [{"role": "user", "content": "x"}]
            async with client_of(server, clock, store, max_retries=0) as client:
                assert await first_rpm(server, client, client.chat(MODEL, question)) == 600
            async with client_of(server, clock, store, max_retries=0) as client:
                stream = client.stream(MODEL, question)
                assert await first_rpm(server, client, stream.__aenter__()) == 600

    run_simulated(main)


def test_closing_saves_what_is_new() -> None:
    """Of changes within ten seconds only the first is saved at once. What was saved already is not written again."""

    async def main(clock: SimulatedClock) -> None:
        store = KeptStore()
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.default(limited(clock, 600, headers=True))
            async with client_of(server, clock, store) as client:
                await client.embed(MODEL, ["a"])
                await asyncio.sleep(0)
                limiter_of(client).restore(LearnedLimits(measured_rpm=60.0))
                assert store.record()[1]["0"] == [600, None, None, None]
            assert store.record()[1]["0"] == [600, None, 60, None]
            item = store.record()[0]
            async with client_of(server, clock, store) as client:
                await client.embed(MODEL, ["b"])
            assert store.record()[0] is item

    run_simulated(main)


def test_a_measured_rate_spares_the_next_process_its_refusals() -> None:
    """A server without headers refuses fewer requests of the second process, which does as much."""

    async def main(clock: SimulatedClock) -> None:
        store = KeptStore()
        numbers = itertools.count()
        refused, granted = [], []
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            for _ in range(2):
                limits = limited(clock, 1_200, headers=False)
                server.default(limits)
                async with client_of(server, clock, store) as client:
                    await work(client, numbers, 20)
                refused.append(len(limits.refusals))
                granted.append(len(limits.grants))
        print(refused, granted)
        _, saved = store.record()
        assert saved["0"][2] == pytest.approx(1_200, rel=0.2)
        assert refused[1] < 0.7 * refused[0]
        assert granted[1] > 0.95 * granted[0]

    run_simulated(main)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_wrong_record_is_corrected_by_the_first_answers(factor: float) -> None:
    """A minute with it is worth nearly as much as one without it, and as few requests are refused."""

    async def main(clock: SimulatedClock) -> None:
        numbers = itertools.count()
        refused, granted = [], []
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            for record in (None, LearnedLimits(measured_rpm=1_200 * factor)):
                limits = limited(clock, 1_200, headers=False)
                server.default(limits)
                async with client_of(server, clock, False) as client:
                    if record is not None:
                        limiter_of(client).restore(record)
                    await work(client, numbers, scaled(30, nightly=60))
                refused.append(len(limits.refusals))
                granted.append(len(limits.grants))
        print(refused, granted)
        assert refused[1] <= refused[0] + 10
        assert granted[1] > (0.85 if factor < 1 else 0.97) * granted[0]

    run_simulated(main)


def test_a_limit_that_the_first_response_does_not_state_is_dropped() -> None:
    """The server states none any more; what it does state is taken at once."""

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            for stated, rpm in ((True, 600), (False, None)):
                server.default(limited(clock, 600, headers=stated))
                async with client_of(server, clock, False) as client:
                    limiter_of(client).restore(LearnedLimits(stated_rpm=120.0, stated_tpm=7_000.0))
                    assert limits_of(client)["rpm"] == 120
                    assert limits_of(client)["tpm"] == 7_000
                    await client.embed(MODEL, ["a"])
                    assert limiter_of(client).learned[:2] == (rpm, None)
                    assert limits_of(client)["tpm"] is None

    run_simulated(main)


@pytest.mark.parametrize(
    ("body", "rpm"),
    [
        (b'{"0": [300, null, null, null, "more"], "version": 9}', 300),
        (b'{"0": [300, null]}', None),
        (b'{"0": [-5, null, null, null]}', None),
        (b'{"0": [true, null, null, null]}', None),
        (b'{"0": ["600", null, null, null]}', None),
        (b'{"0": [1e12, null, null, null]}', None),
        (b'{"1": [300, null, null, null]}', None),
        (b'{"0": 300}', None),
        (b"[]", None),
        (b"\xff", None),
    ],
)
def test_a_record_of_another_version_is_read_as_far_as_it_is_known(body: bytes, rpm: float | None) -> None:
    """And never fails a call."""

    async def main(clock: SimulatedClock) -> None:
        assert await restored_rpm(clock, body, age=10.0) == rpm

    run_simulated(main)


@pytest.mark.parametrize(("days", "rpm"), [(6.99, 300), (7.01, None), (-0.01, None)])
def test_a_record_expires_after_a_week(days: float, rpm: float | None) -> None:
    """And when the calendar was set back."""

    async def main(clock: SimulatedClock) -> None:
        body = b'{"0": [300, null, null, null]}'
        assert await restored_rpm(clock, body, age=days * 24 * 3600) == rpm

    run_simulated(main)


async def restored_rpm(clock: SimulatedClock, body: bytes, *, age: float) -> float | None:
    """The limit that a client begins with, given such a record."""
    store = KeptStore()
    async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
        server.default(limited(clock, 600, headers=True))
        async with client_of(server, clock, store) as client:
            await client.embed(MODEL, ["a"])
        await store.replace(body, created=clock.wall() - age)
        async with client_of(server, clock, store) as client:
            return await first_rpm(server, client)


@pytest.mark.parametrize(
    "options",
    [{"cache": False}, {"cache_ttl": 0}, {"flags": {"cache": False}}, {"flags": {"limiter": False}}],
    ids=["no cache", "ttl 0", "flag", "no limiter"],
)
def test_nothing_is_kept_where_nothing_is_cached(options: dict[str, Any]) -> None:
    """Nor where nothing is limited."""

    async def main(clock: SimulatedClock) -> None:
        store = KeptStore()
        cache = options.get("cache", store)
        entry = {key: value for key, value in options.items() if key != "cache"}
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.default(limited(clock, 600, headers=True))
            async with client_of(server, clock, cache, **entry) as client:
                await client.embed(MODEL, ["a"])
        assert not store.records()

    run_simulated(main)


def test_a_token_function_keeps_nothing() -> None:
    """Whose credential it gives is not known."""

    async def main(clock: SimulatedClock) -> None:
        store = KeptStore()
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.default(limited(clock, 600, headers=True))
            async with client_of(server, clock, store, api_key=lambda: "a-token-of-tests") as client:
                await client.embed(MODEL, ["a"])
        assert not store.records()

    run_simulated(main)


def test_what_was_learned_survives_a_round_trip() -> None:
    """Both dimensions, or one of them."""
    for measured in ((60.0, None), (None, 6_000.0), (60.0, 6_000.0), (None, None)):
        clock = SimulatedClock()
        limiter = RateLimiter(clock=clock)
        given = LearnedLimits(600.0, None, *measured)
        limiter.restore(given)
        assert limiter.learned == pytest.approx(given)


def test_what_this_process_learned_is_not_overwritten() -> None:
    """A record that is read late tells less than an answer."""
    clock = SimulatedClock()
    limiter = RateLimiter(clock=clock, initial_window=0)
    limiter.restore(LearnedLimits(600.0, None, 60.0, None))
    limiter.restore(LearnedLimits(1_200.0, 5_000.0, 120.0, None))
    assert limiter.learned == pytest.approx(LearnedLimits(600.0, 5_000.0, 60.0, None))

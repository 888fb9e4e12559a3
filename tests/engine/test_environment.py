"""Loops, clocks, deadlines, stamina's switches, broken logging, long inputs; and S06."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import pickle
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import pytest
import stamina

import llmopt
from llmopt.cache.store import write_record
from llmopt.policies.retry import BUDGET_CAPACITY, TRANSIENT_COST
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import BreakerChanged
from tests.support.configuration import provider_config
from tests.support.faults import (
    Answer,
    FaultServer,
    answer_openai,
    find_fault,
    retry_after,
    serving,
    vector_for,
)
from tests.support.scale import scaled

MODEL = "server/m"
DOWN = Answer(500, b'{"error": {"message": "down"}}', [("content-type", "application/json")])


config = functools.partial(provider_config, retry_delay=0.001)


def right(found: Any, *texts: str) -> bool:
    return bool(np.array_equal(found.vectors, np.array([vector_for(text) for text in texts])))


# Loops


@pytest.mark.row("C08")
def test_one_client_works_in_consecutive_event_loops() -> None:
    """Each run opens its own connections."""
    with serving() as thread:
        client = llmopt.AsyncClient(config(thread.server))
        for number in range(3):
            assert right(asyncio.run(client.embed(MODEL, [f"text {number}"])), f"text {number}")
        asyncio.run(client.aclose())
        thread.run(thread.server.wait_all_closed())


@pytest.mark.row("C08")
def test_one_client_works_on_several_loops_at_once() -> None:
    """In threads: nobody gets another's vectors, and one line of requests does not hold up the other."""
    with serving() as thread:
        client = llmopt.AsyncClient(config(thread.server))
        wrong: list[str] = []

        async def use(name: str) -> None:
            async def one(number: int) -> None:
                text = f"{name} {number}"
                if not right(await client.embed(MODEL, [text]), text):
                    wrong.append(text)

            await asyncio.gather(*(one(number) for number in range(100)))

        threads = [threading.Thread(target=lambda n=n: asyncio.run(use(f"thread {n}"))) for n in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert wrong == []
        assert len(thread.server.requests) == 400
        asyncio.run(client.aclose())


@pytest.mark.row("C08")
def test_first_calls_from_many_threads_share_one_pool() -> None:
    """The first thread opens it; no other pool is left open."""
    with serving() as thread:
        for _ in range(scaled(10, nightly=30)):
            client = llmopt.AsyncClient(config(thread.server))
            ready = threading.Barrier(4)

            def use(client: llmopt.AsyncClient = client, ready: threading.Barrier = ready) -> None:
                ready.wait(10)
                asyncio.run(client.embed(MODEL, ["a"]))

            threads = [threading.Thread(target=use) for _ in range(4)]
            for one in threads:
                one.start()
            for one in threads:
                one.join()
            asyncio.run(client.aclose())
        thread.run(thread.server.wait_all_closed())
    gc.collect()


@pytest.mark.row("C08")
def test_uvloop_works() -> None:
    """Another loop, the same answers."""
    uvloop = pytest.importorskip("uvloop")
    with serving() as thread:
        thread.server.play(DOWN)

        async def main() -> bool:
            async with llmopt.AsyncClient(config(thread.server)) as client:
                found = await asyncio.gather(*(client.embed(MODEL, [f"text {n}"]) for n in range(50)))
            return all(right(each, f"text {n}") for n, each in enumerate(found))

        assert uvloop.run(main())


@pytest.mark.row("C07")
async def test_an_unclosed_client_warns() -> None:
    """With a `ResourceWarning`, and its connections end."""
    async with FaultServer() as server:
        # Without a cache: its files are read in a task, which may still hold the client when the call has ended.
        clients = [llmopt.AsyncClient(config(server), cache=False)]
        await clients[0].embed(MODEL, ["a"])
        with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031 - a collection before it would warn too early
            clients.clear()
            gc.collect()
        await server.wait_all_closed()


# Clocks


@pytest.mark.row("C10")
@pytest.mark.parametrize("jump", [3_600.0, -3_600.0, 3.2e8, -3.2e8])
def test_a_jump_of_the_wall_clock_changes_nothing(jump: float) -> None:
    """Back-off, pause, deadline and circuit go by the clock that only grows."""

    async def main(clock: SimulatedClock) -> None:
        events: list[Any] = []
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(
                config(server, retry_delay=1.0, max_retries=2), clock=clock, on_event=events.append
            ) as client,
        ):
            server.default(answer_openai)
            await client.embed(MODEL, ["warm"])
            server.play(retry_after("3"))
            call = asyncio.create_task(client.embed(MODEL, ["a"], deadline=30))
            await clock.sleep(1)
            clock.set_wall(max(0.0, clock.wall() + jump))
            await call
            assert 3 <= clock.elapsed <= 3.5
            server.play(DOWN)
            await client.embed(MODEL, ["b"], deadline=30)
            assert clock.elapsed <= 5.5
        assert not [event for event in events if isinstance(event, BreakerChanged)]

    run_simulated(main)


@pytest.mark.row("C10")
def test_calls_continue_after_a_suspend() -> None:
    """A minute passes at once: what waited goes, the deadline that passed is told, nothing else breaks."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server), clock=clock) as client,
        ):
            server.default(answer_openai)
            await client.embed(MODEL, ["warm"])
            server.play(retry_after("50"))
            patient = asyncio.create_task(client.embed(MODEL, ["a"]))
            await server.wait_requests(2)
            await clock.sleep(1)
            clock.advance(60)
            assert right(await patient, "a")
            assert right(await client.embed(MODEL, ["b"]), "b")
            assert clock.elapsed < 62

    run_simulated(main)


# Budgets, nesting, stamina


@pytest.mark.row("C14")
def test_an_empty_budget_ends_retries() -> None:
    """Thirty-five of them in all, whoever makes them; from then on a failure is one request."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(
                config(server, max_retries=3), clock=clock, flags={"breaker": False, "limiter": False}
            ) as client,
        ):
            server.default(DOWN)
            notes: list[list[str]] = []
            for number in range(30):
                with pytest.raises(llmopt.ServerError) as caught:
                    await client.embed(MODEL, [f"text {number}"])
                notes.append(getattr(caught.value, "__notes__", []))
            assert len(server.requests) == 30 + BUDGET_CAPACITY // TRANSIENT_COST
            assert any("budget" in note for note in notes[-1])

    run_simulated(main)


@pytest.mark.row("C14")
async def test_a_call_inside_an_attempt_does_not_retry() -> None:
    """A token provider that asks llmopt itself: its failure is the outer attempt's, and not multiplied."""
    async with FaultServer() as inner_server, FaultServer() as server:
        inner_server.default(DOWN)
        async with llmopt.AsyncClient(config(inner_server, max_retries=5)) as inner:

            async def token() -> str:
                try:
                    await inner.embed(MODEL, ["a"])
                except llmopt.ServerError:
                    return "from-elsewhere"
                return "unexpected"

            async with llmopt.AsyncClient(config(server, api_key=token)) as outer:
                assert right(await outer.embed(MODEL, ["b"]), "b")
    # The token is asked for before the attempt begins, where retrying is as good as anywhere.
    assert 1 <= len(inner_server.requests) <= 6
    assert len(server.requests) == 1


@pytest.mark.row("C15")
@pytest.mark.parametrize("deadline", [0, -1, 1e-9])
async def test_an_expired_deadline_fails_at_once(deadline: float) -> None:
    """Nothing is sent."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        for call in (
            client.embed(MODEL, ["a"], deadline=deadline),
            client.list_models("server", deadline=deadline),
            client.chat(MODEL, [{"role": "user", "content": "a"}], deadline=deadline),
        ):
            with pytest.raises(llmopt.DeadlineExceeded):
                await call
        parts = client.embed_iter(MODEL, ["a"], deadline=deadline)
        with pytest.raises(llmopt.DeadlineExceeded):
            await anext(parts)
    assert server.requests == []


@pytest.mark.row("C15")
@pytest.mark.parametrize("deadline", [float("nan"), float("inf"), "5", True])
async def test_invalid_deadlines_are_refused(deadline: Any) -> None:
    """An invalid value raises instead of meaning no deadline."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        with pytest.raises(llmopt.ConfigError, match="deadline"):
            await client.embed(MODEL, ["a"], deadline=deadline)
    assert server.requests == []


@pytest.mark.row("C16")
async def test_stamina_switches_and_a_raising_stamina_hook_change_nothing() -> None:
    """Switched off it makes no retry; in test mode as many attempts as it is told; a hook's fault stays its own."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_retries=3)) as client:
        server.default(DOWN)
        try:
            stamina.set_active(False)
            with pytest.raises(llmopt.ServerError):
                await client.embed(MODEL, ["a"])
            assert len(server.requests) == 1
            stamina.set_active(True)
            with stamina.set_testing(True, attempts=2), pytest.raises(llmopt.ServerError):
                await client.embed(MODEL, ["b"])
            assert len(server.requests) == 3

            def broken(_: Any) -> None:
                raise RuntimeError("hook")

            stamina.instrumentation.set_on_retry_hooks([broken])
            server.default(answer_openai)
            server.play(DOWN)
            assert right(await client.embed(MODEL, ["c"]), "c")
        finally:
            stamina.set_active(True)
            stamina.instrumentation.set_on_retry_hooks(None)


# Logging


@pytest.mark.row("C17")
async def test_a_log_handler_that_raises_does_not_affect_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """logging's own rule: what goes wrong in a handler is the handler's."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("disk full")

    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = Broken(logging.DEBUG)
    logger = logging.getLogger("llmopt")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
            server.play(DOWN)
            assert right(await client.embed(MODEL, ["a"]), "a")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.mark.row("C17")
async def test_structlog_configuration_changes_nothing() -> None:
    """A processor that raises is never called by a retry of ours."""
    import structlog

    def broken(*_: Any) -> Any:
        raise RuntimeError("processor")

    structlog.configure(processors=[broken])
    try:
        async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
            server.play(DOWN)
            assert right(await client.embed(MODEL, ["a"]), "a")
    finally:
        structlog.reset_defaults()


# Memory


@pytest.mark.row("C18")
async def test_a_long_input_takes_no_more_memory_than_a_short_one() -> None:
    """Its texts are made as they are wanted, and forgotten with their part."""
    live = most = 0

    class Text(str):  # noqa: SLOT000 - what is counted needs a finalizer, not slots
        def __new__(cls, text: str) -> Self:
            nonlocal live, most
            live += 1
            most = max(most, live)
            return super().__new__(cls, text)

        def __del__(self) -> None:
            nonlocal live
            live -= 1

    def source(count: int) -> Iterator[str]:
        for number in range(count):
            yield Text(f"text {number}")

    async def peak(client: llmopt.AsyncClient, count: int) -> int:
        tracemalloc.start()
        rows = 0
        async with client.embed_iter(MODEL, source(count)) as parts:
            async for part in parts:
                rows += len(part)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert rows == count
        return found

    with serving() as thread:
        # What the server remembers of its requests is not what is measured.
        thread.server.requests = _Forgetful()
        async with llmopt.AsyncClient(config(thread.server, max_batch_size=32)) as client:
            await peak(client, scaled(1_000, nightly=3_000))
            short = await peak(client, scaled(1_000, nightly=3_000))
            long = await peak(client, scaled(4_000, nightly=15_000))
    assert most < 1_000
    assert live == 0
    assert long < 1.2 * short + (1 << 20)


class _Forgetful(list[Any]):
    def append(self, _: Any) -> None:
        """Nothing is kept."""


# Files


class _Explosive:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a planted pickle was executed",))


class _Planted:
    """A store that has the same value under every key."""

    def __init__(self, make: Callable[[bytes], bytes]) -> None:
        self._make = make

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._make(key) for key in keys]

    async def put(self, items: Sequence[llmopt.CacheItem]) -> None:
        """Nothing is kept."""

    async def remove(self, keys: Sequence[bytes]) -> None:
        """Nothing is kept."""

    async def clear(self, group: str | None = None) -> None:
        """Nothing is kept."""

    async def size(self) -> llmopt.CacheSize:
        return llmopt.CacheSize()

    async def aclose(self) -> None:
        """Nothing is open."""


@pytest.mark.row("S06")
@pytest.mark.parametrize("framed", [False, True])
async def test_planted_cache_values_are_never_executed(framed: bool) -> None:
    """Pickles and nonsense count for nothing, with a right checksum or without one."""
    plants = [
        pickle.dumps(_Explosive()),
        b"__import__('os').system('true')",
        b"[" * 100_000,
        b'{"items": {"size": "many"}}',
        b'{"items": 7, "tokens": [1]}',
        b"\xff" * 1_000,
        b"",
    ]
    async with FaultServer() as server:
        for plant in plants:

            def make(key: bytes, plant: bytes = plant) -> bytes:
                return write_record(b"LOB1", key, time.time(), b"", plant) if framed else plant

            async with llmopt.AsyncClient(config(server), cache=_Planted(make)) as client:
                find_fault("H11", "413").inject(server)
                found = await client.embed(MODEL, ["a", "b", "c", "d"])
                assert right(found, "a", "b", "c", "d")

"""The connection pool against HTTP servers that others wrote: every kind of answer, on asyncio and uvloop."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from llmopt.errors import ConnectionLost
from llmopt.transport.pool import ConnectionPool
from llmopt.transport.request import TransportRequest
from llmopt.values.http import HttpResponse
from tests.servers.conftest import REQUIRED, Run, Servers
from tests.servers.fronts import NAMES, PROXIES
from tests.servers.paths import pattern
from tests.transport.helpers import chunks, open_pool, open_stream

pytestmark = pytest.mark.skipif(
    not REQUIRED, reason="runs with LLMOPT_SERVERS=required, as in .ci/nightly servers"
)
every_server = pytest.mark.parametrize("name", NAMES)

REQUESTS, AT_ONCE = 1_000, 64
SIZES = (0, 1, 1_000, 65_536, 10_000_000)


def get(url: str, path: str, **options: Any) -> TransportRequest:
    return TransportRequest(method="GET", url=f"{url}/{path}", timeout=30.0, **options)


def post(url: str, path: str, body: bytes, **headers: str) -> TransportRequest:
    return TransportRequest(method="POST", url=f"{url}/{path}", body=body, headers=headers, timeout=30.0)


@every_server
def test_sizes_both_ways(name: str, servers: Servers, run: Run[None]) -> None:
    """What is asked for comes, and what is sent comes back, one after another on one connection."""
    url = servers.get(name).url

    async def test() -> None:
        async with open_pool() as pool:
            for size in SIZES:
                assert (await pool.send(get(url, f"bytes/{size}"))).body == pattern(size)
                assert (await pool.send(post(url, "echo/", pattern(size)))).body == pattern(size)
            assert (pool.stats().created, pool.stats().reused) == (1, 2 * len(SIZES) - 1)

    run(test())


@every_server
def test_large_bodies_at_once(name: str, servers: Servers, run: Run[None]) -> None:
    """Several connections read and write megabytes."""
    url = servers.get(name).url

    async def test() -> None:
        async with open_pool(pool_size=4) as pool:
            answers = await asyncio.gather(
                *(pool.send(post(url, "echo/", pattern(2_000_000 + extra))) for extra in range(8))
            )
        assert [answer.body for answer in answers] == [pattern(2_000_000 + extra) for extra in range(8)]

    run(test())


@every_server
def test_connections_are_kept(name: str, servers: Servers, run: Run[None]) -> None:
    """A thousand requests, 64 in flight, need no more than 64 connections."""
    url = servers.get(name).url

    async def test() -> None:
        async with open_pool(pool_size=AT_ONCE) as pool:
            answers = await many(pool, url)
            assert [answer.body for answer in answers] == [str(number).encode() for number in range(REQUESTS)]
            assert pool.stats().created <= AT_ONCE
            assert pool.stats().reused == REQUESTS - pool.stats().created

    run(test())


async def many(pool: ConnectionPool, url: str) -> list[HttpResponse]:
    found: list[HttpResponse] = [None] * REQUESTS  # type: ignore[list-item]
    numbers = iter(range(REQUESTS))

    async def worker() -> None:
        for number in numbers:
            found[number] = await send(pool, post(url, "echo/", str(number).encode()))

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return found


async def send(pool: ConnectionPool, request: TransportRequest) -> HttpResponse:
    """Like the engine, which sends again what met a connection that the server had closed."""
    while True:
        try:
            return await pool.send(request)
        except ConnectionLost as error:
            if not error.stale:
                raise


@every_server
def test_framings(name: str, servers: Servers, run: Run[None]) -> None:
    """Chunks, with and without compression, and answers that have no body: the connection stays in step."""
    url = servers.get(name).url

    async def test() -> None:
        async with open_pool() as pool:
            for size in (0, 10, 300_000):
                assert (await pool.send(get(url, f"chunked/{size}"))).body == pattern(size)
                assert (await pool.send(get(url, f"gzip/{size}"))).body == pattern(size)
                assert (await pool.send(post(url, "chunked/7", pattern(size)))).body == pattern(7)
            for status in (204, 304, 200, 404, 500):
                answer = await pool.send(get(url, f"status/{status}"))
                assert answer.status == status
                assert answer.body == (b"" if status in {204, 304} else f"status {status}".encode())
            assert pool.stats().created == 1

    run(test())


@every_server
def test_gzip_really_is_compressed(name: str, servers: Servers, run: Run[None]) -> None:
    """The size that was received is a small part."""
    url, headers = servers.get(name).url, {"x-zip": "yes"}
    path = "bytes/300000" if name == "haproxy" else "gzip/300000"

    async def test() -> None:
        async with open_pool() as pool:
            answer = await pool.send(get(url, path, headers=headers))
        assert answer.body == pattern(300_000)
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.info.compressed_size is not None
        assert answer.info.compressed_size < 30_000

    run(test())


@every_server
def test_continue_before_the_answer(name: str, servers: Servers, run: Run[None]) -> None:
    """A request that expects 100 gets it, and then its answer."""
    url = servers.get(name).url
    if name == "haproxy":
        pytest.skip(
            "haproxy 2.6 sometimes stalls between 100 of the server behind it and a body that is sent meanwhile"
        )

    async def test() -> None:
        async with open_pool() as pool:
            for size in (10, 1_000_000):
                answer = await pool.send(post(url, "echo/", pattern(size), expect="100-continue"))
                assert (answer.status, answer.body) == (200, pattern(size))
            assert pool.stats().created == 1

    run(test())


def test_early_hints_before_the_answer(servers: Servers, run: Run[None]) -> None:
    """103 and 102, which node can send."""
    url = servers.get("node").url

    async def test() -> None:
        async with open_pool() as pool:
            for _ in range(3):
                assert (await pool.send(get(url, "hints/"))).body == b"after the hints"
            assert pool.stats().created == 1

    run(test())


@every_server
def test_an_announced_close(name: str, servers: Servers, run: Run[None]) -> None:
    """The next request takes another connection."""
    url = servers.get(name).url
    if name == "haproxy":
        pytest.skip("haproxy keeps the client's connection, whatever the server behind it says")

    async def test() -> None:
        async with open_pool() as pool:
            for _ in range(3):
                assert (await pool.send(get(url, "closing/"))).body == b"the last"
            assert (pool.stats().created, pool.stats().reused) == (3, 0)

    run(test())


@every_server
def test_a_refusal_while_the_body_is_being_sent(name: str, servers: Servers, run: Run[None]) -> None:
    """413 before the body was read, which the client must not miss while it writes."""
    url = servers.get(name).url

    async def test() -> None:
        async with open_pool() as pool:
            for _ in range(5):
                assert (await pool.send(post(url, "early/", pattern(10_000_000)))).status == 413
                assert (await pool.send(post(url, "echo/", b"and then"))).body == b"and then"

    run(test())


@pytest.mark.parametrize("name", PROXIES)
def test_errors_of_a_proxy_itself(name: str, servers: Servers, run: Run[None]) -> None:
    """502 or 503 for a dead server behind it, with a page of its own; the connection is kept."""
    url = servers.get(name).url

    async def test() -> None:
        async with open_pool() as pool:
            for _ in range(3):
                answer = await pool.send(post(url, "dead/", b"{}"))
                assert answer.status in {502, 503}
                assert b"<html>" in answer.body.lower()
                assert (await pool.send(get(url, "bytes/3"))).body == pattern(3)

    run(test())


@pytest.mark.parametrize("name", PROXIES)
def test_a_rate_limit_of_a_proxy(name: str, servers: Servers, run: Run[None]) -> None:
    """429 with Retry-After; nginx's own limiter lets the first through."""
    url = servers.get(name).url

    async def test() -> None:
        async with open_pool() as pool:
            answers = [await pool.send(post(url, "limited/", b"{}")) for _ in range(4)]
        refused = [answer for answer in answers if answer.status == 429]
        assert len(refused) >= 3
        assert {answer.headers["retry-after"] for answer in refused} == {"7"}

    run(test())


@every_server
def test_events_arrive_one_by_one(name: str, servers: Servers, run: Run[None]) -> None:
    """A slow stream is read while it comes, and its connection is kept."""
    url = servers.get(name).url

    async def test() -> None:
        async with open_pool() as pool:
            for _ in range(2):
                async with open_stream(pool, get(url, "events/10")) as stream:
                    found = [chunk async for chunk in chunks(stream)]
                assert b"".join(found) == b"".join(b"data: %d\n\n" % number for number in range(10))
                assert len(found) > 3
            assert pool.stats().created == 1

    run(test())


@every_server
def test_streams_left_early(name: str, servers: Servers, run: Run[None]) -> None:
    """Their connections are closed, and none is left behind."""
    url = servers.get(name).url

    async def test() -> None:
        async with open_pool(pool_size=4) as pool:

            async def one(wanted: int) -> None:
                async with open_stream(pool, get(url, "events/1000")) as stream:
                    async for _ in chunks(stream):
                        wanted -= 1
                        if wanted <= 0:
                            break

            await asyncio.gather(*map(one, itertools.islice(itertools.cycle((0, 1, 3)), 24)))
            assert (pool.stats().in_use, pool.stats().idle) == (0, 0)
            assert (await pool.send(get(url, "bytes/3"))).body == pattern(3)

    run(test())


@every_server
def test_cancelled_at_any_time(name: str, servers: Servers, run: Run[None]) -> None:
    """Whatever a cancelled request left on a connection, the next one gets its own answer."""
    url = servers.get(name).url

    async def test() -> None:
        async with open_pool(pool_size=4) as pool:
            for turns in range(60):
                task = asyncio.create_task(pool.send(post(url, "echo/", pattern(200_000))))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert pool.stats().in_use == 0
                text = str(turns).encode()
                assert (await pool.send(post(url, "echo/", text))).body == text

    run(test())

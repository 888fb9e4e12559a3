"""The pool sends requests, keeps connections, counts them and limits them."""

from __future__ import annotations

import asyncio
import json

import pytest

from llmopt.errors import ClientClosed, ConfigError, ConnectionLost, PoolTimeout
from llmopt.transport.pool import ConnectionPool, PoolStats
from llmopt.transport.request import TransportRequest
from tests.support.faults import (
    Answer,
    CloseAfter,
    Fault,
    FaultServer,
    Framing,
    Reset,
    Respond,
    Script,
    Send,
    Stall,
    Wait,
    error_answer,
    faults_of,
    json_answer,
)
from tests.support.scale import scaled
from tests.transport.helpers import (
    HEADERS,
    KEY,
    PROMPT,
    count_vectors,
    embed_request,
    expect_error,
    open_pool,
    other_tasks,
)


async def test_a_request_arrives_unchanged(server: FaultServer, pool: ConnectionPool) -> None:
    """Method, path, headers and body, with only the necessary headers added."""
    await pool.send(embed_request(server, "a", "b"))
    (seen,) = server.requests
    assert (seen.method, seen.path) == ("POST", "/v1/embeddings")
    assert seen.json()["input"] == ["a", "b"]
    assert {name.lower(): value for name, value in seen.headers} == {
        **HEADERS,
        "host": f"127.0.0.1:{server.port}",
        "accept": "*/*",
        "accept-encoding": "gzip, deflate",
        "user-agent": "llmopt",
        "content-length": str(len(seen.body)),
    }


async def test_the_callers_headers_replace_the_default_headers(
    server: FaultServer, pool: ConnectionPool
) -> None:
    given = {"User-Agent": "app/1", "Accept": "application/json", "accept-encoding": "identity"}
    await pool.send(embed_request(server, headers=given))
    (seen,) = server.requests
    for name, value in given.items():
        assert seen.header_values(name) == [value]


async def test_a_response_has_status_headers_and_body(server: FaultServer, pool: ConnectionPool) -> None:
    """Header names in lower case, repeated ones joined."""
    server.play(json_answer({"a": 1}, headers=[("X-Request-ID", "r1"), ("Link", "one"), ("link", "two")]))
    response = await pool.send(embed_request(server))
    assert response.status == 200
    assert response.json == {"a": 1}
    assert response.headers["x-request-id"] == "r1"
    assert response.headers["link"] == "one, two"


async def test_every_status_is_a_response(server: FaultServer, pool: ConnectionPool) -> None:
    """The transport does not interpret statuses."""
    for status in (200, 201, 204, 304, 401, 404, 429, 500, 503, 529, 600, 999):
        server.play(Answer(status) if status in (204, 304) else error_answer(status, "Hm."))
        response = await pool.send(embed_request(server))
        assert response.status == status
    assert pool.stats().created == 1


async def test_a_get_request_has_no_body(server: FaultServer, pool: ConnectionPool) -> None:
    request = TransportRequest(method="GET", url=f"{server.base_url}/v1/models", headers=HEADERS)
    response = await pool.send(request)
    assert response.json["object"] == "list"
    assert server.requests[0].body == b""
    assert server.requests[0].header("content-length") is None


@pytest.mark.parametrize("size", [0, 1, 65_000, 70_000, 2**20 + 1, 20 * 2**20])
async def test_request_bodies_of_every_size_arrive_whole(
    size: int, server: FaultServer, pool: ConnectionPool
) -> None:
    """Also above a mebibyte, in several writes."""
    server.default(lambda request: Answer(200, request.body))
    body = bytes(range(256)) * (size // 256 + 1)
    response = await pool.send(embed_request(server, body=body[:size]))
    assert response.body == body[:size]


@pytest.mark.parametrize("size", [0, 1, 300_000, 30 * 2**20])
async def test_response_bodies_of_every_size_arrive_whole(
    size: int, server: FaultServer, pool: ConnectionPool
) -> None:
    """With a length, in chunks, or until the end of the connection."""
    body = bytes(range(256)) * (size // 256 + 1)
    for framing in (Framing.LENGTH, Framing.CHUNKED, Framing.EOF):
        server.play(Answer(200, body[:size], framing=framing))
        assert (await pool.send(embed_request(server))).body == body[:size]


async def test_a_connection_is_reused(server: FaultServer, pool: ConnectionPool) -> None:
    """The response says so."""
    first = await pool.send(embed_request(server))
    assert (first.info.phase, first.info.reused, first.info.sent) == ("done", False, "yes")
    again = await pool.send(embed_request(server))
    assert (again.info.phase, again.info.reused, again.info.sent) == ("done", True, "yes")
    assert server.connections == 1
    assert pool.stats() == PoolStats(created=1, reused=1, in_use=0, idle=1, waiting=0, peak=1)
    assert repr(pool) == "<ConnectionPool open: 0 in use, 1 idle, 0 waiting>"


async def test_without_keepalive_each_request_has_its_own_connection(server: FaultServer) -> None:
    """The request has the header `connection: close`."""
    async with open_pool(keepalive=0) as pool:
        for _ in range(3):
            await pool.send(embed_request(server))
        assert pool.stats() == PoolStats(created=3, peak=1)
    assert server.connections == 3
    assert server.requests[0].header("connection") == "close"


async def test_a_connection_idle_for_too_long_is_not_reused(server: FaultServer) -> None:
    """The time counts from its last response."""
    async with open_pool(keepalive=1e-9) as pool:
        for _ in range(3):
            await pool.send(embed_request(server))
    assert server.connections == 3


async def test_the_pool_size_limits_connections_per_host(server: FaultServer) -> None:
    """One full host does not delay requests to another."""
    gate = asyncio.Event()
    async with FaultServer() as other, open_pool(pool_size=2) as pool:
        server.default(Script([Wait(gate), Respond(json_answer({"data": [1]}))]))
        waiting = [asyncio.create_task(pool.send(embed_request(server))) for _ in range(5)]
        await server.wait_requests(2)
        assert (pool.stats().in_use, pool.stats().waiting) == (2, 3)
        assert count_vectors(await pool.send(embed_request(other))) == 1
        assert repr(pool) == "<ConnectionPool open: 2 in use, 1 idle, 3 waiting>"
        gate.set()
        answers = await asyncio.gather(*waiting)
    assert server.connections == 2
    assert [answer.info.queued_s > 0 for answer in answers] == [False, False, True, True, True]
    assert pool.stats().peak == 3


async def test_waiting_for_a_connection_has_its_own_timeout(server: FaultServer) -> None:
    """It is no connect timeout, and nothing was sent."""
    async with open_pool(pool_size=1) as pool:
        server.play(Script([Stall()]))
        holder = asyncio.create_task(pool.send(embed_request(server)))
        await server.wait_requests(1)
        error = await expect_error(pool, embed_request(server, pool_timeout=0.01), PoolTimeout)
        assert error.sent == "no"
        assert error.endpoint == server.base_url
        assert "pool_size" in str(error)
        assert pool.stats().waiting == 0
        holder.cancel()
        await asyncio.wait([holder])
    assert len(server.requests) == 1


@pytest.mark.row("C04")
async def test_many_requests_over_few_connections(server: FaultServer) -> None:
    """All requests succeed, in the order in which they were made."""
    order: list[int] = []
    async with open_pool(pool_size=10) as pool:

        async def one(number: int) -> None:
            assert count_vectors(await pool.send(embed_request(server, str(number), pool_timeout=None))) == 1
            order.append(number)

        await asyncio.gather(*(one(number) for number in range(2000)))
    assert server.connections == 10
    assert all(abs(place - number) <= 20 for place, number in enumerate(order))


@pytest.mark.row("S01")
@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}\r\nx-evil: 1"},
        {"authorization": f"Bearer {KEY}\n"},
        {"authorization": f"Bearer {KEY}\0"},
        {"authorization": f"Bearer {KEY}\udc80"},
        {"authorization": f"Bearer {KEY}é"},
        {f"x-{KEY}\r\n": "a"},
    ],
)
async def test_a_header_that_cannot_be_sent_is_not_shown(
    headers: dict[str, str], server: FaultServer, pool: ConnectionPool
) -> None:
    """The key is in none of the messages, and nothing was sent."""
    error = await expect_error(pool, embed_request(server, headers=headers), ConfigError)
    assert (error.sent, error.endpoint) == ("no", server.base_url)
    assert error.__context__ is None
    assert server.requests == []
    assert count_vectors(await pool.send(embed_request(server))) == 1


@pytest.mark.row("S01")
async def test_an_invalid_method_is_refused(server: FaultServer, pool: ConnectionPool) -> None:
    """A second request cannot be smuggled in."""
    await expect_error(pool, embed_request(server, method="GET / HTTP/1.1\r\nx:"), ConfigError)
    assert server.requests == []


def test_the_repr_of_a_request_shows_no_secrets() -> None:
    """It shows names of headers and sizes."""
    text = repr(
        TransportRequest(method="POST", url=f"http://h/v1?key={KEY}", headers=HEADERS, body=PROMPT.encode())
    )
    assert KEY not in text
    assert PROMPT not in text
    assert "<authorization, content-type>" in text
    assert "<13 bytes>" in text


def unsent(pool: ConnectionPool) -> int:
    """The number of bytes that the servers of this pool have not read."""
    connections = [each for connector in pool._connectors.values() for each in connector._connections]
    return sum(len(each._unsent) + each.transport.get_write_buffer_size() for each in connections)


class TestClosing:
    """C06: closing a pool."""

    async def test_a_closed_pool_sends_nothing(self, server: FaultServer) -> None:
        """The error says what to do."""
        pool = ConnectionPool()
        await pool.send(embed_request(server))
        await asyncio.gather(*(pool.aclose() for _ in range(10)))
        await server.wait_all_closed()
        error = await expect_error(pool, embed_request(server), ClientClosed)
        assert "new client" in str(error)
        assert repr(pool) == "<ConnectionPool closed: 0 in use, 0 idle, 0 waiting>"
        assert pool.stats() == PoolStats(created=1, peak=1)
        assert len(server.requests) == 1

    async def test_an_unused_pool_closes(self) -> None:
        pool = ConnectionPool()
        await pool.aclose()
        await pool.aclose()

    async def test_closing_ends_requests_in_flight(self, server: FaultServer) -> None:
        """Those that send, those that read, and those that wait for a connection."""
        pool = ConnectionPool(pool_size=2)
        server.play(
            Script([Stall()]), Script([Respond(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx"), Stall()])
        )
        tasks = [
            asyncio.create_task(expect_error(pool, embed_request(server), ClientClosed)) for _ in range(4)
        ]
        await server.wait_requests(2)
        await pool.aclose()
        await asyncio.gather(*tasks)
        await server.wait_all_closed()
        assert other_tasks() <= {
            task for task in other_tasks() if "Server" in repr(task) or "Connection" in repr(task)
        }

    async def test_closing_does_not_wait_for_a_dead_peer(self) -> None:
        """An upload that the server does not read is dropped."""
        async with FaultServer(receive_buffer=1024) as server:
            server.default_on_accept(Script([Stall(reading=False)]))
            pool = ConnectionPool()
            task = asyncio.create_task(
                expect_error(pool, embed_request(server, body=b"a" * 30_000_000), ClientClosed)
            )
            while not unsent(pool):
                await asyncio.sleep(0)
            async with asyncio.timeout(10):
                await pool.aclose()
                await task

    async def test_a_cancelled_close_can_be_repeated(self, server: FaultServer) -> None:
        """Nothing stays open."""
        pool = ConnectionPool()
        await pool.send(embed_request(server))
        closing = asyncio.create_task(pool.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        await pool.aclose()
        await server.wait_all_closed()


async def test_the_json_of_a_response(server: FaultServer, pool: ConnectionPool) -> None:
    response = await pool.send(embed_request(server))
    assert response.json == json.loads(response.body)


# Kept connections that the server closes just before their reuse.


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_closed_connection_is_noticed_before_reuse(
    reset: bool, server: FaultServer, pool: ConnectionPool
) -> None:
    """The socket is checked before it is reused: no error, also where the loop has not run since."""
    for _ in range(50):
        assert count_vectors(await pool.send(embed_request(server))) == 1
        assert server.drop_idle(reset=reset) == 1
        if reset:
            await server.wait_all_closed()
    assert pool.stats().created == 50


@pytest.mark.parametrize("fault", [f for f in faults_of("N15") if "without" in f.name], ids=str)
async def test_only_a_reused_connection_can_be_stale(
    fault: Fault, server: FaultServer, pool: ConnectionPool
) -> None:
    """A retry after a stale connection is free; on a new connection the same end is a fault."""
    fault.inject(server)
    error = await expect_error(pool, embed_request(server), ConnectionLost)
    assert (error.stale, error.sent) == (False, "maybe")
    await pool.send(embed_request(server))
    fault.inject(server)
    error = await expect_error(pool, embed_request(server), ConnectionLost)
    assert (error.stale, error.sent) == (True, "maybe")
    assert count_vectors(await pool.send(embed_request(server))) == 1


async def test_after_a_stale_connection_a_new_one_is_made(server: FaultServer, pool: ConnectionPool) -> None:
    """The server probably closed its other idle connections too: none of them is tried."""
    async with FaultServer() as other:
        await pool.send(embed_request(other))
        await asyncio.gather(*(pool.send(embed_request(server)) for _ in range(4)))
        assert pool.stats().idle == 5
        server.play(Script([Reset()]))
        assert (await expect_error(pool, embed_request(server), ConnectionLost)).stale
        assert pool.stats().idle == 1
        response = await pool.send(embed_request(server))
        assert not response.info.reused
        assert (await pool.send(embed_request(other))).info.reused


async def test_after_the_first_byte_a_connection_is_not_stale(
    server: FaultServer, pool: ConnectionPool
) -> None:
    """The server has certainly read the request."""
    await pool.send(embed_request(server))
    server.play(Script([Send(b"H"), Reset()]))
    error = await expect_error(pool, embed_request(server), ConnectionLost)
    assert not error.stale


async def test_the_pool_never_resends_a_request(server: FaultServer, pool: ConnectionPool) -> None:
    """Not even a GET on a stale connection: the caller counts the attempts."""
    get = TransportRequest(method="GET", url=f"{server.base_url}/v1/models")
    await pool.send(get)
    server.play(Script([Reset()]))
    await expect_error(pool, get, ConnectionLost)
    assert len(server.requests) == 2


async def test_a_server_that_closes_early_causes_only_stale_connections() -> None:
    """The server closes each connection after five responses, at once."""
    calls = scaled(1_600, nightly=10_000)
    async with FaultServer() as server, open_pool(pool_size=16) as pool:
        server.default(CloseAfter(5))
        stale = 0

        async def worker(count: int) -> None:
            nonlocal stale
            for _ in range(count):
                while True:
                    try:
                        assert count_vectors(await pool.send(embed_request(server))) == 1
                        break
                    except ConnectionLost as error:
                        if not error.stale:
                            raise
                        stale += 1

        await asyncio.gather(*(worker(calls // 16) for _ in range(16)))
        assert len(server.requests) == calls
        assert stale < calls / 10


@pytest.mark.row("C07")
async def test_the_pool_warns_and_not_its_connector() -> None:
    """The garbage collector may finalize either of them first; a connector that closed itself would silence the pool."""
    async with FaultServer() as server:
        pool = ConnectionPool()
        await pool.send(embed_request(server))
        (connector,) = pool._connectors.values()
        assert not hasattr(connector, "__del__")
        with pytest.warns(ResourceWarning, match="unclosed <ConnectionPool"):
            pool.__del__()
        await server.wait_all_closed()
        await pool.aclose()

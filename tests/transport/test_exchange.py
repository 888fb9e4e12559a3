"""Redirects, cookies, content encodings and oversized responses."""

from __future__ import annotations

import resource
import sys

import pytest
from attrs import evolve

from llmopt.errors import InvalidResponse
from llmopt.transport.pool import ConnectionPool
from tests.support.faults import (
    Answer,
    Fault,
    FaultServer,
    Framing,
    Repeat,
    Script,
    Send,
    answer_openai,
    faults_of,
    find_fault,
    flood,
    gzipped,
    redirect,
)
from tests.transport.helpers import count_vectors, embed_request, expect_error, open_pool

MEBIBYTE = 2**20


@pytest.mark.row("H13")
@pytest.mark.parametrize("fault", faults_of("H13"), ids=str)
async def test_redirects_are_not_followed(fault: Fault, server: FaultServer, pool: ConnectionPool) -> None:
    """One request and one response, whatever the redirect says."""
    fault.inject(server)
    response = await pool.send(embed_request(server))
    assert 300 <= response.status < 400
    assert len(server.requests) == 1
    assert server.connections == 1


@pytest.mark.row("H13")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_the_target_of_a_redirect_receives_nothing(
    status: int, server: FaultServer, pool: ConnectionPool
) -> None:
    """In particular not the key."""
    async with FaultServer() as target:
        server.play(redirect(status, f"{target.base_url}/v1/embeddings"))
        assert (await pool.send(embed_request(server))).status == status
        assert (target.connections, target.requests) == (0, [])


@pytest.mark.row("H14", "H15", "H16")
@pytest.mark.parametrize("fault", faults_of("H14", "H15", "H16"), ids=str)
async def test_the_transport_does_not_interpret_bodies(
    fault: Fault, server: FaultServer, pool: ConnectionPool
) -> None:
    """Bodies are bytes here, whatever their content type says, and headers are text."""
    fault.inject(server)
    response = await pool.send(embed_request(server))
    assert response.status in (200, 204)
    assert pool.stats().idle == 1


@pytest.mark.row("H17")
async def test_cookies_are_neither_stored_nor_sent(server: FaultServer, pool: ConnectionPool) -> None:
    """Neither to the same path nor to another."""
    find_fault("H17", "cookie").inject(server)
    response = await pool.send(embed_request(server))
    assert response.headers["set-cookie"] == "session=1; Path=/"
    await pool.send(embed_request(server))
    assert server.requests[1].header("cookie") is None
    assert server.connections == 1


READABLE = ("honest gzip", "plain text called gzip")


@pytest.mark.row("H18")
@pytest.mark.parametrize("name", READABLE)
async def test_an_honest_body_is_read(name: str, server: FaultServer, pool: ConnectionPool) -> None:
    """Compressed, or only called so."""
    find_fault("H18", name).inject(server)
    assert count_vectors(await pool.send(embed_request(server))) == 1
    assert pool.stats().idle == 1


@pytest.mark.row("H18")
async def test_gzip_is_decoded(server: FaultServer, pool: ConnectionPool) -> None:
    """The connection is kept."""
    server.default(lambda request: gzipped(answer_openai(request), times=2))
    for _ in range(3):
        assert count_vectors(await pool.send(embed_request(server))) == 1
    assert server.connections == 1


@pytest.mark.row("H18")
@pytest.mark.parametrize("fault", [f for f in faults_of("H18") if f.name not in READABLE], ids=str)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_invalid_compression_is_refused(
    fault: Fault, warm: bool, server: FaultServer, pool: ConnectionPool
) -> None:
    """The connection is not used again."""
    if warm:
        await pool.send(embed_request(server))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fault.inject(server)
    error = await expect_error(pool, embed_request(server, max_body=8 * MEBIBYTE), InvalidResponse)
    reason = "too_large" if "bomb" in fault.name else "decompression"
    assert (error.reason, error.status, error.sent) == (reason, 200, "yes")
    assert pool.stats().idle == 0
    assert count_vectors(await pool.send(embed_request(server))) == 1
    if sys.platform == "linux" and "bomb" in fault.name:
        # In KiB, with the server's copy of the compressed bomb included.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.row("H19")
@pytest.mark.parametrize("fault", faults_of("H19"), ids=str)
async def test_a_flood_stops_at_the_maximum(fault: Fault, server: FaultServer, pool: ConnectionPool) -> None:
    """The connection is closed, not drained."""
    fault.inject(server)
    error = await expect_error(pool, embed_request(server, max_body=3 * MEBIBYTE), InvalidResponse)
    assert (error.reason, error.status) == ("too_large", 200)
    assert "3145728 bytes" in str(error)
    await server.wait_all_closed()
    assert count_vectors(await pool.send(embed_request(server))) == 1


@pytest.mark.row("H19")
async def test_exactly_the_maximum_is_allowed(server: FaultServer, pool: ConnectionPool) -> None:
    """One byte more is not."""
    for framing in (Framing.LENGTH, Framing.CHUNKED, Framing.EOF):
        server.play(Answer(200, b"a" * 1000, framing=framing), Answer(200, b"a" * 1001, framing=framing))
        assert len((await pool.send(embed_request(server, max_body=1000))).body) == 1000
        await expect_error(pool, embed_request(server, max_body=1000), InvalidResponse)


class TestErrors:
    """The body of an error response never hides its status."""

    async def test_a_long_error_body_is_cut(self, server: FaultServer, pool: ConnectionPool) -> None:
        """At 64 KiB; the rest is not read."""
        script = flood(2**31, framing=Framing.EOF)
        head = Send(Answer(503, b"", framing=Framing.EOF))
        server.play(evolve(script, steps=(head, *script.steps[1:])))
        response = await pool.send(embed_request(server))
        assert (response.status, len(response.body)) == (503, 65536)
        await server.wait_all_closed()

    @pytest.mark.parametrize(
        ("encoding", "data"), [("gzip", b"\x1f no gzip"), ("br", b"\x0b\x02\x80"), ("gzip, gzip, gzip", b"x")]
    )
    async def test_a_damaged_error_body_is_dropped(
        self, encoding: str, data: bytes, server: FaultServer, pool: ConnectionPool
    ) -> None:
        """401 stays 401."""
        server.play(Answer(401, data, [("content-encoding", encoding)]))
        response = await pool.send(embed_request(server))
        assert (response.status, response.body) == (401, b"")
        assert pool.stats().idle == 0

    async def test_a_short_error_body_keeps_the_connection(
        self, server: FaultServer, pool: ConnectionPool
    ) -> None:
        """429 is a common response."""
        server.play(*[gzipped(Answer(429, b'{"error":{}}'))] * 3)
        for _ in range(3):
            response = await pool.send(embed_request(server))
            assert (response.status, response.body) == (429, b'{"error":{}}')
        assert server.connections == 1


async def test_endless_headers_are_refused() -> None:
    """N17: they are refused while they arrive, in limited memory."""
    async with FaultServer() as server, open_pool() as pool:
        server.play(Script([Send(b"HTTP/1.1 200 OK\r\nx: "), Repeat([Send(b"a" * 65536)])]))
        error = await expect_error(pool, embed_request(server), InvalidResponse)
        assert error.reason == "http"
        server.play(Script([Send(b"HTTP/1.1 200 OK\r\n"), Repeat([Send(b"x: a\r\n" * 1000)])]))
        await expect_error(pool, embed_request(server), InvalidResponse)

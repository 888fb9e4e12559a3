"""Requests through a proxy, and the environment variables for proxies."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmopt.errors import ConfigError, ConnectFailed, ConnectionLost
from llmopt.transport.pool import ConnectionPool
from tests.support.faults import (
    Answer,
    Close,
    FaultServer,
    Reset,
    Script,
    Send,
    Stall,
    can_make_certificates,
    find_fault,
    good_certificate,
    refused_port,
)
from tests.transport.helpers import count_vectors, embed_request, embed_request_to, expect_error, open_pool

PASSWORD = "canary-password"
CREDENTIALS = f"user:{PASSWORD}@"


@contextlib.asynccontextmanager
async def tunnel(
    target: FaultServer, tls: ssl.SSLContext | None = None, version: bytes = b"1.1"
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A proxy that connects to the target; gives its port and the heads of its requests."""
    heads: list[bytes] = []
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        there, back = await asyncio.open_connection("127.0.0.1", target.port)
        writer.write(b"HTTP/%b 200 Connection established\r\n\r\n" % version)
        for task in (asyncio.create_task(pump(reader, back)), asyncio.create_task(pump(there, writer))):
            tasks.add(task)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield listener.sockets[0].getsockname()[1], heads
    finally:
        listener.close()
        await asyncio.gather(*tasks)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def assert_no_password(error: BaseException) -> None:
    seen: BaseException | None = error
    while seen is not None:
        assert PASSWORD not in f"{seen} {seen!r} {vars(seen)!r}"
        seen = seen.__cause__ or seen.__context__


async def test_plain_http_is_sent_to_the_proxy_with_its_whole_url(
    server: FaultServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy's credentials are in a header for the proxy; its connection is kept."""
    monkeypatch.setenv("HTTP_PROXY", f"http://{CREDENTIALS}127.0.0.1:{server.port}")
    for _ in range(3):
        assert count_vectors(await pool.send(embed_request_to("http://far.example:8000"))) == 1
    first = server.requests[0]
    assert first.target.startswith("http://far.example:8000/v1/embeddings")
    assert first.header("host") == "far.example:8000"
    assert first.header("proxy-authorization") == "Basic dXNlcjpjYW5hcnktcGFzc3dvcmQ="
    assert first.header("authorization") is not None
    assert server.connections == 1


async def test_no_proxy_bypasses_the_proxy(
    server: FaultServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is checked for each origin."""
    with refused_port() as dead:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{dead}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
        assert count_vectors(await pool.send(embed_request(server))) == 1


async def test_the_environment_is_read_once_per_origin(
    server: FaultServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later change counts for new origins."""
    await pool.send(embed_request(server))
    with refused_port() as dead:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{dead}")
        assert count_vectors(await pool.send(embed_request(server))) == 1
        await expect_error(pool, embed_request_to("http://far.example"), ConnectFailed)


@pytest.mark.skipif(not can_make_certificates(), reason="neither trustme nor openssl is here")
async def test_https_uses_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy gets the host and its own password, the server neither; the tunnel is kept."""
    certificate = good_certificate()
    async with (
        FaultServer(tls=certificate.server()) as server,
        tunnel(server) as (port, heads),
        open_pool(tls=certificate.client()) as pool,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{CREDENTIALS}127.0.0.1:{port}")
        for _ in range(3):
            assert count_vectors(await pool.send(embed_request(server))) == 1
        assert len(heads) == 1
        assert heads[0].startswith(f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\n".encode())
        assert b"Basic dXNlcjpjYW5hcnktcGFzc3dvcmQ=" in heads[0]
        assert b"Bearer" not in heads[0]
        assert all(seen.header("proxy-authorization") is None for seen in server.requests)
        assert pool.stats().created == 1
        await pool.aclose()


@pytest.mark.skipif(not can_make_certificates(), reason="neither trustme nor openssl is here")
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_https_uses_a_tunnel_in_a_proxy_that_speaks_tls(
    version: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS inside TLS; many proxies answer as HTTP/1.0, and keep the tunnel."""
    certificate = good_certificate()
    async with (
        FaultServer(tls=certificate.server()) as server,
        tunnel(server, certificate.server(), version) as (port, heads),
        open_pool(tls=certificate.client()) as pool,
    ):
        server.default(lambda request: Answer(200, request.body))
        monkeypatch.setenv("ALL_PROXY", f"https://127.0.0.1:{port}")
        for size in (10, 3_000_000):
            body = b"b" * size
            assert (await pool.send(embed_request(server, body=body))).body == body
        assert len(heads) == 1
        await pool.aclose()


@pytest.mark.skipif(not can_make_certificates(), reason="neither trustme nor openssl is here")
async def test_plain_http_through_a_proxy_that_speaks_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = good_certificate()
    async with (
        FaultServer(tls=certificate.server()) as server,
        open_pool(tls=certificate.client()) as pool,
    ):
        monkeypatch.setenv("HTTP_PROXY", f"https://127.0.0.1:{server.port}")
        for _ in range(2):
            assert count_vectors(await pool.send(embed_request_to("http://far.example"))) == 1
        assert server.requests[0].target.startswith("http://far.example/v1/embeddings")
        assert server.connections == 1


@pytest.mark.skipif(not can_make_certificates(), reason="neither trustme nor openssl is here")
async def test_a_wrong_certificate_behind_a_tunnel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate is the server's, so it is no failure of the proxy."""
    async with (
        FaultServer(tls=good_certificate().server()) as server,
        tunnel(server) as (port, _),
        open_pool(tls=good_certificate().client()) as pool,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        error = await expect_error(pool, embed_request(server), ConnectFailed)
        assert (error.cause, error.permanent, error.sent) == ("tls", True, "no")
        assert pool.stats().in_use == 0


@pytest.mark.row("N19")
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            Answer(407, b"", [("proxy-authenticate", "Basic")]),
            "407 Proxy Authentication Required; check the user",
        ),
        (Answer(502, b"no route"), "502 Bad Gateway"),
        (Answer(403, b"no"), "403 Forbidden"),
        (Script([Close()]), "no valid response"),
        (Script([Reset()]), "no valid response"),
        (Script([Send(b"SSH-2.0\r\n"), Close()]), "no valid response"),
    ],
)
async def test_a_failed_tunnel_names_the_proxy(
    answer: Answer | Script,
    message: str,
    server: FaultServer,
    pool: ConnectionPool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing was sent to the provider."""
    server.default(answer)
    monkeypatch.setenv("HTTPS_PROXY", f"http://{CREDENTIALS}127.0.0.1:{server.port}")
    error = await expect_error(pool, embed_request_to("https://far.example"), ConnectFailed)
    assert (error.cause, error.sent, error.permanent) == ("proxy", "no", False)
    assert message in str(error)
    assert f"through the proxy http://127.0.0.1:{server.port}" in str(error)
    assert_no_password(error)
    assert repr(pool) == "<ConnectionPool open: 0 in use, 0 idle, 0 waiting>"


@pytest.mark.row("N19")
async def test_a_proxy_that_requires_a_password_for_plain_http(
    server: FaultServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """407 comes from the proxy, not from the provider."""
    find_fault("N19", "proxy wants a password").inject(server)
    monkeypatch.setenv("HTTP_PROXY", f"http://{CREDENTIALS}127.0.0.1:{server.port}")
    error = await expect_error(pool, embed_request_to("http://far.example"), ConnectFailed)
    assert (error.cause, error.sent) == ("proxy", "no")
    assert "user name and password" in str(error)
    assert_no_password(error)
    response = await pool.send(embed_request_to("http://far.example"))
    assert response.status == 200


@pytest.mark.row("N19")
async def test_407_without_a_proxy_is_a_response_of_the_server(
    server: FaultServer, pool: ConnectionPool
) -> None:
    server.play(Answer(407, b""))
    assert (await pool.send(embed_request(server))).status == 407


@pytest.mark.row("N19")
async def test_a_proxy_that_hangs_is_a_connect_timeout(
    server: FaultServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.default(Script([Stall()]))
    monkeypatch.setenv("HTTPS_PROXY", f"http://{CREDENTIALS}127.0.0.1:{server.port}")
    error = await expect_error(
        pool, embed_request_to("https://far.example", connect_timeout=0.05), ConnectFailed
    )
    assert (error.cause, error.sent) == ("timeout", "no")
    assert "proxy" in str(error)
    assert_no_password(error)
    assert pool.stats().in_use == 0


@pytest.mark.row("N19")
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_missing_proxy_is_named_without_its_password(
    scheme: str, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused_port() as port:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://{CREDENTIALS}127.0.0.1:{port}")
        error = await expect_error(pool, embed_request_to(f"{scheme}://far.example"), ConnectFailed)
    assert (error.cause, error.sent) == ("proxy", "no")
    assert f"http://127.0.0.1:{port}: connection refused" in str(error)
    assert_no_password(error)


async def test_an_unsupported_proxy_is_refused_before_any_io(
    pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SOCKS is not supported."""
    monkeypatch.setenv("HTTPS_PROXY", f"socks5://{CREDENTIALS}127.0.0.1:1080")
    error = await expect_error(pool, embed_request_to("https://far.example"), ConfigError)
    assert_no_password(error)


@pytest.mark.row("S05")
async def test_netrc_is_not_read(
    server: FaultServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No second credential is sent."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    await pool.send(embed_request(server, headers={"api-key": "k"}))
    assert server.requests[0].header("authorization") is None


async def test_a_lost_connection_to_a_proxy(
    server: FaultServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An established tunnel is like any other connection."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.port}")
    server.play(Script([Reset()]))
    error = await expect_error(pool, embed_request_to("http://far.example"), ConnectionLost)
    assert error.endpoint == "http://far.example"

"""Failures of connecting."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
from collections.abc import Callable
from typing import Any

import aiohappyeyeballs
import pytest

from llmopt.errors import ConnectFailed, ConnectionLost, LLMOptError, OutOfResources
from llmopt.transport import errors as transport_errors
from llmopt.transport.pool import ConnectionPool
from llmopt.transport.request import RequestState
from tests.support.faults import (
    Answer,
    Certificate,
    FaultServer,
    Framing,
    Reset,
    Script,
    answer_openai,
    can_make_certificates,
    cut,
    expired_certificate,
    find_fault,
    full_backlog,
    good_certificate,
    refused_port,
    self_signed_certificate,
    wrong_host_certificate,
)
from tests.transport.helpers import (
    count_vectors,
    echo_server,
    embed_request,
    embed_request_to,
    expect_error,
    open_pool,
)

Address = tuple[int, int, int, str, tuple[Any, ...]]


def addresses_of(*addresses: tuple[str, int]) -> list[Address]:
    kinds = [socket.AF_INET6 if ":" in host else socket.AF_INET for host, _ in addresses]
    return [
        (kind, socket.SOCK_STREAM, 6, "", (*address, 0, 0) if kind == socket.AF_INET6 else address)
        for kind, address in zip(kinds, addresses, strict=True)
    ]


def patch_dns(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], list[Address]]) -> list[str]:
    """Let this loop resolve every name with a function; gives the names that were looked up."""
    names: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Address]:
        names.append(host)
        await asyncio.sleep(0)
        return answer()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return names


def gai(number: int) -> Callable[[], list[Address]]:
    def answer() -> list[Address]:
        raise socket.gaierror(number, "canned")

    return answer


@pytest.mark.row("N12")
async def test_a_refused_connection_names_the_server(pool: ConnectionPool) -> None:
    """The message asks whether the server is running."""
    with refused_port() as port:
        error = await expect_error(pool, embed_request_to(f"http://127.0.0.1:{port}"), ConnectFailed)
    assert (error.cause, error.permanent, error.sent) == ("refused", False, "no")
    assert str(error) == (
        f"could not connect to http://127.0.0.1:{port}: connection refused; is the server running?"
    )
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert pool.stats().created == 0


@pytest.mark.row("N12")
async def test_a_full_backlog_is_a_connect_timeout() -> None:
    """Neither a pool timeout nor an attempt timeout."""
    async with open_pool(pool_size=1) as pool:
        with full_backlog() as port:
            request = embed_request_to(f"http://127.0.0.1:{port}", connect_timeout=0.05)
            error = await expect_error(pool, request, ConnectFailed)
    assert (error.cause, error.permanent, error.sent) == ("timeout", False, "no")
    assert "within 0.05 s" in str(error)


@pytest.mark.row("N12")
@pytest.mark.parametrize("name", ["accept then RST", "accept then FIN"])
async def test_a_connection_that_is_accepted_and_dropped_may_have_been_read(
    name: str, server: FaultServer, pool: ConnectionPool
) -> None:
    """So the request does not count as unsent."""
    find_fault("N12", name).inject(server)
    error = await expect_error(pool, embed_request(server), ConnectionLost)
    assert (error.sent, error.stale) == ("maybe", False)
    assert count_vectors(await pool.send(embed_request(server))) == 1


@pytest.mark.row("N13")
async def test_an_unknown_host_name_is_permanent(
    pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_dns(monkeypatch, gai(socket.EAI_NONAME))
    error = await expect_error(pool, embed_request_to("http://nowhere.example:8000"), ConnectFailed)
    assert (error.cause, error.permanent, error.sent) == ("dns", True, "no")
    assert "http://nowhere.example:8000" in str(error)
    assert "spelling" in str(error)


@pytest.mark.row("N13")
@pytest.mark.parametrize("number", [socket.EAI_AGAIN, socket.EAI_FAIL, getattr(socket, "EAI_NODATA", -5)])
async def test_a_failing_dns_server_is_temporary(
    number: int, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_dns(monkeypatch, gai(number))
    error = await expect_error(pool, embed_request_to("http://a.example"), ConnectFailed)
    assert (error.cause, error.permanent) == ("dns", False)


@pytest.mark.row("N13")
async def test_a_dns_response_without_addresses_is_temporary(
    pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_dns(monkeypatch, list)
    error = await expect_error(pool, embed_request_to("http://a.example"), ConnectFailed)
    assert (error.sent, error.permanent) == ("no", False)


@pytest.mark.row("N13")
async def test_a_slow_dns_server_is_a_connect_timeout(
    pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forever = asyncio.get_running_loop().create_future()

    async def getaddrinfo(*_: Any, **__: Any) -> None:
        await forever

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    error = await expect_error(
        pool, embed_request_to("http://a.example", connect_timeout=0.02), ConnectFailed
    )
    assert error.cause == "timeout"
    assert pool.stats().in_use == 0


@pytest.mark.row("N13")
async def test_a_dead_ipv6_address_does_not_hide_a_live_ipv4_address(
    server: FaultServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are tried."""
    with refused_port() as dead:
        names = patch_dns(monkeypatch, lambda: addresses_of(("127.0.0.1", dead), ("127.0.0.1", server.port)))
        assert count_vectors(await pool.send(embed_request_to(f"http://a.example:{server.port}"))) == 1
    assert names == ["a.example"]


@pytest.mark.row("N13")
async def test_all_addresses_refusing_is_a_refusal(
    pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when they refuse with different messages, as ::1 and 127.0.0.1 do."""
    with refused_port() as port:
        patch_dns(monkeypatch, lambda: addresses_of(("::1", port), ("127.0.0.1", port)))
        error = await expect_error(pool, embed_request_to(f"http://localhost:{port}"), ConnectFailed)
    assert error.cause == "refused"


@pytest.mark.row("N13")
@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("Multiple exceptions: [Errno 99] Cannot assign, [Errno 111] Connect call failed", "refused"),
        ("Multiple exceptions: [Errno 101] Network is unreachable, [Errno 113] No route", "other"),
    ],
)
async def test_mixed_causes_give_the_most_useful_one(
    text: str, cause: str, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start_connection(**_: Any) -> None:
        raise OSError(text)

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)
    error = await expect_error(pool, embed_request_to("http://127.0.0.1:9"), ConnectFailed)
    assert error.cause == cause


async def test_concurrent_requests_share_one_dns_lookup(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten requests cost one lookup; each gets its own error if it fails."""
    names = patch_dns(monkeypatch, lambda: addresses_of(("127.0.0.1", server.port)))
    async with open_pool() as pool:
        await asyncio.gather(
            *(pool.send(embed_request_to(f"http://a.example:{server.port}")) for _ in range(10))
        )
    assert names == ["a.example"]
    patch_dns(monkeypatch, gai(socket.EAI_AGAIN))
    async with open_pool() as pool:
        errors = await asyncio.gather(
            *(expect_error(pool, embed_request_to("http://b.example"), ConnectFailed) for _ in range(10))
        )
    assert len(set(map(id, errors))) == 10


@pytest.mark.row("C12")
@pytest.mark.parametrize(("number", "message"), [(errno.EMFILE, "ulimit"), (errno.ENOBUFS, "buffer")])
async def test_the_error_explains_a_lack_of_sockets(
    number: int, message: str, server: FaultServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later requests succeed."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, "canned")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", refuse)
        error = await expect_error(pool, embed_request(server), OutOfResources)
    assert (error.sent, error.counts_for_breaker) == ("no", False)
    assert message in str(error)
    assert count_vectors(await pool.send(embed_request(server))) == 1


@pytest.mark.row("C12")
async def test_a_real_limit_of_file_descriptors() -> None:
    """Some requests fail to connect, the others succeed, and afterwards all succeed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with echo_server() as port, socket.socket() as probe:
        request = embed_request_to(f"http://127.0.0.1:{port}")
        async with open_pool(pool_size=64) as pool:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (probe.fileno() + 24, hard))
                tasks = [pool.send(request) for _ in range(64)]
                answers = await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            kinds = {type(answer).__name__ for answer in answers}
            assert kinds == {"OutOfResources", "HttpResponse"}
            later = await asyncio.gather(*(pool.send(request) for _ in range(64)))
            assert {answer.body for answer in later} == {request.body}


def not_verified() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "canned")
    error.verify_message = "unable to get local issuer certificate"
    return error


@pytest.mark.row("C12")
@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_NONAME, "canned"),
        socket.gaierror(socket.EAI_AGAIN, "canned"),
        not_verified(),
    ],
    ids=["no such name", "name server", "certificate"],
)
def test_an_unread_file_is_not_a_wrong_name_or_certificate(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a descriptor the resolver says that no name exists, and OpenSSL that no certificate is trusted."""
    state = RequestState(embed_request_to("https://a.example"), "https://a.example")
    assert isinstance(transport_errors.connect_failed(error, state), ConnectFailed)

    def refuse(*_: Any) -> None:
        raise OSError(errno.EMFILE, "canned")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        failure = transport_errors.connect_failed(error, state)
    assert isinstance(failure, OutOfResources)
    assert (failure.resource, failure.retryable) == ("descriptors", True)


@pytest.mark.row("C12")
async def test_a_lack_of_memory_for_a_body_is_no_fault_of_the_server(
    server: FaultServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protocol loses its connection, because it has no room for what the server sends."""

    def exhausted(*_: Any) -> None:
        raise MemoryError

    server.default(answer_openai)
    with monkeypatch.context() as patched:
        patched.setattr("llmopt.transport.protocol.HttpProtocol.get_buffer", exhausted)
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        error = await expect_error(pool, embed_request(server), OutOfResources)
    assert (error.resource, error.sent) == ("memory", "maybe")
    assert count_vectors(await pool.send(embed_request(server))) == 1


@pytest.mark.skipif(not can_make_certificates(), reason="neither trustme nor openssl is here")
class TestTls:
    """N14: failures before the first byte of HTTP."""

    async def test_a_valid_certificate_is_accepted(self) -> None:
        """Also for the second request, over the same connection."""
        certificate = good_certificate()
        async with (
            FaultServer(tls=certificate.server()) as server,
            open_pool(tls=certificate.client()) as pool,
        ):
            for _ in range(3):
                assert count_vectors(await pool.send(embed_request(server))) == 1
            assert server.connections == 1

    @pytest.mark.parametrize("size", [10, 16_300, 40_000, 3_000_000])
    @pytest.mark.parametrize("framing", [Framing.LENGTH, Framing.CHUNKED, Framing.EOF])
    async def test_a_body_of_several_records_arrives_whole(self, size: int, framing: Framing) -> None:
        """TLS hands over several records at once, into the slices of one buffer."""
        certificate = good_certificate()
        body = bytes(range(256)) * (size // 256) + b"."
        async with (
            FaultServer(tls=certificate.server()) as server,
            open_pool(tls=certificate.client()) as pool,
        ):
            server.default(Answer(200, body, framing=framing))
            for _ in range(2):
                assert (await pool.send(embed_request(server))).body == body

    @pytest.mark.row("N14")
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (expired_certificate, "expired"),
            (wrong_host_certificate, "mismatch"),
            (self_signed_certificate, "self-signed certificate"),
        ],
    )
    async def test_an_invalid_certificate_is_permanent(
        self, make: Callable[[], Certificate], message: str
    ) -> None:
        """Nothing was sent, and the message says why."""
        certificate = make()
        async with (
            FaultServer(tls=certificate.server()) as server,
            open_pool(tls=certificate.client()) as pool,
        ):
            error = await expect_error(pool, embed_request(server), ConnectFailed)
            assert (error.cause, error.permanent, error.sent) == ("tls", True, "no")
            assert message in str(error)
            assert server.base_url in str(error)
            assert server.requests == []

    async def test_an_unknown_authority_is_refused_by_default(self) -> None:
        """The system's authorities count unless the caller gives an SSL context."""
        async with FaultServer(tls=good_certificate().server()) as server, open_pool() as pool:
            error = await expect_error(pool, embed_request(server), ConnectFailed)
            assert error.permanent
            assert "SSL_CERT_FILE" in str(error)

    @pytest.mark.row("N14")
    @pytest.mark.parametrize("name", ["no TLS here", "EOF in the handshake", "RST in the handshake"])
    async def test_a_failed_handshake_is_temporary(
        self, name: str, server: FaultServer, pool: ConnectionPool
    ) -> None:
        """A proxy in front may be restarting."""
        find_fault("N14", name).inject(server)
        url = server.base_url.replace("http:", "https:")
        error = await expect_error(pool, embed_request_to(url), ConnectFailed)
        assert (error.cause, error.permanent, error.sent) == ("tls", False, "no")
        assert "https" in str(error)

    @pytest.mark.row("N14")
    async def test_a_stalled_handshake_is_a_connect_timeout(
        self, server: FaultServer, pool: ConnectionPool
    ) -> None:
        find_fault("N14", "handshake stalls").inject(server)
        url = server.base_url.replace("http:", "https:")
        error = await expect_error(pool, embed_request_to(url, connect_timeout=0.05), ConnectFailed)
        assert (error.cause, error.sent) == ("timeout", "no")
        assert pool.stats().in_use == 0

    async def test_plain_http_to_a_tls_port_is_an_error(
        self, server: FaultServer, pool: ConnectionPool
    ) -> None:
        """The server answers with an alert, which is not HTTP."""
        certificate = good_certificate()
        async with FaultServer(tls=certificate.server()) as secured:
            plain = secured.base_url.replace("https:", "http:")
            await expect_error(pool, embed_request_to(plain, timeout=5), LLMOptError)

    async def test_a_reset_tls_connection_is_lost(self) -> None:
        """In the middle of a response."""
        certificate = good_certificate()
        async with (
            FaultServer(tls=certificate.server()) as server,
            open_pool(tls=certificate.client()) as pool,
        ):
            server.play(cut(60, Reset(), Answer(200, b"x" * 100)), Script([Reset()]))
            for _ in range(2):
                await expect_error(pool, embed_request(server), ConnectionLost)
            assert count_vectors(await pool.send(embed_request(server))) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_closing_waits_for_the_sockets_of_connections_that_are_being_opened(scheme: str) -> None:
    """The loop may close right after: at every turn of it nothing is left open."""
    certificate = good_certificate() if scheme == "https" else None
    async with FaultServer(tls=None if certificate is None else certificate.server()) as server:
        server.default(answer_openai)
        for turns in range(0, 24, 2):
            pool = ConnectionPool(tls=None if certificate is None else certificate.client())
            sending = asyncio.create_task(pool.send(embed_request(server)))
            for _ in range(turns):
                await asyncio.sleep(0)
            sockets = [each._sockets._sockets for each in pool._connectors.values()]
            await pool.aclose()
            assert not [each for kept in sockets for each in kept if each.fileno() >= 0], turns
            await asyncio.gather(sending, return_exceptions=True)


async def test_a_connection_that_is_lost_as_soon_as_it_is_made_is_a_failure_to_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody waits for its answer, and closing the pool does not wait for it."""
    loop = asyncio.get_running_loop()
    create = loop.create_connection

    async def create_and_lose(*args: Any, **options: Any) -> Any:
        transport, protocol = await create(*args, **options)
        transport.abort()
        for _ in range(3):
            await asyncio.sleep(0)
        return transport, protocol

    async with FaultServer() as server:
        server.default(answer_openai)
        async with open_pool() as pool:
            with monkeypatch.context() as patched:
                patched.setattr(loop, "create_connection", create_and_lose)
                error = await expect_error(pool, embed_request(server), ConnectFailed)
            assert error.sent == "no"
            assert (await pool.send(embed_request(server))).status == 200

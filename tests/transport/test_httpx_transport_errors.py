"""Every exception of a foreign transport has its one meaning."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from llmopt import errors
from tests.transport.custom_transports import URL, Pieces, mocked, raising
from tests.transport.helpers import (
    KEY,
    failure,
    other_tasks,
    request_to,
)

CANNED: list[tuple[BaseException, type[errors.LLMOptError], dict[str, Any]]] = [
    (httpx.ConnectTimeout("x"), errors.ConnectFailed, {"cause": "timeout", "sent": "no"}),
    (httpx.ConnectError("x"), errors.ConnectFailed, {"cause": "other", "sent": "no"}),
    (httpx.PoolTimeout("x"), errors.PoolTimeout, {"sent": "no"}),
    (httpx.ReadTimeout("x"), errors.AttemptTimeout, {"sent": "maybe", "timeout": 20.0}),
    (httpx.WriteTimeout("x"), errors.AttemptTimeout, {"sent": "maybe"}),
    (httpx.ReadError("x"), errors.ConnectionLost, {"sent": "maybe", "stale": False}),
    (httpx.WriteError("x"), errors.ConnectionLost, {"sent": "maybe"}),
    (httpx.CloseError("x"), errors.ConnectionLost, {"sent": "maybe"}),
    (
        httpx.RemoteProtocolError("Server disconnected without sending a response."),
        errors.ConnectionLost,
        {"sent": "maybe"},
    ),
    (
        httpx.RemoteProtocolError("peer closed connection without sending complete message body (received 1"),
        errors.InvalidResponse,
        {"reason": "truncated"},
    ),
    (
        httpx.RemoteProtocolError("illegal status line"),
        errors.InvalidResponse,
        {"reason": "http", "sent": "yes"},
    ),
    (httpx.LocalProtocolError(f"Illegal header {KEY}"), errors.ConfigError, {"sent": "no"}),
    (httpx.UnsupportedProtocol("x"), errors.ConfigError, {}),
    (httpx.InvalidURL("x"), errors.ConfigError, {}),
    (httpx.ProxyError("407"), errors.ConnectFailed, {"cause": "proxy", "sent": "no"}),
    (ConnectionResetError(errno.ECONNRESET, "x"), errors.ConnectionLost, {}),
    (TimeoutError(errno.ETIMEDOUT, "x"), errors.ConnectionLost, {}),
    (TimeoutError(), errors.AttemptTimeout, {}),
    (errors.RateLimited("own"), errors.RateLimited, {}),
]


def because(error: httpx.HTTPError, *causes: BaseException) -> httpx.HTTPError:
    """The error, made of one that was made of one, as anyio and httpcore do."""
    below: BaseException = error
    for cause in causes:
        below.__cause__ = cause
        below = cause
    return error


CAUSED: list[tuple[BaseException, dict[str, Any]]] = [
    (ConnectionRefusedError(errno.ECONNREFUSED, "x"), {"cause": "refused", "permanent": False}),
    (socket.gaierror(socket.EAI_NONAME, "x"), {"cause": "dns", "permanent": True}),
    (socket.gaierror(socket.EAI_AGAIN, "x"), {"cause": "dns", "permanent": False}),
    (OSError(errno.EMFILE, "x"), {"cause": "other"}),
]


class TestFaults:
    """Every exception of a transport has its one meaning."""

    @pytest.mark.parametrize(("raised", "kind", "data"), CANNED, ids=lambda value: repr(value)[:60])
    @pytest.mark.parametrize("grouped", [False, True], ids=["bare", "in a group"])
    async def test_exactly(
        self, raised: BaseException, kind: type[errors.LLMOptError], data: dict[str, Any], grouped: bool
    ) -> None:
        """Also when it comes in one of anyio's groups."""
        raised.__traceback__ = None
        if grouped and isinstance(raised, Exception):
            raised = ExceptionGroup("canned", [ExceptionGroup("inner", [raised])])
        error = await failure(raising(raised), request_to(URL), kind)
        assert {name: getattr(error, name) for name in data} == data
        assert error.endpoint == URL

    @pytest.mark.parametrize(("cause", "data"), CAUSED, ids=repr)
    @pytest.mark.parametrize("grouped", [False, True], ids=["bare", "in a group"])
    async def test_below_a_connect_error_lies_why(
        self, cause: BaseException, data: dict[str, Any], grouped: bool
    ) -> None:
        """Found however deep."""
        lowest = ExceptionGroup("canned", [cause]) if grouped and isinstance(cause, Exception) else cause
        made = because(httpx.ConnectError("x"), OSError("All connection attempts failed"), lowest)
        error = await failure(raising(made), request_to(URL), errors.ConnectFailed)
        assert {name: getattr(error, name) for name in data} == data

    @pytest.mark.parametrize("error", [KeyError("a bug"), AssertionError("of a mock"), MemoryError()])
    async def test_what_is_not_the_networks_passes(self, error: Exception) -> None:
        """A bug in a transport is shown where it is."""
        with pytest.raises(type(error)):
            await raising(error).send(request_to(URL))

    async def test_cancellation_passes(self) -> None:
        """Once, and the answer is closed."""
        pieces = Pieces(b"a")
        reading = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            reading.set()
            await asyncio.get_running_loop().create_future()
            yield b""

        pieces.__class__.__aiter__, kept = lambda _: endless(), Pieces.__aiter__  # type: ignore[assignment,method-assign]
        try:
            task = asyncio.create_task(
                mocked(lambda _: httpx.Response(200, stream=pieces)).send(request_to(URL))
            )
            await reading.wait()
            task.cancel()
            await asyncio.wait([task])
        finally:
            Pieces.__aiter__ = kept  # type: ignore[method-assign]
        assert task.cancelled()
        assert pieces.closed == 1
        assert other_tasks() == set()

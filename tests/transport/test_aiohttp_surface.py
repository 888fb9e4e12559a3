"""The behaviour of aiohttp that llmopt relies on beyond its documentation.

A new version of aiohttp that changes any of this fails here first, by name.
"""

from __future__ import annotations

import inspect
from typing import Any

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import BaseConnector, Connection
from aiohttp.streams import DataQueue, StreamReader


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("owner", "method", "expected"),
    [
        (BaseConnector, "_get", ["self", "key", "traces"]),
        (BaseConnector, "_wait_for_available_connection", ["self", "key", "traces"]),
        (BaseConnector, "_available_connections", ["self", "key"]),
        (BaseConnector, "_release_waiter", ["self"]),
        (BaseConnector, "_close", ["self", "abort_ssl"]),
        (BaseConnector, "connect", ["self", "req", "traces", "timeout"]),
        (aiohttp.TCPConnector, "_create_connection", ["self", "req", "traces", "timeout"]),
        (aiohttp.TCPConnector, "close", ["self", "abort_ssl"]),
        (aiohttp.ClientRequest, "send", ["self", "conn"]),
        (aiohttp.ClientRequest, "terminate", ["self"]),
        (Connection, "close", ["self"]),
        (Connection, "release", ["self"]),
        (ResponseHandler, "abort", ["self"]),
        (ResponseHandler, "is_connected", ["self"]),
        (ResponseHandler, "data_received", ["self", "data"]),
        (ResponseHandler, "connection_lost", ["self", "exc"]),
        (DataQueue, "read", ["self"]),
        (StreamReader, "readany", ["self"]),
        (StreamReader, "set_read_chunk_size", ["self", "n"]),
        (StreamReader, "set_exception", ["self", "exc", "exc_cause"]),
    ],
)
def test_methods_have_the_expected_parameters(owner: type, method: str, expected: list[str]) -> None:
    assert parameters(getattr(owner, method)) == expected


def test_keyword_parameters_exist() -> None:
    assert {"skip_payload", "read_until_eof", "auto_decompress", "read_bufsize"} <= set(
        parameters(ResponseHandler.set_response_params)
    )
    assert {"headers", "data", "loop", "proxy", "proxy_headers"} <= set(
        parameters(aiohttp.ClientRequest.__init__)
    )
    assert {"socket_factory", "resolver", "ssl"} <= set(parameters(aiohttp.TCPConnector.__init__))


async def test_attributes_exist() -> None:
    """The state that the connector and the protocol keep."""
    connector = aiohttp.TCPConnector()
    for name in ("_acquired", "_conns", "_waiters", "_factory", "_closed", "_limit_per_host", "_loop"):
        assert hasattr(connector, name)
    protocol = connector._factory()
    for name in ("_exception", "_parser", "_payload", "transport"):
        assert hasattr(protocol, name)
    assert isinstance(ResponseHandler.should_close, property)
    assert isinstance(aiohttp.ClientRequest.connection_key, property)
    assert isinstance(aiohttp.ClientRequest._writer, property)
    await connector.close()

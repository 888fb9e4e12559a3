"""The connections of one event loop: aiohttp's connector with stricter rules for reuse, and counters.

It opens and closes network connections, which callers await, resolves host names in threads of the loop's default
executor, and keeps the addresses for ten seconds. A connector serves one event loop and has no lock: its requests share
the connections, one read buffer, and a cache of heads, which hold keys. `close_from_thread` and `close_after_loop` are
for other threads, the counters are read from other threads too, without any guard, and a forked child gives up the
connections of its parent. When its loop shuts down its asynchronous generators, the connector closes. It uses the
loop's clock, and reports to a `PoolTrace`, on that loop, which may end in the user's listener.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Final, Protocol, cast
from weakref import ref

import aiohttp
from aiohttp import ClientRequest
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from multidict import CIMultiDict

from llmopt.transport import errors as transport_errors
from llmopt.transport.body import ACCEPT_ENCODING
from llmopt.transport.protocol import HttpProtocol, SocketRegistry, finish_transport, new_read_buffer
from llmopt.transport.request import RequestState, TransportRequest
from llmopt.transport.timers import TimeoutScheduler
from llmopt.transport.urls import Target
from llmopt.values.secret import HiddenBytes, HiddenStr

# RFC 9110: a name is a token (5.6.2), a value has visible characters, spaces and tabs (5.5); here ASCII only.
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]*")
_DEFAULT_HEADERS: Final = {"accept": "*/*", "accept-encoding": ACCEPT_ENCODING, "user-agent": "llmopt"}
# Requests with these methods send no content-length if they have no body (RFC 9110, 8.6).
_METHODS_WITHOUT_BODY: Final = ("GET", "HEAD", "OPTIONS", "TRACE")
_MAX_HEADS: Final = 256
_MAX_KEYS: Final = 256


class HeadCache:
    """The heads of requests as bytes: requests to one endpoint differ in their content-length only.

    Args:
        close: whether to send ``connection: close``, as every connection is used for one request only.
    """

    def __init__(self, *, close: bool) -> None:
        more = {"connection": "close"} if close else {}
        # The values are part of the key: a new API key must not be answered with the old head. Bounded, because a token
        # may change every hour, and a path with each call.
        self._render: Final = lru_cache(_MAX_HEADS)(partial(_render_head, {**_DEFAULT_HEADERS, **more}))
        self._last: tuple[Mapping[str, str], str, str, bytes] = ({}, "", "", b"")

    def get(self, target: Target, request: TransportRequest) -> memoryview:
        """Return all bytes before the body, as a view: its ``repr`` does not show the API key.

        Raises:
            ValueError: the method or a header contains characters that HTTP forbids.
        """
        headers, url, method, head = self._last
        # Requests to one endpoint share one mapping of headers, which is never changed: identity is enough.
        if headers is not request.headers or url != request.url or method != request.method:
            head = self._render(target, request.method, tuple(request.headers.items()))
            self._last = (request.headers, request.url, request.method, head)
        if request.body is not None:
            return memoryview(b"%bcontent-length: %d\r\n\r\n" % (head, len(request.body)))
        return memoryview(
            head + (b"\r\n" if request.method in _METHODS_WITHOUT_BODY else b"content-length: 0\r\n\r\n")
        )


def _render_head(
    defaults: Mapping[str, str], target: Target, method: str, request_headers: tuple[tuple[str, str], ...]
) -> bytes:
    headers = {"host": target.url.host_port_subcomponent or "", **defaults}
    # Lower case, so that a caller's "User-Agent" replaces the default instead of being sent beside it.
    headers.update((name.lower(), value) for name, value in request_headers)
    # A query may hold a key.
    path = HiddenStr(target.written.raw_path_qs)
    if target.proxy is not None and not target.tunnelled:
        # A proxy for http gets the whole URL, and its own credentials.
        path = HiddenStr(target.written)
        if target.proxy.authorization is not None:
            headers["proxy-authorization"] = HiddenStr(target.proxy.authorization)
    if not (_HEADER_NAME.fullmatch(method) and _VISIBLE.fullmatch(path)):
        raise ValueError("invalid method or URL")
    for name, value in headers.items():
        if not (_HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)):
            # The message contains neither name nor value: they may be a key.
            raise ValueError("invalid header")
    # The lines are not given a name: they hold the API key, and tracebacks can show local variables.
    return HiddenBytes(
        "\r\n".join(
            [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), ""]
        ).encode("ascii")
    )


class ConnectionRequest(ClientRequest):
    """What aiohttp's connector needs to open a connection. It is never sent; ``state`` follows the progress."""

    state: RequestState | None


def connection_request(
    target: Target, loop: asyncio.AbstractEventLoop, state: RequestState | None = None
) -> ConnectionRequest:
    """Describe a connection to a target."""
    proxy, headers = target.proxy, None
    if proxy is not None and proxy.authorization is not None and target.tunnelled:
        # A new mapping each time: aiohttp adds to it after it has hashed it.
        headers = CIMultiDict({"proxy-authorization": proxy.authorization})
    made = ConnectionRequest(
        "GET",
        target.url,
        loop=loop,
        proxy=None if proxy is None else target.proxy_url,
        proxy_headers=headers,
    )
    made.state = state
    return made


def _connection_key(loop: asyncio.AbstractEventLoop, target: Target) -> ConnectionKey:
    return connection_request(target, loop).connection_key


class PoolTrace(Protocol):
    """Callbacks for pool events, called on the event loop of the connection. Without them no time is measured."""

    def connection_acquired(self, waited_s: float, served: int) -> None:
        """A request got a connection after ``waited_s``; it has carried ``served`` requests before."""

    def size_changed(self, connections: int, in_use: int, waiting: int) -> None:
        """The number of open connections has changed; ``waiting`` requests wait for one."""


_NO_TIMEOUTS: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)


class Connector(aiohttp.TCPConnector):
    """Connections to any number of hosts, with a limit for each: a host that hangs must not delay the others.

    The undocumented parts of aiohttp that it needs are listed in tests/transport/test_aiohttp_surface.py.

    Args:
        pool_size: maximum number of connections to one host.
        keepalive: seconds that an idle connection is kept, 0 for no reuse.
        tls: context for https, None for the system's certificate authorities.
        trace: callbacks for pool events, None for none.

    Attributes:
        loop: the event loop it belongs to.
        timeouts: the timeouts of attempts.
        head_cache: the heads of requests.
        connection_key: returns aiohttp's key for the connections to a target.
        created: connections opened.
        reused: requests sent over a kept connection.
        peak: maximum number of connections in use at once.
        draining: callbacks that close the exchanges that discard the rest of a response, see `Exchange.drain`.
    """

    def __init__(
        self, *, pool_size: int, keepalive: float, tls: Any = None, trace: PoolTrace | None = None
    ) -> None:
        self._trace: Final = trace
        self._reported_size = 0
        self._sockets: Final = SocketRegistry()
        super().__init__(
            # No limit over all hosts: a host that hangs would take the connections of the others.
            limit=0,
            limit_per_host=pool_size,
            ssl=True if tls is None else tls,
            # aiodns, which aiohttp uses if it is installed, reports other error numbers than the system does.
            resolver=aiohttp.ThreadedResolver(),
            socket_factory=self._sockets.open,
            **({"keepalive_timeout": keepalive} if keepalive > 0 else {"force_close": True}),
        )
        self._factory: partial[Any] = partial(HttpProtocol, loop=self._loop, read_buffer=new_read_buffer())
        self.loop: Final = self._loop
        self.timeouts: Final = TimeoutScheduler(self._loop)
        self.head_cache: Final = HeadCache(close=keepalive <= 0)
        # Of a function without the connector: a cycle would keep a forgotten one alive.
        self.connection_key: Final = lru_cache(_MAX_KEYS)(partial(_connection_key, self._loop))
        self.created = 0
        self.reused = 0
        self.peak = 0
        self.draining: Final[set[Callable[[], None]]] = set()
        # A weak reference: the loop holds the generator, and must not keep a forgotten connector alive.
        self._loop_close_hook: Final = _close_with_loop(ref(self))
        _run_without_waiting(self._loop_close_hook.__anext__())

    @property
    def in_use(self) -> int:
        """Connections that carry a request or are being opened."""
        return len(self._acquired)

    @property
    def idle(self) -> int:
        """Connections kept for the next request."""
        # aiohttp keeps a closed connection in its list until it is next looked at.
        return sum(protocol.is_connected() for kept in self._conns.values() for protocol, _ in kept)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return sum(len(waiters) for waiters in self._waiters.values())

    async def acquire(self, state: RequestState, target: Target) -> Connection:
        """Return a connection for a request, kept or new; the caller releases or closes it.

        Raises:
            PoolTimeout: no connection became free in time.
            ConnectFailed: a new connection was not opened in time.
        """
        started = 0.0 if self._trace is None else self._loop.time()
        key = self.connection_key(target)
        # The length is compared first: it rules out the more expensive count for nearly every request.
        if len(self._acquired) >= self._limit_per_host and self._available_connections(key) <= 0:
            await self._wait_for_connection(key, state)
        connection = await self._get(key, [])
        if connection is None:
            connection = await self.connect(connection_request(target, self.loop, state), [], _NO_TIMEOUTS)
        self.peak = max(self.peak, len(self._acquired))
        if self._trace is not None:
            served = cast("HttpProtocol", connection.protocol).served
            self._trace.connection_acquired(self._loop.time() - started, served)
            self.report_size()
        return connection

    def report_size(self) -> None:
        """Report the number of connections to the trace, if it has changed."""
        if self._trace is None or self._closed:
            return
        in_use = self.in_use
        now = in_use + self.idle
        if now != self._reported_size:
            self._reported_size = now
            self._trace.size_changed(now, in_use, self.waiting)

    async def _wait_for_connection(self, key: ConnectionKey, state: RequestState) -> None:
        started = self._loop.time()
        try:
            async with asyncio.timeout(state.request.pool_timeout):
                await self._wait_for_available_connection(key, [])
        except BaseException as error:
            # aiohttp loses the wake-up if the woken waiter is cancelled; wake the next one.
            self._release_waiter()
            if isinstance(error, TimeoutError):
                raise transport_errors.pool_timeout(state) from None
            raise
        finally:
            state.queued_s = self._loop.time() - started

    async def _get(self, key: ConnectionKey, traces: list[Any]) -> Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            protocol = cast("HttpProtocol", connection.protocol)
            # aiohttp checks neither for unread bytes nor for a close that the loop has not noticed yet.
            if protocol.reusable():
                self.reused += 1
                return connection
            protocol.abort()
            connection.close()
        return None

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> Any:
        state = cast("RequestState", cast("ConnectionRequest", req).state)
        state.phase = "connect"
        try:
            async with asyncio.timeout(state.request.connect_timeout):
                protocol = await super()._create_connection(req, traces, timeout)
        except TimeoutError as error:
            # The system's own ETIMEDOUT is a TimeoutError too, but one with a number.
            if error.errno is not None:
                raise
            raise transport_errors.connect_timeout(state) from None
        self.created += 1
        return protocol

    def close_idle(self, key: ConnectionKey) -> None:
        """Close the kept connections to one host."""
        for protocol, _ in self._conns.pop(key, ()):
            protocol.abort()

    async def close(self, *, abort_ssl: bool = True) -> None:
        """Abort all exchanges and close; waits until the sockets are closed."""
        self._abort_all()
        await super().close(abort_ssl=abort_ssl)
        _run_without_waiting(self._loop_close_hook.aclose())

    def close_soon(self) -> None:
        """Like `close` without waiting; called by the connector's own loop."""
        self._abort_all()
        self._close(abort_ssl=True)
        _run_without_waiting(self._loop_close_hook.aclose())

    def _abort_all(self) -> None:
        # A copy: each callback removes itself from the set.
        for close in list(self.draining):
            close()
        # aiohttp would close instead of abort, which waits until the peer has read all data that is still to be sent.
        for protocol in list(self._acquired):
            protocol.abort()

    def __del__(self, _: Any = None) -> None:
        # Not aiohttp's, which closes and warns: the pool does both. Of two that are collected together either comes first.
        pass

    def close_from_thread(self) -> None:
        """Close from another thread, or when the loop does not run: each connection ends as if the peer had closed it."""
        self._mark_closed()
        self._sockets.shutdown_all()

    def close_after_loop(self) -> None:
        """Close after the loop was closed."""
        protocols = [protocol for kept in self._conns.values() for protocol, _ in kept] + list(self._acquired)
        self._mark_closed()
        for protocol in protocols:
            if protocol.transport is not None:
                finish_transport(protocol.transport)
        self._sockets.close_all()

    def detach_after_fork(self) -> None:
        """Give up all connections in a forked child, without closing them: they belong to the parent."""
        self._sockets.detach_all()
        self._mark_closed()

    def _mark_closed(self) -> None:
        """Look closed to aiohttp, without closing any connection."""
        self._closed = True
        self._conns.clear()
        self._acquired.clear()
        self._waiters.clear()
        _run_without_waiting(self._loop_close_hook.aclose())


async def _close_with_loop(connector: ref[Connector]) -> AsyncGenerator[None, None]:
    """Close the connector when its loop shuts down, as `asyncio.run` does at its end.

    A loop closes the asynchronous generators that were started on it while it can still run tasks. Without this,
    a program that uses one pool in several `asyncio.run` calls would leave the sockets of each to the next.
    """
    try:
        yield
    finally:
        alive = connector()
        if alive is not None and not alive.closed:
            await alive.close()


def _run_without_waiting(work: Awaitable[object]) -> None:
    """Run a coroutine that is known to finish without waiting."""
    with suppress(StopIteration, StopAsyncIteration, RuntimeError):
        work.__await__().__next__()

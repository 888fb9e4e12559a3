"""The connections of one event loop: aiohttp's connector, stricter about reuse and counting for itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, cast
from weakref import WeakKeyDictionary, ref

import aiohttp
from aiohttp import ClientRequest
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from multidict import CIMultiDict

from llmopt.transport import errors as transport_errors
from llmopt.transport.body import ACCEPT_ENCODING
from llmopt.transport.protocol import HttpProtocol, Sockets, finish, scratch
from llmopt.transport.request import Trip, WireRequest
from llmopt.transport.timers import Watchdog
from llmopt.transport.urls import Target

# The head of a request as bytes. Written once for all requests that share it: a provider's differ in their length only.

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_OWN: Final = {"accept": "*/*", "accept-encoding": ACCEPT_ENCODING, "user-agent": "llmopt"}
_BODILESS: Final = ("GET", "HEAD", "OPTIONS", "TRACE")
_MOST_KEPT: Final = 256


class Heads:
    """The heads written so far.

    Args:
        close: whether the server is told that each connection is for one request.
    """

    def __init__(self, *, close: bool) -> None:
        self._own: Final = {**_OWN, "connection": "close"} if close else _OWN
        self._written: Final[dict[tuple[object, ...], bytes]] = {}
        self._last: tuple[Mapping[str, str], str, str, bytes] = ({}, "", "", b"")

    def of(self, target: Target, request: WireRequest) -> bytes:
        """Everything before the body.

        Raises:
            ValueError: the method or a header holds what HTTP forbids.
        """
        headers, url, method, head = self._last
        # Requests to one endpoint share their headers as an object, too, and nobody changes it.
        if headers is not request.headers or url != request.url or method != request.method:
            head = self._find(target, request)
            self._last = (request.headers, request.url, request.method, head)
        if request.body is not None:
            return b"%bcontent-length: %d\r\n\r\n" % (head, len(request.body))
        return head + (b"\r\n" if request.method in _BODILESS else b"content-length: 0\r\n\r\n")

    def _find(self, target: Target, request: WireRequest) -> bytes:
        key = (request.method, request.url, *request.headers.items())
        head = self._written.get(key)
        if head is None:
            head = self._write(target, request.method, request.headers)
            # A token that changes by the hour, or a path per call, must not grow it for ever.
            if len(self._written) >= _MOST_KEPT:
                self._written.clear()
            self._written[key] = head
        return head

    def _write(self, target: Target, method: str, given: Mapping[str, str]) -> bytes:
        headers = {"host": target.url.host_port_subcomponent or "", **self._own}
        headers.update((name.lower(), value) for name, value in given.items())
        path = target.url.raw_path_qs
        if target.proxy is not None and not target.tunnelled:
            # A proxy is given the whole URL, and its own credentials.
            path = str(target.url)
            if target.proxy.authorization is not None:
                headers["proxy-authorization"] = target.proxy.authorization
        if not _TOKEN.fullmatch(method):
            raise ValueError("the method is none")
        for name, value in headers.items():
            if not (_TOKEN.fullmatch(name) and _VALUE.fullmatch(value)):
                # Neither is said: it may be a key.
                raise ValueError("a header cannot be sent")
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), ""]
        return "\r\n".join(lines).encode("ascii")


# A request as aiohttp's connector wants it: for the way it shows, not to be sent.


class Outgoing(ClientRequest):
    """Says where a connection leads; ``trip`` is told how far it has come about."""

    trip: Trip | None


def way_to(target: Target, loop: asyncio.AbstractEventLoop, trip: Trip | None = None) -> Outgoing:
    """The way to a target."""
    proxy, headers = target.proxy, None
    if proxy is not None and proxy.authorization is not None and target.tunnelled:
        # A fresh one each time: aiohttp adds to it after it has hashed it.
        headers = CIMultiDict({"proxy-authorization": proxy.authorization})
    made = Outgoing(
        "GET",
        target.url,
        loop=loop,
        proxy=None if proxy is None else target.proxy_url,
        proxy_headers=headers,
    )
    made.trip = trip
    return made


# Somebody who wants to know what a pool does.


class PoolWatch(Protocol):
    """Told of connections, on their event loop. A pool that nobody watches looks at no clock for it."""

    def taken(self, seconds: float, served: int) -> None:
        """A request got a connection after so long, which has carried so many requests before."""

    def sized(self, open_now: int, in_use: int, waiting: int) -> None:
        """There are so many connections now, other than the last time."""


_NO_TIMEOUTS: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)


class Connector(aiohttp.TCPConnector):
    """Connections to any number of hosts, each with its own limit: one that hangs must not delay others.

    What it relies upon of aiohttp beyond its documentation is named in tests/wire/test_aiohttp_surface.py.

    Args:
        pool_size: most connections to one host.
        keepalive: seconds that an idle connection is kept, 0 for no reuse.
        tls: context for https, None for the system's certificate authorities.
        watch: told of what happens, None for nobody.

    Attributes:
        loop: the loop it belongs to.
        watchdog: of the time-outs of attempts.
        heads: the heads of requests, as written so far.
        created: connections made.
        reused: requests that went over a kept connection.
        peak: most connections in use at once.
        leaving: what ends the exchanges that only wait for the end of an answer nobody reads.
    """

    def __init__(
        self, *, pool_size: int, keepalive: float, tls: Any = None, watch: PoolWatch | None = None
    ) -> None:
        self._watch: Final = watch
        self._told = 0
        self._sockets: Final = Sockets()
        super().__init__(
            limit=0,
            limit_per_host=pool_size,
            ssl=True if tls is None else tls,
            # The library for asynchronous DNS, if installed, has error numbers of its own.
            resolver=aiohttp.ThreadedResolver(),
            socket_factory=self._sockets.open,
            **({"keepalive_timeout": keepalive} if keepalive > 0 else {"force_close": True}),
        )
        self._factory: partial[Any] = partial(HttpProtocol, loop=self._loop, room=scratch())
        self.loop: Final = self._loop
        self.watchdog: Final = Watchdog(self._loop)
        self.heads: Final = Heads(close=keepalive <= 0)
        self._keys: Final[WeakKeyDictionary[Target, ConnectionKey]] = WeakKeyDictionary()
        # A pool mostly leads to one place.
        self._last_key: tuple[Target, ConnectionKey] | None = None
        self.created = 0
        self.reused = 0
        self.peak = 0
        self.leaving: Final[set[Callable[[], None]]] = set()
        self._keeper: Final = _until_the_loop_ends(ref(self))
        _step(self._keeper.__anext__())

    @property
    def in_use(self) -> int:
        """Connections that carry a request or are being made."""
        return len(self._acquired)

    @property
    def idle(self) -> int:
        """Connections kept for the next request."""
        return sum(protocol.is_connected() for kept in self._conns.values() for protocol, _ in kept)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return sum(len(waiters) for waiters in self._waiters.values())

    async def lease(self, trip: Trip, target: Target) -> Connection:
        """A connection for a request, kept or new; the caller releases or closes it.

        Raises:
            PoolTimeout: none became free in time.
            ConnectFailed: a new one was not made in time.
        """
        started = 0.0 if self._watch is None else self._loop.time()
        key = self.key_of(target)
        if len(self._acquired) >= self._limit_per_host and self._available_connections(key) <= 0:
            await self._queue(key, trip)
        connection = await self._get(key, [])
        if connection is None:
            connection = await self.connect(way_to(target, self.loop, trip), [], _NO_TIMEOUTS)
        self.peak = max(self.peak, len(self._acquired))
        if self._watch is not None:
            self._tell(self._watch, started, connection)
        return connection

    def _tell(self, watch: PoolWatch, started: float, connection: Connection) -> None:
        watch.taken(self._loop.time() - started, cast("HttpProtocol", connection.protocol).served)
        self.tell_size()

    def key_of(self, target: Target) -> ConnectionKey:
        """What connections that lead there have in common."""
        last = self._last_key
        if last is not None and last[0] is target:
            return last[1]
        key = self._keys.get(target)
        if key is None:
            key = self._keys[target] = way_to(target, self.loop).connection_key
        self._last_key = (target, key)
        return key

    def tell_size(self) -> None:
        """Tell who watches how many connections there are, if that has changed."""
        if self._watch is None or self._closed:
            return
        in_use = self.in_use
        now = in_use + self.idle
        if now != self._told:
            self._told = now
            self._watch.sized(now, in_use, self.waiting)

    async def _queue(self, key: ConnectionKey, trip: Trip) -> None:
        started = self._loop.time()
        try:
            async with asyncio.timeout(trip.request.pool_timeout):
                await self._wait_for_available_connection(key, [])
        except BaseException as error:
            # aiohttp forgets to pass the turn on when the one whose turn it is gives up.
            self._release_waiter()
            if isinstance(error, TimeoutError):
                raise transport_errors.pool_timeout(trip) from None
            raise
        finally:
            trip.queued_s = self._loop.time() - started

    async def _get(self, key: ConnectionKey, traces: list[Any]) -> Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            protocol = cast("HttpProtocol", connection.protocol)
            if protocol.usable():
                self.reused += 1
                return connection
            protocol.abort()
            connection.close()
        return None

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> Any:
        trip = cast("Trip", cast("Outgoing", req).trip)
        trip.phase = "connect"
        try:
            async with asyncio.timeout(trip.request.connect_timeout):
                protocol = await super()._create_connection(req, traces, timeout)
        except TimeoutError as error:
            if error.errno is not None:
                raise
            raise transport_errors.connect_timeout(trip) from None
        self.created += 1
        return protocol

    def drop_idle(self, key: ConnectionKey) -> None:
        """Close the kept connections to one host."""
        for protocol, _ in self._conns.pop(key, ()):
            protocol.abort()

    async def shut(self) -> None:
        """Break off everything and close; waits until the sockets are closed."""
        self._abort()
        await self.close(abort_ssl=True)
        _step(self._keeper.aclose())

    def shut_soon(self) -> None:
        """The same without waiting, called by the loop."""
        self._abort()
        self._close(abort_ssl=True)
        _step(self._keeper.aclose())

    def _abort(self) -> None:
        for end in list(self.leaving):
            end()
        # Not left to aiohttp: it closes, which waits for the peer to take what is still to be sent.
        for protocol in list(self._acquired):
            protocol.abort()

    def hang_up(self) -> None:
        """Close from another thread, or without one's loop: each connection ends as if the peer had gone."""
        self._forget()
        self._sockets.shut_down()

    def bury(self) -> None:
        """Close after the loop was closed."""
        protocols = [protocol for kept in self._conns.values() for protocol, _ in kept] + list(self._acquired)
        self._forget()
        for protocol in protocols:
            if protocol.transport is not None:
                finish(protocol.transport)
        self._sockets.close()

    def disown(self) -> None:
        """Let go in a forked child: the connections are the parent's."""
        self._sockets.disown()
        self._forget()

    def _forget(self) -> None:
        """Be closed, as far as aiohttp is concerned, without having closed anything."""
        self._closed = True
        self._conns.clear()
        self._acquired.clear()
        self._waiters.clear()
        _step(self._keeper.aclose())


async def _until_the_loop_ends(connector: ref[Connector]) -> AsyncGenerator[None, None]:
    """Close the connector when its loop shuts down, as `asyncio.run` does at its end.

    A loop closes the asynchronous generators that have begun on it, while it can still run. Without this
    a program that uses one pool in several runs would leave the first run's sockets to the next.
    """
    try:
        yield
    finally:
        left = connector()
        if left is not None and not left.closed:
            await left.shut()


def _step(work: Awaitable[object]) -> None:
    """Run what is known not to wait for anything."""
    with suppress(StopIteration, StopAsyncIteration, RuntimeError):
        work.__await__().__next__()

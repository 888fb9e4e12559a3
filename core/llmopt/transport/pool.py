"""The pooled sender: our own way to the network, over aiohttp."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from attrs import evolve, frozen

from llmopt.transport import errors as transport_errors
from llmopt.transport.connector import Connector, PoolWatch
from llmopt.transport.exchange import Exchange
from llmopt.transport.request import WireRequest
from llmopt.transport.stream import WireStream
from llmopt.transport.urls import Targets
from llmopt.values.http import HttpResponse

if TYPE_CHECKING:
    import ssl


@frozen(kw_only=True)
class PoolStats:
    """What a pool has done and is doing, over all its event loops.

    Attributes:
        created: connections made.
        reused: requests that went over a kept connection.
        in_use: connections that carry a request or are being made, now.
        idle: connections kept for the next request, now.
        waiting: requests that wait for a connection, now.
        peak: most connections in use at once on one loop.
    """

    created: int = 0
    reused: int = 0
    in_use: int = 0
    idle: int = 0
    waiting: int = 0
    peak: int = 0


class ConnectionPool:
    """Sends requests over kept connections; one set of connections per process and event loop.

    It may be made anywhere, used from several loops and threads, and carried across `os.fork`: each
    loop gets its own connections when it first sends, a forked child starts with none and never
    touches its parent's.

    Args:
        pool_size: most connections to one host.
        keepalive: seconds that an idle connection is kept, 0 for a new connection per request.
        tls: context for https, None for the system's certificate authorities.
        watch: told of what happens, None for nobody.
    """

    def __init__(
        self,
        *,
        pool_size: int = 64,
        keepalive: float = 60.0,
        tls: ssl.SSLContext | None = None,
        watch: PoolWatch | None = None,
    ) -> None:
        self._watch: Final = watch
        self._pool_size: Final = pool_size
        self._keepalive: Final = keepalive
        self._tls: Final = tls
        self._targets: Final = Targets()
        self._connectors: dict[asyncio.AbstractEventLoop, Connector] = {}
        self._inherited: tuple[tuple[asyncio.AbstractEventLoop, Connector], ...] = ()
        self._past = PoolStats()
        self._pid = os.getpid()
        self._closed = False
        _pools.add(self)

    async def send(self, request: WireRequest) -> HttpResponse:
        """Send a request and read the whole answer, whatever its status.

        An error's body is cut at 64 KiB.

        Raises:
            ConfigError: the URL, the method or a header cannot be sent.
            PoolTimeout, ConnectFailed: nothing was sent.
            ConnectionLost: the connection broke; ``stale`` if it was a kept one that had gone before.
            AttemptTimeout: ``request.timeout`` ran out, whatever it was spent on.
            InvalidResponse: the answer is not HTTP ("http"), broke off ("truncated"), is larger than
                ``max_body`` ("too_large"), or cannot be unpacked ("decompression").
            ClientClosed: the pool was closed.
        """
        exchange = self.exchange(request)
        try:
            return await exchange.whole()
        except BaseException as error:
            fault = exchange.fail(error)
            if fault is None:
                raise
        # As in `Exchange.guard`, which would cost a coroutine more.
        raise fault

    async def open(self, request: WireRequest) -> WireStream:
        """Send a request, and read the answer while it comes; ``timeout`` ends with the answer's head.

        Raises as `send` does, also from reading. Whoever opens it ends it.
        """
        exchange = self.exchange(request)
        await exchange.guard(exchange.head())
        return WireStream(exchange)

    @asynccontextmanager
    async def open_stream(self, request: WireRequest) -> AsyncIterator[WireStream]:
        """`open` for ``async with``: leaving the block early closes the connection."""
        stream = await self.open(request)
        try:
            yield stream
        finally:
            stream.end()

    def exchange(self, request: WireRequest) -> Exchange:
        """An exchange on this event loop, not yet begun; its steps run in its ``guard``."""
        target = self._targets.of(request.url)
        return Exchange(self._connector(), target, request)

    async def aclose(self) -> None:
        """Break off what is under way and close all connections. Later requests raise `ClientClosed`."""
        self._closed = True
        self._disown_if_forked()
        here = asyncio.get_running_loop()
        for loop in list(self._connectors):
            connector = self._drop(loop)
            if connector is None:
                continue
            if loop is here:
                await connector.shut()
            elif loop.is_running():
                loop.call_soon_threadsafe(connector.shut_soon)
            else:
                _leave(loop, connector)

    def stats(self) -> PoolStats:
        """The counters as they stand; those of loops that were closed are kept in the sums."""
        total = self._past
        for connector in list(self._connectors.values()):
            total = _sum(total, connector)
        return total

    def _connector(self) -> Connector:
        self._disown_if_forked()
        loop = asyncio.get_running_loop()
        connector = self._connectors.get(loop)
        if connector is None or connector.closed or len(self._connectors) > 1:
            self._bury_dead()
        if connector is None or connector.closed:
            connector = self._open(loop)
        return connector

    def _open(self, loop: asyncio.AbstractEventLoop) -> Connector:
        if self._closed:
            raise transport_errors.closed()
        connector = Connector(
            pool_size=self._pool_size, keepalive=self._keepalive, tls=self._tls, watch=self._watch
        )
        self._connectors[loop] = connector
        return connector

    def _bury_dead(self) -> None:
        # Another loop's thread may be at it as well: whoever drops one buries it.
        for loop, connector in list(self._connectors.items()):
            if not (loop.is_closed() or connector.closed) or not (gone := self._drop(loop)):
                continue
            # One that is closed on a loop that still runs finishes there; its sockets are not this thread's to touch.
            if loop.is_closed():
                gone.bury()

    def _drop(self, loop: asyncio.AbstractEventLoop) -> Connector | None:
        connector = self._connectors.pop(loop, None)
        if connector is not None:
            gone = _sum(self._past, connector)
            self._past = evolve(gone, in_use=0, idle=0, waiting=0)
        return connector

    def _disown_if_forked(self) -> None:
        # The hook below does the same at once; this is for what forks without calling it.
        if self._pid != os.getpid():
            self._disown()

    def _disown(self) -> None:
        inherited, self._connectors = self._connectors, {}
        self._pid = os.getpid()
        self._past = PoolStats()
        for connector in inherited.values():
            connector.disown()
        # Kept, so that nothing of the parent's loop is finalized in this process.
        self._inherited = (*self._inherited, *inherited.items())

    def __repr__(self) -> str:
        now = self.stats()
        state = "closed" if self._closed else "open"
        return f"<ConnectionPool {state}: {now.in_use} in use, {now.idle} idle, {now.waiting} waiting>"

    def __del__(self, warn: Any = warnings.warn) -> None:
        if self._pid != os.getpid():
            return
        left = {loop: connector for loop, connector in self._connectors.items() if not connector.closed}
        if left:
            warn(f"unclosed {self!r}; await its aclose()", ResourceWarning, source=self)
        for loop, connector in left.items():
            _leave(loop, connector)


_pools: Final[WeakSet[ConnectionPool]] = WeakSet()


def _disown_all() -> None:
    for pool in list(_pools):
        pool._disown()  # noqa: SLF001 - part of the class, called by the system


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)


def _leave(loop: asyncio.AbstractEventLoop, connector: Connector) -> None:
    """Close without the help of the connector's loop."""
    if loop.is_closed():
        connector.bury()
    else:
        connector.hang_up()


def _sum(total: PoolStats, connector: Connector) -> PoolStats:
    return PoolStats(
        created=total.created + connector.created,
        reused=total.reused + connector.reused,
        in_use=total.in_use + connector.in_use,
        idle=total.idle + connector.idle,
        waiting=total.waiting + connector.waiting,
        peak=max(total.peak, connector.peak),
    )

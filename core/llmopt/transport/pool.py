"""The connection pool: one connector per event loop, safe for threads and for fork.

The engine imports this file at the first request of the default transport, and httptools with it.

The network is accessed by the connectors and awaited; nothing is opened before the first request. Event loops in
several threads share the pool, without a lock: each has a connector of its own, kept in a dict by loop, and all share
the cache of targets and the counters of closed connectors, which two threads may count wrongly. `stats` reads the
connectors of other threads while they change, which may raise RuntimeError, and `aclose` waits for that of the running
loop only. The proxy variables of the environment are read once for each origin. A module-level weak set of all pools
serves the fork hook. The callbacks of the trace, which may end in the user's listener, run on the loop of the
connection.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from attrs import evolve, frozen

from llmopt._platform import register_at_fork
from llmopt.errors import ConfigError, LLMOptError
from llmopt.transport import errors as transport_errors
from llmopt.transport.connector import Connector, PoolTrace
from llmopt.transport.exchange import Exchange, OnDone, PoolStream
from llmopt.transport.request import TransportRequest
from llmopt.transport.stream import ResponseStream
from llmopt.transport.urls import Targets
from llmopt.values.http import HttpResponse

if TYPE_CHECKING:
    import ssl


@frozen(kw_only=True)
class PoolStats:
    """Counters of a pool, over all its event loops.

    Attributes:
        created: connections opened.
        reused: requests sent over a kept connection.
        in_use: connections that carry a request or are being opened, now.
        idle: connections kept for the next request, now.
        waiting: requests that wait for a connection, now.
        peak: maximum number of connections in use at once on one loop.
    """

    created: int = 0
    reused: int = 0
    in_use: int = 0
    idle: int = 0
    waiting: int = 0
    peak: int = 0


Sending = Exchange
"""A request on its connection, as `ConnectionPool.try_send` returns it; only its ``abort`` is called from outside."""


class ConnectionPool:
    """Sends requests over kept connections; one set of connections per process and event loop.

    It can be created anywhere, used from several loops and threads, and used after `os.fork`: each loop gets its own
    connections when it first sends a request; a forked child starts without any and never uses its parent's.

    Args:
        pool_size: maximum number of connections to one host.
        keepalive: seconds that an idle connection is kept, 0 for a new connection per request.
        tls: context for https, None for the system's certificate authorities.
        trace: callbacks for pool events, None for none.
    """

    def __init__(
        self,
        *,
        pool_size: int = 64,
        keepalive: float = 60.0,
        tls: ssl.SSLContext | None = None,
        trace: PoolTrace | None = None,
    ) -> None:
        self._trace: Final = trace
        self._pool_size: Final = pool_size
        self._keepalive: Final = keepalive
        self._tls: Final = tls
        self._targets: Final = Targets()
        self._connectors: dict[asyncio.AbstractEventLoop, Connector] = {}
        # Connectors of the parent process, see `_detach_after_fork`.
        self._inherited: tuple[tuple[asyncio.AbstractEventLoop, Connector], ...] = ()
        self._closed_stats = PoolStats()
        self._pid = os.getpid()
        self._closed = False
        _pools.add(self)

    async def send(self, request: TransportRequest) -> HttpResponse:
        """Send a request and return the whole response, whatever its status.

        The body of an error is cut at 64 KiB.

        Raises:
            ConfigError: the URL, the method or a header cannot be sent.
            PoolTimeout, ConnectFailed: nothing was sent.
            ConnectionLost: the connection broke; ``stale`` if it was a kept one that the server had closed before.
            AttemptTimeout: ``request.timeout`` has passed, in whichever phase.
            InvalidResponse: the response is not HTTP ("http"), is incomplete ("truncated"), is larger than
                ``max_body`` ("too_large"), or cannot be decompressed ("decompression").
            ClientClosed: the pool was closed.
        """
        target = self._targets.get(request.url)
        connector = self._connector()
        done: asyncio.Future[HttpResponse] = connector.loop.create_future()
        exchange = Exchange(connector, target, request, partial(_set_outcome, done))
        exchange.start(exchange.take() or await exchange.acquire())
        try:
            return await done
        except BaseException:
            exchange.abort()
            raise

    def try_send(self, request: TransportRequest, on_done: OnDone) -> Sending | None:
        """Send a request over an idle connection, if there is one now; nothing is awaited.

        Args:
            request: the request; its ``timeout`` applies.
            on_done: called once with the response or the error, those of `send`, later and from a callback of the loop.

        Returns:
            The request, for its ``abort``; None if nothing was sent, because no connection of the running loop is idle and
            usable, or because `send` would raise an error at once.
        """
        connector = self._connectors.get(asyncio.get_running_loop())
        if connector is None or self._pid != os.getpid():
            return None
        try:
            target = self._targets.get(request.url)
            exchange = Exchange(connector, target, request, on_done)
        except ConfigError:
            return None
        connection = exchange.take()
        if connection is None:
            return None
        exchange.start(connection)
        return exchange

    async def open(self, request: TransportRequest) -> ResponseStream:
        """Send a request and return the response as a stream; ``timeout`` covers everything up to the head.

        Raises like `send`, also while reading. The caller must close the stream.
        """
        target = self._targets.get(request.url)
        stream = PoolStream(self._connector(), target, request)
        await stream.open()
        return stream

    async def aclose(self) -> None:
        """Abort running requests and close all connections. Later requests raise `ClientClosed`."""
        # Set first: a request that starts while the connectors close must not open a new one.
        self._closed = True
        self._detach_if_forked()
        current = asyncio.get_running_loop()
        for loop in list(self._connectors):
            # Of two threads that close the pool, only the one that removes a connector closes it.
            connector = self._remove(loop)
            if connector is None:
                continue
            if loop is current:
                await connector.close()
            # Transports and futures of another loop may be touched in that loop's thread only.
            elif loop.is_running():
                loop.call_soon_threadsafe(connector.close_soon)
            else:
                _close_from_outside(loop, connector)

    def stats(self) -> PoolStats:
        """Return the counters, including those of event loops that are closed."""
        total = self._closed_stats
        for connector in list(self._connectors.values()):
            total = _add_stats(total, connector)
        return total

    def _connector(self) -> Connector:
        self._detach_if_forked()
        loop = asyncio.get_running_loop()
        connector = self._connectors.get(loop)
        # With one loop, the usual case, a request pays for no scan of the others.
        if connector is None or connector.closed or len(self._connectors) > 1:
            self._discard_closed()
        if connector is None or connector.closed:
            if self._closed:
                raise transport_errors.pool_closed()
            connector = self._connectors[loop] = Connector(
                pool_size=self._pool_size, keepalive=self._keepalive, tls=self._tls, trace=self._trace
            )
        return connector

    def _discard_closed(self) -> None:
        # Threads of other loops may do the same: the one that removes a connector closes it.
        for loop, connector in list(self._connectors.items()):
            if not (loop.is_closed() or connector.closed) or not (removed := self._remove(loop)):
                continue
            # A connector that was closed on a running loop finishes there; another thread must not touch its sockets.
            if loop.is_closed():
                removed.close_after_loop()

    def _remove(self, loop: asyncio.AbstractEventLoop) -> Connector | None:
        connector = self._connectors.pop(loop, None)
        if connector is not None:
            total = _add_stats(self._closed_stats, connector)
            # The connector's gauges end with it; its counters must never go back.
            self._closed_stats = evolve(total, in_use=0, idle=0, waiting=0)
        return connector

    def _detach_if_forked(self) -> None:
        # The hook below does this right after a fork; this is for forks that do not call it.
        if self._pid != os.getpid():
            self._detach_after_fork()

    def _detach_after_fork(self) -> None:
        inherited, self._connectors = self._connectors, {}
        self._pid = os.getpid()
        self._closed_stats = PoolStats()
        for connector in inherited.values():
            connector.detach_after_fork()
        # References are kept so that nothing of the parent's loop is finalized in this process.
        self._inherited = (*self._inherited, *inherited.items())

    def __repr__(self) -> str:
        now = self.stats()
        state = "closed" if self._closed else "open"
        return f"<ConnectionPool {state}: {now.in_use} in use, {now.idle} idle, {now.waiting} waiting>"

    # The default argument keeps `warn` alive: at interpreter exit the module's globals may be gone already.
    def __del__(self, warn: Any = warnings.warn) -> None:
        if self._pid != os.getpid():
            return
        unclosed = {loop: connector for loop, connector in self._connectors.items() if not connector.closed}
        if unclosed:
            warn(f"unclosed {self!r}; await its aclose()", ResourceWarning, source=self)
        for loop, connector in unclosed.items():
            _close_from_outside(loop, connector)


def _set_outcome(done: asyncio.Future[HttpResponse], outcome: HttpResponse | LLMOptError) -> None:
    # The caller may have been cancelled just now.
    if done.done():
        return
    if isinstance(outcome, LLMOptError):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)


# Weak, so that this registry keeps no forgotten pool alive.
_pools: Final[WeakSet[ConnectionPool]] = WeakSet()


def _detach_all_pools() -> None:
    for pool in list(_pools):
        pool._detach_after_fork()  # noqa: SLF001 - part of the class, called by os.fork


register_at_fork(_detach_all_pools)


def _close_from_outside(loop: asyncio.AbstractEventLoop, connector: Connector) -> None:
    """Close a connector whose loop does not run."""
    if loop.is_closed():
        connector.close_after_loop()
    else:
        connector.close_from_thread()


def _add_stats(total: PoolStats, connector: Connector) -> PoolStats:
    counters = ("created", "reused", "in_use", "idle", "waiting")
    sums = {name: getattr(total, name) + getattr(connector, name) for name in counters}
    return PoolStats(**sums, peak=max(total.peak, connector.peak))

"""The connections of one event loop: how they are opened, kept, limited and counted.

It opens and closes network connections, which callers await, resolves host names in threads of the loop's default
executor, and keeps the addresses for ten seconds. A connector serves one event loop and has no lock: its requests share
the connections, one read buffer, and a cache of heads, which hold keys. `close_from_thread` and `close_after_loop` are
for other threads, the counters are read from other threads too, without any guard, and a forked child gives up the
connections of its parent. When its loop shuts down its asynchronous generators, the connector closes. It uses the
loop's clock, and reports to a `PoolTrace`, on that loop, which may end in the user's listener.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol
from weakref import ref

import aiohappyeyeballs
from attrs import define, field

from llmopt.config.urls import parse_url
from llmopt.transport import errors as transport_errors
from llmopt.transport.http1 import HeadCache, ResponseParser
from llmopt.transport.protocol import READ_BUFFER_SIZE, HttpProtocol, SocketRegistry, finish_transport
from llmopt.transport.request import RequestState, TransportRequest
from llmopt.transport.timers import TimeoutScheduler
from llmopt.transport.tls import default_context
from llmopt.transport.urls import Route, Target

# RFC 8305, 5 and 8: 250 ms between two attempts to connect.
_MAX_TURNS: Final = 50
_HAPPY_EYEBALLS_DELAY: Final = 0.25
_ADDRESSES_KEPT_S: Final = 10.0


class PoolTrace(Protocol):
    """Callbacks for pool events, called on the event loop of the connection. Without them no time is measured."""

    def connection_acquired(self, waited_s: float, served: int) -> None:
        """A request got a connection after ``waited_s``; it has carried ``served`` requests before."""

    def size_changed(self, connections: int, in_use: int, waiting: int) -> None:
        """The number of open connections has changed; ``waiting`` requests wait for one."""


@define(eq=False)
class _RoutePool:
    """The idle connections of one route, the one used last at the end, and the requests that wait for one."""

    idle: list[HttpProtocol] = field(factory=list)
    in_use: int = 0
    # The result of each is whether it has got a place; it has not if the connector was closed.
    waiters: OrderedDict[asyncio.Future[bool], None] = field(factory=OrderedDict)


class Connector:
    """Connections to any number of hosts, with a limit for each: a host that hangs must not delay the others.

    Args:
        pool_size: maximum number of connections to one host.
        keepalive: seconds that an idle connection is kept, 0 for no reuse.
        tls: context for https, None for the system's certificate authorities.
        trace: callbacks for pool events, None for none.

    Attributes:
        loop: the event loop it belongs to.
        timeouts: the timeouts of attempts.
        head_cache: the heads of requests.
        created: connections opened.
        reused: requests sent over a kept connection.
        in_use: connections that carry a request or are being opened.
        peak: maximum number of connections in use at once.
        closed: whether it was closed.
    """

    def __init__(
        self,
        *,
        pool_size: int,
        keepalive: float,
        tls: ssl.SSLContext | None = None,
        trace: PoolTrace | None = None,
    ) -> None:
        self.loop: Final = asyncio.get_running_loop()
        self.timeouts: Final = TimeoutScheduler(self.loop)
        self.head_cache: Final = HeadCache(close=keepalive <= 0)
        self.created = self.reused = self.in_use = self.peak = 0
        self.closed = False
        self._pool_size: Final = pool_size
        self._keepalive: Final = keepalive
        self._tls = tls
        self._trace: Final = trace
        self._reported_size = 0
        self._routes: Final[dict[Route, _RoutePool]] = {}
        self._connections: Final[set[HttpProtocol]] = set()
        self._opening: Final[set[asyncio.Timeout]] = set()
        self._sockets: Final = SocketRegistry()
        self._read_buffer: Final = memoryview(bytearray(READ_BUFFER_SIZE))
        self._lookups: Final[dict[tuple[str, int], asyncio.Task[list[Any]]]] = {}
        self._idle_timer: asyncio.TimerHandle | None = None
        self._all_lost: asyncio.Future[None] | None = None
        # A weak reference: the loop holds the generator, and must not keep a forgotten connector alive.
        self._loop_close_hook: Final = _close_with_loop(ref(self))
        _run_without_waiting(self._loop_close_hook.__anext__())

    @property
    def idle(self) -> int:
        """Connections kept for the next request."""
        return sum(len(pool.idle) for pool in self._routes.values())

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return sum(len(pool.waiters) for pool in self._routes.values())

    def take(self, route: Route) -> HttpProtocol | None:
        """Return an idle connection that is usable now, None if there is none; the caller releases it."""
        pool = self._routes.get(route)
        # Requests that wait are served first.
        if pool is None or not pool.idle or pool.waiters or pool.in_use >= self._pool_size:
            return None
        connection = self._pop_usable(pool)
        if connection is not None:
            self._count(pool)
            if self._trace is not None:
                self._trace.connection_acquired(0.0, connection.served)
                self.report_size()
        return connection

    async def acquire(self, route: Route, state: RequestState) -> HttpProtocol:
        """Return a connection for a request, kept or new, once there is room for it; the caller releases it.

        Raises:
            PoolTimeout: no connection became free in time.
            ConnectFailed: a new connection was not opened in time.
        """
        started = self.loop.time()
        pool = self._routes.get(route)
        if pool is None:
            pool = self._routes[route] = _RoutePool()
        if pool.in_use >= self._pool_size or pool.waiters:
            await self._wait(pool, state)
        else:
            self._count(pool)
        try:
            connection = self._pop_usable(pool) or await self._connect(route, state)
        except BaseException:
            self._free(pool)
            raise
        if self._trace is not None:
            self._trace.connection_acquired(self.loop.time() - started, connection.served)
            self.report_size()
        return connection

    def release(self, connection: HttpProtocol, *, keep: bool) -> None:
        """Take a connection back, to keep it for the next request or to close it."""
        pool = self._routes[connection.route]
        connection.served += 1
        connection.receiver = None
        # Who closes the connector sees to its connections; in a forked child they belong to the parent.
        if not self.closed and not self.loop.is_closed():
            if not keep or self._keepalive <= 0:
                connection.abort()
            else:
                self._keep(pool, connection)
        self._free(pool)
        self.report_size()

    def _keep(self, pool: _RoutePool, connection: HttpProtocol) -> None:
        connection.idle_until = self.loop.time() + self._keepalive
        pool.idle.append(connection)
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_at(connection.idle_until, self._close_expired)

    def report_size(self) -> None:
        """Report the number of connections to the trace, if it has changed."""
        if self._trace is None or self.closed:
            return
        now = len(self._connections)
        if now != self._reported_size:
            self._reported_size = now
            self._trace.size_changed(now, self.in_use, self.waiting)

    def close_idle(self, route: Route) -> None:
        """Close the kept connections to one host."""
        pool = self._routes.get(route)
        while pool is not None and pool.idle:
            pool.idle.pop().abort()

    def _count(self, pool: _RoutePool) -> None:
        pool.in_use += 1
        self.in_use += 1
        self.peak = max(self.peak, self.in_use)

    def _free(self, pool: _RoutePool) -> None:
        """Give up a place in a pool: to the first that waits for one, in the order in which they came."""
        while pool.waiters:
            waiter, _ = pool.waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(True)
                return
        pool.in_use -= 1
        self.in_use -= 1

    async def _wait(self, pool: _RoutePool, state: RequestState) -> None:
        started = self.loop.time()
        waiter = self.loop.create_future()
        pool.waiters[waiter] = None
        try:
            async with asyncio.timeout(state.request.pool_timeout):
                if not await waiter:
                    raise transport_errors.pool_closed()
        except BaseException as error:
            pool.waiters.pop(waiter, None)
            # A waiter that was given the place, and is cancelled before it runs, passes it on.
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self._free(pool)
            if isinstance(error, TimeoutError):
                raise transport_errors.pool_timeout(state) from None
            raise
        finally:
            state.queued_s = self.loop.time() - started

    def _pop_usable(self, pool: _RoutePool) -> HttpProtocol | None:
        """The idle connection that was used last: the others may close."""
        now = self.loop.time()
        while pool.idle:
            connection = pool.idle.pop()
            if connection.idle_until > now and connection.reusable():
                self.reused += 1
                return connection
            connection.abort()
        return None

    def _close_expired(self) -> None:
        """Close what was idle for too long, and look again when the next one will have been."""
        now, self._idle_timer = self.loop.time(), None
        for pool in self._routes.values():
            while pool.idle and pool.idle[0].idle_until <= now:
                pool.idle.pop(0).abort()
        upcoming = [pool.idle[0].idle_until for pool in self._routes.values() if pool.idle]
        if upcoming:
            self._idle_timer = self.loop.call_at(min(upcoming), self._close_expired)

    def _forget(self, connection: HttpProtocol) -> None:
        """A connection has ended."""
        pool = self._routes.get(connection.route)
        if pool is not None and connection in pool.idle:
            pool.idle.remove(connection)
        self._connections.discard(connection)
        self.report_size()
        if self._all_lost is not None and not self._connections and not self._all_lost.done():
            self._all_lost.set_result(None)

    async def _connect(self, route: Route, state: RequestState) -> HttpProtocol:
        state.phase = "connect"
        try:
            async with asyncio.timeout(state.request.connect_timeout) as limit:
                self._opening.add(limit)
                try:
                    connection = await self._open(route, state)
                finally:
                    self._opening.discard(limit)
        except TimeoutError as error:
            # The system's own ETIMEDOUT is a TimeoutError too, but one with a number.
            if error.errno is not None:
                raise
            raise transport_errors.connect_timeout(state) from None
        self.created += 1
        return connection

    async def _open(self, route: Route, state: RequestState) -> HttpProtocol:
        """Open a connection, over the proxy if there is one."""
        first = parse_url(route.origin if route.proxy is None else route.proxy.url)
        tls = self._tls_context() if first.encrypted else None
        addresses = await self._resolve(first.host, first.port or route.port)
        if not addresses:
            raise OSError("the name has no address")
        opened = await aiohappyeyeballs.start_connection(
            addr_infos=addresses,
            happy_eyeballs_delay=_HAPPY_EYEBALLS_DELAY,
            interleave=1,
            loop=self.loop,
            socket_factory=self._sockets.open,
        )
        _, connection = await self.loop.create_connection(
            partial(HttpProtocol, route, self._read_buffer, self._forget),
            sock=opened,
            ssl=tls,
            server_hostname=None if tls is None else first.host,
        )
        try:
            # It may have been lost before this task ran again, and would never be forgotten.
            if connection.transport.is_closing():
                raise ConnectionResetError("the connection was closed at once")
            self._connections.add(connection)
            if route.tunnelled:
                await self._open_tunnel(connection, route, state)
        except BaseException:
            connection.abort()
            # asyncio does not tell a protocol that its connection ended in a handshake.
            self._forget(connection)
            raise
        return connection

    async def _open_tunnel(self, connection: HttpProtocol, route: Route, state: RequestState) -> None:
        """Let the proxy connect to the server, and begin TLS with that."""
        reply = _TunnelReply(self.loop.create_future())
        host = f"[{route.host}]" if ":" in route.host else route.host
        request = TransportRequest(method="CONNECT", url=route.origin)
        target = Target(route=route, written=f"{host}:{route.port}")
        connection.send(reply, "CONNECT", *self.head_cache.writes(target, request))
        status, reason = await reply.done or (0, "")
        if not status:
            raise transport_errors.connect_failed(None, state)
        if status not in range(200, 300):
            raise transport_errors.proxy_refused(state, status, reason)
        connection.receiver = None
        connection.transport = await self.loop.start_tls(
            connection.transport, connection, self._tls_context(), server_hostname=route.host
        )

    def _tls_context(self) -> ssl.SSLContext:
        self._tls = self._tls or default_context()
        return self._tls

    async def _resolve(self, host: str, port: int) -> list[Any]:
        """The addresses of a host; requests that ask at the same time share one look-up."""
        # Without a look-up, which takes a thread.
        if ":" in host:
            return [(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, 0, 0))]
        if host.rpartition(".")[2].isdecimal():
            return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
        key = (host, port)
        lookup = self._lookups.get(key)
        if lookup is None:
            found = self.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
            lookup = self._lookups[key] = self.loop.create_task(found)
            lookup.add_done_callback(partial(self._keep_addresses, key))
        # A caller that leaves does not end it for the others.
        addresses = await asyncio.shield(lookup)
        # The next connection begins with the next address.
        addresses[:] = addresses[1:] + addresses[:1]
        return addresses[-1:] + addresses[:-1]

    def _keep_addresses(self, key: tuple[str, int], lookup: asyncio.Task[list[Any]]) -> None:
        # Without a look at the exception, asyncio would log one that nobody has waited for.
        if lookup.cancelled() or lookup.exception() is not None:
            self._lookups.pop(key, None)
        else:
            self.loop.call_later(_ADDRESSES_KEPT_S, self._lookups.pop, key, None)

    async def close(self) -> None:
        """Abort all exchanges and close; waits until the sockets are closed."""
        self.close_soon()
        if self._connections:
            self._all_lost = self._all_lost or self.loop.create_future()
            await asyncio.shield(self._all_lost)
        # A connection that was being opened is closed some turns after its opening was cancelled; the loop may close next.
        for _ in range(_MAX_TURNS):
            if not self._sockets.any_open:
                break
            await asyncio.sleep(0)

    def close_soon(self) -> None:
        """Like `close` without waiting; called by the connector's own loop."""
        self.closed = True
        self.timeouts.close()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for lookup in list(self._lookups.values()):
            lookup.cancel()
        for limit in list(self._opening):
            with suppress(RuntimeError):  # it is expiring already
                limit.reschedule(0.0)
        for pool in self._routes.values():
            pool.idle.clear()
            while pool.waiters:
                waiter, _ = pool.waiters.popitem()
                if not waiter.done():
                    waiter.set_result(False)
        for connection in list(self._connections):
            receiver = connection.receiver
            if receiver is not None:
                receiver.lost(None)
            connection.abort()
        _run_without_waiting(self._loop_close_hook.aclose())

    def close_from_thread(self) -> None:
        """Close from another thread, or when the loop does not run: each connection ends as if the peer had closed it."""
        self._mark_closed()
        self._sockets.shutdown_all()

    def close_after_loop(self) -> None:
        """Close after the loop was closed."""
        connections = list(self._connections)
        self._mark_closed()
        for connection in connections:
            finish_transport(connection.transport)
        self._sockets.close_all()

    def detach_after_fork(self) -> None:
        """Give up all connections in a forked child, without closing them: they belong to the parent."""
        self._sockets.detach_all()
        self._mark_closed()

    def _mark_closed(self) -> None:
        """Look closed, without closing any connection."""
        self.closed = True
        for pool in self._routes.values():
            pool.idle.clear()
        self._connections.clear()
        _run_without_waiting(self._loop_close_hook.aclose())


@define(eq=False)
class _TunnelReply:
    """The proxy's response to CONNECT: its status and reason, None if there was none."""

    done: asyncio.Future[tuple[int, str] | None]

    def receive(self, parser: ResponseParser) -> None:
        """The head has arrived; what follows it belongs to nobody."""
        if not self.done.done():
            self.done.set_result((parser.status, parser.reason))

    def lost(self, error: BaseException | None) -> None:  # noqa: ARG002 - the reason is of no use to anyone
        """The proxy has answered something else than HTTP, or nothing."""
        if not self.done.done():
            self.done.set_result(None)


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

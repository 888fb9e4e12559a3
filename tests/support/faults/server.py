"""The fault server: it plays scripts over raw sockets and records its requests."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from attrs import evolve

from tests.support.faults.connection import Connection
from tests.support.faults.openai import answer_openai
from tests.support.faults.ports import HOST
from tests.support.faults.request import MalformedRequestError, Message, Request
from tests.support.faults.script import Playable, Reply, Script, StartTls, reply_of

WAIT_TIMEOUT = 10.0  # seconds of real time; only a failing test waits so long
BACKLOG = 4096
ACCEPT_TICKS = 3  # turns of the event loop between its accept and our `connection_made`


class FaultServer:
    """A server on loopback whose every byte the test decides.

    What it sends is found in this order: the script for the connection (`on_accept`, else `default_on_accept`) plays
    first; then each request takes the next reply given to `play`; when none is left, the `default` answers, which
    is an OpenAI-shaped provider unless `default` replaces it.

    Args:
        tls: serve TLS with this context, on every connection, before anything else.
        sleep: what timed steps wait on.
        clock: where `Request.time` is read.
        receive_buffer: bytes of the kernel's receive buffer; small makes the window close early.
        idle_close: seconds after an answer when a connection is closed: a number or a function that returns one.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        receive_buffer: int | None = None,
        idle_close: float | Callable[[], float] | None = None,
    ) -> None:
        self.sleep = sleep
        self.clock = clock
        self.idle_close = idle_close
        self.requests: list[Request] = []
        self.malformed_requests: list[str] = []
        self.connections = 0
        self._tls = tls
        self._receive_buffer = receive_buffer
        self._played: deque[Playable] = deque()
        self._default: Playable = answer_openai
        self._on_accept: deque[Script] = deque()
        self._default_on_accept: Script | None = None
        self._open: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._failures: list[Exception] = []
        self._anchor: socket.socket | None = None  # keeps the port ours while nothing listens on it
        self._listener: asyncio.Server | None = None

    def __repr__(self) -> str:
        state = "up" if self.up else "down"
        return (
            f"<FaultServer {self.base_url if self._anchor else 'closed'}: {state}, {len(self.requests)} requests on "
            f"{self.connections} connections, {self.open_connections} open, {len(self._played)} replies to play>"
        )

    # Life.

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
        if problem is None and self._failures:
            raise ExceptionGroup("the test's own responders or scripts failed", self._failures)

    async def start(self) -> None:
        """Listen, on the same port as before if there was one.

        Raises:
            TypeError: the running loop is not asyncio's own, on which resets and exact ends rely.
        """
        loop = asyncio.get_running_loop()
        if not isinstance(loop, asyncio.SelectorEventLoop):
            raise TypeError(f"run the fault server with serving(), not on {type(loop).__name__}")
        if self._anchor is None:
            self._anchor = _bound(0)
        listening = _bound(self.port)
        if self._receive_buffer is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        self._listener = await loop.create_server(lambda: Connection(self), sock=listening, backlog=BACKLOG)
        self._changed()

    async def stop(self, *, reset: bool = False) -> None:
        """Stop: refuse connections and end all open ones, as when a process is killed, or with RST; keep the port."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._changed()
        # A connection that the loop was just accepting comes in now and finds the server down.
        for _ in range(ACCEPT_TICKS):
            await asyncio.sleep(0)
        while self._open or self._tasks:
            self._end_all(reset=reset)
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        """Stop, release the port, and end every task."""
        await self.stop()
        if self._anchor is not None:
            self._anchor.close()
            self._anchor = None

    @property
    def up(self) -> bool:
        """Whether it accepts connections."""
        return self._listener is not None

    # Where it is.

    @property
    def port(self) -> int:
        """The port, the same for the whole life of the server."""
        assert self._anchor is not None, "the server was not started"
        port: int = self._anchor.getsockname()[1]
        return port

    @property
    def base_url(self) -> str:
        """Scheme, host and port, without a slash at the end."""
        return f"{'https' if self._tls else 'http'}://{HOST}:{self.port}"

    # What it does.

    def play(self, *replies: Playable) -> None:
        """Answer the next requests with these, one each, in the order of their arrival."""
        self._played.extend(replies)

    def default(self, reply: Playable) -> None:
        """Answer with this whenever nothing is left to play."""
        self._default = reply

    def on_accept(self, *scripts: Script) -> None:
        """Let the next connections start with these scripts, one each, before a request is read."""
        self._on_accept.extend(scripts)

    def default_on_accept(self, script: Script | None) -> None:
        """Let every other connection start with this script; None for none."""
        self._default_on_accept = script

    def drop_idle(self, *, reset: bool = False) -> int:
        """Close every idle connection at once and return their number: the keep-alive race.

        The FIN (or RST) has left when this returns. A client in the same event loop that sends now has not seen it.
        """
        idle = [connection for connection in self._open if not connection.busy]
        for connection in idle:
            connection.drop(reset=reset)
        return len(idle)

    # What it has seen.

    @property
    def open_connections(self) -> int:
        """The number of open connections, as far as this side can know."""
        return len(self._open)

    @property
    def unplayed(self) -> int:
        """The number of replies given to `play` that no request has used yet."""
        return len(self._played)

    async def wait_for(self, condition: Callable[[], bool], timeout: float = WAIT_TIMEOUT) -> None:
        """Wait until a condition on this server holds; it is checked after every event of this server.

        Raises:
            TimeoutError: it did not within `timeout` seconds; the text shows the server's state.
        """
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    future = asyncio.get_running_loop().create_future()
                    self._waiting.append(future)
                    await future
        except TimeoutError:
            raise TimeoutError(f"waited {timeout} s in vain at {self!r}") from None

    async def wait_requests(self, count: int) -> None:
        """Wait until `count` requests have arrived since the start."""
        await self.wait_for(lambda: len(self.requests) >= count)

    async def wait_connections(self, count: int) -> None:
        """Wait until `count` connections were accepted since the start."""
        await self.wait_for(lambda: self.connections >= count)

    async def wait_all_closed(self) -> None:
        """Wait until no connection is open."""
        await self.wait_for(lambda: not self._open)

    # The methods that its connections call (`Owner`).

    def opened(self, connection: Connection) -> Script | None:
        """Number a connection and give its first script."""
        self.connections += 1
        connection.number = self.connections
        self._open.add(connection)
        if not self.up:
            connection.abort()
            return None
        script = self._on_accept.popleft() if self._on_accept else self._default_on_accept
        self._changed()
        return self._secured(script)

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._open.discard(connection)
        self._changed()

    def arrived(self, message: Message, connection: Connection) -> Request:
        """Record a request."""
        request = Request(
            message.method,
            message.target,
            message.headers,
            message.body,
            connection=connection.number,
            nth=connection.served,
            time=self.clock(),
        )
        self.requests.append(request)
        self._changed()
        return request

    def malformed(self, problem: MalformedRequestError) -> None:
        """Record what is wrong with bytes that are no request."""
        self.malformed_requests.append(str(problem))
        self._changed()

    def choose(self, request: Request) -> Reply:
        """Take the next reply, or the default's."""
        return reply_of(self._played.popleft(), request) if self._played else self.default_reply(request)

    def default_reply(self, request: Request) -> Reply:
        """Return the default's reply."""
        return reply_of(self._default, request)

    def idle_seconds(self) -> float | None:
        """Draw the idle time after which a connection is closed."""
        return self.idle_close() if callable(self.idle_close) else self.idle_close

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine as a task that `stop` ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def failed(self, problem: Exception) -> None:
        """Keep an exception of the test's own code, to raise it at the end."""
        self._failures.append(problem)

    # Small things.

    def _end_all(self, *, reset: bool) -> None:
        for task in self._tasks:
            task.cancel()
        for connection in list(self._open):
            if reset:
                connection.drop(reset=True)
            connection.abort()

    def _secured(self, script: Script | None) -> Script | None:
        if self._tls is None:
            return script
        return evolve(script or Script([]), steps=(StartTls(self._tls), *(script.steps if script else ())))

    def _changed(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


def _bound(port: int) -> socket.socket:
    # SO_REUSEADDR lets the listener share the port with the anchor, which never listens.
    # With the protocol named, asyncio switches Nagle's algorithm off: each piece leaves when it is written.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    return bound

"""One request and its response on one connection of the pool.

An exchange is driven by callbacks of its event loop: the connection hands it the response, a timer its timeout, and it
hands on what comes of it, once. No task is involved, so the exchange belongs to no caller, and nobody's cancellation can
interrupt it; `abort` ends it. `PoolStream` is for callers that read the response while it arrives, and awaits it.

It writes to the connection that it is given, and reads the loop's clock. It belongs to one event loop and one request. It
shares with all exchanges of the loop the connector with its pool, its timer and its encoded heads, which hold keys; there
is no lock. Bodies are decompressed in the callbacks, also large ones, which delays other calls on the loop. `close` is
called on that loop, or from any thread once the loop is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

from llmopt.errors import ConnectionLost, InvalidResponse, LLMOptError
from llmopt.transport import errors as transport_errors
from llmopt.transport.body import ContentDecoder
from llmopt.transport.connector import Connector
from llmopt.transport.http1 import MalformedResponse, ResponseParser, TruncatedResponse
from llmopt.transport.protocol import HttpProtocol
from llmopt.transport.request import RequestState, TransportRequest
from llmopt.transport.stream import ResponseStream, new_decoder
from llmopt.transport.timers import Timeout
from llmopt.transport.urls import Target
from llmopt.values.http import HttpResponse
from llmopt.values.resources import out_of_resources

OnDone = Callable[[HttpResponse | LLMOptError], None]
T = TypeVar("T")
_PROXY_AUTHENTICATION: Final = 407
_MAX_UNREAD: Final = 256 * 1024
"""Bytes of a stream that nobody has read yet at which the server is made to wait."""


class Exchange(RequestState):
    """One request, and its whole response; see `ConnectionPool.try_send`.

    Args:
        connector: the connections of the running loop.
        target: where the request goes.
        request: the request.
        on_done: called with the response or the error, from a callback of the loop.
        on_part: called with each part of the response instead; None for the whole response.

    Attributes:
        connection: the connection that it uses, None before and afterwards.

    Raises:
        ConfigError: the request cannot be sent.
    """

    def __init__(
        self,
        connector: Connector,
        target: Target,
        request: TransportRequest,
        on_done: OnDone,
        on_part: Callable[[ResponseParser], None] | None = None,
    ) -> None:
        super().__init__(request, target.route.origin, target.route.proxy)
        self._connector: Final = connector
        self._target: Final = target
        self._on_done: Final = on_done
        self._on_part: Final = on_part
        self.connection: HttpProtocol | None = None
        self._decoder: ContentDecoder | None = None
        self._body: list[bytes] = []
        writes = None
        # The error is raised below, without this exception, which may hold the header.
        with suppress(ValueError):
            writes = connector.head_cache.writes(target, request)
        if writes is None:
            raise transport_errors.add_request_state(transport_errors.invalid_request(self), self)
        self._writes: Final = writes
        self._deadline = None if request.timeout is None else connector.loop.time() + request.timeout

    def take(self) -> HttpProtocol | None:
        """Return an idle connection that is usable now, None if there is none."""
        return self._connector.take(self._target.route)

    async def acquire(self) -> HttpProtocol:
        """Wait for a connection, within the timeout of the attempt; raises llmopt's error."""
        try:
            with Timeout(self._connector.timeouts, self._deadline):
                return await self._connector.acquire(self._target.route, self)
        except BaseException as error:
            failure = self._map_while_connecting(error)
            if failure is None:
                raise
        # Outside the except clause, so that no other exception becomes its context.
        raise failure

    def start(self, connection: HttpProtocol) -> None:
        """Send the request over a connection, which this releases at the end."""
        self.connection = connection
        self.reused = connection.served > 0
        self.phase = "wait"
        if self._deadline is not None:
            self._connector.timeouts.add(self, self._deadline)
        max_whole = 0 if self._on_part is not None else self.request.max_body
        connection.send(self, self.request.method, *self._writes, max_whole)

    def limit(self, seconds: float | None) -> None:
        """Replace the timeout by one that begins now, or by none."""
        self._connector.timeouts.remove(self)
        if seconds is not None and self.connection is not None:
            self._connector.timeouts.add(self, self._connector.loop.time() + seconds)

    def abort(self) -> None:
        """Close the connection, unless the exchange has ended; ``on_done`` is not called any more."""
        self.end(keep=False)

    def expire(self) -> None:
        """The timeout of the attempt is over."""
        if self._connector.timeouts.remove(self):
            self.fail(transport_errors.attempt_timeout(self))

    def receive(self, parser: ResponseParser) -> None:
        """More of the response has arrived."""
        if self.status is None:
            self.status, self.phase = parser.status, "read"
            forwarded = self.proxy is not None and not self._target.route.tunnelled
            if forwarded and self.status == _PROXY_AUTHENTICATION:
                self.fail(transport_errors.proxy_refused(self, self.status, parser.reason))
                return
        if self._on_part is not None:
            self._on_part(parser)
            return
        body, parser.body = parser.body, None
        if body is not None:
            self._succeed(parser, body, keep=parser.keep_alive)
        elif parser.buffer is None:
            self._decode(parser)

    def lost(self, error: BaseException | None) -> None:
        """The connection broke, or what arrived is no HTTP."""
        if self.connection is not None:
            self.response_started = self.connection.response_started
        self.fail(self._map_lost(error))

    def fail(self, error: LLMOptError) -> None:
        """End with an error."""
        if self.end(keep=False):
            if isinstance(error, ConnectionLost) and error.stale:
                # The server has closed its kept connections; a retry must not meet the next of them.
                self._connector.close_idle(self._target.route)
            self._on_done(transport_errors.add_request_state(error, self))

    def _decode(self, parser: ResponseParser) -> None:
        """Take a part of a body that is compressed, in chunks, an error's, or of unknown length."""
        try:
            decoder = self._decoder = self._decoder or new_decoder(
                parser.status, parser.headers, self.request
            )
            if data := parser.take():
                self._body.append(decoder.decode(data))
            if parser.complete:
                decoder.finish()
        except InvalidResponse as error:
            failure: LLMOptError = error.with_traceback(None)
        else:
            if parser.complete or decoder.stopped:
                # What stopped the decoder may have been damaged on the way.
                keep = parser.keep_alive and not decoder.stopped
                self._succeed(parser, b"".join(self._body), keep=keep, size=decoder.compressed_size)
            return
        self.fail(failure)

    def _succeed(self, parser: ResponseParser, body: bytes, *, keep: bool, size: int | None = None) -> None:
        if parser.complete:
            self.phase = "done"
        headers, status = parser.headers, parser.status
        self.end(keep=keep)
        self._on_done(
            HttpResponse(status=status, headers=headers, body=body, info=self.info(compressed_size=size))
        )

    def end(self, *, keep: bool) -> bool:
        """Give the connection back, to be kept or closed; whether there was one."""
        connection, self.connection = self.connection, None
        if connection is None:
            return False
        self._connector.timeouts.remove(self)
        # A server may answer before it has read the whole request; the rest of it would precede the next request.
        self._connector.release(connection, keep=keep and not connection.has_unsent_data)
        return True

    def _map_while_connecting(self, error: BaseException) -> LLMOptError | None:
        """Return llmopt's error, None for an exception that is raised unchanged, as a cancellation is."""
        if self._connector.closed and isinstance(error, Exception):
            # Before the mapping by type: a closed pool breaks connections in every possible way.
            failure: LLMOptError | None = transport_errors.pool_closed()
        elif isinstance(error, LLMOptError):
            failure = error
        # A TimeoutError with a number is the system's: the other machine does not respond.
        elif isinstance(error, TimeoutError) and error.errno is None:
            failure = transport_errors.attempt_timeout(self)
        # uvloop raises RuntimeError for a socket that it cannot use.
        elif isinstance(error, (OSError, RuntimeError)):
            failure = transport_errors.connect_failed(error if isinstance(error, OSError) else None, self)
        else:
            failure = out_of_resources(error, f"the request to {self.origin} could not be completed")
        return failure and transport_errors.add_request_state(failure, self)

    def _map_lost(self, error: BaseException | None) -> LLMOptError:
        if self._connector.closed:
            return transport_errors.pool_closed()
        if isinstance(error, MalformedResponse):
            return transport_errors.response_malformed(self)
        if isinstance(error, TruncatedResponse):
            return transport_errors.response_truncated(self)
        self.connection_error = error
        lacking = None
        if error is not None:
            # asyncio ends a connection for which its protocol found no memory.
            lacking = out_of_resources(error, f"the request to {self.origin} could not be completed")
        return lacking or transport_errors.connection_lost(self)


class PoolStream(ResponseStream):
    """The response of the pool as a stream, which collects what nobody has read yet."""

    def __init__(self, connector: Connector, target: Target, request: TransportRequest) -> None:
        self._exchange: Final = Exchange(connector, target, request, self._set_error, self._receive)
        super().__init__(self._exchange)
        self._loop: Final = connector.loop
        self._error: LLMOptError | None = None
        self._ended = False
        self._discarding = False
        self._unread: Final[list[bytes]] = []
        self._unread_size = 0
        self._waiter: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Send the request and wait for the head of the response, within the timeout of the attempt."""
        self._exchange.start(self._exchange.take() or await self._exchange.acquire())
        while not self.status:
            await self.run_step(self._wait())
        self.info = self._exchange.info()

    async def read_raw(self) -> bytes:
        """Return the next bytes of the body as received, b"" at its end."""
        while not self._unread and not self._ended:
            await self._wait()
        return self._take()

    async def read(self) -> bytes:
        """Return the next bytes of the body, decoded; b"" at its end.

        The same as `run_step` around `read_decoded`, with fewer coroutines for each of a stream's many chunks.
        """
        try:
            decoder = self._decoder = self._decoder or self._new_decoder()
            if decoder.passthrough:
                data = await self.read_raw()
                decoder.count(data)
            else:
                data = await self.read_decoded()
        except BaseException as error:
            self._close_after(error)
            raise
        if not data:
            self.close()
        return data

    async def run_step(self, step: Coroutine[Any, Any, T]) -> T:
        """Await a step; if it fails, close the stream."""
        try:
            return await step
        except BaseException as error:
            self._close_after(error)
            raise

    def close(self) -> None:
        """Stop reading. The connection is closed, unless the response has ended."""
        # A reader in another task gets the error.
        self._exchange.fail(transport_errors.connection_lost(self._exchange))

    def drain(self, seconds: float) -> None:
        """Discard the rest of the response and close at its end, after ``seconds`` at the latest.

        Most servers end a stream a moment after its last event. The reader of that event need not wait for the
        end, and the connection can still be reused.
        """
        self._discarding = True
        self._take()
        self._exchange.limit(seconds)

    def _receive(self, parser: ResponseParser) -> None:
        if not self.status:
            self.status, self.headers = parser.status, parser.headers
            # What follows has no timeout of its own.
            self._exchange.limit(None)
        data = parser.take()
        if data and not self._discarding:
            self._unread.append(data)
            self._unread_size += len(data)
        if parser.complete:
            self._ended = True
            self._exchange.end(keep=parser.keep_alive)
        elif self._unread_size > _MAX_UNREAD and self._exchange.connection is not None:
            self._exchange.connection.transport.pause_reading()
        self._wake()

    def _set_error(self, error: object) -> None:
        self._error = error if isinstance(error, LLMOptError) else None
        self._wake()

    async def _wait(self) -> None:
        """Wait until something has arrived; what arrived before an error is read first."""
        if self._error is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._error is not None and not self._unread:
            raise self._error

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _take(self) -> bytes:
        unread = self._unread
        data = unread[0] if len(unread) == 1 else b"".join(unread)
        unread.clear()
        if self._unread_size > _MAX_UNREAD and self._exchange.connection is not None:
            self._exchange.connection.transport.resume_reading()
        self._unread_size = 0
        return data

    def _close_after(self, error: BaseException) -> None:
        self.close()
        if isinstance(error, LLMOptError):
            transport_errors.add_request_state(error, self.state)

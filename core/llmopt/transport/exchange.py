"""One request and its response on one connection of the pool.

It awaits the network: it waits for a connection of the pool, which may have to be opened, writes to it and reads from
it. An exchange belongs to one event loop and one request; its timeouts are timers of that loop. It shares with all
exchanges of the loop the connector with its pool, its encoded heads (which hold keys) and its list of exchanges that
`drain` goes on reading after the caller has left; there is no lock. `close` is called on that loop, or from any thread
once the loop is closed, and reports the pool's size, which may call the user's listener. `LazyHeaders` may be read in a
worker thread; a module-level cache keeps 256 names of headers.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterator, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, EofStream

from llmopt.errors import ConnectionLost, LLMOptError
from llmopt.transport import errors as transport_errors
from llmopt.transport.connector import Connector
from llmopt.transport.protocol import HttpProtocol, send_request
from llmopt.transport.request import RequestState, TransportRequest
from llmopt.transport.stream import ResponseStream
from llmopt.transport.urls import Target
from llmopt.values.http import HttpResponse
from llmopt.values.resources import out_of_resources

if TYPE_CHECKING:
    from aiohttp import StreamReader
    from aiohttp.connector import Connection
    from multidict import CIMultiDictProxy


def map_aiohttp_exceptions(error: BaseException, state: RequestState) -> LLMOptError | None:
    """Return llmopt's error for an exception of aiohttp or of the system, None for one that is raised unchanged.

    A cancellation belongs to the caller and is raised unchanged, unless it is how aiohttp reports that the pool was
    closed. Exceptions of aiohttp must never be chained: they hold the request with its headers.
    """
    if isinstance(error, LLMOptError):
        return transport_errors.add_request_state(error, state)
    # Before the mapping by type: a closed pool breaks connections in every possible way.
    if state.pool_closed and _caused_by_close(error):
        return transport_errors.add_request_state(transport_errors.pool_closed(), state)
    mapped = _map_resources(error, state) or _map_exception(error, state)
    return None if mapped is None else transport_errors.add_request_state(mapped, state)


def _caused_by_close(error: BaseException) -> bool:
    """Whether closing the pool can be the cause: an exception, or a cancellation not requested for this task."""
    if not isinstance(error, asyncio.CancelledError):
        return isinstance(error, Exception)
    task = asyncio.current_task()
    # `Task.cancelling` counts requests to cancel; aiohttp cancels a waiter's future without such a request.
    return task is not None and not task.cancelling()


def _map_resources(error: BaseException, state: RequestState) -> LLMOptError | None:
    # The exceptions of a failed connection hold the system's error, and are mapped below.
    if state.connecting and isinstance(error, OSError):
        return None
    # asyncio ends a connection for which its protocol found no memory.
    return out_of_resources(
        state.connection_error or error, f"the request to {state.origin} could not be completed"
    )


def _map_exception(error: BaseException, state: RequestState) -> LLMOptError | None:
    # A TimeoutError with a number is the system's: the other machine does not respond.
    if isinstance(error, TimeoutError) and error.errno is None:
        return transport_errors.attempt_timeout(state)
    # SSLCertVerificationError is both: it belongs to the connection errors below.
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return transport_errors.invalid_request(state)
    return _map_while_connecting(error, state) if state.connecting else _map_after_connect(error, state)


def _map_after_connect(error: BaseException, state: RequestState) -> LLMOptError | None:
    if isinstance(error, HttpProcessingError):
        return transport_errors.response_malformed(state)
    if isinstance(error, aiohttp.ClientPayloadError) and state.connection_error is None:
        return transport_errors.response_truncated(state)
    # aiohttp raises RuntimeError when it reads from a closed connection.
    if isinstance(error, (aiohttp.ClientError, OSError, EofStream, RuntimeError)):
        return transport_errors.connection_lost(state)
    return None


def _map_while_connecting(error: BaseException, state: RequestState) -> LLMOptError | None:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return transport_errors.proxy_refused(state, error.status, error.message)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = error.certificate_error
        return transport_errors.connect_failed(reason if isinstance(reason, OSError) else None, state)
    if isinstance(error, aiohttp.ClientConnectorError):
        return transport_errors.connect_failed(error.os_error, state)
    if isinstance(error, aiohttp.ClientOSError) or not isinstance(error, OSError):
        from_aiohttp = isinstance(error, (aiohttp.ClientError, HttpProcessingError, RuntimeError))
        return transport_errors.connect_failed(None, state) if from_aiohttp else None
    return transport_errors.connect_failed(error, state)


class LazyHeaders(Mapping[str, str]):
    """Response headers with lower-case names and repeated values joined, computed on first use.

    The headers of most successful responses are never looked at.

    Args:
        raw: the headers as aiohttp's parser returns them.
    """

    __slots__ = ("_joined", "_raw")

    def __init__(self, raw: CIMultiDictProxy[str]) -> None:
        self._raw: Final = raw
        self._joined: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, str]:
        if self._joined is None:
            joined: dict[str, str] = {}
            for name, value in self._raw.items():
                key = _lower_name(name)
                if not value.isascii():
                    # Bytes that are not UTF-8 are lone surrogates here, which cannot be printed or stored.
                    value = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # noqa: PLW2901 - repaired
                joined[key] = f"{joined[key]}, {value}" if key in joined else value
            self._joined = joined
        return self._joined


@lru_cache(maxsize=256)
def _lower_name(name: str) -> str:
    # A server sends the same names each time; interned strings also compare by identity.
    return sys.intern(name.lower())


T = TypeVar("T")
_PROXY_AUTHENTICATION: Final = 407


class Exchange(ResponseStream):
    """One request and its response, from acquiring a connection to releasing or aborting it.

    It must be closed on every path with `close`, which is synchronous so that no cancellation can interrupt it.
    """

    def __init__(self, connector: Connector, target: Target, request: TransportRequest) -> None:
        super().__init__(RequestState(request, target.origin, target.proxy))
        self._connector: Final = connector
        self._target: Final = target
        self._connection: Connection | None = None
        self._protocol: HttpProtocol | None = None
        self._upload: asyncio.Task[None] | None = None
        self._payload: StreamReader | bytes = EMPTY_PAYLOAD
        self._complete = False

    async def open(self, *, buffered: bool = False) -> None:
        """Send the request and read the head of the response; ``buffered`` allows the fast path for a whole body."""
        state, request, connector = self.state, self.state.request, self._connector
        self._connection = connection = await connector.acquire(state, self._target)
        self._protocol = protocol = cast("HttpProtocol", connection.protocol)
        state.reused = protocol.served > 0
        protocol.start_request(state, buffered=buffered)
        state.phase = "send"
        # The head is not given a name: it holds the API key, and tracebacks can show local variables.
        self._upload = send_request(
            protocol, connector.head_cache.get(self._target, request), request.body, connector.loop
        )
        state.phase = "wait"
        message, self._payload = await protocol.read_head()
        state.phase = "read"
        self.status = state.status = message.code
        self.headers = LazyHeaders(message.headers)
        if self.status == _PROXY_AUTHENTICATION and state.proxy is not None and not self._target.tunnelled:
            raise transport_errors.proxy_refused(state, self.status, message.reason)

    async def fetch_head(self) -> None:
        """`open` within the timeout of the attempt."""
        with self._connector.timeouts.timeout(self.state.request.timeout):
            await self.open()
        self.info = self.state.info()

    async def fetch(self) -> HttpResponse:
        """Send the request and return the whole response, within the timeout. The caller calls `fail` on an error."""
        with self._connector.timeouts.timeout(self.state.request.timeout):
            await self.open(buffered=True)
            body = self._payload
            if isinstance(body, bytes):
                self._complete = True
            else:
                body = await self.read_body()
        self.close()
        return HttpResponse(
            status=self.status,
            headers=self.headers,
            body=body,
            info=self.state.info(compressed_size=self.compressed_size),
        )

    async def read_raw(self) -> bytes:
        """Return the next bytes of the body as received, b"" at its end."""
        data = await self._stream.readany()
        if not data:
            self._complete = True
        return data

    @property
    def _stream(self) -> StreamReader:
        return cast("StreamReader", self._payload)

    async def read(self) -> bytes:
        """Return the next bytes of the body, decoded; b"" at its end, which releases the connection.

        The same as `run_step` around `read_decoded`, with fewer coroutines for each of a stream's many chunks.
        """
        decoder = self._decoder = self._decoder or self._new_decoder()
        try:
            if decoder.passthrough:
                data = await self._stream.readany()
                decoder.count(data)
                self._complete = not data
            else:
                data = await self.read_decoded()
        except BaseException as error:
            failure = self.fail(error)
            if failure is None:
                raise
        else:
            if not data:
                self.close()
            return data
        raise failure

    async def run_step(self, step: Coroutine[Any, Any, T]) -> T:
        """Await a step of this exchange; if it fails, close the exchange and raise llmopt's error for it."""
        try:
            return await step
        except BaseException as error:
            failure = self.fail(error)
            if failure is None:
                raise
        # Outside the except clause, so that aiohttp's exception, which holds the headers, does not become its context.
        raise failure

    def close(self) -> None:
        """Release the connection if the whole response was read without error, else abort it."""
        connection, self._connection = self._connection, None
        protocol, upload = self._protocol, self._upload
        if connection is None or protocol is None:
            return
        # A server may answer before it has read the whole request; the rest of it would precede the next
        # request.
        if self._complete and not protocol.has_unsent_data and (upload is None or upload.done()):
            self.state.phase = "done"
            protocol.served += 1
            connection.release()
            return
        if not self._connector.closed:
            if upload is not None:
                upload.cancel()
            # Not close: that waits until the peer has read all data that is still to be sent.
            protocol.abort()
        connection.close()
        self._connector.report_size()

    def drain(self, seconds: float) -> None:
        """Discard the rest of the response and close at its end, after ``seconds`` at the latest.

        Most servers end a stream a moment after its last event. The reader of that event need not wait for the
        end, and the connection can still be reused.
        """
        # The end is often in the buffer already, together with the last event; then no timer is needed.
        if self._stream.is_eof():
            self._complete = True
            self.close()
        if self._connection is None:
            return
        loop, draining = self._connector.loop, self._connector.draining
        draining.add(self.close)

        def finish(*, complete: bool) -> None:
            timer.cancel()
            draining.discard(self.close)
            self._complete = self._complete or complete
            self.close()

        def at_end() -> None:
            # Later: the parser calls this, and releasing a connection asks the parser for its state.
            loop.call_soon(partial(finish, complete=True))

        timer = loop.call_later(seconds, partial(finish, complete=False))
        self._stream.on_eof(at_end)

    def fail(self, error: BaseException) -> LLMOptError | None:
        """Close after an error, and return llmopt's error for it, None for one that is raised unchanged."""
        self._complete = False
        state, protocol = self.state, self._protocol
        if protocol is not None:
            state.response_started, state.connection_error = protocol.response_started, protocol.lost_error
        state.pool_closed = self._connector.closed
        self.close()
        mapped = map_aiohttp_exceptions(error, state)
        if isinstance(mapped, ConnectionLost) and mapped.stale:
            # The server has closed its kept connections; a retry must not meet the next of them.
            self._connector.close_idle(self._connector.connection_key(self._target))
        return mapped

    def _length_limited(self, max_body: int) -> bool:
        declared = self.headers.get("content-length", "")
        if not declared.isdecimal() or int(declared) > max_body:
            return False
        # The parser limits the body to this length, so the socket need not be paused either.
        self._stream.set_read_chunk_size(int(declared) + 1)
        return True

"""Adapter to httpx: send requests over any httpx transport.

The only file of the core that imports httpx, besides the fakes of `llmopt.testing`, because that import is slow and
not always needed.

The network access is that of the httpx transport, which is the user's or a plugin's, and is awaited.
`HttpxSender` may run a request in a task of its own, which outlives a cancelled caller until it has ended; a response
that is closed early or drained is so in a background task. All requests of an endpoint share one `HttpxSender` and its
transport, without a lock: each event loop has its own set of tasks, and `aclose` cancels those of the running loop
only. Timeouts use the clock of the event loop; the transport is passed the same seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
from attrs import evolve

from llmopt import errors
from llmopt.errors import ConfigError, InvalidResponse
from llmopt.policies.tasks import TaskSet
from llmopt.transport import errors as transport_errors
from llmopt.transport.body import ACCEPT_ENCODING
from llmopt.transport.request import RequestState, TransportRequest
from llmopt.transport.stream import ResponseStream
from llmopt.transport.tls import default_context
from llmopt.transport.urls import proxy_for, request_origin
from llmopt.values.http import AttemptInfo, HttpResponse

if TYPE_CHECKING:
    import ssl

    from llmopt.config.resolve import Endpoint

T = TypeVar("T")


ATTEMPT_INFO: Final = "attempt_info"
"""The key of the `AttemptInfo` in the extensions of an httpx request and of its response."""


class TransportExchange(ResponseStream):
    """One request and its response over an httpx transport.

    Args:
        transport: the httpx transport.
        httpx_request: the request for it.
        state: how far the attempt has got.
        tasks: the set for the tasks of isolated steps.
        isolate: whether each step runs in such a task.

    ``info`` is what the transport reports about the attempt. Until it does, ``info.sent`` is "maybe".
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        httpx_request: httpx.Request,
        state: RequestState,
        tasks: TaskSet,
        *,
        isolate: bool,
    ) -> None:
        super().__init__(state)
        state.phase = "send"
        self._transport: Final = transport
        self._httpx_request: Final = httpx_request
        self._tasks: Final = tasks
        self._isolate: Final = isolate
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._step_running = False
        self._closing = False

    async def open(self) -> None:
        """Send the request and read the head of the response."""
        try:
            self._response = response = await self._transport.handle_async_request(self._httpx_request)
        finally:
            self._read_info(self._httpx_request.extensions)
        self._read_info(response.extensions)
        stream = response.stream
        if not hasattr(stream, "__aiter__"):
            raise ConfigError(
                f"{type(self._transport).__name__} returned a response whose body is not an asynchronous stream."
            )
        self._chunks = aiter(stream)
        self.state.phase = "read"
        self.status = self.state.status = response.status_code
        self.headers = dict(response.headers)

    def set_read_timeout(self, seconds: float | None) -> None:
        """Set the timeout between two chunks of the body, None for no limit; transports read it when they start the body."""
        self._httpx_request.extensions["timeout"]["read"] = seconds

    async def read_raw(self) -> bytes:
        """Return the next bytes of the body as received, b"" at its end."""
        while self._chunks is not None and not self._closing:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                break
            if chunk:
                return chunk
        return b""

    async def fetch(self) -> HttpResponse:
        """Send the request and return the whole response."""
        await self.open()
        body = await self.read_body()
        await self._close()
        info = (
            self.info
            if self.compressed_size is None
            else evolve(self.info, compressed_size=self.compressed_size)
        )
        return HttpResponse(status=self.status, headers=self.headers, body=body, info=info)

    async def run_step(self, step: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """Await a step with a timeout; if it fails, close the exchange and raise llmopt's error for it."""
        try:
            async with asyncio.timeout(seconds):
                # See httpcore#830, #961 and #1093: a cancelled request can take a slot of httpx's pool for
                # ever.
                return await (self._tasks.run(self._run_isolated(step)) if self._isolate else step)
        except (Exception, asyncio.CancelledError) as error:
            failure = map_httpx_exceptions(error, self.state)
            await self.aclose()
            if failure is None:
                raise
        # The transport's own report is more exact than what the phase tells.
        if self.info.sent != "maybe" and not isinstance(failure, InvalidResponse):
            failure.sent = self.info.sent
        raise failure

    async def aclose(self) -> None:
        """Close the response, now or when the current step has ended."""
        self._closing = True
        if not self._step_running and self._response is not None:
            await self._tasks.run(self._close())

    def close(self) -> None:
        """Like `aclose`, without waiting."""
        self._closing = True
        if not self._step_running and self._response is not None:
            self._tasks.start(self._close())

    def drain(self, seconds: float) -> None:
        """Discard the rest of the response in the background, for ``seconds`` at most, and close."""
        if self._response is not None:
            self._tasks.start(self._drain_and_close(seconds))

    async def _drain_and_close(self, seconds: float) -> None:
        # Many transports drop the connection if a response is closed before its end.
        with suppress(Exception):
            async with asyncio.timeout(seconds):
                while await self.read_raw():
                    pass
        await self._close()

    async def _run_isolated(self, step: Coroutine[Any, Any, T]) -> T:
        if self._closing:
            # A coroutine that is never awaited would cause a RuntimeWarning.
            step.close()
            raise asyncio.CancelledError
        self._step_running = True
        try:
            return await step
        finally:
            self._step_running = False
            if self._closing:
                await self._close()

    async def _close(self) -> None:
        response, self._response = self._response, None
        chunks, self._chunks = self._chunks, None
        # The response is read or given up; errors while closing it do not matter any more.
        with suppress(Exception):
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
        with suppress(Exception):
            if response is not None:
                await response.aclose()

    def _read_info(self, extensions: Mapping[str, Any]) -> None:
        info = extensions.get(ATTEMPT_INFO)
        if isinstance(info, AttemptInfo):
            self.info = info
            self.state.reused = info.reused


# For an isolated request without a timeout, which would else run for ever once its caller is gone.
_MAX_READ_TIMEOUT: Final = 600.0
_HTTPX_ERRORS: Final[tuple[tuple[type[BaseException], Callable[[RequestState], errors.LLMOptError]], ...]] = (
    # The first match is used: subclasses stand before their base classes.
    (httpx.UnsupportedProtocol, transport_errors.invalid_request),
    (httpx.LocalProtocolError, transport_errors.invalid_request),
    (httpx.InvalidURL, transport_errors.invalid_request),
    (httpx.ConnectTimeout, transport_errors.connect_timeout),
    (httpx.PoolTimeout, transport_errors.pool_timeout),
    (httpx.TimeoutException, transport_errors.attempt_timeout),
    (httpx.ProxyError, transport_errors.proxy_failed),
    (httpx.TransportError, transport_errors.connection_lost),
    (OSError, transport_errors.connection_lost),
)


class HttpxSender:
    """Sends requests over any httpx transport; the same methods as `ConnectionPool`.

    Args:
        transport: its ``handle_async_request`` is called; `aclose` closes it.
        isolate: whether a request runs in a task of its own, which continues when the caller is cancelled. None
            means only for httpx's own pool, which can lose a connection slot for ever when a request is
            cancelled; use True for a transport that wraps it.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, *, isolate: bool | None = None) -> None:
        self._transport: Final = transport
        is_httpx_pool = isinstance(transport, httpx.AsyncHTTPTransport)
        self._isolate: Final = is_httpx_pool if isolate is None else isolate
        self._tasks: Final = TaskSet()
        self._closed = False

    async def send(self, request: TransportRequest) -> HttpResponse:
        """Send a request and return the whole response; raises like `ConnectionPool.send`.

        Exceptions of the transport that come neither from httpx nor from the system are raised unchanged.
        """
        exchange = self._exchange(request)
        return await exchange.run_step(exchange.fetch(), request.timeout)

    async def open(self, request: TransportRequest) -> ResponseStream:
        """Send a request and return the response as a stream, like `ConnectionPool.open`."""
        exchange = self._exchange(request)
        await exchange.run_step(exchange.open(), request.timeout)
        exchange.set_read_timeout((request.idle_timeout or _MAX_READ_TIMEOUT) if self._isolate else None)
        return exchange

    async def aclose(self) -> None:
        """Cancel the running requests and close the transport."""
        if self._closed:
            return
        self._closed = True
        await self._tasks.aclose()
        await self._transport.aclose()

    def _exchange(self, request: TransportRequest) -> TransportExchange:
        if self._closed:
            raise transport_errors.pool_closed()
        # An isolated task is not cancelled with its caller, so it needs a timeout of its own.
        read = _MAX_READ_TIMEOUT if self._isolate and request.timeout is None else request.timeout
        state = RequestState(request, request_origin(request.url))
        try:
            httpx_request = _to_httpx_request(request, read)
        except (httpx.InvalidURL, UnicodeError):
            httpx_request = None
        if httpx_request is None:
            raise transport_errors.add_request_state(transport_errors.invalid_request(state), state)
        return TransportExchange(self._transport, httpx_request, state, self._tasks, isolate=self._isolate)

    def __repr__(self) -> str:
        return f"<HttpxSender over {type(self._transport).__name__}: {len(self._tasks)} running>"


def open_httpx_pool(
    endpoint: Endpoint, keepalive: float, tls: ssl.SSLContext | None
) -> httpx.AsyncHTTPTransport:
    """Return httpx's own transport for an endpoint, with the settings that the connection pool would have.

    Args:
        endpoint: names the size of the pool, and the origin that decides about a proxy of the environment.
        keepalive: seconds that an idle connection is kept, 0 for no reuse.
        tls: context for https, None for the system's certificate authorities.
    """
    proxy = proxy_for(endpoint.origin)
    headers = {"proxy-authorization": proxy.authorization} if proxy and proxy.authorization else None
    return httpx.AsyncHTTPTransport(
        verify=tls or default_context(),
        limits=httpx.Limits(
            max_connections=endpoint.pool_size,
            max_keepalive_connections=endpoint.pool_size if keepalive else 0,
            keepalive_expiry=keepalive,
        ),
        proxy=None if proxy is None else httpx.Proxy(proxy.url, headers=headers),
    )


def _to_httpx_request(request: TransportRequest, read: float | None) -> httpx.Request:
    defaults = {"accept": "*/*", "accept-encoding": ACCEPT_ENCODING, "user-agent": "llmopt"}
    names = {name.lower() for name in request.headers}
    times = {"connect": request.connect_timeout, "pool": request.pool_timeout, "read": read, "write": read}
    return httpx.Request(
        request.method,
        request.url,
        headers={**{name: value for name, value in defaults.items() if name not in names}, **request.headers},
        content=request.body,
        extensions={"timeout": times},
    )


def map_httpx_exceptions(error: BaseException, state: RequestState) -> errors.LLMOptError | None:
    """Return llmopt's error for an exception of an httpx transport, None for one that is raised unchanged."""
    error = next(_leaf_exceptions(error))
    # A transport over our own pool raises httpx's exception from llmopt's, which says more.
    for candidate in (error, error.__cause__):
        if isinstance(candidate, errors.LLMOptError):
            return transport_errors.add_request_state(candidate, state)
    mapped = _map_exception(error, state)
    return None if mapped is None else transport_errors.add_request_state(mapped, state)


def _map_exception(error: BaseException, state: RequestState) -> errors.LLMOptError | None:
    if isinstance(error, httpx.ConnectError):
        return transport_errors.connect_failed(_system_error(error), state)
    if isinstance(error, httpx.RemoteProtocolError):
        return _map_protocol_error(str(error), state)
    # A TimeoutError with a number is the system's ETIMEDOUT, mapped as an OSError below.
    if isinstance(error, TimeoutError) and error.errno is None:
        return transport_errors.attempt_timeout(state)
    return next((make(state) for kind, make in _HTTPX_ERRORS if isinstance(error, kind)), None)


def _map_protocol_error(text: str, state: RequestState) -> errors.LLMOptError:
    # httpx distinguishes these by their text only.
    if "disconnected" in text:
        return transport_errors.connection_lost(state)
    if "incomplete" in text or "without sending complete" in text:
        return transport_errors.response_truncated(state)
    return transport_errors.response_malformed(state)


def _leaf_exceptions(error: BaseException) -> Iterator[BaseException]:
    """An exception, or those inside an exception group: httpx lets some groups of anyio through."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaf_exceptions(inner)
    else:
        yield error


def _system_error(error: BaseException) -> OSError | None:
    """The system's error among the causes of an exception."""
    # httpx and httpcore wrap the system's error several times, and anyio adds exception groups.
    below = error.__cause__ or error.__context__
    for leaf in () if below is None else _leaf_exceptions(below):
        os_error = leaf if isinstance(leaf, OSError) and leaf.errno is not None else _system_error(leaf)
        if os_error is not None:
            return os_error
    return None

"""The engine: one request from a call to a value."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from llmopt.engine.endpoint import LiveEndpoint
from llmopt.engine.outcome import Parse, T, judge, request_id
from llmopt.engine.prepare import Prepared, prepare
from llmopt.errors import ClientClosed, DeadlineExceeded, LLMOptError
from llmopt.policies.deadline import Deadline
from llmopt.providers.provider import Provider
from llmopt.values.attempt import Attempt
from llmopt.values.calls import Call
from llmopt.values.http import HttpResponse

if TYPE_CHECKING:
    import httpx


class Engine:
    """Sends requests for one client and keeps what lives between them.

    Args:
        transport: the user's own httpx transport for all providers, None for the pool.
        now: the monotonic clock, in seconds.
    """

    def __init__(
        self, *, transport: httpx.AsyncBaseTransport | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._transport: Final = transport
        self._now: Final = now
        self._live: Final[dict[str, tuple[LiveEndpoint, ...]]] = {}
        self._closed = False

    def deadline(self, seconds: float | None) -> Deadline:
        """The moment so many seconds from now."""
        return Deadline.after(seconds, self._now)

    def endpoints(self, provider: Provider) -> tuple[LiveEndpoint, ...]:
        """A provider's endpoints, kept as long as the client."""
        live = self._live.get(provider.name)
        if live is None:
            live = tuple(
                LiveEndpoint(endpoint, provider.hooks, self._transport) for endpoint in provider.endpoints
            )
            self._live[provider.name] = live
        return live

    async def run(
        self,
        provider: Provider,
        call: Call,
        parse: Parse[T],
        *,
        deadline: Deadline,
        timeout: float | None,
        max_body: int,
    ) -> T:
        """Send a call and give its parsed answer.

        Args:
            provider: whom to ask.
            call: what to ask.
            parse: reads a 2xx answer.
            deadline: of the whole call.
            timeout: seconds for one attempt, None for no bound.
            max_body: the most bytes an unpacked answer may have.

        Raises:
            LLMOptError: with provider, model, endpoint and request id filled in.
        """
        endpoint = self.endpoints(provider)[0]
        started = self._now()
        response: HttpResponse | None = None
        try:
            self._check_open(deadline)
            settings = await endpoint.settings()
            prepared = prepare(provider.hooks.build_request(call, settings), settings)
            response = await self._send(endpoint, prepared, deadline, timeout, max_body)
            return judge(provider.hooks, call, response, settings, parse)
        except LLMOptError as error:
            _describe(error, endpoint, call, response, self._now() - started)
            raise

    async def _send(
        self,
        endpoint: LiveEndpoint,
        prepared: Prepared,
        deadline: Deadline,
        timeout: float | None,
        max_body: int,
    ) -> HttpResponse:
        from llmopt.wire.request import WireRequest

        request = WireRequest(
            method=prepared.method,
            url=prepared.url,
            headers=prepared.headers,
            body=prepared.body,
            connect_timeout=endpoint.config.timeouts.connect,
            pool_timeout=endpoint.config.timeouts.pool,
            timeout=timeout,
            max_body=max_body,
        )
        if not deadline.bounded:
            return await endpoint.wire.send(request)
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await endpoint.wire.send(request)
        except TimeoutError:
            raise _late("waiting for the answer") from None

    def _check_open(self, deadline: Deadline) -> None:
        if self._closed:
            raise ClientClosed("the client is closed; make a new one.")
        if deadline.expired():
            raise _late("before it was sent")

    async def aclose(self) -> None:
        """Close every connection. Calls made later raise `ClientClosed`."""
        self._closed = True
        for live in self._live.values():
            for endpoint in live:
                await endpoint.aclose()


def _late(phase: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"the deadline passed {phase}.", phase=phase)


def _describe(
    error: LLMOptError, endpoint: LiveEndpoint, call: Call, response: HttpResponse | None, seconds: float
) -> None:
    """Fill in what only this place knows."""
    error.provider = error.provider or endpoint.config.provider
    error.model = error.model or call.model or None
    error.endpoint = error.endpoint or endpoint.name
    if response is not None:
        error.request_id = error.request_id or request_id(response.headers)
    status = response.status if response is not None else None
    line = Attempt(endpoint=endpoint.name, outcome=type(error).__name__, status=status, seconds=seconds)
    error.attempts = (*error.attempts, line)

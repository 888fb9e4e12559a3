"""The engine: everything that lives between the requests of one client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Self

from llmopt.engine.endpoint import EndpointGroup, LiveEndpoint
from llmopt.engine.pipeline import Pipeline
from llmopt.engine.request import Request, StreamRequest
from llmopt.engine.responses import T
from llmopt.engine.singleflight import SingleFlight
from llmopt.engine.streaming import LiveStream, StreamPipeline
from llmopt.engine.telemetry import Telemetry
from llmopt.errors import ClientClosed
from llmopt.policies.circuit_breaker import CircuitBreakerRegistry, CircuitWaitQueue
from llmopt.policies.clock import Clock, Deadline, SystemClock
from llmopt.providers.registry import Provider
from llmopt.values.events import OnEvent

if TYPE_CHECKING:
    import httpx


# Calls under way, which end with the client: none of them sleeps on until its retry or its turn.
#
# As `asyncio.timeout` does it: the task is cancelled, and on its way out the cancellation becomes
# `ClientClosed`, unless somebody else wants the task cancelled too.


class ActiveCalls:
    """All calls of one client that are under way, on whatever event loop."""

    def __init__(self) -> None:
        self._calls: Final[set[_ActiveCall]] = set()

    def call(self) -> _ActiveCall:
        """One call, for as long as a ``with`` block lasts."""
        return _ActiveCall(self._calls)

    def end(self) -> None:
        """End all of them; each raises `ClientClosed`."""
        for call in tuple(self._calls):
            call.end()


class _ActiveCall:
    __slots__ = ("_calls", "_cancel_requests", "_ended", "_task")

    def __init__(self, calls: set[_ActiveCall]) -> None:
        self._calls = calls
        self._ended = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("llmopt must be called from a task of asyncio")
        self._task: asyncio.Task[object] = task
        self._cancel_requests = task.cancelling()
        self._calls.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._calls.discard(self)
        if not self._ended:
            return
        not_cancelled_otherwise = self._task.uncancel() <= self._cancel_requests
        if not_cancelled_otherwise and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise ClientClosed("the client was closed during the call.") from None

    def end(self) -> None:
        loop = self._task.get_loop()
        if not loop.is_closed():
            # Also from another loop's thread; on one's own it is a turn later.
            loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self in self._calls:
            self._ended = True
            self._task.cancel()


class Engine:
    """Sends the requests of one client.

    Args:
        transport: the user's own httpx transport for all providers, None for the pool.
        on_event: gets every event.
        clock: the time.

    Attributes:
        telemetry: where events leave.
        singleflight: what is under way, for callers that ask the same.
    """

    def __init__(
        self,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        on_event: OnEvent | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._transport: Final = transport
        self._clock: Final[Clock] = clock or SystemClock()
        self._no_deadline: Final = Deadline.after(None, self._clock.now)
        self.telemetry: Final = Telemetry(on_event)
        self._circuit_waiters: Final = CircuitWaitQueue(self._clock)
        self._breakers: Final = CircuitBreakerRegistry(
            now=self._clock.now,
            on_transition=self.telemetry.breaker_changed,
            on_probe_end=self._circuit_waiters.notify_all,
        )
        self.singleflight: Final = SingleFlight()
        self._active_calls: Final = ActiveCalls()
        self._groups: Final[dict[str, EndpointGroup]] = {}
        self._closed = False

    @property
    def clock(self) -> Clock:
        """The time."""
        return self._clock

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def deadline(self, seconds: float | None) -> Deadline:
        """The moment so many seconds from now."""
        return self._no_deadline if seconds is None else Deadline.after(seconds, self._clock.now)

    def endpoint_group(self, provider: Provider) -> EndpointGroup:
        """A provider's endpoints, kept as long as the client."""
        group = self._groups.get(provider.name)
        if group is None:
            live = tuple(
                LiveEndpoint(
                    endpoint,
                    provider.hooks,
                    self._transport,
                    breakers=self._breakers,
                    clock=self._clock,
                    telemetry=self.telemetry,
                )
                for endpoint in provider.endpoints
            )
            # Another loop's thread may have been quicker; nothing of this one was opened yet.
            group = self._groups.setdefault(
                provider.name, EndpointGroup(live, self._clock, self._circuit_waiters)
            )
        return group

    def endpoints(self, provider: Provider) -> tuple[LiveEndpoint, ...]:
        """The endpoints alone."""
        return self.endpoint_group(provider).endpoints

    async def run(self, provider: Provider, request: Request[T]) -> T:
        """Send a request and give its parsed answer; see `Pipeline`.

        Raises:
            ClientClosed: the client was closed before, or meanwhile.
            LLMOptError: with provider, model, endpoint, request id and all attempts filled in.
        """
        if self._closed:
            raise ClientClosed("the client is closed; make a new one.", provider=provider.name)
        with self._active_calls.call():
            return await Pipeline(self.endpoint_group(provider), request, self._clock, self.telemetry).run()

    async def open(self, provider: Provider, request: StreamRequest) -> LiveStream:
        """Send a request for a stream and wait for its first event; see `StreamPipeline`.

        Raises:
            ClientClosed: the client was closed before, or meanwhile.
            LLMOptError: with provider, model, endpoint, request id and all attempts filled in.
        """
        if self._closed:
            raise ClientClosed("the client is closed; make a new one.", provider=provider.name)
        with self._active_calls.call():
            return await StreamPipeline(
                self.endpoint_group(provider), request, self._clock, self.telemetry
            ).run()

    def stats(self) -> dict[str, Any]:
        """Counters and gauges of every endpoint in use, as plain values."""
        return {
            name: {endpoint.name: endpoint.stats() for endpoint in group.endpoints}
            for name, group in self._groups.items()
        }

    async def aclose(self) -> None:
        """Close every connection. Calls made later raise `ClientClosed`."""
        self._closed = True
        await self.singleflight.aclose()
        self._active_calls.end()
        for group in self._groups.values():
            for endpoint in group.endpoints:
                await endpoint.aclose()

"""The engine of one client: sends requests, and owns what outlives them (endpoints, circuits, shared calls).

The network is accessed by the transports of the endpoints, one of which may be the user's; `run`, `open` and `aclose`
await them. The first use of a provider makes its endpoints, which reads certificate files and calls a hook of the
plugin on the caller's thread, the event loop's (`llmopt.engine.endpoint`). All calls of a client share the engine,
also from event loops in several threads: there is no lock here, and shared dicts and sets are changed and copied by atomic
operations only. `aclose` asks the loop of each call to cancel it, without waiting for that; it awaits the end of
the running loop's shared calls. The clock is the one that is passed in, else the system's. Events go to the user's
listener (`llmopt.engine.telemetry`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

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
from llmopt.policies.tasks import require_asyncio
from llmopt.providers.registry import Provider
from llmopt.values.events import BreakerChanged, OnEvent

if TYPE_CHECKING:
    import httpx

    from llmopt.shared.sharing import Sharing


class Engine:
    """Sends the requests of one client.

    Args:
        transport: the user's httpx transport for all providers, None for the connection pool.
        on_event: the listener for all events.
        clock: the time.

    Attributes:
        telemetry: emits the events.
        singleflight: calls whose result several callers share.
        clock: the time.
        sharing: shares limits with other processes, None where nothing is shared.
        closed: whether the client was closed.
    """

    def __init__(
        self,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        on_event: OnEvent | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._transport: Final = transport
        self.clock: Final[Clock] = clock or SystemClock()
        self._no_deadline: Final = Deadline.after(None, self.clock.now)
        self.telemetry: Final = Telemetry(on_event)
        self._circuit_waiters: Final = CircuitWaitQueue(self.clock)
        self._breakers: Final = CircuitBreakerRegistry(
            now=self.clock.now,
            on_transition=self._circuit_changed,
            on_probe_end=self._circuit_waiters.notify_all,
        )
        self.sharing: Sharing | None = None
        self.singleflight: Final = SingleFlight()
        self._active_calls: Final[set[_ActiveCall]] = set()
        self._groups: Final[dict[str, EndpointGroup]] = {}
        self.closed = False

    def share(self, sharing: Sharing) -> None:
        """Share limits, pauses and open circuits with other processes. To be called before the first request."""
        self.sharing = sharing
        sharing.circuits = self._breakers

    def _circuit_changed(self, change: BreakerChanged) -> None:
        self.telemetry.breaker_changed(change)
        if self.sharing is not None:
            self.sharing.circuit_changed(change)

    def deadline(self, seconds: float | None) -> Deadline:
        """The deadline ``seconds`` from now; None: no deadline."""
        return self._no_deadline if seconds is None else Deadline.after(seconds, self.clock.now)

    def endpoint_group(self, provider: Provider) -> EndpointGroup:
        """The endpoints of a provider, which live as long as the client."""
        group = self._groups.get(provider.name)
        if group is None:
            live = tuple(
                LiveEndpoint(
                    endpoint,
                    provider.hooks,
                    self._transport,
                    breakers=self._breakers,
                    clock=self.clock,
                    telemetry=self.telemetry,
                    sharing=self.sharing,
                )
                for endpoint in provider.endpoints
            )
            # setdefault is atomic: an event loop in another thread may have been faster. Nothing was opened yet.
            group = self._groups.setdefault(
                provider.name, EndpointGroup(live, self.clock, self._circuit_waiters)
            )
        return group

    def endpoints(self, provider: Provider) -> tuple[LiveEndpoint, ...]:
        """The endpoints of a provider."""
        return self.endpoint_group(provider).endpoints

    def check_open(self, provider: Provider) -> None:
        """Refuse a call of this provider after the client was closed.

        Raises:
            ClientClosed: it was.
        """
        if self.closed:
            raise ClientClosed("the client is closed; make a new one.", provider=provider.name)

    async def run(
        self, provider: Provider, request: Request[T], make: Callable[..., Pipeline[T]] = Pipeline
    ) -> T:
        """Send a request and return its parsed response; see `Pipeline`, which ``make`` makes.

        Raises:
            ClientClosed: the client was closed before or during the call.
            LLMOptError: with provider, model, endpoint, request id and all attempts filled in.
        """
        self.check_open(provider)
        with _ActiveCall(self._active_calls):
            pipeline = make(self.endpoint_group(provider), request, self.clock, self.telemetry)
            if not pipeline.recorder.recording:
                return await pipeline.run()
            with pipeline.recorder.bound():
                return await pipeline.run()

    async def open(self, provider: Provider, request: StreamRequest) -> LiveStream:
        """Send a request for a stream and wait for its first event, as `run`; see `StreamPipeline`."""
        return await self.run(provider, request, StreamPipeline)

    def stats(self) -> dict[str, Any]:
        """Counters and gauges of every endpoint in use, as plain values."""
        return {
            name: {endpoint.name: endpoint.stats() for endpoint in group.endpoints}
            for name, group in tuple(self._groups.items())
        }

    async def aclose(self) -> None:
        """End all calls with `ClientClosed` and close every connection. Later calls raise `ClientClosed`."""
        self.closed = True
        await self.singleflight.aclose()
        for call in tuple(self._active_calls):
            call.end()
        for group in tuple(self._groups.values()):
            for endpoint in group.endpoints:
                await endpoint.aclose()


class _ActiveCall:
    """A call in progress, which ends with `ClientClosed` when the client is closed.

    As in `asyncio.timeout`, its task is cancelled, and the cancellation becomes the error on the way out unless
    the application has cancelled the task too. So no call sleeps on until its retry or its turn in a queue.

    Args:
        calls: the calls in progress, on any event loop.
    """

    __slots__ = ("_calls", "_cancel_requests", "_ended", "_task")

    def __init__(self, calls: set[_ActiveCall]) -> None:
        self._calls = calls
        self._ended = False

    def __enter__(self) -> None:
        try:
            task = asyncio.current_task()
        except RuntimeError:
            require_asyncio()
            raise
        if task is None:
            raise RuntimeError("llmopt must be called from an asyncio task")
        self._task: asyncio.Task[object] = task
        self._cancel_requests = task.cancelling()
        self._calls.add(self)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._calls.discard(self)
        if not self._ended:
            return
        only_ended = self._task.uncancel() <= self._cancel_requests
        if only_ended and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise ClientClosed("the client was closed during the call.") from None

    def end(self) -> None:
        """End the call soon, from any thread."""
        loop = self._task.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        # The call may have ended since.
        if self in self._calls:
            self._ended = True
            self._task.cancel()

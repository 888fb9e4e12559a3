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
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

from llmopt.engine.endpoint import EndpointGroup, LiveEndpoint
from llmopt.engine.pipeline import LaneAttempt, Pipeline
from llmopt.engine.request import Request, StreamRequest
from llmopt.engine.responses import T
from llmopt.engine.singleflight import SingleFlight
from llmopt.engine.steps import RequestSteps
from llmopt.engine.streaming import LiveStream, StreamPipeline
from llmopt.engine.telemetry import Telemetry
from llmopt.errors import ClientClosed
from llmopt.policies.circuit_breaker import CircuitBreakerRegistry, CircuitWaitQueue
from llmopt.policies.clock import Clock, Deadline, SystemClock
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
        self._active_calls: Final[dict[asyncio.Timeout, asyncio.AbstractEventLoop]] = {}
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

    def begin(self, provider: Provider, request: Request[T]) -> LaneAttempt[T]:
        """Begin a request without a coroutine; `finish` ends it, or `LaneAttempt.end`.

        Raises:
            ClientClosed: the client was closed.
        """
        self.check_open(provider)
        group = self.endpoint_group(provider)
        steps = RequestSteps(group, request, self.clock, self.telemetry)
        if steps.recording:
            steps.begin()
        first = LaneAttempt(steps, steps.admit(1))
        if group.endpoints[0].config.flags.lane and not isinstance(request, StreamRequest):
            first.start()
        return first

    async def finish(self, first: LaneAttempt[T], make: Callable[..., Pipeline[T]] = Pipeline) -> T:
        """The parsed response of a request that was begun; see `Pipeline`, which ``make`` makes. Raises as `run`."""
        # It expires only when the client is closed, so that no call sleeps on until its retry or its turn in a queue.
        # The cancellation becomes the error on the way out, unless the application has cancelled the task too.
        call = asyncio.timeout(None)
        try:
            async with call:
                self._active_calls[call] = asyncio.get_running_loop()
                try:
                    with first.steps.bound() if first.steps.recording else nullcontext():
                        return await make(first).run()
                finally:
                    del self._active_calls[call]
        except TimeoutError:
            if call.expired():
                raise ClientClosed("the client was closed during the call.") from None
            raise

    async def run(self, provider: Provider, request: Request[T]) -> T:
        """Send a request and return its parsed response.

        Raises:
            ClientClosed: the client was closed before or during the call.
            LLMOptError: with provider, model, endpoint, request id and all attempts filled in.
        """
        return await self.finish(self.begin(provider, request))

    async def open(self, provider: Provider, request: StreamRequest) -> LiveStream:
        """Send a request for a stream and wait for its first event, as `run`; see `StreamPipeline`."""
        return await self.finish(self.begin(provider, request), StreamPipeline)

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
        for call, loop in tuple(self._active_calls.items()):
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._end_call, call)
        for group in tuple(self._groups.values()):
            for endpoint in group.endpoints:
                await endpoint.aclose()

    def _end_call(self, call: asyncio.Timeout) -> None:
        # It may have ended since.
        if call in self._active_calls:
            call.reschedule(-math.inf)

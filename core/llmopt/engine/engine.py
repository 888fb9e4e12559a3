"""The engine: everything that lives between the requests of one client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmopt.engine.endpoint import LiveEndpoint
from llmopt.engine.fleet import Fleet
from llmopt.engine.flights import Flights
from llmopt.engine.live_stream import LiveStream
from llmopt.engine.outcome import T
from llmopt.engine.pipeline import Pipeline
from llmopt.engine.presence import Presence
from llmopt.engine.request import Request, StreamRequest
from llmopt.engine.streaming import StreamPipeline
from llmopt.engine.telemetry import Telemetry
from llmopt.errors import ClientClosed
from llmopt.policies.breaker_pair import Breakers
from llmopt.policies.clock import Clock, SystemClock
from llmopt.policies.deadline import Deadline
from llmopt.policies.recess import Recess
from llmopt.providers.provider import Provider
from llmopt.values.events import OnEvent

if TYPE_CHECKING:
    import httpx


class Engine:
    """Sends the requests of one client.

    Args:
        transport: the user's own httpx transport for all providers, None for the pool.
        on_event: gets every event.
        clock: the time.

    Attributes:
        telemetry: where events leave.
        flights: what is under way, for callers that ask the same.
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
        self._never: Final = Deadline.after(None, self._clock.now)
        self.telemetry: Final = Telemetry(on_event)
        self._recess: Final = Recess(self._clock)
        self._breakers: Final = Breakers(
            now=self._clock.now, on_change=self.telemetry.breaker, on_news=self._recess.over
        )
        self.flights: Final = Flights()
        self._presence: Final = Presence()
        self._fleets: Final[dict[str, Fleet]] = {}
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
        return self._never if seconds is None else Deadline.after(seconds, self._clock.now)

    def fleet(self, provider: Provider) -> Fleet:
        """A provider's endpoints, kept as long as the client."""
        fleet = self._fleets.get(provider.name)
        if fleet is None:
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
            fleet = self._fleets.setdefault(provider.name, Fleet(live, self._clock, self._recess))
        return fleet

    def endpoints(self, provider: Provider) -> tuple[LiveEndpoint, ...]:
        """The endpoints alone."""
        return self.fleet(provider).endpoints

    async def run(self, provider: Provider, request: Request[T]) -> T:
        """Send a request and give its parsed answer; see `Pipeline`.

        Raises:
            ClientClosed: the client was closed before, or meanwhile.
            LLMOptError: with provider, model, endpoint, request id and all attempts filled in.
        """
        if self._closed:
            raise ClientClosed("the client is closed; make a new one.", provider=provider.name)
        with self._presence.call():
            return await Pipeline(self.fleet(provider), request, self._clock, self.telemetry).run()

    async def open(self, provider: Provider, request: StreamRequest) -> LiveStream:
        """Send a request for a stream and wait for its first event; see `StreamPipeline`.

        Raises:
            ClientClosed: the client was closed before, or meanwhile.
            LLMOptError: with provider, model, endpoint, request id and all attempts filled in.
        """
        if self._closed:
            raise ClientClosed("the client is closed; make a new one.", provider=provider.name)
        with self._presence.call():
            return await StreamPipeline(self.fleet(provider), request, self._clock, self.telemetry).run()

    def stats(self) -> dict[str, Any]:
        """Counters and gauges of every endpoint in use, as plain values."""
        return {
            name: {endpoint.name: endpoint.stats() for endpoint in fleet.endpoints}
            for name, fleet in self._fleets.items()
        }

    async def aclose(self) -> None:
        """Close every connection. Calls made later raise `ClientClosed`."""
        self._closed = True
        await self.flights.aclose()
        self._presence.end()
        for fleet in self._fleets.values():
            for endpoint in fleet.endpoints:
                await endpoint.aclose()

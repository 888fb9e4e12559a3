"""What belongs to one endpoint while a client lives: its configuration and its way out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Container
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, evolve

from llmopt.config.credentials import CredentialSource
from llmopt.config.resolve import Endpoint
from llmopt.engine.endpoint_policies import EndpointPolicies
from llmopt.engine.request import CompressingTransport, RequestCompressor, RequestEncoder
from llmopt.engine.telemetry import EndpointMetrics, Telemetry
from llmopt.errors import CircuitOpen, ClientClosed
from llmopt.policies.circuit_breaker import CircuitBreakerRegistry, CircuitWaitQueue
from llmopt.policies.clock import Clock
from llmopt.policies.load_balancer import Candidate, LoadBalancer
from llmopt.providers.hooks import ProviderHooks
from llmopt.values.calls import BatchLimit, Call, Settings

if TYPE_CHECKING:
    import httpx

    from llmopt.transport.stream import RequestSender


class LiveEndpoint:
    """One endpoint in use.

    Args:
        endpoint: as configured.
        hooks: of the provider's plugin.
        transport: the user's own way out, instead of the plugin's or the pool.
        breakers: the client's circuits.
        clock: the time.
        telemetry: told of what happens.

    Attributes:
        hooks: of the provider's plugin.
        policies: the policies that watch over it.
        metrics: what was done there.
        encode_request: encodes requests to it.
        request_compressor: compresses request bodies, None where that is not wanted.
        server_limits: what the server told of its limits, by model; kept by `llmopt.operations.embed_batches`.
        limit_locks: held while it is asked.
        custom_transport: whether its requests may go through somebody else's code, which may itself call llmopt.

    Raises:
        ConfigError: the plugin's way to sign in cannot be used.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        hooks: ProviderHooks,
        transport: httpx.AsyncBaseTransport | None,
        *,
        breakers: CircuitBreakerRegistry,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._clock: Final = clock
        self.config: Final = _with_plugin_credential(endpoint, hooks)
        self.server_limits: Final[dict[str, BatchLimit]] = {}
        self.limit_locks: Final[dict[object, asyncio.Lock]] = {}
        self.hooks: Final = hooks
        self.metrics: Final = EndpointMetrics()
        self.encode_request: Final = RequestEncoder(compression=self.config.flags.compression)
        self.request_compressor: Final = self._compression(telemetry)
        self.policies: Final = EndpointPolicies(self.config, breakers, clock)
        self._client_transport: Final = transport
        self._telemetry: Final = telemetry
        self._opened_transport: RequestSender | None = None
        self._base_transport: RequestSender | None = None
        # A client may be used on several loops in several threads, and a second pool would be nobody's.
        self._opening: Final = threading.Lock()
        self._static_settings: Settings | None = None
        self.custom_transport = True
        self._closed = False

    @property
    def name(self) -> str:
        """Its origin, or the provider's name for an engine inside the process."""
        return self.config.origin or f"in-process:{self.config.provider}"

    @cached_property
    def settings_without_credential(self) -> Settings:
        """Its settings without a credential, for hooks that need none."""
        return self.config.settings(None)

    @property
    def static_settings(self) -> Settings | None:
        """Its settings where they stay the same, once they were asked for; None where they must be asked for."""
        return self._static_settings

    async def settings(self) -> Settings:
        """Its settings for one attempt, with the credential of this moment.

        Raises:
            ConfigError: a key is needed and there is none; the message says where to put it.
        """
        if self._static_settings is not None:
            return self._static_settings
        source = self.config.credential
        if not source.is_static:
            return self.config.settings(await source.get())
        self._static_settings = self.config.settings(source.static_secret())
        return self._static_settings

    @property
    def transport(self) -> RequestSender:
        """Its way out, opened at the first call.

        Raises:
            ClientClosed: it was closed; nobody would close a second one.
        """
        if self._closed:
            raise ClientClosed("the client is closed; make a new one.")
        if self._opened_transport is None:
            with self._opening:
                if self._opened_transport is None:
                    carrier = self._base_transport = self._open()
                    compression = self.request_compressor
                    self._opened_transport = (
                        carrier if compression is None else CompressingTransport(carrier, compression)
                    )
        return self._opened_transport

    def _compression(self, telemetry: Telemetry) -> RequestCompressor | None:
        config = self.config
        if not config.compress_requests or not config.flags.compression or config.in_process:
            return None
        return RequestCompressor(
            config, self.name, metrics=self.metrics, telemetry=telemetry, clock=self._clock
        )

    def _open(self) -> RequestSender:
        own = self.hooks.open_transport(self.settings_without_credential)
        chosen = own if own is not None else self._client_transport
        if chosen is not None:
            from llmopt.transport.httpx_transport import HttpxSender

            return HttpxSender(chosen)
        self.custom_transport = False
        from llmopt.transport.pool import ConnectionPool

        trace = self._telemetry.pool_trace(self.config.provider, self.name)
        keepalive = self.config.keepalive if self.config.flags.pooling else 0.0
        return ConnectionPool(pool_size=self.config.pool_size, keepalive=keepalive, trace=trace)

    def retry_in(self, call: Call, *, notified: bool = False) -> float | None:
        """Seconds until its circuits let a call through, None if they would now; see `CircuitBreaker.retry_in`."""
        circuits = self.policies.breakers(call)
        return None if circuits is None else circuits.retry_in(notified=notified)

    def stats(self) -> dict[str, Any]:
        """Counters and gauges as plain values: of its policies, and of its connections where it has some."""
        stats = {**self.metrics.stats(), **self.policies.stats()}
        compression = self.request_compressor
        enabled = compression is not None and compression.support.enabled
        stats["compression"] = {"on": enabled, **stats["compression"]}
        pool = getattr(self._base_transport, "stats", None)
        return stats if pool is None else {**stats, "connections": asdict(pool())}

    async def aclose(self) -> None:
        """Close the way out, if it was opened."""
        self._closed = True
        transport, self._opened_transport = self._opened_transport, None
        if transport is not None:
            await asyncio.shield(transport.aclose())


def _with_plugin_credential(endpoint: Endpoint, hooks: ProviderHooks) -> Endpoint:
    """The endpoint with the credentials that its plugin gives for it, where it gives any."""
    given = hooks.credential_provider(endpoint.settings(None))
    if given is None:
        return endpoint
    source = CredentialSource(endpoint.path, f"plugin {endpoint.plugin}", provider=given)
    return evolve(endpoint, credential=source)


# The endpoints of one provider entry, and which of them is asked next.


class EndpointGroup:
    """All endpoints of an entry.

    Args:
        endpoints: at least one.
        clock: the time.
        circuit_waiters: where those wait whose circuits are open.
    """

    def __init__(
        self, endpoints: tuple[LiveEndpoint, ...], clock: Clock, circuit_waiters: CircuitWaitQueue
    ) -> None:
        self.endpoints: Final = endpoints
        self.circuit_waiters: Final = circuit_waiters
        self._load_balancer: Final = LoadBalancer(
            [endpoint.config.weight for endpoint in endpoints], now=clock.now
        )

    @property
    def in_process(self) -> bool:
        """Whether requests stay inside this process."""
        return self.endpoints[0].config.in_process

    def choose(self, call: Call, tried: Container[int]) -> LiveEndpoint:
        """The endpoint for the next attempt: one that admits, the better of two, elsewhere first.

        Raises:
            CircuitOpen: all endpoints are given a rest; ``retry_after`` is the shortest.
            QuotaExhausted, AuthError: every endpoint that is not at rest has had its credential refused.
        """
        if len(self.endpoints) == 1:
            return self._single_endpoint(call)
        waits: list[float] = []
        candidates = []
        for index, endpoint in enumerate(self.endpoints):
            wait = endpoint.retry_in(call)
            if wait is not None:
                waits.append(wait)
            elif endpoint.policies.credential_error() is None:
                candidates.append(self._candidate(index, endpoint))
        if not candidates:
            raise self._unavailable_error(waits)
        if not self.endpoints[0].config.flags.balance:
            return self.endpoints[candidates[0].index]
        # One that asked for a pause, or whose rate is spent, would hold a request that another could take now.
        ready = [one for one in candidates if not self._is_paused(one.index, call)] or candidates
        free = [one for one in ready if self.endpoints[one.index].policies.rate_limiter(call).has_capacity]
        candidates = free or ready
        chosen = self._load_balancer.choose(candidates, tried)
        return self.endpoints[(chosen or candidates[0]).index]

    def has_alternative(self, endpoint: LiveEndpoint, call: Call, tried: Container[int] = ()) -> bool:
        """Whether another endpoint, not tried yet, would take the call now."""
        return len(self.endpoints) > 1 and any(
            other is not endpoint
            and index not in tried
            and other.retry_in(call) is None
            and other.policies.credential_error() is None
            and not self._is_paused(index, call)
            for index, other in enumerate(self.endpoints)
        )

    def _is_paused(self, index: int, call: Call) -> bool:
        return self.endpoints[index].policies.rate_limiter(call).paused > 0

    def retry_in(self, call: Call, *, notified: bool = False) -> float | None:
        """Seconds until one of the endpoints lets a call through, None if one would now."""
        waits = [endpoint.retry_in(call, notified=notified) for endpoint in self.endpoints]
        refusing = [wait for wait in waits if wait is not None]
        return min(refusing) if len(refusing) == len(waits) else None

    def record_latency(self, endpoint: LiveEndpoint, seconds: float) -> None:
        """An attempt at an endpoint took so long."""
        if len(self.endpoints) > 1:
            self._load_balancer.record_latency(endpoint.config.index, seconds)

    def _single_endpoint(self, call: Call) -> LiveEndpoint:
        endpoint = self.endpoints[0]
        refusal = endpoint.policies.credential_error()
        if refusal is not None:
            raise refusal.copy()
        wait = endpoint.retry_in(call)
        if wait is not None:
            raise self._unavailable_error([wait])
        return endpoint

    def _candidate(self, index: int, endpoint: LiveEndpoint) -> Candidate:
        line = endpoint.policies.concurrency()
        return Candidate(index, line.in_flight + line.waiting, line.limit)

    def _unavailable_error(self, waits: list[float]) -> Exception:
        if not waits:
            refusals = [endpoint.policies.credential_error() for endpoint in self.endpoints]
            return next(refusal.copy() for refusal in refusals if refusal is not None)
        retry_in = min(waits)
        return CircuitOpen(
            f"{self.endpoints[0].config.provider!r} failed repeatedly, and no request is sent to it for another "
            f"{retry_in:.1f} s. Try later, or pass when_open='wait'.",
            retry_after=retry_in,
        )

"""The endpoints in use: configuration, policies and transport of each, and the choice between those of one provider.

Opening a transport makes no connection. I/O happens in three places: the constructor reads the certificate files that the
configuration names, on the event loop of the first request; the transport, which may be the user's; and
`LiveEndpoint.settings`, which awaits the token provider of the user or plugin where there is one. All calls of a client share these objects,
also from event loops in several threads, so a lock guards the opening of a transport. The plugin's hooks
`credential_provider` and `open_transport` are called here. The first opening imports httptools or httpx. The clock is
passed in. With several endpoints the choice is partly random (`llmopt.policies.load_balancer`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, evolve

from llmopt.compatible.defaults import OptionalKeys
from llmopt.config.credentials import CredentialSource
from llmopt.config.resolve import Endpoint
from llmopt.engine.endpoint_policies import EndpointPolicies
from llmopt.engine.request import (
    MAX_BYTES_ON_LOOP,
    AnyResponse,
    RequestCompressor,
    RequestEncoder,
    RequestSigner,
)
from llmopt.engine.telemetry import EndpointMetrics, Telemetry
from llmopt.errors import Attempt, CircuitOpen, ClientClosed, LLMOptError, NotFound, PermissionDenied
from llmopt.policies.circuit_breaker import CircuitBreakerRegistry, CircuitWaitQueue
from llmopt.policies.clock import Clock
from llmopt.policies.load_balancer import Candidate, LoadBalancer
from llmopt.providers.hooks import ProviderHooks
from llmopt.values.calls import BatchLimit, Call, Settings

if TYPE_CHECKING:
    import ssl

    import httpx

    from llmopt.shared.sharing import Sharing
    from llmopt.transport.exchange import OnDone
    from llmopt.transport.request import TransportRequest
    from llmopt.transport.stream import RequestSender, ResponseStream
    from llmopt.values.http import HttpResponse

LACKS_MODEL: Final = (NotFound, PermissionDenied)
"""Errors of an endpoint that does not serve a model; its other models, and other endpoints, may be served."""


class LiveEndpoint:
    """One endpoint in use.

    Args:
        endpoint: as configured.
        hooks: of the provider's plugin.
        transport: the user's httpx transport, None for that of the plugin or the connection pool.
        breakers: all circuit breakers of the client.
        clock: the time.
        telemetry: gets the events.
        sharing: shares rate limits with other processes, None where nothing is shared.

    Attributes:
        config: the configuration, with the credential source of the plugin if it has one.
        hooks: of the provider's plugin.
        policies: retry budget, circuit breakers, limiters and timeouts of this endpoint.
        metrics: its counters.
        encode_request: turns requests of the plugin into bytes.
        optional_keys: keys of request bodies that it has refused, and that requests can do without.
        request_compressor: compresses request bodies, None where that is switched off.
        server_limits: batch limits that the server reported, by model; see `llmopt.operations.embed_batches`.
        limit_locks: each held while the server is asked for them.
        static_settings: the settings if they are the same for all attempts, None before `settings` was first awaited and
            where a function gives the credential.
        custom_transport: whether requests may go through code outside llmopt, which may itself call llmopt.

    Raises:
        ConfigError: the credential source of the plugin, or a file of certificates, cannot be used.
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
        sharing: Sharing | None = None,
    ) -> None:
        self.config: Final = _with_plugin_credential(endpoint, hooks)
        self.name: Final = endpoint.name
        self.hooks: Final = hooks
        self._tls: Final = _tls_context(self.config)
        self.policies: Final = EndpointPolicies(self.config, breakers, clock, sharing)
        self.metrics: Final = EndpointMetrics()
        self.encode_request: Final = RequestEncoder(compression=self.config.flags.compression)
        self.optional_keys: Final = OptionalKeys()
        self.request_compressor: Final = (
            RequestCompressor(
                config=endpoint, name=self.name, metrics=self.metrics, telemetry=telemetry, clock=clock
            )
            if endpoint.compress_requests and endpoint.flags.compression and not endpoint.in_process
            else None
        )
        self.server_limits: Final[dict[str, BatchLimit]] = {}
        self.limit_locks: Final[dict[object, asyncio.Lock]] = {}
        self.static_settings: Settings | None = None
        self.custom_transport = True
        self._client_transport: Final = transport
        self._telemetry: Final = telemetry
        self._signer: Final = RequestSigner(hooks.sign_request, clock.wall) if hooks.signs_requests else None
        self._transport: RequestSender | None = None
        # Event loops in several threads may use one client; of two pools, one would never be closed.
        self._opening: Final = threading.Lock()
        self._closed = False

    @cached_property
    def settings_without_credential(self) -> Settings:
        """The settings without a credential, for hooks that need none."""
        return self.config.settings(None)

    async def settings(self) -> Settings:
        """The settings for one attempt, with the current credential.

        Raises:
            ConfigError: a key is needed and there is none; the message says where to put it.
        """
        if self.static_settings is not None:
            return self.static_settings
        source = self.config.credential
        if not source.is_static:
            return self.config.settings(await source.get())
        self.static_settings = self.config.settings(source.static_secret())
        return self.static_settings

    @property
    def transport(self) -> RequestSender:
        """What sends the requests, opened when it is first needed.

        Raises:
            ClientClosed: the endpoint was closed.
        """
        if self._closed:
            raise ClientClosed("the client is closed; make a new one.")
        if self._transport is None:
            with self._opening:
                if self._transport is None:
                    self._transport = self._open()
        return self._transport

    def try_send(self, request: TransportRequest, on_done: OnDone) -> Any:
        """As `ConnectionPool.try_send`; None also where the request may have to be sent twice, or signed in a thread."""
        try_send: Any = getattr(self.transport, "try_send", None)
        large = len(request.body or b"") > MAX_BYTES_ON_LOOP
        if try_send is None or request.uncompressed_body is not None or (self._signer and large):
            return None
        return try_send(self._signer(request) if self._signer else request, on_done)

    async def send(self, request: TransportRequest) -> HttpResponse:
        """As `RequestSender.send`, signed where the plugin does that, and again if a compressed body is refused."""
        return await self._send(self.transport.send, request)

    async def open(self, request: TransportRequest) -> ResponseStream:
        """As `RequestSender.open`, likewise."""
        return await self._send(self.transport.open, request)

    async def _send(
        self, send: Callable[[TransportRequest], Awaitable[AnyResponse]], request: TransportRequest
    ) -> AnyResponse:
        plain, compressor = request.uncompressed_body, self.request_compressor
        # Signed last: a plain body that is sent after a refusal has another signature.
        signed = send if self._signer is None else partial(self._signer.send, send)
        if plain is None or compressor is None:
            return await signed(request)
        return await compressor.send(signed, request, plain)

    def _open(self) -> RequestSender:
        # A failure must not be what imports them: it may be that no descriptor is free.
        import html  # noqa: F401 - for error pages

        if self.config.flags.retry:
            import llmopt.policies.retry_loop  # noqa: F401
        of_plugin = self.hooks.open_transport(self.settings_without_credential)
        transport = of_plugin if of_plugin is not None else self._client_transport
        self.custom_transport = transport is not None
        keepalive = self.config.keepalive if self.config.flags.pooling else 0.0
        if transport is not None or self.config.transport == "httpx":
            # Imported here: httpx is slow to import, and a client needs one of the two.
            from llmopt.transport.httpx_transport import HttpxSender, open_httpx_pool

            return HttpxSender(transport or open_httpx_pool(self.config, keepalive, self._tls))
        from llmopt.transport.pool import ConnectionPool

        trace = self._telemetry.pool_trace(self.config.provider, self.name)
        return ConnectionPool(
            pool_size=self.config.pool_size, keepalive=keepalive, tls=self._tls, trace=trace
        )

    def retry_in(self, call: Call, *, notified: bool = False) -> float | None:
        """Seconds until its circuit breakers admit a call, None if they would now; see `CircuitBreaker.retry_in`."""
        circuits = self.policies.breakers(call)
        return None if circuits is None else circuits.retry_in(notified=notified)

    def admits(self, call: Call) -> bool:
        """Whether neither its circuits nor a refused credential keep a call back."""
        return self.retry_in(call) is None and self.policies.credential_error(call.model) is None

    def stats(self) -> dict[str, Any]:
        """Counters and gauges as plain values; ``connections`` of the connection pool only."""
        stats = {**self.metrics.stats(), **self.policies.stats()}
        compressor = self.request_compressor
        enabled = compressor is not None and compressor.support.enabled
        stats["compression"] = {"on": enabled, **stats["compression"]}
        pool = getattr(self._transport, "stats", None)
        return stats if pool is None else {**stats, "connections": asdict(pool())}

    async def aclose(self) -> None:
        """Close the transport, if it was opened."""
        self._closed = True
        transport, self._transport = self._transport, None
        if transport is not None:
            # A cancelled caller must not leave connections open.
            await asyncio.shield(transport.aclose())


def _tls_context(config: Endpoint) -> ssl.SSLContext | None:
    """The TLS context of an endpoint that names files of certificates; made before its first request."""
    if not (config.ca_file or config.client_cert):
        return None
    # Imported here: ssl is slow to import, and most configurations name no files.
    from llmopt.transport.tls import tls_context

    return tls_context(config)


def _with_plugin_credential(endpoint: Endpoint, hooks: ProviderHooks) -> Endpoint:
    """The endpoint with the credential source of its plugin, if the plugin has one for it."""
    provider = hooks.credential_provider(endpoint.settings(None))
    if provider is None:
        return endpoint
    source = CredentialSource(endpoint.path, f"plugin {endpoint.plugin}", provider=provider)
    return evolve(endpoint, credential=source)


def describe_failures(failures: Iterable[LLMOptError | Attempt]) -> str:
    """What failed at each endpoint, in one line."""
    return ", ".join(
        f"{each.endpoint}: {each.outcome if isinstance(each, Attempt) else type(each).__name__}: "
        f"{each.message.rstrip('.')}"
        for each in failures
    )


class EndpointGroup:
    """All endpoints of a provider entry, and the choice of one for each attempt.

    Args:
        endpoints: at least one.
        clock: the time.
        circuit_waiters: callers that wait for an open circuit, notified when one changes.

    Attributes:
        in_process: whether requests stay inside this process.
    """

    def __init__(
        self, endpoints: tuple[LiveEndpoint, ...], clock: Clock, circuit_waiters: CircuitWaitQueue
    ) -> None:
        self.endpoints: Final = endpoints
        self.circuit_waiters: Final = circuit_waiters
        self.in_process: Final = endpoints[0].config.in_process
        self._load_balancer: Final = LoadBalancer(
            [endpoint.config.weight for endpoint in endpoints], now=clock.now
        )

    def choose(self, call: Call, tried: Container[int]) -> LiveEndpoint:
        """The endpoint for the next attempt. Changes nothing: permits are acquired later.

        Args:
            call: what is asked for; circuits and rate limits are by model.
            tried: indices of the endpoints of earlier attempts, which are avoided.

        Raises:
            CircuitOpen: the circuits of all endpoints are open; ``retry_after`` is the shortest wait.
            QuotaExhausted, AuthError: the credential of every endpoint whose circuit is not open was refused.
        """
        if len(self.endpoints) > 1:
            return self._choose_from_several(call, tried)
        if not self.endpoints[0].admits(call):
            raise self._refusal(call)
        return self.endpoints[0]

    def _choose_from_several(self, call: Call, tried: Container[int]) -> LiveEndpoint:
        balanced = self.endpoints[0].config.flags.balance
        if balanced:
            # Nearly always both that are drawn may be asked, so that many endpoints cost no more than two.
            candidate = partial(self._candidate, call, tried)
            if (drawn := self._load_balancer.choose_of_two(candidate)) is not None:
                return self.endpoints[drawn.index]
        usable = [index for index in self._serving(call) if self.endpoints[index].admits(call)]
        if not usable:
            raise self._refusal(call)
        # A throttled endpoint, or one without rate limit left, would delay a request that another one could take now.
        ready = [index for index in usable if not self._is_paused(index, call)] or usable
        # Without balancing the order of the configuration is a list of fallbacks.
        if not balanced:
            return self.endpoints[next((index for index in ready if index not in tried), ready[0])]
        free = [index for index in ready if self.endpoints[index].policies.rate_limiter(call).has_capacity]
        loads = [self._load(index) for index in free or ready]
        return self.endpoints[self._load_balancer.choose(loads, tried).index]

    def _candidate(self, call: Call, tried: Container[int], index: int) -> Candidate | None:
        """An endpoint with its load, None if a request would not be sent at once, or was tried there."""
        endpoint = self.endpoints[index]
        policies = endpoint.policies
        if (
            index in tried
            or policies.is_set_aside(call)
            or not endpoint.admits(call)
            or not policies.rate_limiter(call).has_capacity
        ):
            return None
        return self._load(index)

    def _load(self, index: int) -> Candidate:
        limiter = self.endpoints[index].policies.concurrency.current()
        return Candidate(index, limiter.in_flight + limiter.waiting, limiter.limit)

    def _refusal(self, call: Call) -> LLMOptError:
        """The error when the circuit of each endpoint is open, or its credential refused."""
        waits = self._waits(call)
        if refusing := [wait for wait in waits if wait is not None]:
            return self._circuit_open(call, min(refusing))
        first, *others = self.failures(call)
        error = first.copy()
        if others:
            error.args = (f"{first.endpoint}: {first.message.rstrip('.')}; {describe_failures(others)}",)
        return error

    def _waits(self, call: Call, *, notified: bool = False) -> list[float | None]:
        return [self.endpoints[index].retry_in(call, notified=notified) for index in self._serving(call)]

    def _serving(self, call: Call) -> Sequence[int]:
        """The endpoints that are not set aside for a call; all of them where each one is."""
        serving = [
            index for index, endpoint in enumerate(self.endpoints) if not endpoint.policies.is_set_aside(call)
        ]
        return serving or range(len(self.endpoints))

    def _is_paused(self, index: int, call: Call) -> bool:
        return self.endpoints[index].policies.rate_limiter(call).pause_left > 0

    def _circuit_open(self, call: Call, retry_in: float) -> CircuitOpen:
        failures = self.failures(call)
        first = failures[0] if failures else None
        why = f"; {describe_failures(failures)}" if failures else ""
        error = CircuitOpen(
            f"{self.endpoints[0].config.provider!r} failed repeatedly{why}. No request is sent to it for another "
            f"{retry_in:.1f} s: try later, or pass when_open='wait'.",
            retry_after=retry_in,
            failure=first,
        )
        error.__cause__ = None if first is None else first.copy()
        return error

    def failures(self, call: Call) -> list[LLMOptError]:
        """Why the endpoints get no request: what opened their circuits, or refused their credentials."""
        failures = []
        for endpoint in self.endpoints:
            circuits = endpoint.policies.breakers(call)
            cause = None if circuits is None or circuits.retry_in() is None else circuits.cause
            if (failure := cause or endpoint.policies.credential_error(call.model)) is not None:
                failures.append(failure)
        return failures

    def has_alternative(
        self, endpoint: LiveEndpoint, call: Call, tried: Container[int] = (), *, paused: bool = False
    ) -> bool:
        """Whether another endpoint, not tried yet, would take the call.

        Args:
            endpoint: the one that the call cannot use.
            call: what is asked for.
            tried: indices of the endpoints of earlier attempts.
            paused: whether an endpoint counts that has to wait because the server has throttled it.
        """
        return len(self.endpoints) > 1 and any(
            other is not endpoint
            and index not in tried
            and other.admits(call)
            and not other.policies.is_set_aside(call)
            and (paused or not self._is_paused(index, call))
            for index, other in enumerate(self.endpoints)
        )

    def set_aside(self, endpoint: LiveEndpoint, call: Call, error: LLMOptError) -> bool:
        """Set an endpoint aside for the model of a call, if an error says that it does not serve that model.

        Of a single endpoint nothing is remembered: there is no other one to ask.

        Returns:
            Whether that is new.
        """
        several = len(self.endpoints) > 1
        return several and isinstance(error, LACKS_MODEL) and endpoint.policies.set_aside(call)

    def retry_in(self, call: Call, *, notified: bool = False) -> float | None:
        """Seconds until the circuits of one of the endpoints admit a call, None if one would now."""
        waits = self._waits(call, notified=notified)
        refusing = [wait for wait in waits if wait is not None]
        return min(refusing) if len(refusing) == len(waits) else None

    def record_success(self, endpoint: LiveEndpoint, call: Call, seconds: float) -> None:
        """Record a successful attempt, and how many seconds it took, for the choice among several."""
        self._load_balancer.record_latency(endpoint.config.index, seconds)
        endpoint.policies.readmit(call)

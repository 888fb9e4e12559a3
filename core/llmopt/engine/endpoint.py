"""What belongs to one endpoint while a client lives: its configuration and its way out."""

from __future__ import annotations

import asyncio
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

from attrs import asdict, evolve

from llmopt.config.credential import CredentialSource
from llmopt.config.endpoint import Endpoint
from llmopt.engine.counts import Counts
from llmopt.engine.guards import Guards
from llmopt.engine.packed_wire import PackedWire
from llmopt.engine.packing import Packing
from llmopt.engine.prepare import Preparer
from llmopt.engine.telemetry import Telemetry
from llmopt.errors import ClientClosed
from llmopt.policies.breaker_pair import Breakers
from llmopt.policies.clock import Clock
from llmopt.providers.hooks import ProviderHooks
from llmopt.values.calls import Call
from llmopt.values.http import HttpResponse
from llmopt.values.limits import BatchLimit
from llmopt.values.settings import Settings

if TYPE_CHECKING:
    import httpx

    from llmopt.wire.request import WireRequest
    from llmopt.wire.stream import WireStream


class Wire(Protocol):
    """Carries a request out and its answer back."""

    async def send(self, request: WireRequest) -> HttpResponse:
        """The whole answer, or a `TransportError` or `InvalidResponse`."""
        ...

    async def open(self, request: WireRequest) -> WireStream:
        """The head of the answer and a way to its body; raises as `send`."""
        ...

    async def aclose(self) -> None:
        """Let every connection go."""
        ...


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
        guards: the policies that watch over it.
        counts: what was done there.
        prepare: encodes requests to it.
        packing: packs their bodies, None where that is not wanted.
        told: what the server told of its limits, by model; kept by `llmopt.operations.limits`.
        asking: held while it is asked.
        foreign: whether its requests may go through somebody else's code, which may itself call llmopt.

    Raises:
        ConfigError: the plugin's way to sign in cannot be used.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        hooks: ProviderHooks,
        transport: httpx.AsyncBaseTransport | None,
        *,
        breakers: Breakers,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self.config: Final = _signed_in(endpoint, hooks)
        self.told: Final[dict[str, BatchLimit]] = {}
        self.asking: Final[dict[object, asyncio.Lock]] = {}
        self.hooks: Final = hooks
        self.counts: Final = Counts()
        self.prepare: Final = Preparer(compression=self.config.flags.compression)
        self.packing: Final = self._packing(telemetry)
        self.guards: Final = Guards(self.config, breakers, clock)
        self._clock: Final = clock
        self._transport: Final = transport
        self._telemetry: Final = telemetry
        self._wire: Wire | None = None
        self._carrier: Wire | None = None
        # A client may be used on several loops in several threads, and a second pool would be nobody's.
        self._opening: Final = threading.Lock()
        self._static: Settings | None = None
        self.foreign = True
        self._closed = False

    @property
    def name(self) -> str:
        """Its origin, or the provider's name for an engine inside the process."""
        return self.config.origin or f"in-process:{self.config.provider}"

    @cached_property
    def bare(self) -> Settings:
        """Its settings without a credential, for hooks that need none."""
        return self.config.settings(None)

    @property
    def fixed(self) -> Settings | None:
        """Its settings where they stay the same, once they were asked for; None where they must be asked for."""
        return self._static

    async def settings(self) -> Settings:
        """Its settings for one attempt, with the credential of this moment.

        Raises:
            ConfigError: a key is needed and there is none; the message says where to put it.
        """
        if self._static is not None:
            return self._static
        source = self.config.credential
        if not source.is_static:
            return self.config.settings(await source.get())
        self._static = self.config.settings(source.peek())
        return self._static

    @property
    def wire(self) -> Wire:
        """Its way out, opened at the first call.

        Raises:
            ClientClosed: it was closed; nobody would close a second one.
        """
        if self._closed:
            raise ClientClosed("the client is closed; make a new one.")
        if self._wire is None:
            with self._opening:
                if self._wire is None:
                    carrier = self._carrier = self._open()
                    packing = self.packing
                    self._wire = carrier if packing is None else PackedWire(carrier, packing, self._clock)
        return self._wire

    def _packing(self, telemetry: Telemetry) -> Packing | None:
        config = self.config
        if not config.compress_requests or not config.flags.compression or config.in_process:
            return None
        return Packing(config, self.name, counts=self.counts, telemetry=telemetry)

    def _open(self) -> Wire:
        own = self.hooks.open_transport(self.bare)
        chosen = own if own is not None else self._transport
        if chosen is not None:
            from llmopt.wire.seam import TransportWire

            return TransportWire(chosen)
        self.foreign = False
        from llmopt.wire.pool import ConnectionPool

        watch = self._telemetry.pool(self.config.provider, self.name)
        keepalive = self.config.keepalive if self.config.flags.pooling else 0.0
        return ConnectionPool(pool_size=self.config.pool_size, keepalive=keepalive, watch=watch)

    def rest(self, call: Call) -> float | None:
        """Seconds that it is still given a rest, None when it may be asked."""
        breakers = self.guards.breakers(call)
        return None if breakers is None else breakers.peek()

    def patience(self, call: Call) -> float | None:
        """As `rest`, for one who is woken when there are news."""
        breakers = self.guards.breakers(call)
        return None if breakers is None else breakers.patience()

    def stats(self) -> dict[str, Any]:
        """Counters and gauges as plain values: of its policies, and of its connections where it has some."""
        stats = {**self.counts.stats(), **self.guards.stats()}
        packing = self.packing is not None and self.packing.on
        stats["compression"] = {"on": packing, **stats["compression"]}
        pool = getattr(self._carrier, "stats", None)
        return stats if pool is None else {**stats, "connections": asdict(pool())}

    async def aclose(self) -> None:
        """Close the way out, if it was opened."""
        self._closed = True
        wire, self._wire = self._wire, None
        if wire is not None:
            await asyncio.shield(wire.aclose())


def _signed_in(endpoint: Endpoint, hooks: ProviderHooks) -> Endpoint:
    """The endpoint with the credentials that its plugin gives for it, where it gives any."""
    given = hooks.credential_provider(endpoint.settings(None))
    if given is None:
        return endpoint
    source = CredentialSource(endpoint.path, f"plugin {endpoint.plugin}", provider=given)
    return evolve(endpoint, credential=source)

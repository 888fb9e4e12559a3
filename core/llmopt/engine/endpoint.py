"""What belongs to one endpoint while a client lives: its configuration and its way out."""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING, Final, Protocol

from llmopt.config.endpoint import Endpoint
from llmopt.providers.hooks import ProviderHooks
from llmopt.values.http import HttpResponse
from llmopt.values.settings import Settings

if TYPE_CHECKING:
    import httpx

    from llmopt.wire.request import WireRequest


class Wire(Protocol):
    """Carries a request out and its answer back."""

    async def send(self, request: WireRequest) -> HttpResponse:
        """The whole answer, or a `TransportError` or `InvalidResponse`."""
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
    """

    def __init__(
        self, endpoint: Endpoint, hooks: ProviderHooks, transport: httpx.AsyncBaseTransport | None
    ) -> None:
        self.config: Final = endpoint
        self._hooks: Final = hooks
        self._transport: Final = transport
        self._wire: Wire | None = None
        self._static: Settings | None = None

    @property
    def name(self) -> str:
        """Its origin, or the provider's name for an engine inside the process."""
        return self.config.origin or f"in-process:{self.config.provider}"

    @cached_property
    def bare(self) -> Settings:
        """Its settings without a credential, for hooks that need none."""
        return self.config.settings(None)

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
        """Its way out, opened at the first call."""
        if self._wire is None:
            self._wire = self._open()
        return self._wire

    def _open(self) -> Wire:
        own = self._hooks.open_transport(self.bare)
        chosen = own if own is not None else self._transport
        if chosen is not None:
            from llmopt.wire.seam import TransportWire

            return TransportWire(chosen)
        from llmopt.wire.pool import ConnectionPool

        return ConnectionPool(pool_size=self.config.pool_size, keepalive=self.config.keepalive)

    async def aclose(self) -> None:
        """Close the way out, if it was opened."""
        wire, self._wire = self._wire, None
        if wire is not None:
            await asyncio.shield(wire.aclose())

"""A way out on which a packed body that is refused is followed by the same unpacked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import evolve

from llmopt.engine.packing import ENCODING, Packing
from llmopt.policies.clock import Clock
from llmopt.values.http import HttpResponse
from llmopt.wire.request import WireRequest
from llmopt.wire.stream import WireStream

if TYPE_CHECKING:
    from llmopt.engine.endpoint import Wire

_DRAIN_S: Final = 0.1


class PackedWire:
    """A wire that sends again, unpacked and at once, what the server may have refused for being packed.

    Both sendings are one attempt and have its time-out together. Nobody else hears of the first.

    Args:
        wire: what carries the requests.
        packing: decides.
        clock: the time.
    """

    def __init__(self, wire: Wire, packing: Packing, clock: Clock) -> None:
        self._wire: Final = wire
        self._clock: Final = clock
        self._packing: Final = packing

    async def send(self, request: WireRequest) -> HttpResponse:
        """As that of the wire."""
        unpacked = request.unpacked
        if unpacked is None:
            return await self._wire.send(request)
        started = self._begin(request, unpacked)
        answer = await self._wire.send(request)
        if not self._packing.doubts(answer.status, len(unpacked)):
            return answer
        again = await self._wire.send(self._plain(request, unpacked, started))
        self._packing.compare(answer.status, again.status)
        return again

    async def open(self, request: WireRequest) -> WireStream:
        """As that of the wire."""
        unpacked = request.unpacked
        if unpacked is None:
            return await self._wire.open(request)
        started = self._begin(request, unpacked)
        stream = await self._wire.open(request)
        if not self._packing.doubts(stream.status, len(unpacked)):
            return stream
        stream.drain(_DRAIN_S)
        again = await self._wire.open(self._plain(request, unpacked, started))
        self._packing.compare(stream.status, again.status)
        return again

    async def aclose(self) -> None:
        """Close the wire."""
        await self._wire.aclose()

    def _begin(self, request: WireRequest, unpacked: bytes) -> float:
        self._packing.sending(len(unpacked), len(request.body or b""))
        return self._clock.now()

    def _plain(self, request: WireRequest, unpacked: bytes, started: float) -> WireRequest:
        headers = {name: value for name, value in request.headers.items() if name != ENCODING}
        left = request.timeout
        if left is not None:
            left = max(0.0, left - (self._clock.now() - started))
        return evolve(request, headers=headers, body=unpacked, unpacked=None, timeout=left)

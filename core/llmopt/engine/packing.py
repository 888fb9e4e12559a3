"""Packed request bodies of one endpoint: made once per request, taken back where the server does not understand them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import evolve

from llmopt.config.endpoint import Endpoint
from llmopt.engine.counts import Counts
from llmopt.engine.prepare import Prepared
from llmopt.engine.telemetry import Telemetry
from llmopt.policies.packing import PackingTrust
from llmopt.values.events import RequestCompression
from llmopt.wire.packing import LEAST, pack

ENCODING: Final = "content-encoding"


class Packing:
    """Packs what goes to one endpoint, as long as it takes that.

    Args:
        endpoint: as configured.
        name: what it is called in events.
        counts: of what was done there.
        telemetry: told of what happens.
    """

    def __init__(self, endpoint: Endpoint, name: str, *, counts: Counts, telemetry: Telemetry) -> None:
        self._provider: Final = endpoint.provider
        self._name: Final = name
        self._counts: Final = counts
        self._telemetry: Final = telemetry
        self._trust: Final = PackingTrust()
        self._headers: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})

    @property
    def on(self) -> bool:
        """Whether bodies go out packed."""
        return self._trust.on

    async def pack(self, prepared: Prepared, before: Prepared | None, model: str) -> Prepared:
        """The request with its body packed, if that is long enough.

        Args:
            prepared: the request.
            before: as it went out in an attempt before; what was packed for that is not packed again.
            model: of its call.
        """
        body = prepared.body
        if body is None or len(body) < LEAST or not self._trust.on or _encoded(prepared):
            return prepared
        if before is not None and before.unpacked == body and before.body is not None:
            packed = before.body
        else:
            packed = await pack(body)
            self._tell(model, len(body), len(packed))
        if len(packed) >= len(body):
            return prepared
        if self._headers[0] is not prepared.headers:
            # The same object for the same headers, so that their head is not written anew for each request.
            self._headers = (prepared.headers, {**prepared.headers, ENCODING: "gzip"})
        return evolve(prepared, headers=self._headers[1], body=packed, unpacked=body)

    def _tell(self, model: str, size: int, sent: int) -> None:
        if self._telemetry.on:
            self._telemetry.emit(
                RequestCompression(
                    provider=self._provider, model=model, endpoint=self._name, size=size, sent=sent
                )
            )

    def sending(self, size: int, sent: int) -> None:
        """A body of ``size`` bytes goes out as ``sent`` bytes."""
        self._counts.packed += 1
        self._counts.saved_sent += size - sent

    def doubts(self, status: int, size: int) -> bool:
        """Whether what was answered so is sent again as it was before packing: a body of ``size`` bytes."""
        if not self._trust.doubts(status):
            return False
        self._counts.requests += 1
        self._counts.packed_refused += 1
        self._counts.saved_sent -= size
        return True

    def compare(self, packed: int, plain: int) -> None:
        """It had one status packed and one as it was."""
        if self._trust.compare(packed, plain):
            self._telemetry.unpacked(self._provider, self._name, packed)


def _encoded(prepared: Prepared) -> bool:
    return any(name.lower() == ENCODING for name in prepared.headers)
